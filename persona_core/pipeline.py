"""From judged replies to validated vectors: extract, choose the block, calibrate, validate.

Elicitation and judging come first and fill the store; see `persona_core.elicitation` and `persona_core.judging`. Only
the steering curves generate replies here.

    plan = ElicitationPlan(load_traits("sycophancy"), rollouts=2)
    with ReplyStore("outputs/sycophancy") as store:
        elicit(lm, plan, store)
        judge_replies(judge, store, plan.traits)
        vectors = make_vectors(lm, plan, store)
        vectors = validate_vectors(lm, vectors, plan, store)

Splits. The vector is extracted from replies to extraction questions. The first half of the evaluation questions chooses
the block, the second half is reported on. The null is measured on neutral replies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from persona_core.elicitation.elicit import ElicitationPlan, plan_record
from persona_core.elicitation.stored_states import TOKENS
from persona_core.errors import SettingError
from persona_core.judging.judge import MIN_SCORE
from persona_core.judging.replies import check_judge, judge_of
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.monitor.transcripts import written_by
from persona_core.utils.numbering import numbered
from persona_core.vectors.calibration import calibrate, calibrate_steering
from persona_core.vectors.controls import ExtractionReplies, token_tables
from persona_core.vectors.extraction import (
    METHODS,
    KeptReplies,
    Method,
    Sides,
    extract,
    keep,
    mean_difference,
    mean_difference_without_neutral_components,
)
from persona_core.vectors.held_out import CrossTrait, HeldOut, halves
from persona_core.vectors.held_out_groups import ToReading
from persona_core.vectors.steering_effect import SteeringPlan, steering_effect
from persona_core.vectors.validation import SIDE_KEYS, ValidationData, choose_block, validate, with_flags
from persona_core.vectors.vectors import PersonaVectors
from persona_core.vectors.whitening import (
    MAX_TOKENS,
    ReadingDirections,
    TokensAt,
    plain_tokens,
    reading_directions,
    within_class_covariance,
)

if TYPE_CHECKING:
    from persona_core.elicitation.store import Reply, ReplyStore
    from persona_core.elicitation.traits import TraitDefinition
    from persona_core.judging.judge import Judge
    from persona_core.models.language_model import LanguageModel
    from persona_core.traces.trace import Trace

SPLITS = (
    "extraction questions for the vector; the first half of the evaluation questions for the choice of the block; the "
    "second half for the figures. The instructions are the same in all splits, but for the figures on wordings held out"
)
READ_POSITION = "reply_mean"
"""Held-out replies are scored by the mean over their tokens, as a monitor reads them, whatever the position."""
SINKS_POSITION = "reply_mean_with_sinks"
"""If the plan has it, the card says what sink tokens would change."""


@dataclass(frozen=True)
class Settings:
    """How vectors are extracted from judged replies.

    Attributes:
        method: a name in `METHODS`, or a function `Sides -> [n_blocks, d_model]`.
        position: which pooled states are used; one of the plan's positions.
        min_trait, min_coherence: thresholds of the filter, 0 to 100 (Persona Vectors, arXiv 2507.21509).
        n_resamples: bootstrap resamples.
        seed: of resampling, random directions and shuffled labels.
    """

    method: str | Method = "mean_difference"
    position: str = READ_POSITION
    min_trait: float = MIN_SCORE
    min_coherence: float = MIN_SCORE
    n_resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.method, str) and self.method not in METHODS:
            raise SettingError(f"method={self.method!r}; expected one of {', '.join(METHODS)}, or a function.")

    def to_dict(self, judge: str) -> dict[str, Any]:
        """What the vectors depend on, as recorded in their config."""
        kept = {"trait": self.min_trait, "coherence": self.min_coherence, "judge": judge}
        return {"method": self.method_name, "position": self.position, "filter": kept}

    @property
    def whitened(self) -> bool:
        """Whether scores are read along the whitened vector. A probe is fitted to tell the sides apart as it is."""
        return self.function in (mean_difference, mean_difference_without_neutral_components)

    @property
    def function(self) -> Method:
        return METHODS[self.method] if isinstance(self.method, str) else self.method

    @property
    def method_name(self) -> str:
        return self.method if isinstance(self.method, str) else getattr(self.method, "__name__", "custom")


# ---- vectors ----


def make_vectors(
    lm: LanguageModel, plan: ElicitationPlan, store: ReplyStore, settings: Settings | None = None, progress: bool = True
) -> PersonaVectors:
    """Vectors of all traits of a judged store: extracted, each with its best block, calibrated on the neutral replies.

        vectors = make_vectors(lm, plan, store)
        vectors.save_pretrained("outputs/vectors")

    Args:
        lm: the model that wrote the replies.
        plan: the plan that the replies were elicited with.
        store: the judged replies.
        settings: None takes the defaults of `Settings`.
        progress: whether to show progress bars.

    Raises:
        SettingError: the filter leaves too few replies, or there are none to choose a block on (the message shows the
            counts); or the store belongs to another plan or model.
    """
    chosen = settings or Settings()
    store.check_plan(plan_record(plan, lm), create=False)
    tensors: dict[str, np.ndarray] = {}
    best: dict[str, int] = {}
    counts, all_kept = {}, {}
    for trait in plan.traits:
        kept = kept_replies(store, trait, chosen)
        tensors[trait.name] = extract(trait.name, _sides(store, kept, chosen), chosen.function)
        counts[trait.name] = {SIDE_KEYS[side]: dict(c) for side, c in kept.counts.items()}
        all_kept[trait.name] = kept
    reading = _reading(plan, store, tensors, all_kept, chosen)
    directions = tensors if reading is None else reading.directions
    for trait in plan.traits:
        choice, _ = halves(held_out(store, trait, chosen), len(trait.evaluation_questions))
        along = directions[trait.name]
        best[trait.name], _ = choose_block(trait.name, choice, along, range(len(along)))
    config = {
        "base_model": lm.record,
        "extraction": {
            **chosen.to_dict(judge_of(store)),
            "plan": plan.to_dict(),
            "sampling": plan.sampling.to_dict(),
            "seed": plan.seed,
            "splits": SPLITS,
            "replies": counts,
        },
        "descriptions": {t.name: t.description for t in plan.traits},
    }
    vectors = PersonaVectors({t: torch.from_numpy(v) for t, v in tensors.items()}, best, config=config)
    if reading is None:
        return calibrate(vectors, neutral_traces(lm, vectors, store, progress=progress))
    config["extraction"]["reading"] = {
        "whitened": chosen.whitened,
        "n_tokens": reading.n_tokens,
        "shrinkage": [round(float(s), 5) for s in reading.shrinkage],
    }
    vectors = replace(
        vectors,
        readings={t: torch.from_numpy(v) for t, v in reading.directions.items()},
        log_odds=reading.log_odds,
        config=config,
    )
    vectors = calibrate(vectors, neutral_traces(lm, vectors, store, progress=progress))
    return calibrate_steering(vectors, neutral_traces(lm, vectors.along_steering(), store, progress=progress))


def _reading(
    plan: ElicitationPlan,
    store: ReplyStore,
    tensors: dict[str, np.ndarray],
    kept: dict[str, KeptReplies],
    settings: Settings,
) -> ReadingDirections | None:
    """Reading directions from the sampled tokens of the kept replies; None where the plan kept none."""
    if not plan.tokens_per_reply:
        return None
    positive, negative, neutral = _tokens(plan, store, kept)
    return reading_directions(tensors, positive, negative, neutral, settings.whitened)


def _tokens(
    plan: ElicitationPlan, store: ReplyStore, kept: Mapping[str, KeptReplies]
) -> tuple[dict[str, TokensAt], list[TokensAt], TokensAt]:
    """The sampled tokens of each trait's positive replies, of each one's negative replies, and of neutral ones."""
    # About as many tokens of each side, so that the covariance of a large plan fits into minutes.
    per_class = MAX_TOKENS // (2 * len(kept) + 1)

    def tokens(replies: Sequence[Reply]) -> TokensAt:
        few = replies[:: max(1, ceil(len(replies) * plan.tokens_per_reply / per_class))]
        return lambda block: plain_tokens(store.states(few, TOKENS).block(block))

    return (
        {t: tokens(k.positive) for t, k in kept.items()},
        [tokens(k.negative) for k in kept.values()],
        tokens([r for r in store.replies(split="neutral") if r.n_tokens]),
    )


def _whitening(
    plan: ElicitationPlan, store: ReplyStore, kept: Mapping[str, KeptReplies], settings: Settings, block: int
) -> ToReading | None:
    """From a steering direction at one block to the reading direction; None where both are the same."""
    if not plan.tokens_per_reply or not settings.whitened:
        return None
    positive, negative, neutral = _tokens(plan, store, kept)
    classes = (tokens(block) for tokens in (*positive.values(), *negative, neutral))
    covariance = within_class_covariance(classes)
    return lambda direction: covariance.solve(direction[None])[0]


def kept_replies(store: ReplyStore, trait: TraitDefinition, settings: Settings) -> KeptReplies:
    """The extraction replies that pass the filter."""
    replies = store.replies(split="extraction", trait=trait.name)
    return keep(trait.name, replies, store.scores(), settings.min_trait, settings.min_coherence)


def held_out(store: ReplyStore, trait: TraitDefinition, settings: Settings, position: str = READ_POSITION) -> HeldOut:
    """Coherent evaluation replies with a score, as a monitor reads them: by the mean over their tokens."""
    scores = store.scores()
    replies = []
    for reply in store.replies(split="evaluation", trait=trait.name):
        score = scores.get(reply.request.index)
        judged = score is not None and score.trait is not None and score.coherence is not None
        if reply.n_tokens and judged and score.coherence >= settings.min_coherence:  # type: ignore[union-attr, operator]
            replies.append(reply)
    if not replies:
        raise SettingError(
            f"No evaluation reply of {trait.name!r} has both scores and is coherent. Judge the replies, or elicit more."
        )
    return HeldOut(
        states=store.states(replies, position),
        texts=tuple(r.text for r in replies),
        n_tokens=np.array([r.n_tokens for r in replies]),
        token_ids=tuple(r.token_ids[: r.n_tokens] for r in replies),
        positive=np.array([r.request.side == "positive" for r in replies]),
        question=np.array([r.request.question for r in replies]),
        score=np.array([scores[r.request.index].trait for r in replies], float),
        pair=_pairs(replies),
    )


def _pairs(replies: Sequence[Reply]) -> np.ndarray | None:
    """Which instruction pair each reply was written under; None where one is unknown."""
    pairs = [r.request.pair for r in replies]
    return None if None in pairs else np.array(pairs, int)


def neutral_traces(
    lm: LanguageModel,
    vectors: PersonaVectors,
    store: ReplyStore,
    blocks: str | Sequence[int] = "all",
    progress: bool = True,
) -> list[Trace]:
    """The neutral replies, read with these vectors by their token ids."""
    replies = [r for r in store.replies(split="neutral") if r.n_tokens]
    if not replies:
        raise SettingError("The store holds no neutral replies, so there is no null. Elicit neutral replies.")
    texts = [written_by(lm, r.request.messages, r.token_ids, r.writer) for r in replies]
    return PersonaMonitor(lm, vectors, blocks).read_batch(texts, progress=progress)


def _sides(store: ReplyStore, kept: KeptReplies, settings: Settings) -> Sides:
    neutral = [r for r in store.replies(split="neutral") if r.n_tokens]
    return Sides(*(store.states(group, settings.position) for group in (kept.positive, kept.negative, neutral)))


# ---- validation ----


def validate_vectors(
    lm: LanguageModel,
    vectors: PersonaVectors,
    plan: ElicitationPlan,
    store: ReplyStore,
    judge: Judge | None = None,
    steering: SteeringPlan | None = None,
    settings: Settings | None = None,
    progress: bool = True,
) -> PersonaVectors:
    """The same vectors with figures that show whether to trust them, in `config["validation"]`.

        vectors = validate_vectors(lm, vectors, plan, store, judge, SteeringPlan())
        vectors.config["validation"]["sycophancy"]["flags"]  # the controls that failed

    Args:
        lm, plan, store: as in `make_vectors`.
        vectors: from `make_vectors`.
        judge, steering: for the steering curves; without both they are left out, and the card says so.
        settings: as in `make_vectors`.
        progress: whether to show progress bars.

    Raises:
        SettingError: the store belongs to another plan, model or judge, or the vectors to other settings.
    """
    chosen = settings or Settings()
    store.check_plan(plan_record(plan, lm), create=False)
    _check_settings(vectors, chosen, store)
    if judge is not None:
        check_judge(store, judge.name, plan.traits)
    tensors = {t: vectors.reading(t).numpy() for t in vectors.traits}
    neutral = neutral_traces(lm, vectors, store, blocks=sorted(set(vectors.best_block.values())), progress=progress)
    all_kept = {t.name: kept_replies(store, t, chosen) for t in plan.traits}
    reading_at = cache(lambda block: _whitening(plan, store, all_kept, chosen, block))
    neutral_states = store.states([r for r in store.replies(split="neutral") if r.n_tokens], READ_POSITION)
    found: dict[str, Any] = {}
    for trait in tqdm(plan.traits, desc="validating", unit="trait", disable=not progress):
        name, block = trait.name, vectors.best_block[trait.name]
        odds = vectors.odds_at([block])
        kept, n_questions = all_kept[name], len(trait.evaluation_questions)
        choice, report = halves(held_out(store, trait, chosen), n_questions)
        with_sinks = None
        if SINKS_POSITION in plan.positions:
            with_sinks = halves(held_out(store, trait, chosen, SINKS_POSITION), n_questions)[1].states
        extracted = ExtractionReplies(
            sides=_sides(store, kept, chosen),
            positive_questions=np.array([r.request.question for r in kept.positive]),
            negative_questions=np.array([r.request.question for r in kept.negative]),
            positive_texts=tuple(r.text for r in kept.positive),
            negative_texts=tuple(r.text for r in kept.negative),
            positive_pairs=_pairs(kept.positive),
            negative_pairs=_pairs(kept.negative),
        )
        data = ValidationData(
            choice=choice,
            report=report,
            tables=token_tables(neutral, name, block),
            extracted=extracted,
            cross_trait=_cross_trait(store, name),
            neutral=neutral_states,
            with_sinks=with_sinks,
            odds=None if odds is None else odds.at(0),
            to_reading=reading_at(block),
        )
        figures = validate(
            name, tensors, block, data, chosen.function, n_resamples=chosen.n_resamples, seed=chosen.seed
        )
        _, correlations = choose_block(name, choice, tensors[name], vectors.blocks)
        at = dict(zip(vectors.blocks, correlations, strict=True))
        figures["replies"] = {SIDE_KEYS[side]: dict(c) for side, c in kept.counts.items()}
        figures["block"] = {
            "chosen": block,
            "rule": "highest correlation with the judge's score on the first half of the evaluation questions",
            "correlation": [_finite(at.get(b, np.nan)) for b in range(vectors.n_blocks)],
        }
        found[name] = figures
    if judge is not None and steering is not None:
        for trait in plan.traits:
            found[trait.name]["steering"] = steering_effect(
                lm, vectors, trait, judge, steering, store.folder / "steering", progress
            )
    validation = {name: with_flags(figures) for name, figures in found.items()}
    return replace(vectors, config={**vectors.config, "validation": validation})


def _cross_trait(store: ReplyStore, trait: str) -> CrossTrait | None:
    """Positive replies of other traits that were judged on this one."""
    scores = {
        index: s.value for (index, t), s in store.cross_trait_scores().items() if t == trait and s.value is not None
    }
    replies = [r for r in store.replies(split="evaluation", side="positive") if r.request.index in scores]
    if not replies:
        return None
    return CrossTrait(
        states=store.states(replies, READ_POSITION),
        score=np.array([scores[r.request.index] for r in replies], float),
        cluster=numbered((r.request.trait, r.request.question) for r in replies),
    )


def _check_settings(vectors: PersonaVectors, settings: Settings, store: ReplyStore) -> None:
    """Figures of one method, filter or judge must not end up on the card of vectors made with another."""
    made = vectors.config.get("extraction", {})
    now = settings.to_dict(judge_of(store))
    for name, value in now.items():
        if made.get(name) != value:
            raise SettingError(
                f"The vectors were made with {name} = {made.get(name)}; now it is {value}. Use the same setting, or "
                "make the vectors again (--stage extract)."
            )


def _finite(value: float) -> float | None:
    return round(float(value), 5) if np.isfinite(value) else None
