"""A conversation of several turns: a line that has each turn's mean of the chosen trait, and goes there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from persona_core.traces.view.payload import pair_payload, trace_payload
from tests.support.standins import TRAITS, Payload, cut, make_payload, make_trace, words
from tests.support.view_page import cursor, update

pytestmark = pytest.mark.browser

EARLIER = ("Why", "?", "<|end|>", "<|bot|>", " So", " it", " is", "<|end|>", "<|user|>", " And", " now", "?")
ROLES = ["template"] * 2 + ["user"] * 2 + ["template"] * 2 + ["assistant"] * 3 + ["template"] * 2 + ["user"] * 3
FIRST = len(ROLES) + 3
"""Position of the last reply's first token."""
SCORES = {TRAITS[1]: {6: 1.0, 7: 2.0, 8: -6.0, FIRST: 5.0, FIRST + 1: 7.0}}


def conversation(reply: list[str], **changes: Any) -> Any:
    roles = (*ROLES, *["template"] * 3, *["assistant"] * len(reply))
    return make_trace(reply, EARLIER, SCORES, roles=roles, **changes)


def turns(page: Any, row: int = 0) -> list[str]:
    buttons = page.locator(".tv-turns-row").nth(row).locator("button")
    return [" ".join(text.split()) for text in buttons.all_inner_texts()]


def current(page: Any) -> list[str]:
    return page.locator(".tv-turn[aria-current]").evaluate_all("all => all.map(b => b.firstElementChild.textContent)")


def shown(reply: list[str], **changes: Any) -> Payload:
    return trace_payload(conversation(reply), title="And now?", **changes)


def test_each_turn_of_the_model_has_its_mean_and_leads_to_its_first_token(show: Callable[..., Any]) -> None:
    page = show(shown(words(2)))
    page.locator(".tv-chip").nth(1).click()
    assert turns(page) == ["Turn 1 −1.00", "Turn 2 +6.00"], "of (1 + 2 − 6) / 3 and (5 + 7) / 2"
    page.get_by_role("button", name="Turn 1").click()
    page.mouse.move(2, 2)
    assert cursor(page) == 6 and current(page) == ["Turn 1"]
    page.locator("[role=slider]").press("End")
    assert current(page) == ["Turn 2"]
    page.locator("[role=slider]").press("Home")
    assert current(page) == []
    page.locator(".tv-chip").nth(0).click()
    assert turns(page) == ["Turn 1 +0.10", "Turn 2 +0.10"]


def test_a_conversation_of_one_turn_has_no_such_line(show: Callable[..., Any]) -> None:
    page = show(make_payload(words(4)))
    assert page.locator(".tv-turns").is_hidden()
    update(page, shown(words(2)))
    assert page.locator(".tv-turns").is_visible()
    update(page, make_payload(words(4)))
    assert page.locator(".tv-turns").is_hidden()


def test_two_sides_have_a_line_each_and_a_turn_opens_that_of_its_side(show: Callable[..., Any]) -> None:
    other = conversation(words(4), raw=np.full((3, 1, FIRST + 4), 2.0, np.float32))
    page = show(pair_payload(shown(words(2), name="a"), trace_payload(other, name="b")))
    page.locator(".tv-chip").nth(1).click()
    assert page.locator(".tv-turns-name").all_inner_texts() == ["a", "b"]
    assert [turns(page, s) for s in (0, 1)] == [["Turn 1 −1.00", "Turn 2 +6.00"], ["Turn 1 +2.00", "Turn 2 +2.00"]]
    page.locator(".tv-turn").nth(3).click()
    page.mouse.move(2, 2)
    assert cursor(page) == FIRST


def test_the_line_stays_while_the_last_turn_is_written(show: Callable[..., Any]) -> None:
    whole = conversation(words(5))
    grown = lambda n: trace_payload(cut(whole, FIRST + n), title="And now?", done=False)  # noqa: E731
    page = show(grown(1))
    page.locator(".tv-chip").nth(1).click()
    page.locator(".tv-turn").first.focus()
    update(page, grown(2))
    assert turns(page) == ["Turn 1 −1.00", "Turn 2 +6.00"]
    assert page.evaluate("document.activeElement.textContent").startswith("Turn 1")
