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
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from persona_core.elicitation.elicit import ElicitationPlan, plan_record
from persona_core.elicitation.shown import ShownParts, shown_parts
from persona_core.elicitation.texts import TextsPlan
from persona_core.errors import SettingError
from persona_core.judging.judge import MIN_SCORE
from persona_core.judging.replies import check_judge, judge_of
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.monitor.transcripts import written_by
from persona_core.vectors.calibration import calibrate, calibrate_steering
from persona_core.vectors.controls import token_tables
from persona_core.vectors.extraction import (
    METHODS,
    KeptReplies,
    Method,
    difference_from_neutral,
    extract,
    mean_difference,
    mean_difference_without_neutral_components,
)
from persona_core.vectors.held_out import halves
from persona_core.vectors.held_out_groups import ToReading
from persona_core.vectors.steering_effect import SteeringPlan, steering_effect
from persona_core.vectors.stored_replies import (
    READ_POSITION,
    SINKS_POSITION,
    cross_trait,
    extraction_replies,
    held_out,
    kept_replies,
    neutral_replies,
    sampled_tokens,
    sides,
)
from persona_core.vectors.validation import SIDE_KEYS, ValidationData, choose_block, shared_block, validate, with_flags
from persona_core.vectors.vectors import PersonaVectors
from persona_core.vectors.whitening import (
    MIN_SHRINKAGE,
    ReadingDirections,
    reading_directions,
    within_class_covariance,
)

if TYPE_CHECKING:
    from persona_core.elicitation.store import Reply, ReplyStore
    from persona_core.judging.judge import Judge
    from persona_core.models.language_model import LanguageModel
    from persona_core.traces.trace import Trace

SPLITS = (
    "extraction questions for the vector; the first half of the evaluation questions for the choice of the block; the "
    "second half for the figures. The instructions are the same in all splits, but for the figures on wordings held out"
)
SPLITS_OF_TEXTS = (
    "labelled texts: half of each trait's prompts for the vector, a quarter for the choice of the block, a quarter for "
    "the figures; all texts that answer one prompt are in one split"
)
SPLITS_IN_TEXTS = (
    "labelled texts, split as the file says: its training texts for the vector, its validation texts for the choice of "
    "the block, its test texts for the figures; all texts that answer one prompt are in one split"
)
BLOCK_RULES = {
    "own": "highest correlation with the judge's score on the first half of the evaluation questions",
    "shared": "highest correlation, averaged over the traits, on the first half of the evaluation questions",
}
CONTRASTS = ("negative", "neutral")
USUAL = {"block": "own", "contrast": "negative"}
"""What holds where the vectors' config does not record a setting, as older ones do not."""
LABELS_OF_PARTS = "the parts of positive texts that show the trait, in every split; negative texts are read whole"


@dataclass(frozen=True)
class Settings:
    """How vectors are extracted from judged replies.

    Attributes:
        method: a name in `METHODS`, or a function `Sides -> [n_blocks, d_model]`.
        position: which pooled states are used; one of the plan's positions.
        min_trait, min_coherence: thresholds of the filter, 0 to 100 (Persona Vectors, arXiv 2507.21509).
        n_resamples: bootstrap resamples.
        seed: of resampling, random directions and shuffled labels.
        block: "own": each trait is read at the block that is best for it. "shared": all at the one that is best on
            average, where few held-out replies would leave the choice to chance.
        contrast: what the reading direction tells a trait from. "negative": replies of the other side, as the vector
            does. "neutral": the neutral replies, which all traits share, so that their mean is known better: a mean
            AUROC of .92 instead of .76 for tokens of natural text, but .69 instead of .90 for whole replies against
            negative ones (docs/real_model.md). None: "neutral" for texts that say which parts show the trait, with as
            many neutral ones as a trait has negative ones; otherwise "negative".
    """

    method: str | Method = "mean_difference"
    position: str = READ_POSITION
    min_trait: float = MIN_SCORE
    min_coherence: float = MIN_SCORE
    n_resamples: int = 1000
    seed: int = 0
    block: str = "own"
    contrast: str | None = None

    def __post_init__(self) -> None:
        if self.block not in BLOCK_RULES:
            raise SettingError(f"block={self.block!r}; expected one of {', '.join(BLOCK_RULES)}.")
        if self.contrast not in (None, *CONTRASTS):
            raise SettingError(f"contrast={self.contrast!r}; expected one of {', '.join(CONTRASTS)}.")
        if self.contrast == "neutral" and self.function is not mean_difference:
            raise SettingError(f"contrast='neutral' belongs to method='mean_difference', not {self.method_name!r}.")
        if isinstance(self.method, str) and self.method not in METHODS:
            raise SettingError(f"method={self.method!r}; expected one of {', '.join(METHODS)}, or a function.")

    def to_dict(self, judge: str) -> dict[str, Any]:
        """What the vectors depend on, as recorded in their config."""
        kept = {"trait": self.min_trait, "coherence": self.min_coherence, "judge": judge}
        found = {"method": self.method_name, "position": self.position, "filter": kept}
        others = {name: getattr(self, name) for name in USUAL}
        return {**found, **{name: value for name, value in others.items() if value not in (USUAL[name], None)}}

    def for_plan(self, plan: ElicitationPlan) -> Settings:
        """The same with a contrast, if none was given."""
        if self.contrast is not None:
            return self
        known = isinstance(plan, TextsPlan) and plan.labels_parts and plan.enough_neutral and plan.tokens_per_reply
        return replace(self, contrast="neutral" if known and self.function is mean_difference else "negative")

    @property
    def whitened(self) -> bool:
        """Whether scores are read along the whitened vector. A probe is fitted to tell the sides apart as it is."""
        return self.function in (mean_difference, mean_difference_without_neutral_components)

    @property
    def function(self) -> Method:
        return METHODS[self.method] if isinstance(self.method, str) else self.method

    @property
    def reading_method(self) -> Method:
        """What the reading direction is whitened from."""
        return difference_from_neutral if self.contrast == "neutral" else self.function

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
    chosen = (settings or Settings()).for_plan(plan)
    store.check_plan(plan_record(plan, lm), create=False)
    if chosen.contrast == "neutral" and not plan.tokens_per_reply:
        raise SettingError("contrast='neutral' needs sampled tokens of each reply: tokens_per_reply=16.")
    tensors: dict[str, np.ndarray] = {}
    best: dict[str, int] = {}
    counts, all_kept, correlations = {}, {}, {}
    toward: dict[str, np.ndarray] = {}
    for trait in plan.traits:
        kept = kept_replies(store, trait.name, chosen.min_trait, chosen.min_coherence)
        states = sides(store, kept, chosen.position)
        tensors[trait.name] = toward[trait.name] = extract(trait.name, states, chosen.function)
        if chosen.reading_method is not chosen.function:
            toward[trait.name] = extract(trait.name, states, chosen.reading_method)
        counts[trait.name] = {SIDE_KEYS[side]: dict(c) for side, c in kept.counts.items()}
        all_kept[trait.name] = kept
    reading = _reading(plan, store, toward, all_kept, chosen)
    directions = tensors if reading is None else reading.directions
    for trait in plan.traits:
        replies = held_out(store, trait.name, chosen.min_coherence)
        choice, _ = halves(replies, plan.n_choosing(trait))
        along = directions[trait.name]
        best[trait.name], correlations[trait.name] = choose_block(trait.name, choice, along, range(len(along)))
    if chosen.block == "shared":
        best = dict.fromkeys(best, shared_block(correlations))
    config = {
        "base_model": lm.record,
        "extraction": {
            **chosen.to_dict(judge_of(store)),
            "plan": plan.to_dict(),
            "sampling": plan.sampling.to_dict(),
            "seed": plan.seed,
            "splits": _splits(plan),
            **({"labels": LABELS_OF_PARTS} if _labels_parts(plan) else {}),
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


def _splits(plan: ElicitationPlan) -> str:
    if not isinstance(plan, TextsPlan):
        return SPLITS
    return SPLITS_IN_TEXTS if any(t.split for t in plan.texts) else SPLITS_OF_TEXTS


def _labels_parts(plan: ElicitationPlan) -> bool:
    """Whether the tokens that show the trait are known."""
    return isinstance(plan, TextsPlan) and plan.labels_parts


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
    positive, negative, neutral = sampled_tokens(plan, store, kept)
    return reading_directions(tensors, positive, negative, neutral, settings.whitened, _min_shrinkage(plan))


def _min_shrinkage(plan: ElicitationPlan) -> float:
    """None is needed where the tokens that show the trait are known."""
    return 0.0 if _labels_parts(plan) else MIN_SHRINKAGE


def _whitening(
    plan: ElicitationPlan, store: ReplyStore, kept: Mapping[str, KeptReplies], settings: Settings, block: int
) -> ToReading | None:
    """From a steering direction at one block to the reading direction; None where both are the same."""
    if not plan.tokens_per_reply or not settings.whitened:
        return None
    positive, negative, neutral = sampled_tokens(plan, store, kept)
    classes = (tokens(block) for tokens in (*positive.values(), *negative, neutral))
    covariance = within_class_covariance(classes, _min_shrinkage(plan))
    return lambda direction: covariance.solve(direction[None])[0]


def neutral_traces(
    lm: LanguageModel,
    vectors: PersonaVectors,
    store: ReplyStore,
    blocks: str | Sequence[int] = "all",
    progress: bool = True,
) -> list[Trace]:
    """The neutral replies, read with these vectors by their token ids."""
    replies = neutral_replies(store)
    if not replies:
        raise SettingError("The store holds no neutral replies, so there is no null. Elicit neutral replies.")
    texts = [written_by(lm, r.request.messages, r.token_ids, r.writer) for r in replies]
    return PersonaMonitor(lm, vectors, blocks).read_batch(texts, progress=progress)


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
    chosen = (settings or Settings()).for_plan(plan)
    store.check_plan(plan_record(plan, lm), create=False)
    _check_settings(vectors, chosen, store)
    if judge is not None:
        check_judge(store, judge.name, plan.traits)
    tensors = {t: vectors.reading(t).numpy() for t in vectors.traits}
    neutral = neutral_traces(lm, vectors, store, blocks=sorted(set(vectors.best_block.values())), progress=progress)
    all_kept = {t.name: kept_replies(store, t.name, chosen.min_trait, chosen.min_coherence) for t in plan.traits}
    to_reading_at = cache(lambda block: _whitening(plan, store, all_kept, chosen, block))
    neutral_states = store.states(neutral_replies(store), READ_POSITION)
    shown = plan.shown() if isinstance(plan, TextsPlan) else {}

    def parts_of(reply: Reply) -> ShownParts | None:
        shows = shown.get(reply.request.index)
        return shown_parts(lm, reply, shows) if shows else None

    found: dict[str, Any] = {}
    for trait in tqdm(plan.traits, desc="validating", unit="trait", disable=not progress):
        name, block = trait.name, vectors.best_block[trait.name]
        odds = vectors.odds_at([block])
        kept, n_choosing = all_kept[name], plan.n_choosing(trait)
        choice, report = halves(held_out(store, name, chosen.min_coherence, parts_of=parts_of), n_choosing)
        with_sinks = None
        if SINKS_POSITION in plan.positions:
            kept_sinks = held_out(store, name, chosen.min_coherence, SINKS_POSITION)
            with_sinks = halves(kept_sinks, n_choosing)[1].states
        data = ValidationData(
            choice=choice,
            report=report,
            tables=token_tables(neutral, name, block),
            extracted=extraction_replies(store, kept, chosen.position, parts_of),
            cross_trait=cross_trait(store, name),
            neutral=neutral_states,
            with_sinks=with_sinks,
            odds=None if odds is None else odds.at(0),
            to_reading=to_reading_at(block),
            reading_method=chosen.reading_method,
        )
        figures = validate(
            name, tensors, block, data, chosen.function, n_resamples=chosen.n_resamples, seed=chosen.seed
        )
        _, correlations = choose_block(name, choice, tensors[name], vectors.blocks)
        at = dict(zip(vectors.blocks, correlations, strict=True))
        figures["replies"] = {SIDE_KEYS[side]: dict(c) for side, c in kept.counts.items()}
        figures["block"] = {
            "chosen": block,
            "rule": BLOCK_RULES[chosen.block],
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


def _check_settings(vectors: PersonaVectors, settings: Settings, store: ReplyStore) -> None:
    """Figures of one method, filter or judge must not end up on the card of vectors made with another."""
    made = USUAL | vectors.config.get("extraction", {})
    now = USUAL | settings.to_dict(judge_of(store))
    for name, value in now.items():
        if made.get(name) != value:
            raise SettingError(
                f"The vectors were made with {name} = {made.get(name)}; now it is {value}. Use the same setting, or "
                "make the vectors again (--stage extract)."
            )


def _finite(value: float) -> float | None:
    return round(float(value), 5) if np.isfinite(value) else None
