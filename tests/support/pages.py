"""What the browser tests share: one Chromium, and pages that must stay silent and on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import browser

PICTURES = Path(os.environ.get("PERSONA_PICTURES") or Path(__file__).resolve().parents[2] / "test-results")
"""Where screenshots go; `make screenshots` names docs/images."""


def load_factor() -> float:
    """How many processes share a processor, at least 1: limits in seconds are for a machine of one's own."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


KEPT = "() => { try { return localStorage.length + document.cookie.length > 0; } catch { return true; } }"
"""Whether a page has left something that another visit would find."""


@contextmanager
def chromium() -> Iterator[Any]:
    """A running browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = browser.launch(playwright)
        yield running
        running.close()


class Pages:
    """Opens pages, each as a new visitor, and remembers what they logged and asked for.

    Args:
        running: the browser.
        home: beginnings of the addresses that a page may ask for.
    """

    def __init__(self, running: Any, home: tuple[str, ...]) -> None:
        self._running = running
        self._home = home
        self._opened: list[Any] = []
        self.noise: list[str] = []
        self.expected: list[str] = []  # parts of console messages that belong to the test
        self.requests: list[str] = []

    def open(self, url: str, *, width: int = 1440, height: int = 900, theme: str = "light", fresh: bool = False) -> Any:
        """A page of a new visitor; a `fresh` one has nothing in the browser's cache either."""
        used = {page.context for page in self._opened}
        idle = (context for context in self._running.contexts if context not in used)
        # What an earlier visitor fetched is in the context's cache: a script is compiled once, not by every test.
        context = (None if fresh else next(idle, None)) or self._running.new_context()
        context.set_default_timeout(30_000 * load_factor())
        page = context.new_page()
        self._opened.append(page)
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=theme)
        page.on("console", lambda message: self.noise.append(message.text))
        page.on("pageerror", lambda error: self.noise.append(str(error)))
        page.on("dialog", lambda dialog: self.noise.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(url)
        return page

    def close(self) -> None:
        """Close all pages. Their consoles must be empty, and no request may have gone elsewhere."""
        for page in self._opened:
            kept = page.is_closed() or page.evaluate(KEPT)
            page.context.close() if kept else page.close()  # the next visitor is a stranger too
        unexpected = [line for line in self.noise if not any(part in line for part in self.expected)]
        assert unexpected == []
        assert [url for url in self.requests if not url.startswith((*self._home, "data:", "blob:"))] == []
