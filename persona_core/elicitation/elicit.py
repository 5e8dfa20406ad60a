"""Have a model write replies, and pool its states meanwhile: no second pass over the text.

A plan's batches are a fixed partition of its requests. A run that was killed repeats its unfinished batches with the
same neighbours and seeds, and so ends with the same numbers. One that is interrupted (Ctrl-C) keeps the replies that
have ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from persona_core.elicitation.growing import begin
from persona_core.elicitation.store import ElicitationRequest, ReplyStore
from persona_core.elicitation.traits import TraitDefinition
from persona_core.elicitation.writing import RequestBatch, sink_limits, write_and_keep
from persona_core.errors import SettingError
from persona_core.inference.generation import GenerationRun
from persona_core.inference.memory import BATCHES_PER_PART
from persona_core.inference.pooled_states import PooledStates
from persona_core.inference.pooling import parse_positions
from persona_core.inference.prefix import ReplyPrefix
from persona_core.inference.sampling import Sampling
from persona_core.models.chat import Messages
from persona_core.models.language_model import LanguageModel
from persona_core.utils.checks import check_integer

if TYPE_CHECKING:
    from persona_core.inference.steering import Intervention

TOKENS_PER_REPLY = 16
"""Neighbouring tokens say much the same, so some of each reply give the covariance of their states: on SmolLM2, 8, 16
and all tokens gave a mean AUROC of .974, .980 and .983."""


@dataclass(frozen=True, repr=False)
class ElicitationPlan:
    """Which replies to elicit: for which traits, how many, and from which seed.

    Attributes:
        traits: the definitions.
        sampling: how tokens are sampled.
        rollouts: replies per instruction and extraction question (10 in Persona Vectors, arXiv 2507.21509).
        evaluation_rollouts: the same for evaluation questions.
        neutral_rollouts: replies per distinct question without an instruction; the null is measured on them.
        pairs_per_question: instruction pairs used with each extraction question. None uses all; k uses k in rotation:
            pairs i, i+1, ..., i+k-1 (modulo their number) for question i.
        evaluation_pairs_per_question: the same for evaluation questions.
        seed: request i is answered with seed + i.
        batch_size: replies written at once.
        positions: where states are pooled; see `persona_core.inference.pooling`.
        tokens_per_reply: states of single tokens kept of each reply, for the covariance that whitens the vectors.

    >>> trait = TraitDefinition(
    ...     "candour",
    ...     "Says what it thinks.",
    ...     positive=("Be frank.",),
    ...     negative=("Be guarded.",),
    ...     extraction_questions=("How was my talk?",),
    ...     evaluation_questions=("Is my plan sound?",),
    ...     judge_prompt="How frank is this answer to {question}: {answer}? Answer with one number from 0 to 100.",
    ... )
    >>> plan = ElicitationPlan((trait,), rollouts=2)
    >>> plan
    ElicitationPlan(candour; 10 replies, seed 0)
    >>> plan.requests()[0].messages
    [{'role': 'system', 'content': 'Be frank.'}, {'role': 'user', 'content': 'How was my talk?'}]
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
    tokens_per_reply: int = TOKENS_PER_REPLY

    def __post_init__(self) -> None:
        if not self.traits:
            raise SettingError("The plan has no traits; name at least one.")
        for name in ("rollouts", "evaluation_rollouts", "neutral_rollouts", "batch_size"):
            check_integer(name, getattr(self, name))
        for name in ("pairs_per_question", "evaluation_pairs_per_question"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name))
        check_integer("tokens_per_reply", self.tokens_per_reply, 0)
        parse_positions(self.positions)

    def __repr__(self) -> str:
        names = ", ".join(t.name for t in self.traits)
        return f"ElicitationPlan({names}; {len(self.requests())} replies, seed {self.seed})"

    def to_dict(self) -> dict[str, Any]:
        """All that the replies depend on, as plain values."""
        record = {k: v for k, v in asdict(self).items() if k not in ("traits", "sampling")}
        if not self.tokens_per_reply:  # as in folders from before tokens were kept, which can be continued with 0
            del record["tokens_per_reply"]
        return {
            **record,
            "positions": list(self.positions),
            "sampling": self.sampling.to_dict(),
            "traits": {t.name: t.fingerprint for t in self.traits},
        }

    @property
    def questions(self) -> tuple[str, ...]:
        """All distinct questions of all traits, in order; the neutral replies answer them."""
        both = (q for t in self.traits for q in (*t.extraction_questions, *t.evaluation_questions))
        return tuple(dict.fromkeys(both))

    def n_choosing(self, trait: TraitDefinition) -> int:
        """How many of a trait's evaluation questions choose the block; the others are only reported on."""
        return (len(trait.evaluation_questions) + 1) // 2

    def requests(self) -> list[ElicitationRequest]:
        """All requests in order of their index: trait by trait, then the neutral ones."""
        found: list[ElicitationRequest] = []
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
                    for number, question in enumerate(questions):
                        for k in range(min(pairs or n_pairs, n_pairs)):
                            pair = (number + k) % n_pairs
                            for rollout in range(rollouts):
                                found.append(
                                    ElicitationRequest(
                                        index=len(found),
                                        split=split,
                                        trait=trait.name,
                                        side=side,
                                        pair=pair,
                                        question=number,
                                        rollout=rollout,
                                        system=systems[pair],
                                        user=question,
                                    )
                                )
        for number, question in enumerate(self.questions):
            for rollout in range(self.neutral_rollouts):
                found.append(
                    ElicitationRequest(
                        len(found), "neutral", None, "neutral", None, number, rollout, system=None, user=question
                    )
                )
        return found

    def batches(self) -> list[RequestBatch]:
        """The fixed partition, with prompts of similar length together so that batches hold little padding."""
        return batches_of([self.requests()], self.batch_size)


def batches_of(stages: Sequence[Sequence[ElicitationRequest]], batch_size: int) -> list[RequestBatch]:
    """The fixed partition of each group of requests: none mixes replies that are there with such as were added."""
    size, parts = batch_size * BATCHES_PER_PART, []
    for requests in stages:
        by_length = sorted(requests, key=lambda r: (len(r.system or "") + len(r.user), r.index))
        parts += [by_length[start : start + size] for start in range(0, len(by_length), size)]
    return [RequestBatch(f"batch-{number:05d}", tuple(part)) for number, part in enumerate(parts)]


def elicit(
    lm: LanguageModel, plan: ElicitationPlan, store: ReplyStore, progress: bool = True
) -> list[tuple[ElicitationRequest, str]]:
    """Write every reply of the plan that the store does not hold yet.

        with ReplyStore("outputs/candour") as store:
            failed = elicit(load_model("Qwen/Qwen2.5-1.5B-Instruct"), plan, store)

    Args:
        lm: the model that writes.
        plan: which replies to write.
        store: where they are kept; a run that was interrupted resumes from it, and a larger plan adds to it.
        progress: whether to show a progress bar.

    Returns:
        Requests that could not be answered, with the reason. A second run tries them again.

    Raises:
        SettingError: the store was started with another model, or with a plan that this one does not extend.
    """
    batches = batches_of(begin(store, plan.traits, plan.requests(), plan_record(plan, lm)), plan.batch_size)
    failed: list[tuple[ElicitationRequest, str]] = []
    max_norm = None
    total = sum(len(b.requests) for b in batches)
    with tqdm(total=total, desc="eliciting", unit="reply", disable=not progress) as bar:
        for batch in batches:
            missing = [r for r in batch.requests if not store.has(r.index)]
            bar.update(len(batch.requests) - len(missing))
            if not missing:
                continue
            # Requests that failed before are tried again among themselves, as another batch.
            name = store.free_name(batch.name)
            done = bar.n + len(missing)
            max_norm = sink_limits(lm, plan) if max_norm is None else max_norm
            failed += write_and_keep(lm, plan, store, RequestBatch(name, tuple(missing)), max_norm, bar.update)
            bar.update(done - bar.n)  # replies that were written twice count once
    return failed


def plan_record(plan: ElicitationPlan, lm: LanguageModel) -> dict[str, Any]:
    """What a store records about its replies: the plan, and the model that wrote them."""
    return {"model": lm.identity, **plan.to_dict()}


# ---- replies to any prompts, without a plan ----


@dataclass(frozen=True, eq=False)
class PooledReply:
    """A reply and the mean of the states at its tokens.

    Attributes:
        index: of its prompt in the list of prompts.
        token_ids: the reply, including its end-of-turn token.
        text: the reply without end-of-turn tokens.
        n_tokens: tokens that the mean is over, without end-of-turn tokens.
        mean_state: float32 `[n_blocks, d_model]`; NaN for an empty reply.
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
        sampling: how tokens are sampled.
        seed: of the first reply.
        batch_size: replies written at once; prompts are rendered a few batches at a time.
        progress: label of the progress bar; None shows none.
        interventions: changes to the residual stream while writing.
    """
    check_integer("batch_size", batch_size)
    pools = parse_positions(["reply_mean"])
    size = batch_size * BATCHES_PER_PART
    with tqdm(total=len(prompts), desc=progress, unit="reply", disable=progress is None) as bar:
        for start in range(0, len(prompts), size):
            starts = [ReplyPrefix(lm.chat.render(p)) for p in prompts[start : start + size]]
            seeds = [seed + start + row for row in range(len(starts))]
            pooled = PooledStates(pools, len(lm.blocks), len(starts))
            run = GenerationRun(lm, {}, starts, sampling, seeds, interventions, pooled, batch_size=batch_size)
            run.finish(bar.update)
            means = pooled.means()[:, 0]  # [rows, n_blocks, d_model]
            for row in range(len(starts)):
                yield PooledReply(
                    start + row, tuple(run.replies[row]), run.reply_text(row), run.n_reply_tokens(row), means[row]
                )
