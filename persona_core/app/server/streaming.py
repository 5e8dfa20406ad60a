"""Sending a reply while it is written, and ending it when nobody reads it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse

from persona_core.app.server.api_errors import as_api_error
from persona_core.app.server.writer import Reply
from persona_core.errors import PersonaError

logger = logging.getLogger(__name__)

T = TypeVar("T")
Record = dict[str, Any]


class ReplyStream(StreamingResponse):
    """A reply as server-sent events. It ends with its client: when that leaves, or reads nothing for too long.

    Args:
        reply: that the records are of; closed in the end, however that comes.
        records: JSON values; one with a "type" names the event, as in the Responses API.
        done: sent after the last.
    """

    def __init__(self, reply: Reply, records: AsyncIterator[Record], done: str = "") -> None:
        super().__init__(self._events(records, done), media_type="text/event-stream")
        # Proxies must pass the events on one by one.
        self.headers["Cache-Control"], self.headers["X-Accel-Buffering"] = "no-cache", "no"
        self._reply = reply

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        unread = self._reply.writer.settings.unread_seconds

        async def send_in_time(message: Any) -> None:
            async with asyncio.timeout(unread):  # waits while what was sent lies unread
                await send(message)

        try:
            await super().__call__(scope, receive, send_in_time)
        except TimeoutError:  # the server then closes the connection
            logger.info("A client read nothing for %g seconds; its reply was ended.", unread)
        finally:
            self._reply.close()

    @staticmethod
    async def _events(records: AsyncIterator[Record], done: str) -> AsyncIterator[bytes]:
        sent = 0
        try:
            async for record in records:
                sent += 1
                yield _event(record)
        except Exception as error:  # the status is sent: all that can be done is to say it
            if not isinstance(error, PersonaError):
                logger.exception("A stream failed")
            body = as_api_error(error).body
            yield _event(body if done else {"type": "error", "sequence_number": sent, **body["error"], **body})
            return
        if done:
            yield f"data: {done}\n\n".encode()


def _event(record: Record) -> bytes:
    name = f"event: {record['type']}\n" if "type" in record else ""
    return f"{name}data: {json.dumps(record, allow_nan=False, separators=(',', ':'))}\n\n".encode("ascii")


async def unless_gone(request: Request, work: Awaitable[T]) -> T | None:
    """What the work returns; None if the client leaves before, which cancels it."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
