"""The token view in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from persona_core.pages.view import PLOTLY_JS
from persona_core.token_view import (
    script,
    standalone_page,
    styles,
    template,
)
from tests import pages
from tests.standins import HOSTILE, TRAITS, Payload, cut, make_payload, words

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with pages.chromium() as running:
        yield running


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens local files as pages; afterwards they must have been silent and have asked for nothing else."""
    opened = pages.Pages(chromium, ("file:",))
    yield opened.open
    opened.close()


@pytest.fixture
def show(open_page: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Shows a payload in a bare page that leaves the view in `window.view` and loads plotly.js by its address."""

    def show_(payload: Payload | None, *, plotly: bool = True, dark: bool = False, **kwargs: Any) -> Any:
        url = json.dumps(PLOTLY_JS.as_uri() if plotly else None)
        page_path = tmp_path / "page.html"
        page_path.write_text(
            "<!doctype html><meta charset=utf-8><link rel=icon href='data:,'>"
            f"<style>body {{ margin: 8px }} {styles()}</style>"
            f"<body class='{'dark' if dark else ''}'>{template()}<script>{script()}\n"
            f"window.view = mountTokenView(document.body, {{ plotlyUrl: {url} }});</script>",
            encoding="utf-8",
        )
        page = open_page(page_path.as_uri(), **kwargs)
        update(page, payload)
        if plotly and payload:
            page.wait_for_selector("[data-chart=ready] .js-plotly-plot", state="attached")
        return page

    return show_


def update(page: Any, payload: Payload | None) -> None:
    """Hand the view a payload as JSON, as it arrives from a server."""
    page.evaluate("text => view.update(JSON.parse(text))", json.dumps(payload))


def token(page: Any, index: int) -> Any:
    return page.locator(f".tv-tok[data-i='{index}']")


def cursor(page: Any) -> int:
    """The token that every panel agrees the cursor is at."""
    places = page.evaluate(
        """() => {
          const n = document.querySelectorAll('.tv-tok').length;
          const scrub = document.querySelector('.tv-scrub').getBoundingClientRect();
          const line = document.querySelector('.tv-cursor').getBoundingClientRect();
          const thumb = document.querySelector('.tv-thumb');
          return [
            Number(document.querySelector('.tv-at').dataset.i),
            Number(thumb.getAttribute('aria-valuenow')) - 1,
            Math.floor((line.left + line.width / 2 - scrub.left) / scrub.width * n),
            Math.floor((thumb.getBoundingClientRect().left + 8 - scrub.left) / scrub.width * n),
            Number(document.querySelector('.tv-place').textContent.match(/Token (\\d+)/)[1]) - 1,
          ];
        }"""
    )
    assert len(set(places)) == 1, places
    return int(places[0])


def bars(page: Any) -> list[str]:
    return page.locator(".tv-value").all_inner_texts()


# ---- one cursor -------------------------------------------------------------------------------------------------


def test_a_spike_lights_the_same_token_everywhere(show: Callable[..., Any]) -> None:
    payload = make_payload(words(30))
    spike = payload["n_prompt"] + 17
    payload["scores"]["flattery"][spike] = 3.9
    payload["scores"]["malice"][spike] = -2.0
    page = show(payload)
    assert page.locator(".tv-chip[aria-pressed=true]").inner_text() == "flattery"
    assert cursor(page) == spike
    strengths = page.locator(".tv-tok").evaluate_all("all => all.map(t => t.style.getPropertyValue('--a'))")
    assert strengths[spike] == "0.975" and {*strengths[:spike], *strengths[spike + 1 :]} == {"0.025"}
    assert bars(page) == ["+0.10", "+3.90", "−2.00"]
    assert page.locator("[data-part=score]").inner_text() == "+3.90"
    fills = page.locator(".tv-fill").evaluate_all("all => all.map(f => f.style.transform)")
    assert fills == ["scaleX(0.025)", "scaleX(0.975)", "scaleX(-0.5)"]
    heat = page.evaluate(
        """() => {
          const c = document.querySelector('.tv-heat'), row = c.getContext('2d').getImageData(0, 2, c.width, 1).data;
          let best = 0;
          for (let x = 0; x < c.width; x++) if (row[4 * x + 3] > row[4 * best + 3]) best = x;
          return best / c.width;
        }"""
    )
    assert int(heat * len(payload["tokens"]) + 1e-6) == spike
    drawn = page.evaluate("document.querySelector('.js-plotly-plot').calcdata.at(-1).map((d) => [d.x, d.y])")
    assert drawn == [[i, score] for i, score in enumerate(payload["scores"]["flattery"])]


def test_hover_click_keys_slider_and_chart_move_one_cursor(show: Callable[..., Any]) -> None:
    payload = make_payload(words(30))
    page = show(payload)
    n = len(payload["tokens"])
    token(page, 12).hover()
    assert cursor(page) == 12
    token(page, 15).click()
    token(page, 20).hover()
    assert cursor(page) == 20
    page.mouse.move(2, 2)
    assert cursor(page) == 15, "the cursor goes back to the pinned token"
    for key, expected in (("ArrowRight", 16), ("ArrowLeft", 15), ("End", n - 1), ("Home", 0)):
        page.locator(".tv-text").press(key)
        assert cursor(page) == expected
    for key, expected in (("ArrowUp", 1), ("PageUp", 11), ("PageDown", 1), ("End", n - 1)):
        page.locator("[role=slider]").press(key)
        assert cursor(page) == expected
    box = page.locator(".tv-chart").bounding_box()
    area = page.locator(".tv-scrub").bounding_box()
    page.mouse.click(area["x"] + area["width"] * 9.5 / n, box["y"] + 40)
    page.mouse.move(2, 2)
    assert cursor(page) == 9
    # The drawn line has token 9 where the cursor is.
    offset = page.evaluate(
        """() => {
          const plot = document.querySelector('.js-plotly-plot');
          const x = plot._fullLayout.xaxis;
          return plot.getBoundingClientRect().left + x._offset + x.d2p(9);
        }"""
    )
    line = page.locator(".tv-cursor").bounding_box()
    assert abs(line["x"] + line["width"] / 2 - offset) < 1
    page.locator(".tv-pin").click()
    assert page.locator(".tv-pin").inner_text() == "Pin"


def test_a_drag_sends_nothing_and_screen_readers_hear_its_end(show: Callable[..., Any]) -> None:
    payload = make_payload(words(200))
    page = show(payload)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    area = page.locator(".tv-scrub").bounding_box()
    y = area["y"] + area["height"] - 6
    page.mouse.move(area["x"] + 5, y)
    page.mouse.down()
    seen = set()
    for step in range(40):
        page.mouse.move(area["x"] + area["width"] * step / 40, y)
        seen.add(cursor(page))
    page.mouse.move(area["x"] + area["width"] * 2, y)
    page.mouse.up()
    assert len(seen) == 40
    assert cursor(page) == len(payload["tokens"]) - 1
    assert requests == []
    page.wait_for_function("document.querySelector('.tv-live').textContent.includes('Token 208 of 208')")
    slider = page.locator("[role=slider]")
    assert slider.get_attribute("aria-valuemax") == "208"
    assert "␣word199, deception +0.10" in slider.get_attribute("aria-valuetext")


def test_scrubbing_a_long_trace_is_quick(show: Callable[..., Any]) -> None:
    reply = words(2000)
    page = show(make_payload(reply))
    times = page.evaluate(
        """() => {
          const thumb = document.querySelector('.tv-thumb'), times = [];
          for (let i = 0; i < 200; i++) {
            const start = performance.now();
            thumb.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowLeft', bubbles: true }));
            document.body.offsetHeight;
            times.push(performance.now() - start);
          }
          return times;
        }"""
    )
    assert float(np.median(times)) <= 16 * pages.load_factor()  # one frame


# ---- text -------------------------------------------------------------------------------------------------------


def assert_literal(page: Any, payload: Payload) -> None:
    shown = page.locator(".tv-tok").evaluate_all("all => all.map(t => t.textContent)")
    assert shown == payload["tokens"]
    assert page.locator(".tv-text script, .tv-text img, .tv-head img, .tv-chips img").count() == 0


def test_hostile_text_shows_literally(show: Callable[..., Any]) -> None:
    payload = make_payload(HOSTILE, title=HOSTILE[1], meta={HOSTILE[1]: HOSTILE[0]}, unit=HOSTILE[1])
    names = [HOSTILE[1], HOSTILE[2], "__proto__"]
    payload |= {"traits": names, "scores": {n: [1.0] * len(payload["tokens"]) for n in names}, "blocks": {}}
    page = show(payload)
    assert_literal(page, payload)
    assert page.locator(".tv-title").inner_text() == HOSTILE[1]
    assert page.locator(".tv-chip").all_inner_texts() == names
    token(page, payload["n_prompt"]).click()
    assert page.locator("[data-part=token]").inner_text() == HOSTILE[0]


def test_whitespace_is_exact_visible_and_clickable(show: Callable[..., Any]) -> None:
    reply = ["One", " two", ".\n\n", "\t", "tabbed", "\n", "   ", "spaced", "", "é", "un", "believ", "able", "\r"]
    payload = make_payload(reply)
    page = show(payload)
    first = payload["n_prompt"]
    assert_literal(page, payload)
    box = {i: token(page, first + i).bounding_box() for i in range(len(reply))}
    assert box[4]["y"] > box[0]["y"] + 40, "two line breaks"
    assert box[6]["y"] > box[4]["y"] + 10, "one more"
    assert box[4]["x"] > box[0]["x"] + 10, "behind a tab"
    for left, right in ((10, 11), (11, 12), (0, 1), (8, 9)):
        gap = box[right]["x"] - (box[left]["x"] + box[left]["width"])
        assert abs(gap) < 0.6, "word pieces touch"
    for i in (2, 3, 5, 6, 8, 13):
        assert box[i]["width"] > 3 and box[i]["height"] > 3
        at = token(page, first + i).evaluate("t => { const r = t.getClientRects()[0]; return [r.x + 2, r.y + 6]; }")
        page.mouse.click(*at)
        assert cursor(page) == first + i
    marks = page.locator(".tv-section[data-role=assistant] .tv-mark").evaluate_all(
        "all => all.map(m => m.dataset.mark)"
    )
    assert marks == ["↵", "↵", "⇥", "↵", "␍"]


def test_emoji_right_to_left_and_direction_marks(show: Callable[..., Any]) -> None:
    family = ["👩", "\u200d", "👧"]  # one glyph over three tokens
    reply = ["a", *family, " ", "\u202e", "ev", "il", " b", "\n", "שלום", " ", "עולם"]
    payload = make_payload(reply)
    page = show(payload)
    assert_literal(page, payload)
    first = payload["n_prompt"]
    x = {i: token(page, first + i).bounding_box()["x"] for i in range(len(reply))}
    assert x[0] < x[1] < x[5] < x[6] < x[8], "an override turns nothing around"
    assert x[10] > x[12], "Hebrew reads from the right"
    widths = [token(page, first + i).bounding_box()["width"] for i in (1, 2, 3)]
    unbroken = page.evaluate(
        """() => {
          const probe = document.createElement('span');
          probe.textContent = '👩\u200d👧';
          document.querySelector('[data-role=assistant] .tv-what').append('\\n', probe);
          return probe.getBoundingClientRect().width;
        }"""
    )
    assert abs(sum(widths) - unbroken) < 2, "joined as in unbroken text"


def test_special_tokens_roles_and_missing_scores(show: Callable[..., Any]) -> None:
    payload = make_payload(["Yes", "."])
    payload["scores"]["deception"][0] = None
    page = show(payload)
    sections = page.locator(".tv-section").evaluate_all("all => all.map(s => s.dataset.role)")
    assert sections == ["template", "user", "template", "assistant"]
    assert page.locator(".tv-who").all_inner_texts() == ["", "USER", "", "ASSISTANT"]
    assert page.locator(".tv-special").all_inner_texts() == ["<|user|>", "<|end|>", "<|bot|>"]
    page.locator("[role=slider]").press("Home")
    assert bars(page)[0] == "–" and page.locator("[data-part=score]").inner_text() == "–"
    assert page.locator(".tv-run").all_inner_texts() == ["", "user", "", "assistant"]


def test_sign_and_strength_have_a_second_channel(show: Callable[..., Any]) -> None:
    payload = make_payload(words(4))
    first = payload["n_prompt"]
    payload["scores"]["deception"][first : first + 4] = [4.0, 2.0, -4.0, 0.0]
    page = show(payload)
    page.locator(".tv-chip").first.click()
    lines = [
        float(re.findall(r"(-?[\d.]+)px", token(page, first + i).evaluate("t => getComputedStyle(t).boxShadow"))[1])
        for i in range(4)
    ]
    assert lines[0] < lines[1] < 0 < lines[2] and lines[3] == 0  # below, thinner, above, none


CONTRAST = """(index) => {
  const rgba = (text) => {
    const canvas = document.createElement('canvas');
    canvas.width = canvas.height = 1;
    const pen = canvas.getContext('2d');
    pen.fillStyle = getComputedStyle(document.querySelector('.tv')).backgroundColor;
    pen.fillRect(0, 0, 1, 1);
    pen.fillStyle = text;
    pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (c) => c.map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const style = getComputedStyle(document.querySelector(`.tv-tok[data-i='${index}']`));
  const [a, b] = [light(rgba(style.color)), light(rgba(style.backgroundColor))];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_legible_at_every_strength(show: Callable[..., Any], dark: bool) -> None:
    levels = [level / 2 for level in range(-8, 9)]
    payload = make_payload(words(len(levels)))
    first = payload["n_prompt"]
    payload["scores"]["deception"][first:] = levels
    payload["scores"]["deception"][:first] = [-4.0, 4.0, 4.0, 4.0, 4.0, -4.0, 4.0, -4.0]
    page = show(payload, dark=dark)
    page.locator(".tv-chip").first.click()
    contrasts = [page.evaluate(CONTRAST, i) for i in range(len(payload["tokens"]))]
    assert min(contrasts) >= 4.5, contrasts  # WCAG AA


@pytest.mark.parametrize("width", [390, 768, 1440])
def test_nothing_overflows(show: Callable[..., Any], width: int) -> None:
    payload = make_payload(["Look", " at", " " + "w" * 10_000, " there"], title="t" * 400)
    payload["traits"] = ["x" * 80, *TRAITS[1:]]
    payload["scores"]["x" * 80] = payload["scores"].pop("deception")
    page = show(payload, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [390, 700, 1000])
def test_each_bar_shows_its_name_and_value_whole(show: Callable[..., Any], width: int) -> None:
    payload = make_payload(words(3))
    payload["traits"] = ["manipulativeness", *TRAITS[1:]]
    payload["blocks"]["manipulativeness"] = 4
    payload["scores"]["manipulativeness"] = [-10.98] * len(payload["tokens"])
    page = show(payload, width=width)
    cut_off = page.locator(".tv-name, .tv-value").evaluate_all("all => all.filter(e => e.scrollWidth > e.clientWidth)")
    assert cut_off == [] and bars(page)[0] == "−10.98"
    assert page.locator(".tv-row").first.get_attribute("title") == "manipulativeness, read at block 4"
    ends = page.locator(".tv-fill").evaluate_all("all => all.map(f => getComputedStyle(f).clipPath !== 'none')")
    assert ends == [True, False, False], "only the first is beyond the scale"


def test_text_fades_while_more_follows(show: Callable[..., Any]) -> None:
    payload = make_payload(words(400))
    payload["scores"]["malice"][payload["n_prompt"] + 200] = 4.0
    page = show(payload)
    page.wait_for_selector(".tv-text.tv-more")
    page.wait_for_function("document.querySelector('.tv-text').scrollTop > 0")
    gap = "document.querySelector('.tv-text').getBoundingClientRect().bottom - "
    gap += "document.querySelector('.tv-at').getBoundingClientRect().bottom"
    assert page.evaluate(gap) > 44, "the cursor is clear of the fade"
    page.locator("[role=slider]").press("End")
    page.wait_for_selector(".tv-text:not(.tv-more)")
    update(page, make_payload(words(2)))
    assert page.locator(".tv-more").count() == 0


def test_the_legend_and_the_facts_under_the_title(show: Callable[..., Any]) -> None:
    page = show(make_payload(words(3), meta={"reader": "tiny", "writer": "tiny", "seed": "0"}))
    assert page.locator("[data-part=meta]").inner_text() == "model tiny · seed 0"
    assert page.locator(".tv-legend").is_visible()
    update(page, make_payload(words(3), kind="cosine", meta={"reader": "tiny", "writer": "big"}))
    assert page.locator("[data-part=meta]").inner_text() == "reader tiny · writer big"
    assert page.locator(".tv-legend").is_hidden()


# ---- streaming --------------------------------------------------------------------------------------------------


def test_a_stream_appends_follows_and_respects_the_pin(show: Callable[..., Any]) -> None:
    payload = make_payload([*words(10), "�", *words(20)])
    first = payload["n_prompt"]
    page = show(cut(payload, first + 1))
    page.evaluate("() => { window.kept = document.querySelector(\".tv-tok[data-i='3']\"); }")
    assert page.locator(".tv-status").inner_text() == "writing"
    update(page, cut(payload, first + 5))
    assert cursor(page) == first + 4, "follows the newest token"
    token(page, 4).click()
    later = cut(payload, first + 15) | {"tokens": [*payload["tokens"][: first + 10], "é", *words(4)]}
    update(page, cut(payload, first + 12))
    update(page, later)
    page.mouse.move(2, 2)
    assert cursor(page) == 4, "keeps the pin"
    assert page.locator(".tv-tok").count() == first + 15
    assert token(page, first + 10).inner_text() == "é", "text that was completed by a later token"
    assert page.evaluate("kept.isConnected && kept.dataset.i === '3'"), "old tokens stay in place"
    page.locator(".tv-pin").click()
    assert cursor(page) == first + 14
    update(page, payload)
    assert page.locator(".tv-status").inner_text() == "complete"
    assert cursor(page) == len(payload["tokens"]) - 1
    page.wait_for_function(
        "n => document.querySelector('.js-plotly-plot').data[0].y.length === n", arg=len(payload["tokens"])
    )
    other = make_payload(words(3), prompt=["Other", "?"])
    update(page, other)
    assert page.locator(".tv-tok").count() == len(other["tokens"])
    update(page, None)
    assert page.locator(".tv-empty").is_visible() and not page.locator(".tv-main").is_visible()


def test_the_chosen_trait_outlives_a_new_trace(show: Callable[..., Any]) -> None:
    page = show(make_payload(words(5)))
    page.locator(".tv-chip").nth(2).click()
    update(page, cut(make_payload(words(3), prompt=["Else"]), 9))
    assert page.locator(".tv-chip[aria-pressed=true]").inner_text() == TRAITS[2]
    page.locator(".tv-row").nth(1).click()
    assert page.locator(".tv-chip[aria-pressed=true]").inner_text() == TRAITS[1]


def test_a_finished_stream_is_coloured_by_what_it_shows_most(show: Callable[..., Any]) -> None:
    payload = make_payload(words(12))
    payload["scores"]["malice"][-6:] = [3.0] * 6
    page = show(cut(payload, payload["n_prompt"] + 8))
    assert page.locator(".tv-chip[aria-pressed=true]").inner_text() == TRAITS[0]
    update(page, payload)
    assert page.locator(".tv-chip[aria-pressed=true]").inner_text() == "malice"
    assert token(page, len(payload["tokens"]) - 1).evaluate("t => t.style.getPropertyValue('--a')") == "0.750"
    assert cursor(page) == len(payload["tokens"]) - 1


def test_all_but_the_chart_works_without_plotly(show: Callable[..., Any]) -> None:
    payload = make_payload(words(12))
    page = show(payload, plotly=False)
    token(page, 9).click()
    page.mouse.move(2, 2)
    assert cursor(page) == 9
    assert not page.locator(".tv-chart").is_visible()


def test_plotly_stays_private(show: Callable[..., Any]) -> None:
    assert show(make_payload(words(3))).evaluate("typeof window.Plotly") == "undefined"


def test_lists_of_other_lengths_are_named(show: Callable[..., Any]) -> None:
    payload = make_payload(words(3))
    payload["roles"] = payload["roles"][:-1]
    page = show(payload, plotly=False)
    assert "differ in length" in page.locator(".tv-empty").inner_text()


# ---- standalone -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plotly", [False, True])
def test_a_standalone_page_works_offline(open_page: Callable[..., Any], tmp_path: Path, plotly: bool) -> None:
    payload = make_payload(HOSTILE, title=HOSTILE[5])
    path = tmp_path / "trace.html"
    path.write_text(standalone_page(payload, include_plotlyjs=plotly), encoding="utf-8")
    page = open_page(path.as_uri(), theme="dark")
    assert_literal(page, payload)
    assert page.title() == HOSTILE[5]
    assert page.locator("body.dark").count() == 1
    assert page.locator(".js-plotly-plot").count() == int(plotly)
    token(page, 3).click()
    page.mouse.move(2, 2)
    assert cursor(page) == 3
