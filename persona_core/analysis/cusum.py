"""CUSUMs of scores in units of neutral replies, and the step that most likely led to an alarm."""

from __future__ import annotations

import numpy as np

RISING = 0.75
"""A score above this just before the step belongs to it: states rise over a few tokens, not at once."""


def adjust(z: np.ndarray, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Scores minus the mean at their position, in units of the spread there, `[..., n_tokens]`."""
    position = np.minimum(np.arange(z.shape[-1]), len(mean) - 1)
    return (z - mean[position]) / spread[position]


def cusums(x: np.ndarray, drifts: np.ndarray) -> np.ndarray:
    """S_t = max(0, S_{t-1} + x_t - drift) for each drift, `[n_sums, ..., n_tokens]`; NaN leaves a sum as it is.

    >>> cusums(np.array([2.0, np.nan, -5.0, 3.0]), np.array([1.0, 2.0])).tolist()
    [[1.0, 1.0, 0.0, 2.0], [0.0, 0.0, 0.0, 1.0]]
    """
    found = np.empty((len(drifts), *x.shape))
    total = np.zeros((len(drifts), *x.shape[:-1]))
    steps = np.where(np.isnan(x), 0.0, x - drifts.reshape(-1, *[1] * x.ndim))
    for t in range(x.shape[-1]):
        total = np.maximum(0.0, total + steps[..., t])
        found[..., t] = total
    return found


def most_likely_step(excursion: np.ndarray) -> tuple[int, float]:
    """The most likely position of a step of unknown size within the excursion that led to an alarm, and its size.

    The log likelihood of a step at k is (x_k + ... + x_alarm)^2 / (2 n), with n tokens from k on; tokens without
    evidence are left out. The point where the excursion leaves zero is earlier, by the noise before the step: by 8
    tokens in one of twenty texts of the demo world.

    Args:
        excursion: adjusted scores, `[n]`, NaN without evidence.
    """
    known = ~np.isnan(excursion)
    sums = np.cumsum(np.where(known, excursion, 0.0)[::-1])[::-1]  # from each token to the alarm
    n = np.maximum(np.cumsum(known[::-1])[::-1], 1)
    likelihood = np.where(known & (sums > 0), sums**2 / n, 0.0)
    step = int(np.argmax(likelihood))
    while step > 0 and excursion[step - 1] > RISING:
        step -= 1
    return step, float(np.nanmean(excursion[step:]))
