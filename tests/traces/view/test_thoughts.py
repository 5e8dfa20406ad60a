"""A thought before an answer: folded away and apart, open while it is written and where the cursor is in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.standins import FIRST, make_payload, words
from tests.support.view_page import cursor, token

pytestmark = pytest.mark.browser


def thinking(n_thought: int, **changes: Any) -> dict[str, Any]:
    payload = make_payload(words(30))
    side = payload["sides"][0]
    side["roles"][FIRST : FIRST + n_thought] = ["thinking"] * n_thought
    side.update(changes)
    return dict(payload)


def test_a_thought_is_folded_and_apart(show: Callable[..., Any]) -> None:
    page = show(thinking(10))
    fold = page.locator(".tv-section[data-role=thinking] details")
    assert fold.count() == 1 and not fold.evaluate("e => e.open")
    assert not token(page, FIRST + 3).is_visible() and token(page, FIRST + 12).is_visible()
    assert page.locator(".tv-section[data-role=assistant] .tv-tok").count() == 20
    page.locator(".tv-section[data-role=thinking] summary").click()
    token(page, FIRST + 3).click()
    assert cursor(page) == FIRST + 3


def test_a_cursor_that_moves_into_a_thought_opens_it(show: Callable[..., Any]) -> None:
    page = show(thinking(10))
    token(page, FIRST + 11).click()
    page.mouse.move(2, 2)  # what unfolds under the pointer would be previewed
    for _ in range(4):
        page.locator(".tv-text").press("ArrowLeft")
    assert cursor(page) == FIRST + 7 and token(page, FIRST + 7).is_visible()


def test_a_thought_is_open_while_it_is_written(show: Callable[..., Any]) -> None:
    page = show(thinking(10, done=False, finish=None))
    assert token(page, FIRST + 3).is_visible()
