"""Payloads of replies while they are written: often enough to look live, seldom enough to cost little."""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from persona_core.app.pooled_model import PooledModel
from persona_core.app.zero_gpu import on_gpu
from persona_core.models.threads import SMALL_TO_WRITE, fit_threads
from persona_core.traces.view.payload import Payload, pair_payload, trace_payload

if TYPE_CHECKING:
    from persona_core.monitor.monitor import PersonaMonitor, Step
    from persona_core.traces.trace import Trace

SECONDS_BETWEEN = 0.15
MEASURED_LATER = "What the branch changes is measured once it is written."
COST = 0.03
"""Share of a run's time that payloads may take: after one that took 10 ms, the next is due in 330 ms."""


class StopSignal(Protocol):
    """Whether the run must end at its next token: a press on Stop, or the end of its time."""

    def is_set(self) -> bool: ...


class Pace:
    """When the next payload is due."""

    def __init__(self) -> None:
        self._next = -1.0
        self._began = 0.0

    def due(self) -> bool:
        self._began = time.monotonic()
        return self._began >= self._next

    def made(self) -> None:
        """The payload has been delivered: the time it took decides when the next one is due."""
        now = time.monotonic()
        self._next = now + max(SECONDS_BETWEEN, (now - self._began) / COST)


@dataclass(frozen=True)
class ReplyJob:
    """A reply to generate.

    Attributes:
        pooled: the model; its monitor reads while it writes.
        prompt: the conversation before the reply, or the branch to continue from.
        name: of the side.
        settings: arguments of `PersonaMonitor.stream`.
    """

    pooled: PooledModel
    prompt: Any
    name: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Progress:
    """One or two replies so far.

    Attributes:
        payload: of all sides.
        traces: of the replies.
        ended: whether this is the last progress.
    """

    payload: Payload
    traces: tuple[Trace, ...]
    ended: bool = False


def stream_replies(jobs: Sequence[ReplyJob], stop: StopSignal, first_side: Payload | None = None) -> Iterator[Progress]:
    """Generate one reply, or two in turn, token by token.

    Args:
        jobs: one, or two of models in this process.
        stop: once set, the run ends at its next token, with what it has.
        first_side: the payload of the reply that the only job branches from, shown before it.

    Yields:
        Progress about six times a second; the last one has `ended`.
    """
    newest: Progress | None = None
    # Always closed, also when the visitor leaves: the model is then free for the next run.
    with closing(jobs[0].pooled.run(_tokens, jobs, first_side)) as tokens:
        for progress in tokens:
            newest = progress or newest
            if progress is not None and progress.ended:  # also if it was stopped just now
                yield progress
                return
            if stop.is_set():
                break
            if progress is not None:
                yield progress
    if newest is not None:
        # Only a branch is read once more, and only that needs the GPU, which the closed stream has given back.
        end = _end if first_side is None else _end_of_branch
        yield jobs[0].pooled.run(end, jobs, newest.traces, first_side)


@on_gpu
def _tokens(jobs: Sequence[ReplyJob], first_side: Payload | None) -> Generator[Progress | None, None, None]:
    """At each token the progress, or None if none is due; then the end."""
    fit_threads(jobs[0].pooled.monitor().lm, below=SMALL_TO_WRITE)
    with ExitStack() as open_streams:
        streams = [
            open_streams.enter_context(closing(job.pooled.monitor().stream(job.prompt, **job.settings))) for job in jobs
        ]
        newest: list[Step | None] = [None] * len(jobs)
        pace = Pace()
        for steps in itertools.zip_longest(*streams):
            newest = [step or last for step, last in zip(steps, newest, strict=True)]
            if not pace.due():
                yield None
                continue
            traces = tuple(step.trace() for step in newest if step is not None)
            ends = [step.finish is not None for step in newest if step is not None]
            sides = [
                trace_payload(trace, name=job.name, done=done)
                for job, trace, done in zip(jobs, traces, ends, strict=True)
            ]
            payload = _joined(sides, first_side)
            if first_side is not None and jobs[0].settings.get("steer") is not None:
                payload |= {"outcome": {"says": MEASURED_LATER, "detail": "", "warning": ""}}
            yield Progress(payload, traces)
            pace.made()
        yield _end(jobs, tuple(step.trace() for step in newest if step is not None), first_side)


def _end(jobs: Sequence[ReplyJob], traces: tuple[Trace, ...], first_side: Payload | None) -> Progress:
    from persona_core.monitor.branch_outcome import branch_outcome

    final = [final_payload(job.pooled.monitor(), trace, job.name) for job, trace in zip(jobs, traces, strict=True)]
    payload = _joined(final, first_side)
    job = jobs[0]
    if first_side is not None and (steer := job.settings.get("steer")) is not None:
        outcome = branch_outcome(job.pooled.monitor(), job.prompt, traces[0], steer.trait)
        payload |= {"outcome": asdict(outcome)}
    return Progress(payload, traces, ended=True)


@on_gpu
def _end_of_branch(jobs: Sequence[ReplyJob], traces: tuple[Trace, ...], first_side: Payload) -> Progress:
    return _end(jobs, traces, first_side)


def read_text(pooled: PooledModel, conversation: Any) -> Trace:
    """A given text, or a trace by its ids, as read by the model."""
    return cast("Trace", pooled.run(_read, pooled, conversation))


@on_gpu
def _read(pooled: PooledModel, conversation: Any) -> Trace:
    fit_threads(pooled.monitor().lm)
    return pooled.monitor().read(conversation)


def alternatives_of(pooled: PooledModel, trace: Trace, at: int) -> list[dict[str, Any]]:
    """What the model could have said in place of a token of a reply, as plain values; see `Alternative`."""
    return cast("list[dict[str, Any]]", pooled.run(_alternatives, pooled, trace, at))


@on_gpu
def _alternatives(pooled: PooledModel, trace: Trace, at: int) -> list[dict[str, Any]]:
    from persona_core.monitor.alternatives import alternatives

    return [asdict(one) for one in alternatives(pooled.monitor().lm, trace, at)]


def with_token(pooled: PooledModel, trace: Trace, at: int, token_id: Any) -> Trace:
    """The trace up to a token of its reply, which is another one now."""
    return cast("Trace", pooled.run(_with_token, pooled, trace, at, token_id))


def _with_token(pooled: PooledModel, trace: Trace, at: int, token_id: Any) -> Trace:
    from persona_core.monitor.alternatives import branch_with

    return branch_with(pooled.monitor().lm, trace, at, token_id).trace


def payload_of(pooled: PooledModel, trace: Trace, name: str) -> Payload:
    """The payload of a complete trace, made where the model and its detectors are."""
    return cast("Payload", pooled.run(_payload, pooled, trace, name))


def _payload(pooled: PooledModel, trace: Trace, name: str) -> Payload:
    return final_payload(pooled.monitor(), trace, name)


def final_payload(monitor: PersonaMonitor, trace: Trace, name: str, title: str | None = None) -> Payload:
    """The payload of a complete trace, with its onsets if the monitor has detectors."""
    caveats = () if monitor.detectors is None else monitor.detectors.caveats(trace)
    return trace_payload(trace, name=name, title=title, onsets=onsets_of(monitor, trace), caveats=caveats)


def onsets_of(monitor: PersonaMonitor, trace: Trace) -> dict[str, dict[str, Any]]:
    """The onset of each trait that the monitor has a detector for, as `trace_payload` takes it."""
    if monitor.detectors is None:
        return {}
    return {trait: onset.to_dict() for trait, onset in monitor.detectors.find_all(trace).items()}


def _joined(sides: Sequence[Payload], first_side: Payload | None) -> Payload:
    both = [*([] if first_side is None else [first_side]), *sides]
    return both[0] if len(both) == 1 else pair_payload(both[0], both[1])
