"""What the tests do on the app's page, and what they ask of it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from playwright.sync_api import TimeoutError

from tests.support import pages

ROOT = Path(__file__).resolve().parents[2]
ARTIFACTS = ROOT / "artifacts"
SHIPPED = (ARTIFACTS / "persona-tiny").is_dir() and (ARTIFACTS / "persona-vectors-persona-tiny").is_dir()


def ask(page: Any, prompt: str, system: str = "") -> None:
    page.fill("#prompt textarea", prompt)
    page.fill("#system textarea", system)
    page.wait_for_timeout(100)  # a change takes an old notice away; it must not come after the press
    with contextlib.suppress(TimeoutError):  # nor may an old notice be taken for that of this press
        page.wait_for_function("document.querySelector('#notice .notice').hidden", timeout=3000 * pages.load_factor())
    page.click("#generate")
    taken(page)


def taken(page: Any) -> None:
    """Wait until the press has been seen: Stop is on, or all is over already and a notice says so."""
    seen = "() => !document.querySelector('#stop').disabled || !document.querySelector('#notice .notice').hidden"
    with contextlib.suppress(TimeoutError):  # a run may begin and end between two looks
        page.wait_for_function(seen, timeout=3000 * pages.load_factor())


def wait_done(page: Any) -> None:
    page.wait_for_selector("#stop[disabled]")
    page.wait_for_selector("#generate:not([disabled])")
    page.wait_for_selector("#view .tv[data-state=done]")


def notice(page: Any, where: str = "#notice") -> str:
    page.wait_for_function(
        "where => { const n = document.querySelector(where + ' .notice');"
        " return !n.hidden && !n.innerText.startsWith('Waiting'); }",
        arg=where,
    )
    return str(page.locator(f"{where} .notice").inner_text())


def tokens_of(page: Any, view: str = "#view", side: int = 0) -> list[str]:
    pane = page.locator(f"{view} .tv-pane").nth(side)
    return pane.locator(".tv-tok").evaluate_all("all => all.map(t => t.textContent)")


def open_tab(page: Any, name: str, ready: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()
    page.wait_for_selector(ready)


def no_sideways_scroll(page: Any) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))
