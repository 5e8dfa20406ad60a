"""One thread that writes all replies in one batch, and hands each token to the request that waits for it."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from persona_core.app.server.api_errors import ApiError
from persona_core.app.server.reply_request import ReplyRequest
from persona_core.app.server.settings import ServeSettings
from persona_core.app.server.watching import Watch, Watches
from persona_core.errors import PersonaError, ServerError
from persona_core.inference.batch import BrokenReply
from persona_core.inference.sampling import MARK_TOKENS, THOUGHT_LIMIT
from persona_core.monitor.live_batch import LiveBatch, LiveReply, LiveToken
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.traces.trace import Trace

logger = logging.getLogger(__name__)

STOP_SECONDS = 30.0


@dataclass(frozen=True)
class Token:
    """A new token, for its request.

    Attributes:
        live: the token as it was read.
        events: what detectors say at it.
    """

    live: LiveToken
    events: tuple[Mapping[str, Any], ...] = ()


@dataclass(eq=False)
class Reply:
    """A reply on its way: its request iterates over its tokens, and closes it.

    At most as many tokens as the longest reply has lie here unread, in as many replies as there are places.

    Attributes:
        request: what was requested.
        live: the reply in the batch.
        watch: of its traits.
        traits: that are reported.
        notice: why it ended before its time; mostly empty.
    """

    request: ReplyRequest
    live: LiveReply
    watch: Watch
    traits: tuple[str, ...]
    writer: ReplyWriter
    notice: str = ""
    until: float = math.inf
    closed: bool = False
    _tokens: asyncio.Queue[Token | Exception | None] = field(default_factory=asyncio.Queue)
    _last: LiveToken | None = None

    async def __aiter__(self) -> AsyncIterator[Token]:
        """The tokens as they are written.

        Raises:
            PersonaError: the reply failed.
        """
        while (token := await self._tokens.get()) is not None:
            if isinstance(token, Exception):
                raise token
            self._last = token.live
            yield token

    async def end(self) -> tuple[Trace | None, dict[str, Any]]:
        """After the last token: the trace, and its onsets. No trace if there is no token."""
        if self._last is None:
            return None, {}
        return await asyncio.to_thread(self._end, self._last)

    def _end(self, last: LiveToken) -> tuple[Trace, dict[str, Any]]:
        trace = last.step.trace()
        return trace, self.watch.of_reply(trace)

    @property
    def finish(self) -> str | None:
        """Why it ended, as a trace says it."""
        return None if self._last is None else self._last.step.finish

    def hand_out(self, token: Token | Exception | None) -> None:
        """Called in the server's thread."""
        if not self.closed:
            self._tokens.put_nowait(token)

    def close(self) -> None:
        """End it, wherever it is. May be called again."""
        if not self.closed:
            self.closed = True
            self.writer.leave(self)


class ReplyWriter:
    """Writes replies, up to `batch_size` at once; the others wait in the order in which they came.

    Args:
        monitor: of the model.
        settings: the limits.
    """

    def __init__(self, monitor: PersonaMonitor, settings: ServeSettings) -> None:
        self.monitor, self.settings = monitor, settings
        self.watches = Watches(monitor.detectors)
        self._places = 0  # requests that were let in and have not left
        self._seconds = 1.0  # that a reply takes, roughly
        self._changed = threading.Condition()
        self._arrived: list[Reply] = []
        self._left: list[Reply] = []
        self._stopped = False
        self._active: dict[LiveReply, Reply] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="write-replies", daemon=True)
        self._preparing: asyncio.Semaphore | None = None

    @property
    def default_sampling(self) -> dict[str, Any]:
        """How replies are sampled whose request does not say: as those that the false-alarm rate rests on."""
        detectors = self.monitor.detectors
        known = None if detectors is None else detectors.rests_on.get("sampling")
        names = ("temperature", "top_p", "top_k", "repetition_penalty")
        return {"temperature": 1.0} if not known else {name: known[name] for name in names if name in known}

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def n_requests(self) -> int:
        """That were let in and have not left."""
        return self._places

    def start(self) -> None:
        """Start writing; in the server's event loop."""
        self._loop, self._preparing = asyncio.get_running_loop(), asyncio.Semaphore(1)
        self._thread.start()

    def stop(self) -> None:
        """End all replies at their next token, and wait for that; not in the server's event loop."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join(STOP_SECONDS)  # Python must not exit in the middle of a forward pass

    async def begin(self, request: ReplyRequest) -> Reply:
        """Let a request in, check it and have its reply written. It must be closed.

        Raises:
            ApiError: 429, there is no place.
            PersonaError: the request is wrong.
        """
        if self._places >= self.settings.batch_size + self.settings.max_queue:
            seconds = min(60, max(1, math.ceil(self._seconds)))
            raise ApiError(
                f"{self._places} requests are being answered or wait; try again in {seconds} s.",
                429,
                code="queue_full",
                headers={"Retry-After": str(seconds)},
            )
        self._places += 1
        try:
            assert self._preparing is not None
            async with self._preparing:  # one at a time: a tokenizer is not made for several threads
                reply = await asyncio.to_thread(self._prepare, request)
        except BaseException:
            self._places -= 1
            raise
        with self._changed:
            self._arrived.append(reply)
            self._changed.notify()
        return reply

    def leave(self, reply: Reply) -> None:
        """A request has been answered, or its client has gone."""
        self._places -= 1
        with self._changed:
            self._left.append(reply)
            self._changed.notify()

    def _prepare(self, request: ReplyRequest) -> Reply:
        traits = request.traits(self.monitor.vectors)
        watch = self.watches.of(traits)
        if request.persona.cap_on_alarm and watch.detectors is None:
            raise ApiError("persona.cap_on_alarm needs onset detectors, which these vectors lack.", param="persona")
        if self.monitor.lm.engine is not None and (request.persona.cap_on_alarm or request.n_top is not None):
            what = "logprobs" if request.n_top is not None else "persona.cap_on_alarm"
            raise ApiError(f"{what} needs a server on engine transformers.", param=what, code="unsupported_parameter")
        live = self.monitor.live_reply(
            request.messages,
            seed=request.seed,
            steer=request.persona.steers(self.monitor.vectors.best_block),
            detectors=watch.detectors,
            n_top=request.n_top,
            **{**self.default_sampling, **request.sampling},
        )
        if live.n_prompt > self.settings.max_prompt_tokens:
            raise ApiError(
                f"The prompt has {live.n_prompt} tokens; this server takes at most {self.settings.max_prompt_tokens}.",
                param="messages",
                code="context_length_exceeded",
            )
        return Reply(request, live, watch, traits, self)

    # ---- in the writing thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        longest = self.settings.max_new_tokens + THOUGHT_LIMIT + MARK_TOKENS
        while not self._stopped:
            try:
                with self.monitor.live_batch(self.settings.batch_size, longest) as batch:
                    while self._wait(batch):
                        self._step(batch)
            except Exception as error:  # one step for all: whatever fails in it has failed for all of them
                logger.exception("The replies of a batch failed")
                self._hand_out([(reply, error) for reply in self._active.values()])
                self._active.clear()
        ended = ServerError("The server is shutting down.")
        self._hand_out([(reply, ended) for reply in (*self._active.values(), *self._arrived)])

    def _wait(self, batch: LiveBatch) -> bool:
        """Until there is something to do; takes in who has come and lets go who has left. False: the server stops."""
        with self._changed:
            while not (self._stopped or self._arrived or self._left or not batch.is_idle):
                self._changed.wait()
            arrived, left, self._arrived, self._left = self._arrived, self._left, [], []
        for reply in arrived:
            if not reply.closed:
                self._active[reply.live] = reply
                batch.start(reply.live)
        for reply in left:
            if self._active.pop(reply.live, None) is not None:
                batch.end(reply.live)
        return not self._stopped

    def _step(self, batch: LiveBatch) -> None:
        try:
            tokens = batch.step()
        except BrokenReply as error:
            reply = self._active.pop(batch.of(error.row))
            self._hand_out([(reply, error)])
            return
        found: list[tuple[Reply, Token | Exception | None]] = []
        now = time.monotonic()
        for token in tokens:
            reply = self._active[token.reply]
            if reply.until == math.inf:
                reply.until = now + self.settings.max_seconds
            try:
                events = [reply.watch.onset_event(alarm, token.step.trace()) for alarm in token.alarms]
            except PersonaError as error:
                found.append((reply, error))
                self._drop(batch, reply)
                continue
            found.append((reply, Token(token, tuple(events))))
            if token.step.finish is None and now > reply.until:
                reply.notice = f"Ended after {self.settings.max_seconds:g} seconds, the time limit of this server."
                self._drop(batch, reply)
                found.append((reply, None))
            elif token.step.finish is not None:
                del self._active[reply.live]
                taken = now - reply.until + self.settings.max_seconds
                self._seconds += 0.1 * (taken - self._seconds)
                logger.info("A reply of %d tokens in %.1f s", token.step.index + 1, taken)
                found.append((reply, None))
        self._hand_out(found)

    def _drop(self, batch: LiveBatch, reply: Reply) -> None:
        del self._active[reply.live]
        batch.end(reply.live)

    def _hand_out(self, found: list[tuple[Reply, Token | Exception | None]]) -> None:
        if found and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(partial(_hand_out, found))


def _hand_out(found: list[tuple[Reply, Token | Exception | None]]) -> None:
    for reply, token in found:
        reply.hand_out(token)
