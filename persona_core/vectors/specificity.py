"""Does a vector tell its own trait from the others? The other vectors on its replies, and it on theirs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from persona_core.analysis.statistics import bounded, bounded_difference, rank_auroc
from persona_core.judging.judge import MIN_SCORE
from persona_core.vectors.held_out import CrossTrait, HeldOut, figure
from persona_core.vectors.states import States

Score = Callable[[States], np.ndarray]
"""A score of each pooled state, float64 `[n]`."""
NEUTRAL_QUANTILE = 0.95
"""A reply counts as taken for the trait where it scores above this share of the neutral replies."""


def best_other_vector(
    trait: str, vectors: Mapping[str, np.ndarray], block: int, report: HeldOut
) -> dict[str, Any] | None:
    """The highest AUROC that another trait's vector reaches on this trait's replies, and how far ahead its own is.

    Which one is the best is determined again without each question, as it depends on chance too.

    Args:
        vectors: trait -> reading direction, `[n_blocks, d_model]`.

    Returns:
        "other", its "auroc", and "own_minus_other" with a paired interval; None without other vectors at this block.
    """
    others = {t: v for t, v in vectors.items() if t != trait and np.isfinite(v[block]).all()}
    if not others or not len(report):
        return None
    own, *found = (rank_auroc(report.project(v, block), report.shows) for v in (vectors[trait], *others.values()))

    def best(weights: np.ndarray) -> float:
        return max(auroc(weights) for auroc in found)

    auroc = bounded(best, report.question)
    if auroc is None:
        return None
    lead = bounded_difference(own, best, report.question)
    everything = np.ones(len(report))
    return {
        "other": max(zip(others, found, strict=True), key=lambda pair: pair[1](everything))[0],
        "auroc": figure(auroc),
        "own_minus_other": figure(lead),
    }


def replies_of_other_traits(
    score: Score, report: HeldOut, cross_trait: CrossTrait, neutral: States | None
) -> dict[str, Any] | None:
    """How replies are scored that show another trait, and not this one (a judge's score below 50).

    Args:
        score: of pooled states, `[n]`: along the reading direction, or the specific score.
        neutral: pooled states of neutral replies; None: only the AUROC is known.

    Returns:
        "auroc" of the trait's own replies against those of other traits; "taken", the share of the others that score
        above 95 % of the neutral replies, and "found", the same share of the trait's own replies. None without such
        replies.
    """
    other = cross_trait.score < MIN_SCORE
    if not other.any() or not report.shows.any():
        return None
    theirs, own = score(cross_trait.states.take(np.flatnonzero(other))), score(report.states)[report.shows]
    question, elsewhere = report.question[report.shows], cross_trait.cluster[other]
    auroc = bounded(
        rank_auroc(np.concatenate([own, theirs]), np.arange(len(own) + len(theirs)) < len(own)),
        np.concatenate([question, question.max() + 1 + elsewhere]),
    )
    passing: dict[str, Any] = {"taken": None, "found": None}
    if neutral is not None and len(neutral):
        level = np.quantile(score(neutral), NEUTRAL_QUANTILE)
        passing = {"taken": _share(theirs > level, elsewhere), "found": _share(own > level, question)}
    return {"auroc": figure(auroc), **passing, "replies": len(theirs)}


def _share(hits: np.ndarray, clusters: np.ndarray) -> dict[str, Any] | None:
    return figure(bounded(lambda w: float(w @ hits / w.sum()) if w.sum() else float("nan"), clusters))
