"""Survival curves of onsets: the share of replies in which a score has not risen yet, and a test for two cohorts.

Replies end at different tokens, so a reply without an onset is censored at its end: Kaplan-Meier (1958) with the
exponential Greenwood interval, from scipy. Two cohorts that answered the same prompts are compared by the log-rank
statistic; its null is made by swapping the two replies to a prompt.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from persona_core.analysis.onset import Onset
from persona_core.errors import SettingError

MIN_REPLIES = 10
N_PERMUTATIONS = 1999


@dataclass(frozen=True)
class Lifetime:
    """How long a reply went without the trait.

    Attributes:
        tokens: to the onset (0: before the reply began), or to the end of the reply.
        onset: whether there was one; False: censored at the end.
    """

    tokens: int
    onset: bool


@dataclass(frozen=True, eq=False)
class Survival:
    """A Kaplan-Meier curve.

    Attributes:
        tokens: positions at which an onset was found or a reply ended, `[n]`, rising.
        free: share of replies without an onset up to and including that token, `[n]`.
        low, high: 95 % interval, `[n]`; equal to the share itself before the first onset and after the last reply.
        n: replies.
        n_onsets: replies with an onset.
    """

    tokens: np.ndarray
    free: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: int
    n_onsets: int

    @property
    def median(self) -> int | None:
        """The token by which half of the replies have had their onset; None if fewer ever do."""
        reached = np.flatnonzero(self.free <= 0.5)
        return int(self.tokens[reached[0]]) if len(reached) else None

    def at(self, token: int) -> float:
        """Share of replies without an onset up to and including a token."""
        index = int(np.searchsorted(self.tokens, token, side="right")) - 1
        return 1.0 if index < 0 else float(self.free[index])

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record."""
        curve = {k: getattr(self, k).round(5).tolist() for k in ("tokens", "free", "low", "high")}
        return {**curve, "n": self.n, "n_onsets": self.n_onsets, "median": self.median}


@dataclass(frozen=True)
class CohortTest:
    """Whether the onsets of two cohorts differ in time.

    Attributes:
        statistic: log-rank z; above 0 where the second cohort has more or earlier onsets.
        p: two-sided, by permutation.
        n: pairs of replies to one prompt.
    """

    statistic: float
    p: float
    n: int

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record."""
        return {"statistic": round(self.statistic, 5), "p": round(self.p, 5), "n": self.n}


def lifetime(onset: Onset, n_tokens: int) -> Lifetime:
    """The time to onset, or the censoring, of a reply of `n_tokens`.

    >>> lifetime(Onset("none", None, None, 1.2), 80)
    Lifetime(tokens=80, onset=False)
    """
    if onset.answer == "none":
        return Lifetime(n_tokens, False)
    return Lifetime(0 if onset.onset is None else onset.onset, True)


def survival(lifetimes: Sequence[Lifetime]) -> Survival:
    """The curve of one cohort.

    Raises:
        SettingError: fewer than `MIN_REPLIES` replies.
    """
    _enough(len(lifetimes))
    from scipy.stats import CensoredData, ecdf  # here: importing scipy.stats takes half a second

    free = ecdf(_censored(lifetimes, CensoredData)).sf
    tokens, share = free.quantiles, free.probabilities
    with warnings.catch_warnings():  # the interval is undefined where the share is 1 or 0
        warnings.simplefilter("ignore", RuntimeWarning)
        interval = free.confidence_interval(method="log-log")
    low, high = (np.where(np.isfinite(end.probabilities), end.probabilities, share) for end in interval)
    return Survival(np.asarray(tokens, int), share, low, high, len(lifetimes), sum(one.onset for one in lifetimes))


def compare_cohorts(
    first: Sequence[Lifetime], second: Sequence[Lifetime], n_permutations: int = N_PERMUTATIONS, seed: int = 0
) -> CohortTest:
    """Compare two cohorts that answered the same prompts.

    Args:
        first, second: in the order of the prompts, one reply each.
        n_permutations: random swaps; the smallest p is 1 / (n_permutations + 1).
        seed: for the swaps.

    Raises:
        SettingError: unequal numbers of replies, or fewer than `MIN_REPLIES` pairs.
    """
    if len(first) != len(second):
        raise SettingError(f"{len(first)} and {len(second)} replies; give one of each cohort for every prompt.")
    _enough(len(first))
    times = np.array([[one.tokens for one in cohort] for cohort in (first, second)])  # [2, n]
    events = np.array([[one.onset for one in cohort] for cohort in (first, second)])
    observed = _log_rank(times, events)
    rng = np.random.default_rng(seed)
    columns = np.arange(times.shape[1])
    as_large = 0
    for _ in range(n_permutations):
        rows = rng.integers(2, size=len(columns))
        order = np.stack([rows, 1 - rows])
        as_large += abs(_log_rank(times[order, columns], events[order, columns])) >= abs(observed) - 1e-9
    return CohortTest(observed, (as_large + 1) / (n_permutations + 1), len(first))


def _log_rank(times: np.ndarray, events: np.ndarray) -> float:
    """Log-rank z of two cohorts, both `[2, n]`: observed minus expected onsets of the second, standardised."""
    moments = np.unique(times[events])
    if not len(moments):
        return 0.0
    at_risk = (times[:, :, None] >= moments).sum(1)  # [2, n_moments]
    with_onset = ((times[:, :, None] == moments) & events[:, :, None]).sum(1)  # [2, n_moments]
    n, d = at_risk.sum(0), with_onset.sum(0)
    expected = d * at_risk[1] / n
    variance = np.where(n > 1, d * (n - d) * at_risk[0] * at_risk[1] / (n**2 * np.maximum(n - 1, 1)), 0.0).sum()
    return float((with_onset[1] - expected).sum() / np.sqrt(variance)) if variance > 0 else 0.0


def _censored(lifetimes: Sequence[Lifetime], data: Any) -> Any:
    return data(
        uncensored=[one.tokens for one in lifetimes if one.onset],
        right=[one.tokens for one in lifetimes if not one.onset],
    )


def _enough(n: int) -> None:
    if n < MIN_REPLIES:
        raise SettingError(f"{n} replies; a survival curve needs at least {MIN_REPLIES}.")
