"""The report's script on a bare page, with a stand-in for plotly.js: what is drawn when, and what a click opens."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import Any

import pytest

pytestmark = pytest.mark.browser

PLOT = '<div class="plot" data-figure="{}" data-height="40" role="img"></div>'
HEAT = {"type": "heatmap", "z": [[1, 2], [3, 4]], "colorscale": [[0, "#000000"], [1, "#ffffff"]]}
CONTENT = {
    "html": (
        '<nav><button type="button" data-pick="evil"></button></nav><div data-trait="evil" hidden>'
        f'{PLOT.format("heat")}<q data-id="b&amp;" data-at="12">He <b>said</b> so.</q>'
        f"<details><summary>More</summary>{PLOT.format('prompts')}</details></div>{PLOT.format('plain')}"
    ),
    "figures": {
        "heat": {"data": [HEAT], "layout": {"meta": {"order": [1, 0], "config": "run"}}},
        "prompts": {"data": [{"type": "scatter"}], "layout": {"meta": {"prompts": ["a", "b&"]}}},
        "plain": {"data": [{"type": "scatter"}], "layout": {}},
    },
    "traits": ["evil"],
    "tokens": {"run": [["x", "y"], ["v", "w"]]},
    "ids": {"run": ["a", "b&"]},
    "positions": {"run": [5, [7, 9]]},
}


@pytest.fixture
def report(open_page: Callable[..., Any]) -> Callable[..., Any]:
    """Mounts the report; `opens`: as where replies can be opened."""
    script = files("persona_core.report").joinpath("static", "report.js").read_text(encoding="utf-8")

    def report_(opens: bool) -> Any:
        page = open_page("about:blank")
        page.add_script_tag(content=script)
        page.evaluate(
            """([content, opens]) => {
              Object.assign(window, { drawn: [], data: {}, clicks: {}, opened: [], asked: 0 });
              const library = { purge() {}, react(node, data) {
                drawn.push(node.dataset.figure);
                window.data[node.dataset.figure] = data;
                node.on = (_, f) =>
                  (clicks[node.dataset.figure] = (x, y, k) => f({ points: [{ x, y, pointNumber: k }] }));
              } };
              const root = document.createElement("div");
              document.body.append(root);
              mountReport(root, content, {
                plotly() { asked += 1; return Promise.resolve(library); },
                ...(opens && {
                  address: ({ id, trait, at }) => "#" + new URLSearchParams({ id, trait, at }),
                  onOpen: (place) => opened.push(place),
                }),
              });
            }""",
            [CONTENT, opens],
        )
        page.wait_for_function("drawn.includes('heat') && drawn.includes('plain')")
        return page

    return report_


def test_a_folded_figure_is_drawn_when_it_is_unfolded(report: Callable[..., Any]) -> None:
    page = report(opens=False)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_timeout(100)
    assert page.evaluate("drawn.includes('prompts')") is False and page.evaluate("asked") == 1
    page.locator("summary").click()
    page.wait_for_function("drawn.includes('prompts')")


def test_a_theme_that_changed_meanwhile_is_that_of_an_unfolded_figure(report: Callable[..., Any]) -> None:
    page = report(opens=False)
    page.locator("summary").click()
    page.wait_for_function("drawn.includes('prompts')")
    page.locator("summary").click()
    page.evaluate("drawn.length = 0; document.body.classList.add('dark')")
    page.wait_for_function("drawn.includes('heat')")
    assert page.evaluate("drawn.includes('prompts')") is False
    page.locator("summary").click()
    page.wait_for_function("drawn.includes('prompts')")


def test_a_token_a_dot_and_a_sentence_open_their_reply(report: Callable[..., Any]) -> None:
    page = report(opens=True)
    page.locator("summary").click()
    page.wait_for_function("'prompts' in clicks")
    assert page.evaluate("Object.keys(clicks).sort()") == ["heat", "prompts"], "and no other figure"
    page.evaluate("clicks.heat(1, 0); clicks.heat(-1, 0); clicks.heat(1, 1); clicks.prompts(0.3, 0.2, 1)")
    page.locator("q a").click()
    assert page.evaluate("opened") == [
        {"id": "b&", "at": 9, "trait": "evil"},
        {"id": "b&", "at": 7, "trait": "evil"},  # before the reply: its first token
        {"id": "a", "at": 6, "trait": "evil"},
        {"id": "b&", "trait": "evil"},
        {"id": "b&", "at": 12, "trait": "evil"},
    ]
    assert page.locator("q a").get_attribute("href") == "#id=b%26&trait=evil&at=12"
    assert page.locator("q a b").inner_text() == "said"


def test_where_no_reply_can_be_opened_there_is_no_link_and_ids_are_escaped_for_plotly(
    report: Callable[..., Any],
) -> None:
    page = report(opens=False)
    assert page.locator("a").count() == 0 and page.evaluate("Object.keys(clicks)") == []
    assert page.evaluate("data.heat[0].customdata") == [["b&#38;", "b&#38;"], ["a", "a"]]
    assert page.evaluate("data.heat[0].text") == [["v", "w"], ["x", "y"]]
