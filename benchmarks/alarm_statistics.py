"""Statistics for an alarm, at one rate over all traits: which finds a planted onset soonest, and misses least.

Every statistic is measured against its own largest values in neutral replies, trait by trait, exactly as the bank of
CUSUMs that the library uses, so that all have the same rate of false alarms. Used by `benchmarks.onset`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from persona_core.analysis.cusum import cusums
from persona_core.analysis.onset_calibration import DRIFTS

SHIFTS = np.array([1.0, 2.0, 3.0, 4.0])
"""Of the Shiryaev-Roberts mixture, in standard deviations."""
BETS = np.array([0.25, 0.5, 1.0, 1.5])
"""Of the e-detector."""
LARGEST = 5.0
"""The e-detector's scores are cut off here: its expectation must exist."""
WINDOW = 40

Statistic = Callable[[np.ndarray], np.ndarray]
"""Adjusted scores `[n_replies, n_tokens]`, NaN after each reply, to a statistic of the same shape."""


def cusum(drift: float) -> Statistic:
    return lambda x: cusums(x, np.array([drift]))[0]


def shiryaev_roberts(slopes: np.ndarray, offsets: np.ndarray) -> Statistic:
    """log of the mean over components of R_t = (1 + R_{t-1}) exp(slope x_t - offset): a mixture over shifts, or an
    e-detector if each exp(slope x - offset) has a neutral mean of at most 1 (Shin, Ramdas and Rinaldo 2022)."""

    def of(x: np.ndarray) -> np.ndarray:
        state = np.full((len(x), len(slopes)), -np.inf)
        found = np.empty_like(x)
        for t in range(x.shape[1]):
            steps = np.nan_to_num(x[:, t, None])
            state = np.logaddexp(0.0, state) + slopes * steps - offsets
            found[:, t] = np.logaddexp.reduce(state, axis=1) - np.log(len(slopes))
        return found

    return of


def e_detector(neutral: np.ndarray) -> Statistic:
    """With bets whose expectation over neutral tokens is 1."""
    tokens = np.minimum(neutral[~np.isnan(neutral)], LARGEST)
    offsets = np.log(np.exp(np.outer(tokens, BETS)).mean(0))
    betting = shiryaev_roberts(BETS, offsets)
    return lambda x: betting(np.minimum(x, LARGEST))


def likelihood_ratio(x: np.ndarray) -> np.ndarray:
    """Generalised likelihood ratio of a shift of unknown size within the last `WINDOW` tokens (Lai 1995)."""
    total = np.concatenate([np.zeros((len(x), 1)), np.cumsum(np.nan_to_num(x), axis=1)], axis=1)
    found = np.zeros_like(x)
    for n in range(1, min(WINDOW, x.shape[1]) + 1):
        sums = np.maximum(total[:, n:] - total[:, :-n], 0.0)
        found[:, n - 1 :] = np.maximum(found[:, n - 1 :], sums**2 / (2 * n))
    return found


def statistics(neutral: np.ndarray) -> dict[str, list[Statistic]]:
    """Name -> the statistics that are used together.

    Args:
        neutral: adjusted scores of neutral replies, `[n_replies, n_tokens]`.
    """
    found: dict[str, list[Statistic]] = {f"CUSUM, drift {d:g}": [cusum(d)] for d in (0.75, 1.0, 1.5)}
    found[f"CUSUMs, drifts {' and '.join(f'{d:g}' for d in DRIFTS)} (used)"] = [cusum(d) for d in DRIFTS]
    found["Shiryaev-Roberts mixture of shifts"] = [shiryaev_roberts(SHIFTS, SHIFTS**2 / 2)]
    found["e-detector"] = [e_detector(neutral)]
    found["GLR, last 40 tokens"] = [likelihood_ratio]
    return found


def compare(
    neutral: Mapping[str, np.ndarray], planted: Sequence[tuple[str, np.ndarray, int]], rate: float
) -> list[dict[str, Any]]:
    """How soon each statistic finds planted onsets.

    Args:
        neutral: trait -> adjusted scores of the same neutral replies, `[n_replies, n_tokens]`, NaN after each.
        planted: trait, adjusted scores `[n_tokens]`, and token of the onset.
        rate: of neutral replies in which any trait alarms.
    """
    pooled = np.concatenate(list(neutral.values()))
    found = []
    for name, parts in statistics(pooled).items():
        scale = {}
        for trait, x in neutral.items():
            largest = np.stack([np.where(np.isnan(x), -np.inf, part(x)).max(1) for part in parts])  # [n_parts, n]
            location = np.quantile(largest, 0.75, axis=1)
            width = (np.quantile(largest, 0.875, axis=1) - location) / np.log(2)
            scale[trait] = location, width, largest
        peaks = np.max([((top - a[:, None]) / b[:, None]).max(0) for a, b, top in scale.values()], axis=0)
        threshold = np.quantile(peaks, 1 - rate)
        delays = []
        for trait, x, onset in planted:
            a, b, _ = scale[trait]
            series = np.max([(part(x[None])[0] - a[k]) / b[k] for k, part in enumerate(parts)], axis=0)
            over = np.flatnonzero(series > threshold)
            delays.append(float(over[0]) - onset if len(over) else np.inf)
        late = np.array(delays)
        found.append(
            {
                "statistic": name,
                "found": round(float(np.isfinite(late).mean()), 4),
                "within": {str(k): round(float(((late >= 0) & (late <= k)).mean()), 4) for k in (2, 4, 8)},
                "median_delay": float(np.median(late[late >= 0])),
            }
        )
    return found
