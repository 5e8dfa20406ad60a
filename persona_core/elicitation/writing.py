"""Write one batch of a plan's replies and pool its states, and store what has ended when it is interrupted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from persona_core.elicitation.store import ElicitationRequest, Reply, ReplyStore
from persona_core.elicitation.stored_states import TOKENS
from persona_core.inference.generation import GenerationRun
from persona_core.inference.memory import in_halves
from persona_core.inference.pooled_states import PooledStates
from persona_core.inference.pooling import parse_positions
from persona_core.inference.prefix import ReplyPrefix
from persona_core.inference.sampling import Sampling
from persona_core.inference.sinks import norm_limits_of
from persona_core.models.language_model import LanguageModel

MEASURED_QUESTIONS = 64
"""Questions whose tokens show what norms are usual at each block."""


class WritingPlan(Protocol):
    """What a batch needs of its plan; an `ElicitationPlan` is one."""

    @property
    def sampling(self) -> Sampling: ...
    @property
    def seed(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def positions(self) -> tuple[str, ...]: ...
    @property
    def tokens_per_reply(self) -> int: ...
    @property
    def questions(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class RequestBatch:
    """Requests whose replies are stored together; a batch size of them are answered at a time."""

    name: str
    requests: tuple[ElicitationRequest, ...]


@dataclass(frozen=True, eq=False)
class BatchResult:
    """The replies to a batch, and what failed.

    Attributes:
        replies: those that were written.
        states: position -> float32 `[n_replies, n_blocks, d_model]`.
        failed: requests that could not be answered, with the reason.
    """

    replies: tuple[Reply, ...]
    states: dict[str, np.ndarray]
    failed: tuple[tuple[ElicitationRequest, str], ...] = ()


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while a batch was written, with the replies that had ended by then."""

    def __init__(self, result: BatchResult) -> None:
        super().__init__()
        self.result = result


def sink_limits(lm: LanguageModel, plan: WritingPlan) -> np.ndarray:
    """The norm above which a token of this plan is a sink token, float32 `[n_blocks]`, from its questions."""
    questions = plan.questions[:: max(1, len(plan.questions) // MEASURED_QUESTIONS)]
    return norm_limits_of(lm, [lm.chat.render(question).token_ids for question in questions])


def write_and_keep(
    lm: LanguageModel,
    plan: WritingPlan,
    store: ReplyStore,
    batch: RequestBatch,
    max_norm: np.ndarray,
    ended: Callable[[int], object] = lambda _: None,
) -> Sequence[tuple[ElicitationRequest, str]]:
    """Answer one batch and store its replies; after Ctrl-C those that have ended. What failed is returned."""
    try:
        written = write_batch(lm, plan, batch, max_norm, ended)
    except Interrupted as stopped:
        store.add(batch.name, stopped.result.replies, stopped.result.states)
        raise
    try:
        store.add(batch.name, written.replies, written.states)
    except KeyboardInterrupt:
        store.add(batch.name, written.replies, written.states)  # from the start: a file may be half written
        raise
    return written.failed


def write_batch(
    lm: LanguageModel,
    plan: WritingPlan,
    batch: RequestBatch,
    max_norm: np.ndarray,
    ended: Callable[[int], object] = lambda _: None,
) -> BatchResult:
    """Answer one batch, without touching files, so that it can run on any worker.

    Args:
        max_norm: from `sink_limits`.
        ended: called with the number of replies that have just ended.
    """

    written: list[BatchResult] = []

    def write(part: Sequence[ElicitationRequest]) -> None:
        written.append(_write(lm, plan, part, max_norm, ended))

    try:
        _, failed = in_halves(batch.requests, write, batch.name)
    except Interrupted as stopped:
        raise Interrupted(_joined([*written, stopped.result])) from None
    return _joined(written, failed)


def _joined(parts: Sequence[BatchResult], failed: Sequence[tuple[ElicitationRequest, str]] = ()) -> BatchResult:
    return BatchResult(
        replies=tuple(r for part in parts for r in part.replies),
        states={p: np.concatenate([part.states[p] for part in parts]) for p in parts[0].states} if parts else {},
        failed=tuple(failed),
    )


def _write(
    lm: LanguageModel,
    plan: WritingPlan,
    requests: Sequence[ElicitationRequest],
    max_norm: np.ndarray,
    ended: Callable[[int], object],
) -> BatchResult:
    starts = [ReplyPrefix(lm.chat.render(r.messages)) for r in requests]
    seeds = [plan.seed + r.index for r in requests]
    pools = parse_positions(plan.positions)
    pooled = PooledStates(pools, len(lm.blocks), len(starts), max_norm, plan.tokens_per_reply)
    run = GenerationRun(lm, {}, starts, plan.sampling, seeds, pooled=pooled, batch_size=plan.batch_size)

    def result(rows: Sequence[int]) -> BatchResult:
        replies = [
            Reply(
                request=requests[row],
                text=run.reply_text(row),
                token_ids=tuple(run.replies[row]),
                n_tokens=run.n_reply_tokens(row),
                finish=run.finished[row] or "stopped",
                seed=seeds[row],
                writer=lm.writer_name,
                answer_start=run.answer_start(row),
            )
            for row in rows
        ]
        states = states_of(plan, pooled.means(), pooled.samples())
        return BatchResult(tuple(replies), {name: of_all[list(rows)] for name, of_all in states.items()})

    try:
        run.finish(ended)
    except KeyboardInterrupt:
        done = [row for row, reason in enumerate(run.finished) if reason is not None]
        if not done:
            raise
        raise Interrupted(result(done)) from None
    return result(range(len(requests)))


def states_of(plan: WritingPlan, means: np.ndarray, samples: np.ndarray) -> dict[str, np.ndarray]:
    """What is stored of a batch's states: a mean for each position, and the sampled tokens."""
    found = {position: means[:, i] for i, position in enumerate(plan.positions)}
    return {**found, TOKENS: samples} if plan.tokens_per_reply else found
