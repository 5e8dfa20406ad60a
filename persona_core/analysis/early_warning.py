"""WHERE: how long before a trait shows it could have been predicted from a score that is read token by token.

t* is the position of the first token of the trait in a reply. A score at position t is the state after token t has been
read, so k = 0 is the first trait token itself, already read, and k = 4 is what was known four tokens earlier.

Two questions that are often confused:

- Does the score at t* - k separate replies that will show the trait from neutral ones? AUROC at the same position
  (`analysis.separation`).
- Would an alarm have gone off in time? Recall, with a threshold that a stated share of whole neutral replies exceeds
  anywhere: a rate per token says little about a reply of 100 tokens.

The score may be that of a trait, an onset detector's statistic, or a baseline
(`persona_core.experiments.warning_baselines`). High means alarm; NaN is a token without a score (a sink token). The
rate is that of this one score by itself: with several traits watched, more neutral replies raise some alarm
(`persona_core.analysis.detectors.Detectors.rate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from persona_core.analysis.separation import (
    AHEAD,
    Groups,
    LeadPoint,
    Series,
    check_inputs,
    lead_points,
    number_groups,
)
from persona_core.analysis.statistics import Estimate, exact_share, over_clusters
from persona_core.errors import SettingError

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class LeadTimes:
    """How many tokens before t* the first alarm of a reply came.

    Attributes:
        quantiles: probability -> t* - alarm, over the replies with an alarm; negative after t*. Empty if there is none.
        early: share of replies with an alarm before t*.
        late: at t* or after it.
        never: share without one.
    """

    quantiles: dict[float, float]
    early: Estimate
    late: Estimate
    never: Estimate

    def to_dict(self) -> dict[str, Any]:
        quantiles = {f"{p:g}": round(q, 3) for p, q in self.quantiles.items()} or None
        return {"quantiles": quantiles, **{k: getattr(self, k).to_dict() for k in ("early", "late", "never")}}


@dataclass(frozen=True)
class EarlyWarning:
    """How good a score is as a warning.

    Attributes:
        ahead: for each k.
        threshold: an alarm is a score above it.
        rate: nominal share of neutral replies with an alarm, each prompt counting once.
        false_alarms: the realised share, on the half of the neutral prompts that did not set the threshold.
        alarms_per_1000: upward crossings of the threshold per 1,000 tokens with a score of these replies.
        lead: of the replies with the trait.
        n_trait, n_calibration, n_held_out: replies with the trait; neutral replies in each half.
    """

    ahead: tuple[LeadPoint, ...]
    threshold: float
    rate: float
    false_alarms: Estimate
    alarms_per_1000: Estimate
    lead: LeadTimes
    n_trait: int
    n_calibration: int
    n_held_out: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "ahead": [one.to_dict() for one in self.ahead],
            "threshold": round(self.threshold, 5),
            "rate": self.rate,
            "false_alarms": self.false_alarms.to_dict(),
            "alarms_per_1000": self.alarms_per_1000.to_dict(),
            "lead": self.lead.to_dict(),
            "n_trait": self.n_trait,
            "n_calibration": self.n_calibration,
            "n_held_out": self.n_held_out,
        }


def early_warning(
    trait_scores: Series,
    first: Sequence[int],
    neutral_scores: Series,
    ahead: Sequence[int] = AHEAD,
    rate: float = 0.05,
    groups: Groups | None = None,
    seed: int = 0,
) -> EarlyWarning:
    """AUROC, recall at a fixed rate of false alarms, and lead times of one score.

    Args:
        trait_scores: of each reply that shows the trait, unsmoothed, `[n_reply_tokens]` each.
        first: t* of each: position of the first token of the trait.
        neutral_scores: of replies without it, with the same model and decoding, `[n_reply_tokens]` each.
        ahead: k, tokens before t*.
        rate: share of neutral replies that may raise an alarm.
        groups: prompt (or topic) of each trait reply and of each neutral one; intervals are over groups, and each
            counts once for the threshold. None: every reply is its own group.
        seed: for the split of the neutral replies and for the resampling.

    Raises:
        SettingError: t* outside its reply, an empty, smoothed or infinite series, or too few neutral prompts for the
            rate: half of them set the threshold, the other half measure the realised rate.
    """
    trait, positions, neutral = check_inputs(trait_scores, first, neutral_scores)
    of_trait, of_neutral = number_groups(groups, len(trait), len(neutral))
    n, needed = len(np.unique(of_neutral)), 2 * _prompts_needed(rate)
    if n < needed:
        raise SettingError(
            f"{n} neutral prompts; rate={rate:g} needs {needed}: half set the threshold, the other half measure the "
            "realised rate. Replies to one prompt count once."
        )
    half, rest = _halves(of_neutral, seed)
    threshold = alarm_threshold([neutral[i] for i in half], rate, of_neutral[half])

    # 1. Neutral replies that did not set the threshold.
    held_out = [neutral[i] for i in rest]
    of_rest = of_neutral[rest] if groups is not None else None
    false_alarms = _share([first_alarm(z, threshold) is not None for z in held_out], of_rest, seed)
    crossings = _crossings(held_out, threshold, of_neutral[rest], seed)

    # 2. Replies with the trait.
    alarms = [first_alarm(z, threshold) for z in trait]
    found = []
    for one in lead_points(trait, positions, neutral, ahead, of_trait, of_neutral):
        long = _counted(trait, positions, neutral, one.k)
        in_time = [a is not None and a <= positions[i] - one.k for i, a in enumerate(alarms) if long[i]]
        recall = _share(in_time, of_trait[long] if groups is not None else None, seed) if one.n else None
        found.append(LeadPoint(one.k, one.n, one.auroc, one.auroc_anywhere, recall))
    lead = _lead(positions, alarms, of_trait if groups is not None else None, seed)
    return EarlyWarning(tuple(found), threshold, rate, false_alarms, crossings, lead, len(trait), len(half), len(rest))


def _halves(groups: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of two halves of the replies; a group is never split."""
    names, position = np.unique(groups, return_inverse=True)
    first = np.isin(position, np.random.default_rng(seed).permutation(len(names))[::2])  # [n]
    return np.flatnonzero(first), np.flatnonzero(~first)


def alarm_threshold(
    neutral_scores: Series, rate: float = 0.05, groups: Sequence[object] | np.ndarray | None = None
) -> float:
    """The threshold that the largest score of a reply to a new neutral prompt exceeds with probability at most `rate`.

    With n prompts, the lowest observed maximum t with (n F + 1) / (n + 1) <= rate, where F is the share of replies with
    a larger maximum and each prompt counts once (conformal risk control, Angelopoulos et al. 2022, arXiv 2208.02814).

    Args:
        neutral_scores: of each reply; NaN where a token has no score.
        rate: share of replies that may raise an alarm.
        groups: prompt of each reply; None: every reply has its own.

    Raises:
        SettingError: too few prompts for the rate.

    >>> alarm_threshold([np.array([0.0, float(i)]) for i in range(100)], rate=0.05)
    95.0
    """
    needed = _prompts_needed(rate)
    of = np.arange(len(neutral_scores)) if groups is None else np.unique(list(groups), return_inverse=True)[1]
    n = len(np.unique(of))
    if n < needed:
        raise SettingError(
            f"{n} neutral prompts; a threshold for rate={rate:g} needs {needed}. Replies to one prompt count once."
        )
    maxima = np.array([np.nanmax(z) for z in neutral_scores])
    weights = 1.0 / np.bincount(of)[of]  # [n_replies]
    order = np.argsort(maxima)[::-1]
    values, above = maxima[order], np.cumsum(weights[order]) - weights[order]  # weight of the replies listed before
    allowed = above <= rate * (n + 1) - 1 + 1e-9
    return float(values[allowed].min())


def _prompts_needed(rate: float) -> int:
    """With fewer, the threshold would be the largest maximum of all."""
    if not 0 < rate < 1:
        raise SettingError(f"rate={rate!r}; expected a number between 0 and 1.")
    return int(np.ceil(2 / rate)) - 1


def first_alarm(scores: np.ndarray, threshold: float) -> int | None:
    """Position of the first score above the threshold."""
    above = np.flatnonzero(scores > threshold)
    return int(above[0]) if len(above) else None


def permuted(
    trait_scores: Series, first: Sequence[int], neutral_scores: Series, seed: int = 0
) -> tuple[list[np.ndarray], list[int], list[np.ndarray]]:
    """The same replies with the labels "trait" and "neutral" permuted; the positions t* are kept.

    Each t* is assigned to a random reply of either kind that is long enough; all others become the neutral ones. In the
    result `separation` finds what chance and position give: 0.5 on average.

    Raises:
        SettingError: as `early_warning`.
    """
    trait, positions, neutral = check_inputs(trait_scores, first, neutral_scores)
    rng = np.random.default_rng(seed)
    left = [*trait, *neutral]
    chosen, at = (
        [],
        sorted(positions, reverse=True),
    )  # latest first: fewer replies are long enough
    for position in at:
        long = [i for i, z in enumerate(left) if len(z) > position]
        chosen.append(left.pop(long[int(rng.integers(len(long)))]))
    return chosen, at, left


def _counted(trait: Series, positions: Sequence[int], neutral: Series, k: int) -> np.ndarray:
    """Replies with a score at t* - k that lies within the longest neutral reply, bool `[n_trait]`."""
    longest = max(map(len, neutral))
    return np.array(
        [0 <= at - k < longest and bool(np.isfinite(z[at - k])) for z, at in zip(trait, positions, strict=True)]
    )


# ---- figures ----


def _share(hits: Sequence[bool], groups: np.ndarray | None, seed: int) -> Estimate:
    """A share with its exact binomial interval, or over groups; exact over groups where all or none hit."""
    array = np.array(hits, float)
    if groups is not None and 0 < array.mean() < 1:
        found = over_clusters(lambda w: float(w @ array / w.sum()) if w.sum() else float("nan"), groups, seed=seed)
        if found is not None:
            return found
    n = len(array) if groups is None else len(np.unique(groups))
    exact = exact_share(round(float(array.mean()) * n), n)
    return Estimate(float(array.mean()), exact.low, exact.high, n)


def _crossings(series: Series, threshold: float, groups: np.ndarray, seed: int) -> Estimate:
    """Upward crossings of the threshold per 1,000 tokens; with none, the exact Poisson interval."""
    known = [z[np.isfinite(z)] for z in series]  # an alarm goes on over a token without a score
    above = [z > threshold for z in known]
    crossed = np.array([float(a[0]) + float((a[1:] & ~a[:-1]).sum()) for a in above])
    tokens = np.array([len(z) for z in known], float)
    found = over_clusters(lambda w: float(1000 * (w @ crossed) / (w @ tokens)), groups, seed=seed)
    if found is None or not crossed.any():
        from scipy.stats import chi2

        count, scale = float(crossed.sum()), 1000 / float(tokens.sum())
        low = float(chi2.ppf(0.025, 2 * count)) / 2 if count else 0.0
        return Estimate(scale * count, scale * low, scale * float(chi2.ppf(0.975, 2 * count + 2)) / 2, len(series))
    return found


def _lead(positions: Sequence[int], alarms: Sequence[int | None], groups: np.ndarray | None, seed: int) -> LeadTimes:
    leads = [position - alarm for position, alarm in zip(positions, alarms, strict=True) if alarm is not None]
    quantiles = dict(zip(QUANTILES, map(float, np.quantile(leads, QUANTILES)), strict=True)) if leads else {}
    return LeadTimes(
        quantiles,
        early=_share([a is not None and a < p for p, a in zip(positions, alarms, strict=True)], groups, seed),
        late=_share([a is not None and a >= p for p, a in zip(positions, alarms, strict=True)], groups, seed),
        never=_share([a is None for a in alarms], groups, seed),
    )
