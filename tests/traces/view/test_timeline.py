"""Lanes, trend lines and slider in a real browser: which lines there are, their range, the zoom, a growing reply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from persona_core.traces.view.payload import pair_payload, trace_payload
from tests.support.standins import FIRST, HOSTILE, TRAITS, Payload, cut, make_payload, make_trace, words
from tests.support.view_page import bars, choose, cursor, lines, position_of_strongest, strip, token, update

pytestmark = pytest.mark.browser

RISES = {"flattery": dict.fromkeys(range(FIRST + 10, FIRST + 16), 6.0), "malice": {FIRST + 4: 7.0}}
"""Flattery stays high for six tokens; malice is higher, for one token only."""


def rows(page: Any, strip: int = 0) -> list[str]:
    return page.locator(".tv-lane").nth(strip).locator(".tv-lane-name").all_inner_texts()


def y_range(page: Any) -> tuple[float, float]:
    low, high = page.evaluate("[view.chart().range.low, view.chart().range.high]")
    return low, high


def axis(page: Any) -> tuple[int, int]:
    """The first position that the timeline shows, and the one behind the last."""
    area = page.locator(".tv-area")
    return int(area.get_attribute("data-from")), int(area.get_attribute("data-to"))


def pixels(page: Any, trait: int) -> list[tuple[float, float]]:
    """Places on the chart, in shares of its width and height, that have the colour of a trait."""
    return page.evaluate(
        """(trait) => {
          const canvas = document.querySelector('.tv-chart');
          const probe = new OffscreenCanvas(1, 1).getContext('2d');
          probe.fillStyle = getComputedStyle(document.querySelector('.tv')).getPropertyValue('--tv-c' + trait);
          probe.fillRect(0, 0, 1, 1);
          const [r, g, b] = probe.getImageData(0, 0, 1, 1).data;
          const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d');
          copy.drawImage(canvas, 0, 0);
          const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
          const found = [];
          for (let i = 0; i < data.length; i += 4)
            if (Math.abs(data[i] - r) + Math.abs(data[i + 1] - g) + Math.abs(data[i + 2] - b) < 12 && data[i + 3] > 200)
              found.push([((i / 4) % canvas.width) / canvas.width, Math.floor(i / 4 / canvas.width) / canvas.height]);
          return found;
        }""",
        trait,
    )


# ---- which lines, and where ----


def test_a_trait_that_stays_above_the_band_has_a_line_and_one_with_a_single_high_token_has_none(
    show: Callable[..., Any],
) -> None:
    page = show(make_payload(words(30), scores=RISES))
    page.locator(".tv-chip").first.click()
    assert sorted(lines(page)) == ["deception", "flattery"]
    assert pixels(page, 1) and not pixels(page, 2)
    page.get_by_role("button", name="Show all 3 lines").click()
    assert sorted(lines(page)) == sorted(TRAITS) and pixels(page, 2)
    assert page.evaluate("view.state().lines") == "all"
    page.get_by_role("button", name="Fewer lines").click()
    assert sorted(lines(page)) == ["deception", "flattery"]


def test_the_drawn_line_is_under_the_cursor(show: Callable[..., Any]) -> None:
    page = show(make_payload(words(30), scores=RISES))
    page.locator(".tv-chip").nth(2).click()
    token(page, FIRST + 4).click()
    page.mouse.move(2, 2)
    box = page.locator(".tv-chart").bounding_box()
    highest = min(pixels(page, 2), key=lambda at: at[1])
    line = page.locator(".tv-cursor").bounding_box()
    assert abs(box["x"] + highest[0] * box["width"] - (line["x"] + line["width"] / 2)) < 2


def test_rows_come_by_what_rises_highest_for_some_tokens(show: Callable[..., Any]) -> None:
    page = show(make_payload(words(30), scores=RISES))
    assert rows(page) == ["flattery", "malice", "deception"]
    other = make_payload(words(30), name="b", scores={"deception": [9.0] * (FIRST + 30)})
    update(page, pair_payload(make_payload(words(30), name="a", scores=RISES), other))
    assert [rows(page, k) for k in range(3)] == [["deception", "flattery", "malice"]] * 3, "alike in every strip"
    live = trace_payload(cut(make_trace(words(30), scores=RISES), FIRST + 20), title="Why ask?", done=False)
    update(page, live)
    assert rows(page) == list(TRAITS), "and keep their places while a reply is written"


def test_names_at_the_ends_of_lines_do_not_overlap(show: Callable[..., Any]) -> None:
    traits = [f"trait {i}" for i in range(8)]
    for ends in ([5.0] * 8, [2.5, 2.6, 2.5, 30.0, 30.0, 3.0, 3.0, 3.0], [float(i) for i in range(8)]):
        every = {name: [3.0] * (FIRST + 29) + [end] for name, end in zip(traits, ends, strict=True)}
        page = show(make_payload(words(30), traits=traits, scores=every))
        (labels,) = page.evaluate("view.chart().labels")
        placed = sorted(label["y"] for label in labels)
        assert len(placed) == 8 and min(np.diff(placed)) >= 12.9
        assert placed[0] >= 0 and placed[-1] <= page.locator(".tv-chart").bounding_box()["height"]


@pytest.mark.parametrize("width", [1440, 390])
def test_each_line_has_its_name_at_its_end(show: Callable[..., Any], width: int) -> None:
    every = {trait: [5.0 + i] * (FIRST + 30) for i, trait in enumerate(TRAITS)}
    page = show(make_payload(words(30), scores=every), width=width)
    assert len(lines(page)) == 3
    end = page.evaluate(
        """() => {
          const box = (selector) => document.querySelector(selector).getBoundingClientRect();
          const [area, chart] = [box('.tv-area'), box('.tv-chart')];
          return (area.right - chart.left) / chart.width;
        }"""
    )
    for trait in range(3):
        names = [y for x, y in pixels(page, trait) if x > (end if width == 1440 else end - 0.02)]
        assert names, "something in the trait's colour behind its line, or over its end"


# ---- the range ----


def test_the_range_is_that_of_the_reply_and_what_is_beyond_is_marked(show: Callable[..., Any]) -> None:
    n = FIRST + 20
    far = {trait: {0: -88.0, 2: 40.0, FIRST + 3: 5.0, n - 1: 50.0} for trait in TRAITS}
    page = show(make_payload(words(20), scores=far, special=(*(False,) * (n - 1), True)))
    low, high = y_range(page)
    assert -6 <= low <= -2.5 and 5 <= high < 9
    assert page.evaluate("view.chart().sides[0].lines[0].clipped") == [0, 2, n - 1]
    assert "Triangle: a prompt or special token beyond the range." in page.locator(".tv-legend").inner_text()
    place = "e => [e.offsetLeft, e.clientWidth, e.parentElement.clientWidth]"
    left, width, whole = page.locator(".tv-area").evaluate(place)
    marks = [x for x, y in pixels(page, 0) if y < 0.05 and abs(x * whole - left - width * 2.5 / n) < 3]
    assert marks, "at the upper edge, over the token: the line itself passes beside it"
    update(page, make_payload(words(20), scores={"malice": {FIRST + 3: 5.0}}))
    assert "Triangle" not in page.locator(".tv-legend").inner_text()
    update(page, make_payload(words(20), scores={"malice": {FIRST + 3: 30.0}}))
    page.locator(".tv-chip").nth(2).click()
    assert y_range(page)[1] >= 30


def test_only_the_lines_of_a_long_reply_are_smoothed_and_the_legend_says_so(show: Callable[..., Any]) -> None:
    spike = FIRST + 100
    page = show(make_payload(words(299), scores={"malice": {spike: 5.1}}))
    page.locator(".tv-chip").nth(2).click()
    assert 5.1 in lines(page)["malice"] and "smoothed" not in page.locator(".tv-legend").inner_text()
    update(page, make_payload(words(300), scores={"malice": {spike: 5.1}}))
    smooth = lines(page)["malice"]
    expected = [0.1 if not spike <= i < spike + 9 else round((5.1 + 8 * 0.1) / 9, 4) for i in range(FIRST + 300)]
    assert smooth == pytest.approx(expected, abs=2e-4), "looks back only"
    assert "each point is the mean of the last 9 tokens" in page.locator(".tv-legend").inner_text()
    token(page, spike).click()
    page.mouse.move(2, 2)
    assert bars(page)[2] == "+5.10", "numbers and colours are those of single tokens"
    choose(page, "smooth", "1")
    assert 5.1 in lines(page)["malice"]


# ---- a reply being written ----


def test_the_axis_stands_still_while_a_reply_is_written(show: Callable[..., Any]) -> None:
    whole = make_trace(words(80))
    grown = lambda n: trace_payload(cut(whole, FIRST + n), title="Why ask?", done=False)  # noqa: E731
    page = show(grown(1))
    seen = []
    for n in (1, 10, 32, 33, 64, 65):
        update(page, grown(n))
        seen.append(axis(page))
        assert cursor(page) == FIRST + n - 1
    assert seen == [(0, FIRST + 32)] * 3 + [(0, FIRST + 64)] * 2 + [(0, FIRST + 128)]
    area = page.locator(".tv-area").bounding_box()
    page.mouse.move(area["x"] + area["width"] - 4, area["y"] + 60)
    assert cursor(page) == FIRST + 64, "behind the newest token there is none"
    page.mouse.move(2, 2)
    update(page, trace_payload(whole, title="Why ask?"))
    assert axis(page) == (0, FIRST + 80)


# ---- zoom ----


def test_buttons_keys_and_wheel_zoom_lanes_chart_and_cursor_alike(show: Callable[..., Any]) -> None:
    spike = FIRST + 50
    page = show(make_payload(words(192), scores={"malice": {spike: 7.0}}))
    n = FIRST + 192
    page.locator(".tv-chip").nth(2).click()
    token(page, spike).click()
    page.mouse.move(2, 2)
    before = page.locator(".tv-thumb").bounding_box()["x"]
    page.get_by_role("button", name="Zoom in").click()
    first, last = axis(page)
    assert last - first == n // 2 and cursor(page) == spike
    assert abs(page.locator(".tv-thumb").bounding_box()["x"] - before) < 10, "it stays where it was"
    assert first + position_of_strongest(strip(page, "0", "malice"), last - first) == spike
    assert f"Shown: tokens {first - FIRST} to {last - 1 - FIRST}." in page.locator("[data-part=window]").inner_text()
    slider = page.locator("[role=slider]")
    for key, length in (("+", 50), ("+", 25), ("+", 13), ("+", 12), ("-", 24), ("0", n)):
        slider.press(key)
        first, last = axis(page)
        assert last - first == length and cursor(page) == spike, key
    assert page.get_by_role("button", name="Whole").is_disabled()
    area = page.locator(".tv-area").bounding_box()
    page.mouse.move(area["x"] + area["width"] * (spike + 0.5) / n, area["y"] + 60)
    page.mouse.wheel(0, -100)
    page.wait_for_timeout(150)
    assert axis(page) == (0, n), "the wheel alone scrolls the page"
    page.keyboard.down("Control")
    page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    page.wait_for_function("n => Number(document.querySelector('.tv-area').dataset.to) < n", arg=n)
    assert cursor(page) == spike, "what is under the mouse stays there"


def test_the_cursor_takes_a_zoomed_window_along_and_a_new_reply_is_shown_whole(show: Callable[..., Any]) -> None:
    page = show(make_payload(words(192)))
    slider = page.locator("[role=slider]")
    slider.press("Home")
    for key in "++":
        slider.press(key)
    assert axis(page) == (0, 50)
    slider.press("End")
    assert axis(page) == (150, 200) and cursor(page) == 199
    token(page, 20).click()
    page.mouse.move(2, 2)
    assert axis(page)[0] <= 20 < axis(page)[1] and cursor(page) == 20
    choose(page, "kind", "cosine")
    assert axis(page)[1] - axis(page)[0] == 50, "a choice keeps it"
    update(page, make_payload(words(100), ["Else", "?"]))
    assert axis(page) == (0, FIRST + 100 - 1) and page.get_by_role("button", name="Whole").is_disabled()


def test_a_span_can_be_zoomed_to(show: Callable[..., Any]) -> None:
    page = show(make_payload(words(192)))
    page.evaluate("at => view.restore({ at, span: [at, at + 39] })", 60 - FIRST)
    page.locator("[role=slider]").press("+")
    assert axis(page) == (60, 100)
    span, area = page.locator(".tv-span").bounding_box(), page.locator(".tv-area").bounding_box()
    assert abs(span["width"] - area["width"]) < 2


# ---- onsets on the rows ----


def dark_columns(page: Any, name: str) -> Sequence[int]:
    """Positions at which a row has the colour of text from top to bottom."""
    return page.evaluate(
        """(name) => {
          const c = document.querySelector('.tv-heat');
          const names = [...document.querySelectorAll('.tv-lane-name')].map((one) => one.textContent);
          const height = c.height / new Set(names).size;
          const copy = new OffscreenCanvas(c.width, c.height).getContext('2d');
          copy.drawImage(c, 0, 0);
          const y = Math.floor((names.indexOf(name) + 0.4) * height);
          const row = copy.getImageData(0, y, c.width, 1).data;
          const { from, to } = document.querySelector('.tv-area').dataset;
          const found = new Set();
          for (let x = 0; x < c.width; x++)
            if (row[4 * x] < 60 && row[4 * x + 3] === 255)
              found.add(Math.floor((x / c.width) * (to - from)) + Number(from));
          return [...found];
        }""",
        name,
    )


def test_every_row_has_the_onset_of_its_trait(show: Callable[..., Any]) -> None:
    onsets: Payload = {
        "flattery": {"onset": 10, "low": 8, "high": 12, "says": "rises at token 10"},
        "malice": {"onset": None, "low": None, "high": None, "doubles": 20, "says": "doubles"},
    }
    page = show(make_payload(words(40), onsets=onsets))
    assert [dark_columns(page, name) for name in TRAITS] == [[], [FIRST + 10], [FIRST + 20]]
    token(page, FIRST + 20).click()
    page.locator("[role=slider]").press("+")
    assert axis(page)[0] > 0 and dark_columns(page, "malice") == [FIRST + 20], "also after a zoom"
    page.locator("[role=slider]").press("0")
    choose(page, "alignment", "before")
    assert dark_columns(page, "flattery") == [FIRST + 11]


def test_hostile_names_are_only_ever_drawn(show: Callable[..., Any]) -> None:
    names = [HOSTILE[1], HOSTILE[2], "__proto__"]
    every = {name: [6.0] * (FIRST + len(HOSTILE)) for name in names}
    page = show(pair_payload(*[make_payload(HOSTILE, traits=names, scores=every, name=HOSTILE[1])] * 2))
    assert sorted(lines(page)) == sorted(names)
    assert page.locator(".tv img, .tv script").count() == 0


# ---- which trait rises before which ----


def timed(onset: int, low: int, high: int, **more: Any) -> Payload:
    return {"answer": "onset", "onset": onset, "low": low, "high": high, "timed": True, "kind": "specific", **more}


def in_words(page: Any) -> str:
    return str(page.locator("[data-part=window]").inner_text()).partition("An arc: ")[2]


def test_an_arc_leads_from_one_onset_to_a_later_one_if_their_intervals_do_not_meet(show: Callable[..., Any]) -> None:
    def words_for(**onsets: Payload) -> str:
        update(page, make_payload(words(40), onsets={t: o | {"says": "rises"} for t, o in onsets.items()}))
        return in_words(page)

    page = show(None)
    early, late = timed(5, 3, 7), timed(12, 8, 15)
    assert words_for(malice=early, flattery=late) == "malice before flattery, intervals apart."
    assert words_for(malice=early, flattery=timed(12, 7, 15)) == "", "token 7 is in both intervals"
    assert words_for(malice=early, flattery=late | {"timed": False}) == "", "somewhere between 8 and 15 only"
    assert words_for(malice=early, flattery=late | {"kind": "z"}) == "", "of different scores"
    last = timed(30, 28, 33)
    three = {"malice": early, "flattery": late, "deception": last}
    assert words_for(**three) == "malice before flattery, flattery before deception, intervals apart."
    assert words_for(malice=timed(5, 3, 9), flattery=timed(8, 6, 11), deception=last) == (
        "malice before deception, flattery before deception, intervals apart."
    )
    choose(page, "block", "4")
    assert "before deception" in in_words(page)


def test_an_arc_says_under_the_mouse_what_it_means(show: Callable[..., Any]) -> None:
    onsets = {"malice": timed(5, 3, 7, says="rises"), "flattery": timed(30, 28, 33, says="rises")}
    page = show(make_payload(words(40), scores=RISES, onsets=onsets))
    assert rows(page) == ["flattery", "malice", "deception"]
    heat = page.locator(".tv-heat").bounding_box()
    x = lambda at: heat["x"] + heat["width"] * (FIRST + at + 0.5) / (FIRST + 40)  # noqa: E731
    area = page.locator(".tv-area")
    page.mouse.move(x(15), heat["y"] + heat["height"] / 2)  # leaves its row as a level line
    assert area.get_attribute("title") == "malice before flattery, intervals apart"
    page.mouse.move(x(15), heat["y"] + heat["height"] * 5 / 6)
    assert area.get_attribute("title") == ""
    update(page, make_payload(words(40), scores=RISES))
    page.mouse.move(x(15), heat["y"] + heat["height"] / 2)
    assert area.get_attribute("title") == ""


# ---- names ----


@pytest.mark.parametrize("width", [1440, 390])
def test_the_names_of_rows_can_be_read_on_a_phone_too(show: Callable[..., Any], width: int) -> None:
    traits = ["manipulativeness", "hallucination", "evil"]
    page = show(pair_payload(*[make_payload(words(20), traits=traits, name=name) for name in "ab"]), width=width)
    cut_off = "all => all.filter((e) => e.scrollWidth > e.clientWidth).map((e) => e.textContent)"
    for chosen in range(3):
        page.locator(".tv-chip").nth(chosen).click()
        assert page.locator(".tv-lane-name > bdi").evaluate_all(cut_off) == []
    assert page.locator(".tv-area").evaluate("e => e.clientWidth") > 0.5 * min(width, 700)
    update(page, make_payload(words(20), traits=["x" * 90, *traits]))
    name = page.locator(".tv-lane-name", has_text="xxx")
    assert name.get_attribute("title") == "x" * 90, "one that is cut off all the same"
    assert page.locator(".tv-area").evaluate("e => e.clientWidth") > 0.45 * min(width, 700)
