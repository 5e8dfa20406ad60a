"""The token view in a real browser: specific scores, and sink tokens, which have no score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from persona_core.traces.trace import UNITS
from persona_core.traces.view.payload import pair_payload
from tests.support.standins import FIRST, TRAITS, Payload, make_payload, odds, words
from tests.support.view_page import bars, choose, lines, position_of_strongest, scores, strip, token, update

pytestmark = pytest.mark.browser

N = FIRST + 12
SINK = FIRST + 5


def with_sinks(sinks: tuple[int, ...] = (0, SINK), **changes: Any) -> Payload:
    """A quiet reply with sink tokens, at which every score would be 88."""
    norms = np.full((1, N), 2.0, np.float32)
    norms[0, list(sinks)] = 50.0
    spikes = {trait: dict.fromkeys(sinks, 88.0) | {FIRST + 9: 3.0} for trait in TRAITS}
    limits = np.array([6.0], np.float32)
    return make_payload(words(12), scores=spikes, norms=norms, max_norm=limits, **changes)


def top_of_chart(page: Any) -> float:
    return float(page.evaluate("view.chart().range.high"))


def test_a_sink_token_is_hatched_and_has_no_colour_and_no_score(show: Callable[..., Any]) -> None:
    page = show(with_sinks())
    hatched = page.locator(".tv-sink").evaluate_all("all => all.map(t => [Number(t.dataset.i), t.title])")
    assert [i for i, _ in hatched] == [0, SINK]
    assert all(title.startswith("sink token: its state is far outside") for _, title in hatched)
    assert token(page, SINK).evaluate("t => t.style.getPropertyValue('--a')") == "0.000"
    assert "gradient" in token(page, SINK).evaluate("t => getComputedStyle(t).backgroundImage")
    token(page, SINK).click()
    page.mouse.move(2, 2)
    assert bars(page) == ["–"] * 3 and scores(page) == ["–"]
    assert page.locator(".tv-position").inner_text().endswith(f"id {100 + SINK} · sink")
    assert "so it is not scored" in page.locator("[role=slider]").get_attribute("aria-valuetext")
    page.locator(".tv-text").press("ArrowRight")
    assert bars(page) == ["+0.10"] * 3
    assert "sink" not in page.locator(".tv-position").inner_text()
    assert "Hatched: sink tokens" in page.locator(".tv-legend").inner_text()


def test_a_sink_token_is_a_gap_in_the_lines_and_moves_no_scale(show: Callable[..., Any]) -> None:
    page = show(with_sinks())
    expected = [None if i in (0, SINK) else 3.0 if i == FIRST + 9 else 0.1 for i in range(N)]
    assert list(lines(page).values()) == [expected]
    assert top_of_chart(page) < 9
    choose(page, "scale", "range")
    assert page.locator("[data-part=key-high]").inner_text() == "+3"
    row = strip(page, "0", TRAITS[0])
    assert position_of_strongest(row, N) == FIRST + 9
    assert max(row[int(len(row) * (SINK + 0.3) / N) : int(len(row) * (SINK + 0.7) / N)]) == 0
    choose(page, "smooth", "3")
    token(page, SINK + 1).click()
    page.mouse.move(2, 2)
    assert bars(page) == ["+0.10"] * 3, "a mean leaves it out"


def test_a_template_token_that_is_no_sink_does_not_flatten_the_chart(show: Callable[..., Any]) -> None:
    page = show(make_payload(words(12), scores={trait: {0: 88.0} for trait in TRAITS}))
    assert top_of_chart(page) < 9


def test_the_state_before_a_token_may_be_that_of_a_sink(show: Callable[..., Any]) -> None:
    page = show(with_sinks((SINK,)))
    choose(page, "alignment", "before")
    assert page.locator(".tv-sink").evaluate_all("all => all.map(t => Number(t.dataset.i))") == [SINK + 1]
    choose(page, "alignment", "at")
    assert page.locator(".tv-sink").evaluate_all("all => all.map(t => Number(t.dataset.i))") == [SINK]
    assert token(page, SINK + 1).get_attribute("title") is None


def test_specific_scores_are_shown_first_and_say_against_what(show: Callable[..., Any]) -> None:
    page = show(make_payload(words(6), log_odds=odds(3)))
    options = page.locator("select[name=kind] option").all_text_contents()
    assert options[:2] == ["specific to the trait", "z: not neutral, whatever the trait"]
    legend = page.locator(".tv-legend").inner_text()
    assert "more like this trait than like neutral text or any other trait" in legend and "Grey band: ±2" in legend
    assert page.locator("[data-part=key-high]").inner_text() == "+8"
    assert page.locator("[data-part=key-unit]").inner_text() == UNITS["specific"]
    assert TRAITS[2] in page.locator("[data-part=key-unit]").get_attribute("title")
    assert "more like this trait than like neutral text" in page.locator(".tv-row").first.get_attribute("title")
    choose(page, "kind", "z")
    assert "any other trait" not in page.locator(".tv-legend").inner_text()
    assert page.locator("[data-part=key-high]").inner_text() == "+8"


def test_a_token_that_looks_like_every_trait_is_specific_to_none(show: Callable[..., Any]) -> None:
    alike = {trait: {FIRST + 2: 6.0} for trait in TRAITS} | {"malice": {FIRST + 2: 6.0, FIRST + 4: 6.0}}
    page = show(make_payload(words(6), scores=alike, log_odds=odds(3)))
    found = {}
    for index in (FIRST + 2, FIRST + 4):
        token(page, index).click()
        page.mouse.move(2, 2)
        found[index] = float(bars(page)[2].replace("−", "-"))
    assert found[FIRST + 4] > found[FIRST + 2] + 1


def test_a_payload_of_before_specific_scores_shows_z(show: Callable[..., Any]) -> None:
    payload = make_payload(words(6), log_odds=odds(3), kind="z")
    old = {**payload, "sides": [{k: v for k, v in payload["sides"][0].items() if k not in ("log_odds", "max_norm")}]}
    page = show(old)
    assert page.locator("select[name=kind]").input_value() == "z"
    assert bars(page) == ["+0.10"] * 3 and page.locator(".tv-sink").count() == 0
    update(page, pair_payload({**old, "view": {}}, make_payload(words(6), log_odds=odds(3), name="new")))
    assert page.locator("select[name=kind]").input_value() == "z", "a score that both sides have"


def test_a_statement_that_names_no_trait_stands_without_its_name(show: Callable[..., Any]) -> None:
    onsets = {
        "deception": {"answer": "none", "says": "not neutral, no trait in particular", "named": False},
        "flattery": {"answer": "onset", "onset": 2, "says": "rises at token 2 [1, 3]", "kind": "z"},
        "malice": {"answer": "onset", "onset": 2, "says": "rises at token 2 [1, 3]", "kind": "specific"},
    }
    page = show(make_payload(words(6), onsets=onsets))
    said = []
    for i in range(3):
        page.locator(".tv-chip").nth(i).click()
        said.append(page.locator(".tv-says").inner_text())
    assert said == [
        "Not neutral, no trait in particular",
        "flattery, plain z: rises at token 2 [1, 3]",
        "malice: rises at token 2 [1, 3]",
    ]


def test_log_odds_of_another_length_are_refused(show: Callable[..., Any]) -> None:
    payload = make_payload(words(3), log_odds=odds(3))
    payload["sides"][0]["log_odds"] = payload["sides"][0]["null_std"]
    page = show(payload)
    assert "differ in length" in page.locator(".tv-empty").inner_text()
