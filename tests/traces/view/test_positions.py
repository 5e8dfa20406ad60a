"""Where a token is: one count, that of the reply from 0, in onsets, readout, slider, chart, links and exports."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from persona_core.analysis.onset import Onset
from persona_core.traces.figure import trace_figure
from persona_core.traces.view.payload import pair_payload, trace_payload
from tests.support.standins import FIRST, TRAITS, make_payload, make_trace, words
from tests.support.view_page import choose, cursor, token, update

ONSET = Onset("onset", 21, 19, 7.2, 17, 20, 3.0)


def readout(page: Any) -> str:
    return str(page.locator(".tv-position").inner_text().split("\n")[0])


@pytest.mark.browser
def test_the_token_that_an_onset_names_is_the_one_under_the_cursor(show: Callable[..., Any]) -> None:
    page = show(make_payload(words(60), onsets={TRAITS[1]: ONSET.to_dict()}))
    page.locator(".tv-chip").nth(1).click()
    page.mouse.move(2, 2)
    assert "rises at token 19 [17, 20]" in page.locator(".tv-says").inner_text()
    assert page.locator(".tv-chip-onset").inner_text() == "19 [17, 20]"
    assert token(page, FIRST + 19).get_attribute("data-onset") == "19 [17, 20]"
    assert cursor(page) == FIRST + 19, "of the conversation"
    assert readout(page) == "Token 19"
    slider = page.locator("[role=slider]")
    assert slider.get_attribute("aria-valuenow") == "19"
    assert slider.get_attribute("aria-valuetext").startswith("Token 19, ")
    assert page.evaluate("view.state().at") == 19
    assert page.evaluate("viewAddress.write(view.state()).at") == "19"
    page.evaluate("document.querySelector('[data-part=export]').open = true")
    with page.expect_download() as download:
        page.locator("[data-format=csv]").click()
    rows = csv.DictReader(io.StringIO(Path(download.value.path()).read_text("utf-8")))
    assert {row["reply_token"]: json.loads(row["text"]) for row in rows}["19"] == " word19"


@pytest.mark.browser
def test_the_numbers_under_the_chart_are_over_their_tokens(show: Callable[..., Any]) -> None:
    page = show(make_payload(words(192)))
    ticks = page.evaluate("view.chart().ticks")
    assert ticks == list(range(0, 192, 20)) or ticks == list(range(0, 192, 10))
    token(page, FIRST + ticks[3]).click()
    page.locator("[role=slider]").press("+")
    zoomed = page.evaluate("view.chart().ticks")
    assert len(zoomed) > 3 and zoomed[1] - zoomed[0] < ticks[1] - ticks[0] and ticks[3] in zoomed
    page.set_viewport_size({"width": 390, "height": 900})
    page.wait_for_function("n => view.chart().ticks.length < n", arg=len(zoomed))


@pytest.mark.browser
def test_tokens_of_the_prompt_are_named_as_such(show: Callable[..., Any]) -> None:
    page = show(make_payload(words(9)))
    token(page, 3).click()
    assert readout(page) == "Prompt token 3"
    assert page.locator("[role=slider]").get_attribute("aria-valuetext").startswith("Prompt token 3, ")
    state = page.evaluate("viewAddress.read(viewAddress.write(view.state()))")
    assert state == {"at": 3 - FIRST}, "a link keeps it"
    for _ in range(6):
        page.locator(".tv-text").press("Shift+ArrowRight")
    page.mouse.move(2, 2)
    assert readout(page) == "Prompt token 3 to token 1 · means"
    assert page.evaluate("viewAddress.read(viewAddress.write(view.state())).span") == [3 - FIRST, 1]
    update(page, pair_payload(make_payload(words(9), name="a"), make_payload(words(9), ["Why", "?"], name="b")))
    token(page, 3).click()
    assert readout(page) == "Prompt token 3", "of the side whose prompt is longer"
    token(page, FIRST - 1 + 2, side=1).click()
    assert readout(page) == "Token 2", "of both replies"


@pytest.mark.browser
def test_scores_that_are_shown_a_token_later_take_the_numbers_of_their_onsets_along(show: Callable[..., Any]) -> None:
    page = show(make_payload(words(60), onsets={TRAITS[1]: ONSET.to_dict()}))
    page.locator(".tv-chip").nth(1).click()
    choose(page, "alignment", "before")
    page.locator(".tv-chip").nth(1).click()
    page.mouse.move(2, 2)
    assert page.locator(".tv-chip-onset").inner_text() == "20 [18, 21]" and readout(page) == "Token 20"
    assert page.locator(".tv-says").inner_text().endswith("(the state after that token, which chose the marked one)")


def test_an_onset_behind_a_thought_names_the_token_of_the_reply() -> None:
    roles = tuple(make_trace(words(60)).roles[:FIRST]) + ("thinking",) * 12 + ("template",) + ("assistant",) * 47
    trace = make_trace(words(60), roles=roles)
    late = Onset("onset", 21, 19, 7.2, 17, 20, 3.0, section="answer")
    slow = Onset("onset", 60, 9, 4.0, 3, 74, 0.4, section="answer")
    found = trace_payload(trace, onsets={TRAITS[0]: late.to_dict(), TRAITS[1]: slow.to_dict()})["sides"][0]["onsets"]
    assert (found[TRAITS[0]]["onset"], found[TRAITS[0]]["low"]) == (32, 30)
    assert found[TRAITS[0]]["says"] == "in the answer, rises at token 32 [30, 33]"
    assert "between tokens 16 and 87" in found[TRAITS[1]]["says"]


def test_the_figure_counts_as_onsets_do() -> None:
    figure = trace_figure(make_trace(words(30)))
    assert list(figure.data[0].x) == list(range(-FIRST, 30))
    assert figure.data[0].text[list(figure.data[0].x).index(19)] == "␣word19"
