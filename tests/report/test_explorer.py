"""The explorer of published runs in a real browser, on a bare page."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from persona_core.report.explorer import explorer_script, explorer_styles, explorer_template
from tests.support.standins import HOSTILE

pytestmark = pytest.mark.browser


def cell(name: str, mean: float, n: int = 30, onset: int | None = None, trait: str = "malice") -> dict[str, Any]:
    scores = np.full(n, round(mean * 10), np.int8)
    says = "no reliable onset" if onset is None else f"sets in at token {onset} [{onset}, {onset + 2}]"
    known = {"answer": "none" if onset is None else "onset", "onset": onset, "low": onset, "high": onset and onset + 2}
    shown = {"scores": base64.b64encode(scores.tobytes()).decode(), "mean": mean, "max": mean + 1, "turn": 2 * mean}
    return {"config": name, "n": n, "start": 0, "traits": {trait: {**shown, "onset": known | {"says": says}}}}


def table(prompts: list[dict[str, Any]], trait: str = "malice") -> dict[str, Any]:
    return {
        "kind": "z",
        "unit": "standard deviations above neutral",
        "step": 0.1,
        "scale": 8.0,
        "configs": ["baseline", "contaminated"],
        "traits": [trait],
        "analysed": True,
        "prompts": prompts,
    }


def prompt(id: str, text: str, runs: list[dict[str, Any]], **more: str) -> dict[str, Any]:
    return {"id": id, "prompt": text, "set": "pilot", "category": "home", **more, "runs": runs}


THREE = [
    prompt("a", "How do I bake?", [cell("baseline", 0.0), cell("contaminated", 4.0, onset=9)]),
    prompt("b", "May I move?", [cell("baseline", 1.0, onset=20), cell("contaminated", 1.5)], category="work"),
    prompt("c", "Why sleep?", [cell("baseline", -1.0), cell("contaminated", -3.0)], set="harmful"),
]


@pytest.fixture
def explore(open_page: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    def explore_(data: Any, restore: Any = None, **kwargs: Any) -> Any:
        path = tmp_path / "page.html"
        path.write_text(
            "<!doctype html><meta charset=utf-8><link rel=icon href='data:,'>"
            f"<style>body {{ margin: 8px }} {explorer_styles()}</style>"
            f"<body>{explorer_template()}<script>{explorer_script()}\n"
            "window.picks = []; window.picked = []; window.states = [];\n"
            "window.explorer = mountExplorer(document.body, { emptyText: 'Nothing here.',"
            " onPick: (pick) => picks.push(pick) && picked.push([pick.id, pick.trait]),"
            " onState: (s) => states.push(s) });</script>",
            encoding="utf-8",
        )
        page = open_page(path.as_uri(), **kwargs)
        if restore is not None:
            page.evaluate("state => explorer.restore(state)", restore)
        page.evaluate("text => explorer.update(JSON.parse(text))", json.dumps(data))
        return page

    return explore_


def order(page: Any) -> list[str]:
    return [text.split(" · ")[0] for text in page.locator(".ex-foot bdi").all_text_contents()]


def drawn(page: Any) -> None:
    """Waits for the paint of the first lane: a canvas has a size, 300 by 150, before anything is drawn."""
    page.wait_for_function(
        """() => {
          const copy = new OffscreenCanvas(1, 1).getContext('2d'); // reading one canvas often would log a warning
          copy.drawImage(document.querySelector('.ex-heat'), 0, -2);
          return copy.getImageData(0, 0, 1, 1).data[3] > 0;
        }"""
    )


@pytest.mark.parametrize(
    ("sort", "run", "expected"),
    [
        ("given", "", "cab"),
        ("turn", "", "abc"),
        ("onset", "", "abc"),
        ("onset", "baseline", "bca"),  # a and c have none
        ("max", "", "abc"),
        ("mean", "baseline", "bac"),
        ("difference", "", "abc"),
    ],
)
def test_prompts_are_sorted_by_what_is_chosen(explore: Callable[..., Any], sort: str, run: str, expected: str) -> None:
    page = explore(table([THREE[2], *THREE[:2]]))
    page.locator("[data-field=run]").select_option(run)
    page.locator("[data-field=sort]").select_option(sort)
    assert "".join(order(page)) == expected


def test_it_opens_on_the_trait_that_rises_most_and_the_clearest_turn(explore: Callable[..., Any]) -> None:
    def runs(calm: float, malice: float) -> list[dict[str, Any]]:
        first, second = cell("baseline", 1.0), cell("contaminated", malice)
        for run, level in ((first, 0.0), (second, calm)):
            run["traits"]["calm"] = cell("", level)["traits"]["malice"]
        return [first, second]

    data = table([prompt("a", "How?", runs(-9.0, 1.5)), prompt("b", "Why?", runs(-9.0, 6.0))]) | {
        "traits": ["calm", "malice"]
    }
    page = explore(data)
    assert page.locator("[data-field=trait]").input_value() == "malice"
    assert page.locator("[data-field=sort]").input_value() == "turn" and order(page) == ["b", "a"]
    restored = explore(data, restore={"trait": "calm", "sort": "given"})
    assert restored.locator("[data-field=trait]").input_value() == "calm" and order(restored) == ["a", "b"]


def test_what_was_there_before_the_reply_comes_first_by_onset(explore: Callable[..., Any]) -> None:
    early = cell("baseline", 2.0)
    early["traits"]["malice"]["onset"] |= {"answer": "before the reply", "says": "already raised"}
    page = explore(table([*THREE, prompt("d", "And now?", [early])]))
    page.locator("[data-field=sort]").select_option("onset")
    assert "".join(order(page)) == "dabc"


def test_filters_narrow_what_is_shown_and_say_how_much(explore: Callable[..., Any]) -> None:
    page = explore(table(THREE))
    count = page.locator("[data-part=count]")
    assert count.inner_text() == "3 of 3 prompts"
    page.locator("[data-field=set]").select_option("pilot")
    assert order(page) == ["a", "b"]
    page.locator("[data-field=category]").select_option("work")
    assert order(page) == ["b"] and count.inner_text() == "1 of 3 prompts"
    page.locator("[data-field=set]").select_option("harmful")
    assert order(page) == [] and "No prompt matches" in count.inner_text()
    page.locator("[data-field=set]").select_option("")
    page.locator("[data-field=category]").select_option("")
    page.fill("[data-field=text]", "I BAKE")
    assert order(page) == ["a"]


def test_a_cell_says_when_and_how_much_and_by_how_much_the_runs_differ(explore: Callable[..., Any]) -> None:
    page = explore(table(THREE))
    says = page.locator(".ex-says").all_text_contents()
    assert says[0] == "no reliable onset · mean +0.00, highest +1.00"
    assert says[1] == "sets in at token 9 [9, 11] · mean +4.00, highest +5.00"
    assert page.locator(".ex-difference").all_text_contents() == [
        "difference +4.00",
        "difference +0.50",
        "difference −2.00",
    ]


def test_a_lane_is_drawn_to_the_length_of_its_reply_with_its_onset(explore: Callable[..., Any]) -> None:
    short = prompt("d", "Short?", [cell("baseline", 8.0, n=15, onset=5)])
    page = explore(table([short, *THREE]), restore={"sort": "given"})
    drawn(page)
    row = page.evaluate(
        """() => {
          const c = document.querySelector('.ex-heat');
          const copy = new OffscreenCanvas(c.width, 1).getContext('2d');
          copy.drawImage(c, 0, -2);
          const data = copy.getImageData(0, 0, c.width, 1).data;
          return Array.from({ length: c.width }, (_, x) => [...data.slice(4 * x, 4 * x + 4)]);
        }"""
    )
    at = lambda token: row[int((token + 0.6) / 30 * len(row))]  # noqa: E731
    assert at(2)[:3] == [245, 133, 24], "full strength in orange"
    assert at(20)[3] == 0, "nothing behind the end of the reply"
    dark = [i for i, pixel in enumerate(row) if pixel[3] == 255 and max(pixel[:3]) < 60]
    assert dark and abs(dark[0] / len(row) * 30 - 5) < 0.5


def test_a_click_or_enter_picks_and_arrows_move(explore: Callable[..., Any]) -> None:
    page = explore(table(THREE), width=1000)
    page.locator(".ex-cell").nth(1).click()
    assert page.evaluate("picked") == [["b", "malice"]]
    assert page.locator(".ex-chosen .ex-prompt").text_content() == "May I move?"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.evaluate("picked.at(-1)") == ["c", "malice"]
    page.keyboard.press("Home")
    assert page.evaluate("document.activeElement.querySelector('.ex-prompt').textContent") == "How do I bake?"
    assert page.locator(".ex-cell[tabindex='0']").count() == 1, "one stop for the tab key"
    assert page.evaluate("states.at(-1).id") == "c"


def test_a_click_in_a_lane_picks_the_token_of_the_reply(explore: Callable[..., Any]) -> None:
    thoughtful = cell("contaminated", 2.0, n=15) | {"start": 12}
    page = explore(table([prompt("d", "Long?", [cell("baseline", 1.0, n=30), thoughtful])]))
    drawn(page)

    def clicked(lane: int, token: float) -> Any:
        box = page.locator(".ex-heat").nth(lane).bounding_box()
        page.mouse.click(box["x"] + box["width"] * token / 30, box["y"] + 6)
        return page.evaluate("picks.at(-1).at")

    assert clicked(0, 19.5) == 19
    assert clicked(1, 3.5) == 15, "behind a thought of twelve tokens"
    assert clicked(1, 15.5) is None, "behind the end of the reply"
    page.locator(".ex-prompt").click()
    assert page.evaluate("picks.at(-1)") == {"id": "d", "trait": "malice", "picked": False, "at": None}
    assert len(page.evaluate("picks")) == 4, "one pick a click"


def test_a_pick_says_whether_its_trait_has_just_been_selected(explore: Callable[..., Any]) -> None:
    both = cell("baseline", 1.0)
    both["traits"]["calm"] = both["traits"]["malice"]
    page = explore(table([prompt("d", "Long?", [both])]) | {"traits": ["malice", "calm"]})
    page.locator("[data-field=trait]").select_option("calm")
    page.locator(".ex-prompt").click()
    page.locator(".ex-prompt").click()
    assert [(p["trait"], p["picked"]) for p in page.evaluate("picks")] == [("calm", True), ("calm", False)]


def test_hostile_text_is_shown_and_runs_nothing(explore: Callable[..., Any]) -> None:
    name = HOSTILE[1]
    data = table([prompt(text, text, [cell(name, 1.0, trait=name)], category=text, set=text) for text in HOSTILE], name)
    data["configs"] = [name, HOSTILE[0]]
    page = explore(data)
    assert page.locator(".ex-prompt").evaluate_all("all => all.map(n => n.textContent)") == [
        text.strip() for text in HOSTILE
    ]
    assert page.locator(".ex img, .ex script").count() == 0
    page.locator("[data-field=category]").select_option(HOSTILE[0])
    assert page.locator(".ex-cell").count() == 1


def test_a_state_is_restored_and_picks_its_prompt_once(explore: Callable[..., Any]) -> None:
    page = explore(
        table(THREE), restore={"sort": "mean", "run": "baseline", "id": "b", "trait": "gone", "set": "nowhere"}
    )
    assert order(page) == ["b", "a", "c"]
    assert page.evaluate("picked") == [["b", "malice"]]
    state = page.evaluate("explorer.state()")
    assert (state["trait"], state["set"], state["sort"]) == ("malice", "", "mean")
    page.evaluate("data => explorer.update(data)", table(THREE))
    assert len(page.evaluate("picked")) == 1


def test_an_empty_explorer_and_an_error_show_a_message(explore: Callable[..., Any]) -> None:
    page = explore(None)
    assert page.locator(".ex-empty").inner_text() == "Nothing here."
    page.evaluate("explorer.update({ error: '<b>no runs</b>' })")
    assert page.locator(".ex-empty").inner_text() == "<b>no runs</b>"


def test_sorting_moves_the_cells_and_a_phone_needs_no_sideways_scroll(explore: Callable[..., Any]) -> None:
    rng = np.random.default_rng(0)
    many = [
        prompt(
            f"p{i}",
            f"Question {i} " + "long " * 20,
            [cell(c, float(rng.normal()), n=300) for c in ("baseline", "contaminated")],
        )
        for i in range(78)
    ]
    page = explore(table(many))
    kept = page.evaluate(
        """() => {
          const before = new Set(document.querySelectorAll('.ex-cell'));
          const sort = document.querySelector('[data-field=sort]');
          sort.value = 'mean';
          sort.dispatchEvent(new Event('change'));
          return [...document.querySelectorAll('.ex-cell')].filter((cell) => before.has(cell)).length;
        }"""
    )
    assert kept == 78, "no cell is rebuilt"
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
