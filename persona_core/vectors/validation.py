"""Whether to trust a vector: figures on held-out replies, each with its interval, and the controls it failed.

The block is chosen on one half of the evaluation questions, and every figure is measured on the other half. Intervals
are over questions: replies to one question are not independent. A reply shows the trait if the judge gave it 50 or more
under either instruction. A figure that cannot be determined is None, and a flag says so.

Scores are taken along the reading directions; halves, shuffled labels and steering concern the steering directions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from persona_core.analysis.statistics import (
    Estimate,
    bounded,
    bounded_difference,
    over_clusters,
    pearson,
    rank_auroc,
)
from persona_core.errors import SettingError
from persona_core.traces.specific import LogOdds, specific_scores
from persona_core.vectors.confounds import confounds
from persona_core.vectors.controls import (
    ExtractionReplies,
    TokenTables,
    cosine_of,
    random_direction_aurocs,
    random_direction_correlations,
    shuffled_gaps,
    split_half_cosines,
    text_scores,
)
from persona_core.vectors.extraction import Method
from persona_core.vectors.held_out import CrossTrait, HeldOut, figure, project_states
from persona_core.vectors.held_out_groups import ToReading, styles, wordings
from persona_core.vectors.specificity import best_other_vector, replies_of_other_traits
from persona_core.vectors.states import States
from persona_core.vectors.verdict import flags, not_measured, notes

SIDE_KEYS = {"positive": "high", "negative": "low"}
"""The keys of the two sides in config.json, format version 1."""


def choose_block(trait: str, choice: HeldOut, vector: np.ndarray, blocks: Sequence[int]) -> tuple[int, list[float]]:
    """The block whose projection correlates best with the judge's score on the choice split; of equals the first.

    Not the block with the highest AUROC, which can reach 1 at several blocks and then does not tell them apart.

    Returns:
        The block, and the correlation at each of `blocks`.

    Raises:
        SettingError: the split holds fewer than two replies that show the trait, or that do not; or no projection
            varies.
    """
    shows = choice.shows
    if min(shows.sum(), (~shows).sum()) < 2:
        raise SettingError(
            f"No block can be chosen for {trait!r}: of {len(shows)} judged, coherent replies to the first half of its "
            f"evaluation questions {int(shows.sum())} show the trait; at least 2 must and 2 must not. Elicit more "
            "evaluation replies, or make the instructions clearer."
        )
    found = [pearson(choice.project(vector, b), choice.score) for b in blocks]
    if not np.isfinite(found).any():
        raise SettingError(
            f"No block can be chosen for {trait!r}: at every block the projection is constant or not finite. Check the "
            "vector, and the states for an overflow of the model's dtype."
        )
    return blocks[int(np.nanargmax(found))], found


def shared_block(correlations: Mapping[str, Sequence[float]]) -> int:
    """The block with the highest mean correlation over all traits, NaN counting as none; of equals the first.

    With few held-out replies a trait's own best block is decided by chance: on SmolLM2, from nine questions for each of
    three traits, it was 3, 14 and 18, where on other texts block 16 reads all of them best.

    Args:
        correlations: trait -> correlation at each block, from `choose_block`.

    >>> shared_block({"a": [0.1, 0.8, 0.9], "b": [0.2, 0.7, 0.1]})
    1
    """
    found = np.nan_to_num([list(of_trait) for of_trait in correlations.values()], nan=0.0)  # [n_traits, n_blocks]
    return int(found.mean(0).argmax())


# ---- the figures ----


@dataclass(frozen=True, eq=False)
class ValidationData:
    """What one trait's vector is validated on.

    Attributes:
        choice, report: the two splits.
        tables: the trait's, at the chosen block.
        extracted: the replies that the vector was extracted from.
        cross_trait: replies elicited for other traits; None without other traits.
        neutral: pooled states of neutral replies, as those of `report`.
        with_sinks: pooled states of the replies of `report` that keep sink tokens; those of `report` leave them out.
        odds: of all traits at the block, in the order of the vectors, for specific scores; None: there are none.
        to_reading: from a steering direction at the block to the reading direction there, for directions made without
            a wording or a style; None: the steering direction itself.
        reading_method: what the reading direction is whitened from, if that is not the extraction method.
    """

    choice: HeldOut
    report: HeldOut
    tables: TokenTables
    extracted: ExtractionReplies
    cross_trait: CrossTrait | None = None
    neutral: States | None = None
    with_sinks: States | None = None
    odds: LogOdds | None = None
    to_reading: ToReading | None = None
    reading_method: Method | None = None


def validate(
    trait: str,
    vectors: Mapping[str, np.ndarray],
    block: int,
    data: ValidationData,
    method: Method,
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """All figures of one trait's vector except steering. Flags come last, see `with_flags`.

    Args:
        trait: one of `vectors`.
        vectors: trait -> reading directions `[n_blocks, d_model]`; the other traits' vectors are compared with.
        block: the chosen block.
        data: the replies to measure on.
        method: the extraction method.
        n_resamples: of the bootstrap of `own_minus_best_other`.
        seed: of resampling, halvings, random directions and shuffled labels.
    """
    report, extracted = data.report, data.extracted
    vector, shows, question = vectors[trait], report.shows, report.question
    blocks = [b for b in range(len(vector)) if np.isfinite(vector[b]).all()]

    def auroc_of(projections: np.ndarray) -> dict[str, Any] | None:
        return figure(bounded(rank_auroc(projections, shows), question))

    def correlation(where: np.ndarray) -> dict[str, Any] | None:
        x, y = projections[where], report.score[where]
        return figure(bounded(lambda w: pearson(x, y, w), question[where], -1, 1))

    by_block = {b: report.project(vector, b) for b in blocks}
    projections = by_block[block]  # [n]
    vector_auroc = rank_auroc(projections, shows)
    cosines = split_half_cosines(extracted, block, method, seed=seed)
    states = report.states.block(block) if len(report) else np.empty((0, vector.shape[1]))
    random = random_direction_aurocs(states, shows, seed=seed)
    random_r = random_direction_correlations(states, report.score, seed=seed)
    gap, gaps = shuffled_gaps(extracted, block, method, seed=seed)
    figures: dict[str, Any] = {
        "held_out": {
            "replies": len(report),
            "show": int(shows.sum()),
            "questions": len(np.unique(question)),
            "not_finite": int((~np.isfinite(projections)).sum()),
        },
        "auroc": auroc_of(projections),
        "auroc_by_block": [auroc_of(by_block[b]) if b in by_block else None for b in range(len(vector))],
        "split_half_cosine": _spread(cosines),
        "correlation": {
            "all": correlation(shows | True),
            SIDE_KEYS["positive"]: correlation(report.positive),
            SIDE_KEYS["negative"]: correlation(~report.positive),
        },
        "best_other_vector": best_other_vector(trait, vectors, block, report),
        "other_traits": _other_traits(trait, vectors, block, data),
        "wordings": wordings(extracted, report, block, data.reading_method or method, data.to_reading),
        "styles": styles(extracted, report, block, data.reading_method or method, data.to_reading),
        "sinks": None if data.with_sinks is None else _sinks(vector, block, report, data.with_sinks),
        "own_minus_best_other": _against_others(trait, vectors, block, data, n_resamples, seed),
        "cosine": {t: _rounded(cosine_of(vector[block], other[block])) for t, other in vectors.items() if t != trait},
        "confounds": confounds(projections, data.choice, report, data.tables),
        "nulls": {
            "random_directions": {**_null(random, "auroc"), **_null(random_r, "correlation")},
            "shuffled_labels": {"gap": _rounded(gap), **_null(gaps, "gap")},
        },
        "text_baseline": None,
    }
    by_text = text_scores(extracted, report.pooled_texts)
    if by_text is not None:
        text_auroc = rank_auroc(by_text, shows)
        figures["text_baseline"] = {
            "auroc": figure(bounded(text_auroc, question)),
            "vector_minus_text": figure(bounded_difference(vector_auroc, text_auroc, question)),
        }
    return figures


def _other_traits(
    trait: str, vectors: Mapping[str, np.ndarray], block: int, data: ValidationData
) -> dict[str, Any] | None:
    """Replies of other traits by the plain score, and by the specific one, on which statements are made."""
    if data.cross_trait is None:
        return None
    odds, replies = data.odds, (data.report, data.cross_trait, data.neutral)

    def specific(states: States) -> np.ndarray:
        raw = np.stack([project_states(states, v, block) for v in vectors.values()])  # [n_traits, n]
        return specific_scores(raw, cast("LogOdds", odds))[list(vectors).index(trait)].astype(np.float64)

    plain = replies_of_other_traits(lambda s: project_states(s, vectors[trait], block), *replies)
    if plain is None:
        return None
    by_odds = None if odds is None else replies_of_other_traits(specific, *replies)
    return {**plain, "specific": by_odds}


def _sinks(vector: np.ndarray, block: int, report: HeldOut, with_sinks: States) -> dict[str, Any]:
    """The AUROC of states that keep sink tokens, and of those that do not."""
    without, kept = (
        rank_auroc(project_states(states, vector, block), report.shows) for states in (report.states, with_sinks)
    )
    return {
        "with": figure(bounded(kept, report.question)),
        "without": figure(bounded(without, report.question)),
        "with_minus_without": figure(bounded_difference(kept, without, report.question)),
    }


def _against_others(
    trait: str, vectors: Mapping[str, np.ndarray], block: int, data: ValidationData, n_resamples: int, seed: int
) -> dict[str, Any] | None:
    """r(score, own projection) minus the largest r(score, projection on another trait's vector).

    Over the trait's replies and those elicited for other traits: only there does a vector of "something is odd" differ
    from one of the trait.
    """
    report, cross_trait = data.report, data.cross_trait
    others = [t for t in vectors if t != trait and np.isfinite(vectors[t][block]).all()]
    if cross_trait is None or not others:
        return None
    score = np.concatenate([report.score, cross_trait.score])
    clusters = np.concatenate([report.question, report.question.max(initial=0) + 1 + cross_trait.cluster])

    def project(vector: np.ndarray) -> np.ndarray:
        return np.concatenate([report.project(vector, block), project_states(cross_trait.states, vector, block)])

    own, projections = project(vectors[trait]), {t: project(vectors[t]) for t in others}

    def best(weights: np.ndarray) -> tuple[float, str]:
        found = [(pearson(projections[t], score, weights), t) for t in others]
        return max([(r, t) for r, t in found if np.isfinite(r)], default=(float("nan"), ""))

    # The best other trait is determined in each resample: which one it is depends on chance too.
    found = over_clusters(lambda w: pearson(own, score, w) - best(w)[0], clusters, n_resamples, seed)
    if found is None:
        return None
    return {**found.to_dict(), "other": best(np.ones(len(score)))[1], "n_cross_trait": len(cross_trait.score)}


# ---- the verdict ----


def with_flags(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures with the controls that the vector failed (`flags`), those not measured, and remarks (`notes`)."""
    return {**figures, "flags": flags(figures), "not_measured": not_measured(figures), "notes": notes(figures)}


def _spread(values: np.ndarray) -> dict[str, Any] | None:
    if not len(values):
        return None
    low, high = np.quantile(values, [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high), len(values)).to_dict()


def _null(values: np.ndarray, what: str) -> dict[str, Any]:
    known = np.isfinite(values).all() and len(values)
    return {
        "n": len(values),
        f"{what}_median": _rounded(float(np.median(values))) if known else None,
        f"{what}_95": _rounded(float(np.quantile(values, 0.95))) if known else None,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)
