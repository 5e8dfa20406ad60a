"""What the token view marks: shared words, where two replies part, onsets, and the highest trait of each sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from persona_core.traces.view.payload import pair_payload
from tests.support.standins import FIRST, TRAITS, make_payload, words
from tests.support.view_page import cursor, update

pytestmark = pytest.mark.browser

SENTENCES = ["It", " is", " late", ".", " You", " are", " so", " wise", "!", " Go", " home", " now", "."]
ONSET = {
    "answer": "onset",
    "onset": 5,
    "low": 3,
    "high": 7,
    "timed": True,
    "kind": "z",
    "says": "rises at token 5 [3, 7]",
}


def classed(page: Any, name: str, side: int) -> list[int]:
    tokens = page.locator(".tv-pane").nth(side).locator(f".tv-tok.{name}")
    return [int(i) for i in tokens.evaluate_all("all => all.map(t => t.dataset.i)")]


def pair(first: list[str], second: list[str], **of_second: Any) -> Any:
    a, b = make_payload(first, name="baseline"), make_payload(second, name="contaminated", **of_second)
    b["sides"][0]["ids"] = [hash(t) % 10**6 for t in b["sides"][0]["tokens"]]
    a["sides"][0]["ids"] = [hash(t) % 10**6 for t in a["sides"][0]["tokens"]]
    return pair_payload(a, b)


def test_the_stretch_that_both_replies_share_ends_where_they_part(show: Callable[..., Any]) -> None:
    first, second = words(12), [*words(7), " other", " words"]
    page = show(pair(first, second))
    for side in (0, 1):
        assert classed(page, "tv-shared", side) == list(range(FIRST, FIRST + 7))
        assert classed(page, "tv-parts", side) == [FIRST + 7]
    assert "texts part" not in page.locator(".tv-text").last.text_content(), "drawn, so that a copied text is the text"
    update(page, pair(words(2), [*words(1), " other"]))
    assert classed(page, "tv-shared", 0) == classed(page, "tv-parts", 0) == [], "one word is no shared beginning"
    update(page, pair(words(9), words(9)))
    assert classed(page, "tv-shared", 0) == [], "one text, read by both, does not part"


def test_a_traits_button_names_its_onset_and_goes_there(show: Callable[..., Any]) -> None:
    payload = make_payload(words(20))
    payload["sides"][0]["onsets"] = {
        TRAITS[1]: ONSET,
        TRAITS[2]: ONSET | {"timed": False, "low": 0, "high": 19},
        TRAITS[0]: ONSET | {"answer": "none", "onset": None, "low": None, "high": None},
    }
    page = show(payload)
    chips = page.locator(".tv-chip")
    assert [" ".join(text.split()) for text in chips.all_inner_texts()] == [
        TRAITS[0],
        f"{TRAITS[1]} 5 [3, 7]",
        f"{TRAITS[2]} between 0 and 19",
    ]
    chips.nth(1).click()
    page.mouse.move(2, 2)
    assert cursor(page) == FIRST + 5 and classed(page, "tv-onset", 0) == [FIRST + 5]
    assert page.locator(".tv-position").inner_text().startswith("Token 5\n"), "counted alike"
    chips.nth(0).click()
    assert classed(page, "tv-onset", 0) == []


def test_each_sentence_names_its_highest_trait_if_it_is_not_like_neutral_ones(show: Callable[..., Any]) -> None:
    wise = {FIRST + i: 6.0 for i in range(4, 9)}
    payload = make_payload(SENTENCES, scores={TRAITS[1]: wise, TRAITS[2]: {FIRST + 10: 5.0}})
    page = show(payload)
    found = page.locator("[data-top]").evaluate_all("all => all.map(t => [Number(t.dataset.i), t.dataset.top])")
    assert found == [[FIRST + 8, f"{TRAITS[1]} +6.00"]], "the last sentence averages 1.3, the first 0.1"
    page.locator("[data-part=options] summary").click()
    page.get_by_label("Name the highest trait of each sentence").uncheck()
    assert page.locator("[data-top]").count() == 0


def test_while_the_difference_is_shown_sentences_name_the_trait_that_differs_most(show: Callable[..., Any]) -> None:
    moved = {
        TRAITS[0]: {FIRST + i: -3.1 for i in range(4)},
        TRAITS[1]: {FIRST + i: 3.0 for i in range(4)} | {FIRST + i: 6.0 for i in range(9, 13)},
        TRAITS[2]: {FIRST + i: 0.9 for i in range(4, 9)},
    }
    page = show(pair(SENTENCES, [*SENTENCES[:-1], "!"], scores=moved))

    def tops(side: int) -> list[Any]:
        named = page.locator(".tv-pane").nth(side).locator("[data-top]")
        return list(named.evaluate_all("all => all.map(t => [Number(t.dataset.i), t.dataset.top])"))

    assert tops(0) == [] and tops(1) == [[FIRST + 3, f"{TRAITS[1]} +3.00"], [FIRST + 12, f"{TRAITS[1]} +6.00"]]
    page.locator("[data-part=options] summary").click()
    page.get_by_label("Colour by the difference of the two sides").check()
    assert tops(0) == tops(1) == [[FIRST + 3, f"{TRAITS[0]} −3.20"]], (
        "of the second sentence they read the same but for 0.8, and of the third they read different words"
    )


def test_the_difference_of_two_sides_has_its_own_scale_and_ends_where_the_texts_part(show: Callable[..., Any]) -> None:
    high = {FIRST + 2: 1.1, FIRST + 5: 0.6, FIRST + 8: 9.0}
    page = show(pair(words(12), [*words(7), " other", " words"], scores={TRAITS[0]: high}))
    page.locator(".tv-chip").first.click()
    page.locator("[data-part=options] summary").click()
    page.get_by_label("Colour by the difference of the two sides").check()
    assert page.locator("[data-part=key-high]").inner_text() == "+1", "1.1 less 0.1"
    assert "contaminated minus baseline" in page.locator("[data-part=key-unit]").inner_text()
    for side in (0, 1):
        tokens = page.locator(".tv-pane").nth(side).locator(".tv-tok")
        shares = tokens.evaluate_all("all => all.map(t => Number(t.style.getPropertyValue('--a')))")
        expected = np.zeros(len(shares))
        expected[FIRST + 2], expected[FIRST + 5] = 1.0, 0.5
        assert shares == pytest.approx(expected, abs=0.01)
