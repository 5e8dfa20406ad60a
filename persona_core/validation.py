"""Whether a vector tells a trait's tokens from others, with an interval that respects replies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from persona_core.errors import SettingError


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval and what it rests on.

    Attributes:
        value: the estimate.
        low, high: ends of the interval.
        n: units that were resampled (replies).
    """

    value: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, float | int]:
        return {k: round(v, 5) if isinstance(v, float) else v for k, v in asdict(self).items()}

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def auroc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    Args:
        scores: `[n]`.
        labels: bool `[n]`.
        weights: `[n]`, how often each counts; None: once.

    Returns:
        NaN when a class is empty.

    >>> auroc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, False, True, True]))
    0.875
    """
    if np.isnan(scores).any():
        raise SettingError("A score is NaN; it has no rank.")
    values, place = np.unique(scores, return_inverse=True)
    return _auroc_of_ranks(place, len(values), np.asarray(labels, bool), weights)


def _auroc_of_ranks(place: np.ndarray, n_values: int, labels: np.ndarray, weights: np.ndarray | None) -> float:
    w = np.ones(len(place)) if weights is None else weights
    positive = np.bincount(place[labels], w[labels], minlength=n_values)  # weight at each distinct score
    negative = np.bincount(place[~labels], w[~labels], minlength=n_values)
    if not positive.sum() or not negative.sum():
        return float("nan")
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / (positive.sum() * negative.sum()))


def auroc_over_replies(
    scores: Sequence[np.ndarray], labels: Sequence[np.ndarray], n_resamples: int = 1000, seed: int = 0
) -> Estimate:
    """Token AUROC with a 95 % percentile bootstrap over whole replies.

    Tokens of one reply are not independent: resampling tokens would make the interval far too narrow.

    Args:
        scores, labels: for each reply, `[n_tokens]`.
        n_resamples: bootstrap samples.
        seed: of the resampling.

    Raises:
        SettingError: no positive or no negative token at all, or a score that is not finite.
    """
    if not len(scores):
        raise SettingError("No reply given.")
    if [len(s) for s in scores] != [len(one) for one in labels]:
        raise SettingError("Every reply needs as many labels as scores.")
    flat, truth = np.concatenate(scores), np.concatenate(labels).astype(bool)
    if not np.isfinite(flat).all():
        raise SettingError("A score is NaN or infinite; AUROC needs finite scores.")
    if truth.all() or not truth.any():
        raise SettingError(f"AUROC needs both classes; got {int(truth.sum())} positives of {len(truth)} tokens.")
    reply = np.repeat(np.arange(len(scores)), [len(s) for s in scores])
    values, place = np.unique(flat, return_inverse=True)
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(n_resamples):
        counts = np.bincount(rng.integers(len(scores), size=len(scores)), minlength=len(scores))
        samples.append(_auroc_of_ranks(place, len(values), truth, counts[reply].astype(float)))
    low, high = np.nanquantile(samples, [0.025, 0.975])
    return Estimate(_auroc_of_ranks(place, len(values), truth, None), float(low), float(high), len(scores))


def share_over_replies(hits: Sequence[int], totals: Sequence[int], n_resamples: int = 2000, seed: int = 0) -> Estimate:
    """A share pooled over replies (sentences of a kind among all sentences), with a 95 % bootstrap over replies.

    Where no sentence or every one is of the kind, the interval is the exact binomial one with a reply as the trial.

    >>> share_over_replies([1, 1], [2, 2]).value
    0.5
    """
    hit, total = np.asarray(hits, float), np.asarray(totals, float)
    if hit.shape != total.shape or not ((hit >= 0) & (hit <= total)).all():
        raise SettingError("Hits must lie between 0 and the total of their reply.")
    if not total.sum():
        raise SettingError("Nothing to count: every reply is empty.")
    draws = np.random.default_rng(seed).integers(len(hit), size=(n_resamples, len(hit)))
    samples = hit[draws].sum(1) / np.maximum(total[draws].sum(1), 1)
    low, high = np.quantile(samples, [0.025, 0.975])
    if not hit.any() or (hit == total).all():
        # Resampling nothing but zeros says that the share is exactly 0. A reply counts as one trial instead
        # (Clopper-Pearson): 0 of 200 replies leave a share of up to 1.8 %.
        from scipy.stats import binomtest  # here: importing scipy.stats takes half a second

        exact = binomtest(len(hit) if hit.any() else 0, len(hit)).proportion_ci()
        low, high = exact.low, exact.high
    return Estimate(float(hit.sum() / total.sum()), float(low), float(high), len(hit))
