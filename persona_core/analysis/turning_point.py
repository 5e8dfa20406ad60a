"""Where a reply turns: the one split of its scores into a lower and a higher part that explains them best."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MIN_PART = 8
"""Tokens on each side of a turn: fewer are a word or two."""


@dataclass(frozen=True)
class TurningPoint:
    """A rise between two parts of a reply. For choosing what to show: it has no error rate, unlike an onset.

    Attributes:
        at: the first token of the higher part, counted among those given.
        before, after: mean scores of the two parts.
        t: the difference of the means, in standard errors, as if scores were independent.
    """

    at: int
    before: float
    after: float
    t: float


def turning_point(z: np.ndarray) -> TurningPoint | None:
    """The clearest rise of a series; None if it is too short or nothing rises.

    Args:
        z: scores `[n_tokens]`; NaN is a token without a score.

    >>> turning_point(np.r_[np.zeros(20), np.full(30, 3.0)] + 0.1 * np.sin(np.arange(50))).at
    20
    """
    known = np.flatnonzero(np.isfinite(z))
    values = z[known].astype(float)  # [n_known]
    n = len(values)
    if n < 2 * MIN_PART:
        return None
    splits = np.arange(MIN_PART, n - MIN_PART + 1)  # sizes of the first part
    total, squares = values.cumsum(), (values**2).cumsum()
    before = total[splits - 1] / splits
    after = (total[-1] - total[splits - 1]) / (n - splits)
    within = (squares[-1] - splits * before**2 - (n - splits) * after**2).clip(0) / max(n - 2, 1)
    error = np.sqrt(within * (1 / splits + 1 / (n - splits))) + 1e-12  # all scores alike on both sides
    t = (after - before) / error
    best = int(t.argmax())
    if t[best] <= 0:
        return None
    return TurningPoint(int(known[splits[best]]), float(before[best]), float(after[best]), float(t[best]))
