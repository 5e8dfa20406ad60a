"""The one queue of the models, and how long a run may hold its place in it."""

from __future__ import annotations

import threading
import time
from typing import Any

MODEL_QUEUE = "model"
"""The concurrency id of every event that runs a model: one run at a time."""
QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""Arguments of an event that waits for no model: it is done at once, shows no spinner, and is no endpoint."""


class Deadline:
    """Whether a run shall end at its next token: its visitor has stopped it, or its time is up.

    Args:
        seconds: from now.
        stop: set by the visitor.
    """

    def __init__(self, seconds: float, stop: threading.Event | None = None) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds
        self._stop = stop or threading.Event()
        self._late = False

    def is_set(self) -> bool:
        """Asked once a token."""
        self._late = self._late or time.monotonic() > self._end
        return self._late or self._stop.is_set()

    @property
    def notice(self) -> str:
        """What a visitor is told of a run that has used up its time; else nothing."""
        return f"Ended after {self._seconds:g} seconds, the longest that one run may take here." if self._late else ""
