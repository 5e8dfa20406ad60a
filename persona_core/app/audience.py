"""Whether anybody waits for what an event of the page, or a call of the API, writes.

Gradio runs a call that was started and whose results are never fetched to its end, and keeps them. Its messages then
pile up unread; those of a client that listens are taken within milliseconds.
"""

from __future__ import annotations

import time
from typing import Any

from gradio.context import LocalContext

UNFETCHED_SECONDS = 30.0
"""How long results may lie unread. Enough to copy a call's id from one command of `curl` to the next."""
FIRST_SECONDS = 5.0
"""The same from a run's start, if it waited in the queue for longer than that."""


def current_session() -> str:
    """The session of the event that is being handled; "" outside of one."""
    request = LocalContext.request.get(None)
    return (request and request.session_hash) or ""


class Audience:
    """Who waits for the results of the event that is being handled. Outside of one, somebody always does."""

    def __init__(self) -> None:
        self._until = time.monotonic() + FIRST_SECONDS
        blocks, event_id = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
        self._event: Any = None
        if blocks is not None and event_id is not None:
            self._event = blocks._queue.event_ids_to_events.get(event_id)
            self._messages = blocks._queue.pending_messages_per_session
        if self._event is not None:
            self._until = max(self._until, self._event.enqueue_time + UNFETCHED_SECONDS)

    def gone(self) -> bool:
        """Whether the client has left, or has read nothing for a while. To be asked at every token."""
        if self._event is None:
            return False
        now = time.monotonic()
        messages = self._messages.get(self._event.session_hash)
        if messages is None or messages.empty():
            self._until = now + UNFETCHED_SECONDS
        return now > self._until or not self._event.alive
