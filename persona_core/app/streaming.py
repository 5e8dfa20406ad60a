"""Payloads of replies that are being written: often enough to look alive, seldom enough to cost nothing."""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from persona_core.app.model_pool import ModelDesk
from persona_core.app.zero_gpu import on_gpu
from persona_core.traces.view.payload import Payload, pair_payload, trace_payload

if TYPE_CHECKING:
    from persona_core.monitor.monitor import PersonaMonitor, Step
    from persona_core.traces.trace import Trace

SECONDS_BETWEEN = 0.15
COST = 0.03
"""Share of a run's time that payloads may take: after one that took 10 ms, 330 ms pass to the next."""


class Stop(Protocol):
    """Whether the run shall end at its next token: a visitor's press on Stop, or the end of its time."""

    def is_set(self) -> bool: ...


class Pace:
    """When it is time for the next payload."""

    def __init__(self) -> None:
        self._next = -1.0
        self._began = 0.0

    def due(self) -> bool:
        self._began = time.monotonic()
        return self._began >= self._next

    def made(self) -> None:
        """The payload has been handed over: what that took decides when the next one is due."""
        now = time.monotonic()
        self._next = now + max(SECONDS_BETWEEN, (now - self._began) / COST)


@dataclass(frozen=True)
class Writing:
    """One reply to be written.

    Attributes:
        desk: hands out the monitor that reads the model while it writes.
        prompt: the conversation up to the reply, or the branch to go on from.
        name: of the side.
        settings: arguments of `PersonaMonitor.stream`.
    """

    desk: ModelDesk
    prompt: Any
    name: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Progress:
    """What is there of one or two replies.

    Attributes:
        payload: of all sides.
        traces: of the replies.
        ended: whether that is all that there will be.
    """

    payload: Payload
    traces: tuple[Trace, ...]
    ended: bool = False


def write(writings: Sequence[Writing], stopped: Stop, beside: Payload | None = None) -> Iterator[Progress]:
    """Write one reply, or two in turn, token by token.

    Args:
        writings: one or two.
        stopped: once set, the run ends at its next token, and what was shown last is what there is.
        beside: a payload of one side that the one reply is shown beside, as its first side.

    Yields:
        Progress about six times a second, the last of which has `ended`.
    """
    newest: Progress | None = None
    # Closed at the end in any case, also when the visitor leaves: the model is then free for the next run.
    with closing(_tokens(writings, beside)) as tokens:
        for progress in tokens:
            newest = progress or newest
            if progress is not None and progress.ended:  # also where it was stopped just now
                yield progress
                return
            if stopped.is_set():
                break
            if progress is not None:
                yield progress
    if newest is not None:
        yield _end(writings, newest.traces, beside)


@on_gpu
def _tokens(writings: Sequence[Writing], beside: Payload | None) -> Generator[Progress | None, None, None]:
    """Progress, or None where none is due, at each token; and the end."""
    with ExitStack() as open_streams:
        streams = [
            open_streams.enter_context(closing(w.desk.monitor().stream(w.prompt, **w.settings))) for w in writings
        ]
        newest: list[Step | None] = [None] * len(writings)
        pace = Pace()
        for steps in itertools.zip_longest(*streams):
            newest = [step or last for step, last in zip(steps, newest, strict=True)]
            if not pace.due():
                yield None
                continue
            traces = tuple(step.trace() for step in newest if step is not None)
            ends = [step.finish is not None for step in newest if step is not None]
            shown = [
                trace_payload(trace, name=w.name, done=done)
                for w, trace, done in zip(writings, traces, ends, strict=True)
            ]
            yield Progress(_joined(shown, beside), traces)
            pace.made()
        yield _end(writings, tuple(step.trace() for step in newest if step is not None), beside)


def _end(writings: Sequence[Writing], traces: tuple[Trace, ...], beside: Payload | None) -> Progress:
    final = [finished(w.desk.monitor(), trace, w.name) for w, trace in zip(writings, traces, strict=True)]
    return Progress(_joined(final, beside), traces, ended=True)


@on_gpu
def read_text(desk: ModelDesk, conversation: Any) -> Trace:
    """A given text, or a trace by its ids, as the desk's model reads it."""
    return desk.monitor().read(conversation)


def finished(monitor: PersonaMonitor, trace: Trace, name: str, title: str | None = None) -> Payload:
    """The payload of a complete trace: with its onsets, where the monitor has detectors."""
    caveats = () if monitor.detectors is None else monitor.detectors.caveats(trace)
    return trace_payload(trace, name=name, title=title, onsets=onsets_of(monitor, trace), caveats=caveats)


def onsets_of(monitor: PersonaMonitor, trace: Trace) -> dict[str, dict[str, Any]]:
    """The onset of each trait that the monitor has a detector for, as `trace_payload` takes it."""
    detectors = monitor.detectors
    if detectors is None:
        return {}
    return {t: detectors.find(trace, t).to_dict() for t in trace.traits if t in detectors.traits}


def _joined(own: Sequence[Payload], beside: Payload | None) -> Payload:
    sides = [*([] if beside is None else [beside]), *own]
    return sides[0] if len(sides) == 1 else pair_payload(sides[0], sides[1])
