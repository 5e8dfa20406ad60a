"""Have a model write replies, and pool its states while it writes: no second pass over the text.

A plan says what is asked; its batches are a fixed partition of the requests, so that a run that was killed does its
unfinished batches again with the same neighbours and the same seeds, and ends with the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from persona_core.elicitation.store import Reply, ReplyRequest, ReplyStore
from persona_core.elicitation.traits import TraitDefinition
from persona_core.errors import SettingError
from persona_core.inference.generation import Run
from persona_core.inference.memory import BATCHES_IN_PART, in_halves
from persona_core.inference.pooling import parse_positions
from persona_core.inference.sampling import Sampling
from persona_core.inference.start import Start
from persona_core.models.chat import Messages
from persona_core.models.loading import LanguageModel
from persona_core.utils.checks import check_integer

if TYPE_CHECKING:
    from persona_core.inference.steering import Intervention


@dataclass(frozen=True)
class ElicitationPlan:
    """What is asked, how often, and from which seed.

    Attributes:
        traits: the definitions.
        sampling: how tokens are chosen.
        rollouts: replies to each instruction and extraction question (Persona Vectors, arXiv 2507.21509, takes 10).
        evaluation_rollouts: the same for evaluation questions.
        neutral_rollouts: replies to each distinct question without any instruction: they make the null.
        pairs_per_question: instruction pairs that each extraction question is asked with; None takes all of them,
            k takes k in turn: question i is asked with pairs i, i+1, ..., i+k-1 (modulo their number).
        evaluation_pairs_per_question: the same for evaluation questions.
        seed: request i is answered with seed + i.
        batch_size: replies that are written at once.
        positions: where states are pooled; see `persona_core.inference.pooling`.
    """

    traits: tuple[TraitDefinition, ...]
    sampling: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=256, temperature=1.0))
    rollouts: int = 10
    evaluation_rollouts: int = 2
    neutral_rollouts: int = 1
    pairs_per_question: int | None = None
    evaluation_pairs_per_question: int | None = 1
    seed: int = 0
    batch_size: int = 32
    positions: tuple[str, ...] = ("reply_mean",)

    def __post_init__(self) -> None:
        if not self.traits:
            raise SettingError("The plan has no trait; name at least one.")
        for name in ("rollouts", "evaluation_rollouts", "neutral_rollouts", "batch_size"):
            check_integer(name, getattr(self, name))
        for name in ("pairs_per_question", "evaluation_pairs_per_question"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name))
        parse_positions(self.positions)

    def to_dict(self) -> dict[str, Any]:
        """All that decides the replies, as plain values."""
        record = {k: v for k, v in asdict(self).items() if k not in ("traits", "sampling")}
        return {
            **record,
            "positions": list(self.positions),
            "sampling": self.sampling.to_dict(),
            "traits": {t.name: t.fingerprint for t in self.traits},
        }

    @property
    def questions(self) -> tuple[str, ...]:
        """All distinct questions of all traits, in order: what neutral replies answer."""
        both = (q for t in self.traits for q in (*t.extraction_questions, *t.evaluation_questions))
        return tuple(dict.fromkeys(both))

    def requests(self) -> list[ReplyRequest]:
        """All requests in order of their index: trait by trait, then the neutral ones."""
        found: list[ReplyRequest] = []
        for trait in self.traits:
            for split, questions, pairs, rollouts in (
                ("extraction", trait.extraction_questions, self.pairs_per_question, self.rollouts),
                (
                    "evaluation",
                    trait.evaluation_questions,
                    self.evaluation_pairs_per_question,
                    self.evaluation_rollouts,
                ),
            ):
                n_pairs = len(trait.positive)
                for side, systems in (("positive", trait.positive), ("negative", trait.negative)):
                    for place, question in enumerate(questions):
                        for k in range(min(pairs or n_pairs, n_pairs)):
                            pair = (place + k) % n_pairs
                            for rollout in range(rollouts):
                                found.append(
                                    ReplyRequest(
                                        index=len(found),
                                        split=split,
                                        trait=trait.name,
                                        side=side,
                                        pair=pair,
                                        question=place,
                                        rollout=rollout,
                                        system=systems[pair],
                                        user=question,
                                    )
                                )
        for place, question in enumerate(self.questions):
            for rollout in range(self.neutral_rollouts):
                found.append(
                    ReplyRequest(
                        len(found), "neutral", None, "neutral", None, place, rollout, system=None, user=question
                    )
                )
        return found

    def batches(self) -> list[RequestBatch]:
        """The fixed partition. Prompts of like length stand together, so that little of a batch is padding."""
        by_length = sorted(self.requests(), key=lambda r: (len(r.system or "") + len(r.user), r.index))
        size = self.batch_size * BATCHES_IN_PART
        starts = range(0, len(by_length), size)
        return [
            RequestBatch(f"batch-{number:05d}", tuple(by_length[start : start + size]))
            for number, start in enumerate(starts)
        ]


@dataclass(frozen=True)
class RequestBatch:
    """Requests that are kept together; `ElicitationPlan.batch_size` of them are being answered at any time."""

    name: str
    requests: tuple[ReplyRequest, ...]


@dataclass(frozen=True, eq=False)
class BatchResult:
    """What came of a batch.

    Attributes:
        replies: those that were written.
        states: position -> float32 `[n_replies, n_blocks, d_model]`.
        failed: requests that could not be answered, with the reason.
    """

    replies: tuple[Reply, ...]
    states: dict[str, np.ndarray]
    failed: tuple[tuple[ReplyRequest, str], ...] = ()


def elicit(
    lm: LanguageModel, plan: ElicitationPlan, store: ReplyStore, progress: bool = True
) -> list[tuple[ReplyRequest, str]]:
    """Write every reply of the plan that the store does not hold yet.

    Returns:
        Requests that could not be answered, with the reason. A second run tries them again.

    Raises:
        SettingError: the store was begun with another plan or model.
    """
    store.check_plan(plan_record(plan, lm))
    failed: list[tuple[ReplyRequest, str]] = []
    batches = plan.batches()
    total = sum(len(b.requests) for b in batches)
    with tqdm(total=total, desc="eliciting", unit="reply", disable=not progress) as bar:
        for batch in batches:
            missing = [r for r in batch.requests if not store.has(r.index)]
            bar.update(len(batch.requests) - len(missing))
            if not missing:
                continue
            # Requests that failed before are tried again among themselves, under a name of their own.
            name = store.free_name(batch.name)
            done = bar.n + len(missing)
            written = write_batch(lm, plan, RequestBatch(name, tuple(missing)), bar.update)
            store.add(name, written.replies, written.states)
            failed += written.failed
            bar.update(done - bar.n)  # what was written twice is counted once
    return failed


def plan_record(plan: ElicitationPlan, lm: LanguageModel) -> dict[str, Any]:
    """What a store's replies rest on: the plan and the model that wrote them."""
    return {"model": lm.identity, **plan.to_dict()}


def write_batch(
    lm: LanguageModel, plan: ElicitationPlan, batch: RequestBatch, ended: Callable[[int], object] = lambda _: None
) -> BatchResult:
    """Answer one batch. Knows nothing of files, so that it can run anywhere; `ended` is told of replies as they end."""

    def write(part: Sequence[ReplyRequest]) -> BatchResult:
        return _write(lm, plan, RequestBatch(batch.name, tuple(part)), ended)

    kept, failed = in_halves(batch.requests, write, batch.name)
    return BatchResult(
        replies=tuple(r for part in kept for r in part.replies),
        states={p: np.concatenate([part.states[p] for part in kept]) for p in plan.positions} if kept else {},
        failed=tuple(failed),
    )


def _write(
    lm: LanguageModel, plan: ElicitationPlan, batch: RequestBatch, ended: Callable[[int], object]
) -> BatchResult:
    starts = [Start(lm.chat.render(r.messages)) for r in batch.requests]
    seeds = [plan.seed + r.index for r in batch.requests]
    pools = parse_positions(plan.positions)
    run = Run(lm, {}, starts, plan.sampling, seeds, pools=pools, width=plan.batch_size)
    run.finish(ended)
    means = run.pooled_means()  # [rows, n_pools, n_blocks, d_model]
    replies = [
        Reply(
            request=request,
            text=run.reply_text(row),
            token_ids=tuple(run.replies[row]),
            n_tokens=run.n_own(row),
            finish=run.finished[row] or "stopped",
            seed=seeds[row],
            writer=lm.writer_name,
        )
        for row, request in enumerate(batch.requests)
    ]
    return BatchResult(tuple(replies), {p: means[:, i] for i, p in enumerate(plan.positions)})


# ---- replies to any prompts, without a plan ----


@dataclass(frozen=True, eq=False)
class PooledReply:
    """A reply and the mean of the states at its tokens.

    Attributes:
        index: its prompt's place in the list of prompts.
        token_ids: the reply, its end-of-turn token included.
        text: the reply without end-of-turn tokens.
        n_tokens: tokens that the mean is over, end-of-turn tokens left out.
        mean_state: float32 `[n_blocks, d_model]`; NaN for a reply of no token.
    """

    index: int
    token_ids: tuple[int, ...]
    text: str
    n_tokens: int
    mean_state: np.ndarray


def write_replies(
    lm: LanguageModel,
    prompts: Sequence[str | Messages],
    sampling: Sampling,
    seed: int,
    batch_size: int = 32,
    progress: str | None = None,
    interventions: Sequence[Intervention] = (),
) -> Iterator[PooledReply]:
    """One reply for each prompt, in order. Reply i uses `seed + i`.

    Args:
        lm: the model that writes.
        prompts: user messages or conversations.
        sampling: how tokens are chosen.
        seed: of the first reply.
        batch_size: replies written at once; prompts are rendered a few batches at a time.
        progress: what to call the progress bar; None shows none.
        interventions: changes to the residual stream while it writes.
    """
    check_integer("batch_size", batch_size)
    pools = parse_positions(["reply_mean"])
    size = batch_size * BATCHES_IN_PART
    with tqdm(total=len(prompts), desc=progress, unit="reply", disable=progress is None) as bar:
        for start in range(0, len(prompts), size):
            starts = [Start(lm.chat.render(p)) for p in prompts[start : start + size]]
            seeds = [seed + start + row for row in range(len(starts))]
            run = Run(lm, {}, starts, sampling, seeds, interventions, pools, width=batch_size)
            run.finish(bar.update)
            means = run.pooled_means()[:, 0]  # [rows, n_blocks, d_model]
            for row in range(len(starts)):
                yield PooledReply(start + row, tuple(run.replies[row]), run.reply_text(row), run.n_own(row), means[row])
