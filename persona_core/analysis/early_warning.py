"""WHERE: how long before a trait shows one could have known, from any score that is read token by token.

t* is the place of the first token of the trait in a reply. A score at place t is the state after token t has been
read, so k = 0 is the first trait token itself, already read, and k = 4 is what was known four tokens earlier.

Two questions, which are often mixed up:

- Does the score at t* - k tell replies that will show the trait from neutral ones? AUROC, against neutral replies *at
  the same place*. Scores drift over the places of a reply, and t* is seldom at the first one: held against all neutral
  tokens (`auroc_anywhere`), a score that only counts tokens does well. At the same place it gets exactly 0.5.
- Would an alarm have gone off in time? Recall, with a threshold that a stated share of whole neutral replies exceeds
  anywhere: a rate for each token says little of a reply of 100 tokens.

The score may be z of a trait, a CUSUM, or a baseline (`persona_core.experiments.warning_baselines`). High means alarm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from persona_core.analysis.series import checked, refuse_smoothed
from persona_core.analysis.statistics import Estimate, exact_share, over_clusters
from persona_core.errors import SettingError

AHEAD = (0, 1, 2, 4, 8, 16)
"""Tokens before the first token of the trait."""

MIN_NULLS = 300
"""Neutral replies that the two halves (threshold, realised rate) need together."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

MIN_SPREAD = 0.08
"""Share of the largest possible variance that is mixed into the variance of an AUROC; see `_interval`."""

Series = Sequence[np.ndarray]
Groups = tuple[Sequence[object], Sequence[object]]


@dataclass(frozen=True)
class LeadPoint:
    """What was known k tokens before the trait's first token.

    Attributes:
        k: tokens before t*.
        n: replies with the trait that are so long, and have a neutral reply as long to be held against.
        auroc: against neutral replies at the same place; None for fewer than two replies.
        auroc_anywhere: against all tokens of neutral replies.
        recall: share of these replies whose first alarm came at t* - k or before; None without a threshold.
    """

    k: int
    n: int
    auroc: Estimate | None
    auroc_anywhere: Estimate | None
    recall: Estimate | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "k": self.k,
            "n": self.n,
            **{name: _plain(getattr(self, name)) for name in ("auroc", "auroc_anywhere", "recall")},
        }


@dataclass(frozen=True)
class LeadTimes:
    """How many tokens before t* the first alarm of a reply came.

    Attributes:
        quantiles: probability -> t* - alarm, over the replies that alarm; negative after t*. Empty if none does.
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
    """What a score is worth as a warning.

    Attributes:
        ahead: for each k.
        threshold: an alarm is a score above it.
        rate: nominal share of neutral replies with an alarm.
        false_alarms: that share as realised on the half of the neutral replies that the threshold has not seen.
        alarms_per_1000: upward crossings of the threshold per 1,000 tokens of these replies.
        lead: of the replies with the trait.
        n_trait, n_calibration, n_held_out: replies with the trait; neutral ones of the two halves.
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
        trait_scores: of each reply that shows the trait, over its own tokens, unsmoothed, `[n_own]` each.
        first: t* of each: place of the first token of the trait.
        neutral_scores: of replies without it, same model and decoding, `[n_own]` each.
        ahead: k, tokens before t*.
        rate: share of neutral replies that may alarm.
        groups: of the trait replies and of the neutral ones, the prompt (or topic) that each belongs to; intervals
            are then over groups. None: each reply by itself.
        seed: of the split of the neutral replies into halves, and of the resampling.

    Raises:
        SettingError: t* outside its reply, an empty, smoothed or not finite series, fewer than `MIN_NULLS` neutral
            replies, or a rate that so few cannot support.
    """
    trait, places, neutral = _inputs(trait_scores, first, neutral_scores)
    of_trait, of_neutral = _groups(groups, len(trait), len(neutral))
    if len(neutral) < MIN_NULLS:
        raise SettingError(
            f"{len(neutral)} neutral replies; at least {MIN_NULLS} are needed: half of them give the threshold, and "
            "the other half says whether it holds."
        )
    half, rest = _halves(of_neutral, seed)
    threshold = alarm_threshold([neutral[i] for i in half], rate)

    # 1. Neutral replies that the threshold has not seen.
    held_out = [neutral[i] for i in rest]
    of_rest = of_neutral[rest] if groups is not None else None
    false_alarms = _share([first_alarm(z, threshold) is not None for z in held_out], of_rest, seed)
    crossings = _crossings(held_out, threshold, of_neutral[rest], seed)

    # 2. Replies with the trait.
    alarms = [first_alarm(z, threshold) for z in trait]
    found = []
    for one in _separation(trait, places, neutral, ahead, of_trait, of_neutral):
        long = _long(places, neutral, one.k)
        in_time = [a is not None and a <= places[i] - one.k for i, a in enumerate(alarms) if long[i]]
        recall = _share(in_time, of_trait[long] if groups is not None else None, seed) if one.n else None
        found.append(LeadPoint(one.k, one.n, one.auroc, one.auroc_anywhere, recall))
    lead = _lead(places, alarms, of_trait if groups is not None else None, seed)
    return EarlyWarning(tuple(found), threshold, rate, false_alarms, crossings, lead, len(trait), len(half), len(rest))


def _halves(groups: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of two halves of the replies, group by group: one prompt is never on both sides."""
    names, place = np.unique(groups, return_inverse=True)
    first = np.isin(place, np.random.default_rng(seed).permutation(len(names))[::2])  # [n]
    return np.flatnonzero(first), np.flatnonzero(~first)


def separation(
    trait_scores: Series,
    first: Sequence[int],
    neutral_scores: Series,
    ahead: Sequence[int] = AHEAD,
    groups: Groups | None = None,
    neutral_starts: Sequence[Sequence[int]] | None = None,
) -> tuple[LeadPoint, ...]:
    """AUROC at t* - k, for each k: the chance that a reply with the trait scores above a neutral one at the same place.

    Each reply with the trait is held against every neutral reply that is long enough, and the shares are averaged;
    ties count half. A score that is a function of the place alone has exactly 0.5 at every k.

    The place is not all that differs: a trait begins with a sentence, so t* - 1 is a full stop, and most neutral tokens
    at that place are not. On the demo world that alone makes an AUROC of 0.2 to 0.8, by trait, with nothing known yet.
    With `neutral_starts` a full stop is held against full stops.

    Args:
        trait_scores, first, neutral_scores, ahead, groups: as in `early_warning`.
        neutral_starts: places in each neutral reply at which a sentence begins; a reply is then held only against
            neutral replies in which one begins at its t*.

    Raises:
        SettingError: as `early_warning`, but any number of neutral replies from one will do.

    >>> rng = np.random.default_rng(0)
    >>> neutral = [rng.normal(size=40) for _ in range(50)]
    >>> warned = [rng.normal(size=40) + 9.0 * (np.arange(40) >= 18) for _ in range(20)]  # t* is 20: a lead of two
    >>> [one.auroc.value for one in separation(warned, [20] * 20, neutral, ahead=(0, 2))]
    [1.0, 1.0]
    >>> [one.n for one in separation(warned, [20] * 20, neutral, ahead=(20, 21))]
    [20, 0]
    """
    trait, places, neutral = _inputs(trait_scores, first, neutral_scores)
    of_trait, of_neutral = _groups(groups, len(trait), len(neutral))
    if neutral_starts is None:
        return _separation(trait, places, neutral, ahead, of_trait, of_neutral)
    if len(neutral_starts) != len(neutral):
        raise SettingError(f"{len(neutral_starts)} lists of starts, {len(neutral)} neutral replies; give one for each.")
    starts = [frozenset(map(int, one)) for one in neutral_starts]
    return _separation(trait, places, neutral, ahead, of_trait, of_neutral, starts)


def alarm_threshold(neutral_scores: Series, rate: float = 0.05) -> float:
    """What the largest score of a new neutral reply exceeds with a probability of at most `rate`.

    The (n + 1)(1 - rate)-th smallest of n maxima.

    Raises:
        SettingError: a rate that so few replies cannot support.

    >>> alarm_threshold([np.array([0.0, float(i)]) for i in range(100)], rate=0.05)
    95.0
    """
    if not 0 < rate < 1:
        raise SettingError(f"rate={rate!r}; expected a number between 0 and 1.")
    n = len(neutral_scores)
    if rate * n < 5:
        raise SettingError(
            f"rate={rate:g} of {n} neutral replies is {rate * n:.1f}; {int(np.ceil(5 / rate))} are needed for a "
            "threshold."
        )
    maxima = np.sort([float(z.max()) for z in neutral_scores])
    return float(maxima[min(n, int(np.ceil((n + 1) * (1 - rate)))) - 1])


def first_alarm(scores: np.ndarray, threshold: float) -> int | None:
    """Place of the first score above the threshold."""
    above = np.flatnonzero(scores > threshold)
    return int(above[0]) if len(above) else None


def permuted(
    trait_scores: Series, first: Sequence[int], neutral_scores: Series, seed: int = 0
) -> tuple[list[np.ndarray], list[int], list[np.ndarray]]:
    """The same replies with the labels "trait" and "neutral" dealt out anew; the places t* stay as they are.

    Each t* goes to a reply of either kind that is long enough, by lot; all others become the neutral ones. What
    `separation` finds in the result is what chance and place give: 0.5 on average.

    Raises:
        SettingError: as `early_warning`.
    """
    trait, places, neutral = _inputs(trait_scores, first, neutral_scores)
    rng = np.random.default_rng(seed)
    left = [*trait, *neutral]
    chosen, at = [], sorted(places, reverse=True)  # the longest first: a later place leaves fewer replies to choose of
    for place in at:
        long = [i for i, z in enumerate(left) if len(z) > place]
        chosen.append(left.pop(long[int(rng.integers(len(long)))]))
    return chosen, at, left


# ---- what goes in ----


def _inputs(
    trait_scores: Series, first: Sequence[int], neutral_scores: Series
) -> tuple[list[np.ndarray], list[int], list[np.ndarray]]:
    if len(trait_scores) != len(first):
        raise SettingError(f"{len(trait_scores)} replies with the trait, {len(first)} places t*; give one for each.")
    trait = [checked(z, f"Reply {i}") for i, z in enumerate(trait_scores)]
    neutral = [checked(z, f"Neutral reply {i}") for i, z in enumerate(neutral_scores)]
    if not trait or not neutral:
        raise SettingError(f"{len(trait)} replies with the trait and {len(neutral)} neutral ones; both are needed.")
    for name, series in (("Reply", trait), ("Neutral reply", neutral)):
        for i, z in enumerate(series):
            if not len(z):
                raise SettingError(f"{name} {i} has no token; leave it out.")
    for i, (z, place) in enumerate(zip(trait, first, strict=True)):
        if int(place) != place or not 0 <= place < len(z):
            raise SettingError(f"t* of reply {i} is {place}; the reply has the places 0 to {len(z) - 1}.")
    refuse_smoothed([*trait, *neutral])
    return trait, [int(place) for place in first], neutral


def _groups(groups: Groups | None, n_trait: int, n_neutral: int) -> tuple[np.ndarray, np.ndarray]:
    """A number for the group of each reply, `[n_trait]` and `[n_neutral]`."""
    if groups is None:
        return np.arange(n_trait), n_trait + np.arange(n_neutral)
    if (len(groups[0]), len(groups[1])) != (n_trait, n_neutral):
        raise SettingError(
            f"{len(groups[0])} and {len(groups[1])} groups for {n_trait} replies with the trait and {n_neutral} "
            "neutral ones; give one for each."
        )
    number: dict[object, int] = {}
    numbers = np.array([number.setdefault(g, len(number)) for g in (*groups[0], *groups[1])])
    return numbers[:n_trait], numbers[n_trait:]


def _long(places: Sequence[int], neutral: Series, k: int) -> np.ndarray:
    """Replies whose t* - k lies within them, and within a neutral reply, bool `[n_trait]`."""
    longest = max(map(len, neutral))
    return np.array([0 <= place - k < longest for place in places])


# ---- figures ----


def _separation(
    trait: Series,
    places: Sequence[int],
    neutral: Series,
    ahead: Sequence[int],
    of_trait: np.ndarray,
    of_neutral: np.ndarray,
    starts: Sequence[frozenset[int]] | None = None,
) -> tuple[LeadPoint, ...]:
    if any(k < 0 for k in ahead):
        raise SettingError(f"ahead={list(ahead)}; k counts tokens before the first trait token, from 0.")
    n = len(neutral)
    lengths = np.array([len(z) for z in neutral])
    table = np.full((n, lengths.max()), np.nan)  # [n_neutral, longest]
    for row, z in zip(table, neutral, strict=True):
        row[: len(z)] = z
    flat = np.concatenate(neutral)
    order = np.argsort(flat, kind="stable")
    flat, owner = flat[order], np.repeat(np.arange(n), lengths)[order]
    found = []
    for k in ahead:
        kept, wins, trials, anywhere = [], [], [], []  # a row of n_neutral for each reply that is kept
        for i, place in enumerate(places):
            fits = lengths > place - k
            if starts is not None:
                fits &= np.array([place in one for one in starts])
            if place < k or not fits.any():
                continue
            score, others = trait[i][place - k], table[:, place - k]
            kept.append(i)
            trials.append(fits.astype(float))
            wins.append(np.where(fits, (score > others) + (score == others) / 2, 0.0))
            low, high = np.searchsorted(flat, score, "left"), np.searchsorted(flat, score, "right")
            anywhere.append(np.bincount(owner[:low], minlength=n) + np.bincount(owner[low:high], minlength=n) / 2)
        of = of_trait[kept]
        same_place = _auroc(wins, trials, of, of_neutral)
        any_place = _auroc(anywhere, [lengths] * len(kept), of, of_neutral)
        found.append(LeadPoint(int(k), len(kept), same_place, any_place))
    return tuple(found)


def _auroc(rows: Series, trials_rows: Series, of_trait: np.ndarray, of_neutral: np.ndarray) -> Estimate | None:
    """Mean over trait replies of the share of trials that they win, with its interval.

    Args:
        rows, trials_rows: of each trait reply against each neutral one, `[n_trait, n_neutral]`.
        of_trait, of_neutral: numbers of their groups.
    """
    n = len(rows)
    if n < 2:
        return None
    wins, trials = np.array(rows), np.array(trials_rows)
    total = trials.sum(1)  # [n_trait]
    share = wins.sum(1) / total
    value = round(float(share.mean()), 12)  # a mean of ones may come out a bit below 1, and then has no variance
    # How much each reply moves the value (DeLong 1988; by groups as in Obuchowski 1997).
    from_trait = (share - value) / n
    from_neutral = ((wins - share[:, None] * trials) / total[:, None]).mean(0)
    numbers = np.concatenate([of_trait, of_neutral])
    moved = np.bincount(numbers, np.concatenate([from_trait, from_neutral]))
    sides = len(np.unique(of_trait)), len(np.unique(of_neutral))
    if min(sides) < 2:
        return None
    low, high = _interval(value, float(moved @ moved), *sides)
    return Estimate(value, low, high, n)


def _interval(value: float, variance: float, n: int, m: int) -> tuple[float, float]:
    """The 95 % interval of an AUROC on the logit scale, n and m groups on the two sides.

    Not a percentile bootstrap: over 20 replies against 300 that held a true 0.95 in 76 to 85 % of 400 simulated data
    sets, and a true 0.99 in 58 to 79 %, for a sample without a misranked reply cannot show one. So a share of the
    largest variance that an AUROC can have, A (1 - A) (1/n + 1/m), is mixed in. With 8 % of it, 600 data sets a setting
    (20 to 300 replies, spread as the neutral ones or twice as far) give 94 to 98.5 % for 0.5 to 0.95 and 96 to 99.8 %
    for 0.99 and 0.998; with none, as few as 71 %; with 5 %, 90 %.
    """
    from scipy.stats import t  # here: importing scipy.stats takes half a second

    fewest = min(n, m)
    spread = float(t.ppf(0.975, fewest - 1))
    variance *= fewest / (fewest - 1)
    if 0 < value < 1 and variance < 1e-20:  # every reply ties alike: a constant, or the place alone
        return value, value
    largest = value * (1 - value) * (1 / n + 1 / m)
    # Wilson's interval for the largest variance. Where next to no reply is misranked the logit has no bounds: for an
    # AUROC of 0.99999 over 480 replies it would give 0 to 1.
    trials = 1 / (1 / n + 1 / m) / max(1.0, variance / largest if largest else 1.0)
    middle = (value + spread**2 / (2 * trials)) / (1 + spread**2 / trials)
    reach = spread * np.sqrt(value * (1 - value) / trials + (spread / (2 * trials)) ** 2) / (1 + spread**2 / trials)
    low, high = float(max(0.0, middle - reach)), float(min(1.0, middle + reach))
    if not 0 < value < 1:
        return (low, 1.0) if value >= 1 else (0.0, high)
    mixed = (variance + MIN_SPREAD * largest) / (1 + MIN_SPREAD)
    centre, error = np.log(value / (1 - value)), np.sqrt(mixed) / (value * (1 - value))
    ends = [float(1 / (1 + np.exp(-(centre + side * spread * error)))) for side in (-1, 1)]
    return max(low, ends[0]), min(high, ends[1])


def _share(hits: Sequence[bool], groups: np.ndarray | None, seed: int) -> Estimate:
    """With the exact binomial interval, or over groups; where all or none hit, exact with a group as the trial."""
    array = np.array(hits, float)
    if groups is not None and 0 < array.mean() < 1:
        found = over_clusters(lambda w: float(w @ array / w.sum()) if w.sum() else float("nan"), groups, seed=seed)
        if found is not None:
            return found
    n = len(array) if groups is None else len(np.unique(groups))
    exact = exact_share(round(float(array.mean()) * n), n)
    return Estimate(float(array.mean()), exact.low, exact.high, n)


def _crossings(series: Series, threshold: float, groups: np.ndarray, seed: int) -> Estimate:
    """Upward crossings of the threshold per 1,000 tokens; where there is none, with the exact Poisson interval."""
    above = [z > threshold for z in series]
    crossed = np.array([float(a[0]) + float((a[1:] & ~a[:-1]).sum()) for a in above])
    tokens = np.array([len(z) for z in series], float)
    found = over_clusters(lambda w: float(1000 * (w @ crossed) / (w @ tokens)), groups, seed=seed)
    if found is None or not crossed.any():
        from scipy.stats import chi2

        count, scale = float(crossed.sum()), 1000 / float(tokens.sum())
        low = float(chi2.ppf(0.025, 2 * count)) / 2 if count else 0.0
        return Estimate(scale * count, scale * low, scale * float(chi2.ppf(0.975, 2 * count + 2)) / 2, len(series))
    return found


def _lead(places: Sequence[int], alarms: Sequence[int | None], groups: np.ndarray | None, seed: int) -> LeadTimes:
    leads = [place - alarm for place, alarm in zip(places, alarms, strict=True) if alarm is not None]
    quantiles = dict(zip(QUANTILES, map(float, np.quantile(leads, QUANTILES)), strict=True)) if leads else {}
    return LeadTimes(
        quantiles,
        early=_share([a is not None and a < p for p, a in zip(places, alarms, strict=True)], groups, seed),
        late=_share([a is not None and a >= p for p, a in zip(places, alarms, strict=True)], groups, seed),
        never=_share([a is None for a in alarms], groups, seed),
    )


def _plain(estimate: Estimate | None) -> dict[str, float | int] | None:
    return None if estimate is None else estimate.to_dict()
