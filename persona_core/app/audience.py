"""Who waits: whether anybody does for what an event of the page, or a call of the API, writes; one client in how many
places of the queue.

Gradio runs a call that was started and whose results are never fetched to its end, and keeps them. Its messages then
pile up unread; those of a client that listens are taken within milliseconds.
"""

from __future__ import annotations

import re
import time
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
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


class HalfQueue:
    """ASGI middleware: a client has at most half of the queue's places, so that there is room for others.

    Args:
        app: the server below.
        places: of the queue.
    """

    def __init__(self, app: Any, places: int) -> None:
        self._app, self._most = app, max(1, places // 2)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and _JOINS_QUEUE.search(scope["path"]):
            request = Request(scope)
            queues = request.app.get_blocks()._queue.event_queue_per_concurrency_id.values()
            client = _address(request)
            n = sum(_address(event.request) == client for queue in queues for event in queue.queue)
            if n >= self._most:
                says = f"{n} runs from your address wait for the model already. Try again when one has begun."
                await JSONResponse({"detail": says}, 503)(scope, receive, send)
                return
        await self._app(scope, receive, send)


_JOINS_QUEUE = re.compile(r"/(queue/join|call/(v2/)?[^/]+)$")


def _address(request: Request) -> str:
    """Of the client. Behind a proxy it is the first that the proxy names, which a client could make up."""
    first = request.headers.get("x-forwarded-for", "").partition(",")[0].strip()
    return first or (request.client.host if request.client else "")
