"""How well a score k tokens before a trait's first token separates replies that will show it from neutral ones.

The first trait token of a reply is at position t*. A reply with the trait is compared with neutral replies *at the same
position*: scores drift over a reply, and t* is seldom its first token. Compared with all neutral tokens
(`auroc_anywhere`), a score that only counts tokens does well; at the same position it gets exactly 0.5.

NaN is a token without a score (a sink token): it is compared with nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from persona_core.analysis.series import checked, refuse_smoothed
from persona_core.analysis.statistics import Estimate
from persona_core.errors import SettingError
from persona_core.utils.numbering import numbered

AHEAD = (0, 1, 2, 4, 8, 16)
"""Tokens before the first token of the trait."""

MIN_SPREAD = 0.08
"""Share of the largest possible variance that is mixed into the variance of an AUROC; see `_interval`."""

Series = Sequence[np.ndarray]
Groups = tuple[Sequence[object], Sequence[object]]


@dataclass(frozen=True)
class LeadPoint:
    """How much was known k tokens before the trait's first token.

    Attributes:
        k: tokens before t*.
        n: replies with the trait that are long enough, have a score there, and a neutral reply to be compared with.
        auroc: against neutral replies at the same position; None for fewer than two replies.
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
            **{
                name: (estimate := getattr(self, name)) and estimate.to_dict()
                for name in ("auroc", "auroc_anywhere", "recall")
            },
        }


def separation(
    trait_scores: Series,
    first: Sequence[int],
    neutral_scores: Series,
    ahead: Sequence[int] = AHEAD,
    groups: Groups | None = None,
    neutral_starts: Sequence[Sequence[int]] | None = None,
) -> tuple[LeadPoint, ...]:
    """AUROC at t* - k for each k: the probability that a reply with the trait scores above a neutral one there.

    Each reply with the trait is compared with every neutral reply that is long enough, at the same position, and the
    shares are averaged; ties count half. A score that depends on the position alone has exactly 0.5 at every k.

    Position is not the only difference: a trait begins with a sentence, so t* - 1 is a full stop, and most neutral
    tokens at that position are not. In the demo world that alone gives an AUROC of 0.2 to 0.8, by trait, when nothing
    is known yet. With `neutral_starts`, full stops are compared with full stops.

    Args:
        trait_scores, first, neutral_scores, ahead, groups: as in `early_warning`.
        neutral_starts: positions in each neutral reply at which a sentence begins; a reply is then compared only with
            neutral replies in which one begins at its t*.

    Raises:
        SettingError: as `early_warning`, except that one neutral reply is enough.

    >>> rng = np.random.default_rng(0)
    >>> neutral = [rng.normal(size=40) for _ in range(50)]
    >>> warned = [rng.normal(size=40) + 9.0 * (np.arange(40) >= 18) for _ in range(20)]  # t* is 20: a lead of two
    >>> [one.auroc.value for one in separation(warned, [20] * 20, neutral, ahead=(0, 2))]
    [1.0, 1.0]
    >>> [one.n for one in separation(warned, [20] * 20, neutral, ahead=(20, 21))]
    [20, 0]
    """
    trait, positions, neutral = check_inputs(trait_scores, first, neutral_scores)
    of_trait, of_neutral = number_groups(groups, len(trait), len(neutral))
    if neutral_starts is None:
        return lead_points(trait, positions, neutral, ahead, of_trait, of_neutral)
    if len(neutral_starts) != len(neutral):
        raise SettingError(
            f"{len(neutral_starts)} lists of starts for {len(neutral)} neutral replies; give one for each."
        )
    starts = [frozenset(map(int, one)) for one in neutral_starts]
    return lead_points(trait, positions, neutral, ahead, of_trait, of_neutral, starts)


# ---- inputs ----


def check_inputs(
    trait_scores: Series, first: Sequence[int], neutral_scores: Series
) -> tuple[list[np.ndarray], list[int], list[np.ndarray]]:
    """The scores as float64 and t* as int.

    Raises:
        SettingError: as `early_warning`.
    """
    if len(trait_scores) != len(first):
        raise SettingError(
            f"{len(trait_scores)} replies with the trait, but {len(first)} positions t*; give one for each."
        )
    trait = [checked(z, f"Reply {i}", gaps=True) for i, z in enumerate(trait_scores)]
    neutral = [checked(z, f"Neutral reply {i}", gaps=True) for i, z in enumerate(neutral_scores)]
    if not trait or not neutral:
        raise SettingError(f"{len(trait)} replies with the trait and {len(neutral)} neutral ones; both are needed.")
    for name, series in (("Reply", trait), ("Neutral reply", neutral)):
        for i, z in enumerate(series):
            if not np.isfinite(z).any():
                raise SettingError(f"{name} {i} has no token with a score; leave it out.")
    for i, (z, position) in enumerate(zip(trait, first, strict=True)):
        if int(position) != position or not 0 <= position < len(z):
            raise SettingError(f"t* of reply {i} is {position}; the reply has positions 0 to {len(z) - 1}.")
    refuse_smoothed([*trait, *neutral])
    return trait, [int(position) for position in first], neutral


def number_groups(groups: Groups | None, n_trait: int, n_neutral: int) -> tuple[np.ndarray, np.ndarray]:
    """The index of each reply's group, `[n_trait]` and `[n_neutral]`."""
    if groups is None:
        return np.arange(n_trait), n_trait + np.arange(n_neutral)
    if (len(groups[0]), len(groups[1])) != (n_trait, n_neutral):
        raise SettingError(
            f"{len(groups[0])} and {len(groups[1])} groups for {n_trait} replies with the trait and {n_neutral} "
            "neutral ones; give one for each."
        )
    numbers = numbered((*groups[0], *groups[1]))
    return numbers[:n_trait], numbers[n_trait:]


# ---- figures ----


def lead_points(
    trait: Series,
    positions: Sequence[int],
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
    flat, owner = np.concatenate(neutral), np.repeat(np.arange(n), lengths)
    known = np.flatnonzero(np.isfinite(flat))
    order = known[np.argsort(flat[known], kind="stable")]
    flat, owner = flat[order], owner[order]
    scored = np.bincount(owner, minlength=n)  # tokens with a score, [n_neutral]
    found = []
    for k in ahead:
        kept, wins, trials, anywhere = [], [], [], []  # [n_neutral] for each kept reply
        for i, position in enumerate(positions):
            if not 0 <= position - k < table.shape[1] or not np.isfinite(trait[i][position - k]):
                continue
            score, others = trait[i][position - k], table[:, position - k]
            fits = np.isfinite(others)  # long enough, with a score there
            if starts is not None:
                fits &= np.array([position in one for one in starts])
            if not fits.any():
                continue
            kept.append(i)
            trials.append(fits.astype(float))
            wins.append(np.where(fits, (score > others) + (score == others) / 2, 0.0))
            low, high = np.searchsorted(flat, score, "left"), np.searchsorted(flat, score, "right")
            anywhere.append(np.bincount(owner[:low], minlength=n) + np.bincount(owner[low:high], minlength=n) / 2)
        of = of_trait[kept]
        same_place = _auroc(wins, trials, of, of_neutral)
        any_place = _auroc(anywhere, [scored] * len(kept), of, of_neutral)
        found.append(LeadPoint(int(k), len(kept), same_place, any_place))
    return tuple(found)


def _auroc(rows: Series, trials_rows: Series, of_trait: np.ndarray, of_neutral: np.ndarray) -> Estimate | None:
    """Mean over trait replies of the share of comparisons that they win, with its interval.

    Args:
        rows, trials_rows: of each trait reply against each neutral one, `[n_trait, n_neutral]`.
        of_trait, of_neutral: indices of their groups.
    """
    n = len(rows)
    if n < 2:
        return None
    wins, trials = np.array(rows), np.array(trials_rows)
    total = trials.sum(1)  # [n_trait]
    share = wins.sum(1) / total
    value = round(float(share.mean()), 12)  # a mean of ones may be slightly below 1, with a variance of 0
    # The influence of each reply (DeLong 1988; by groups as in Obuchowski 1997).
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
    """The 95 % interval of an AUROC on the logit scale, with n and m groups on the two sides.

    A percentile bootstrap over 20 replies against 300 covered a true 0.95 in 76 to 85 % of 400 simulated data sets, and
    a true 0.99 in 58 to 79 %, because a sample without a misranked reply cannot show one. So a share of the largest
    variance of an AUROC, A (1 - A) (1/n + 1/m), is mixed in. With 8 % of it, coverage over 600 data sets per setting
    (20 to 300 replies, with the neutral spread or twice that) is 94 to 98.5 % for 0.5 to 0.95 and 96 to 99.8 % for 0.99
    and 0.998; with none, as low as 71 %; with 5 %, 90 %.
    """
    from scipy.stats import t  # here: importing scipy.stats takes half a second

    fewest = min(n, m)
    spread = float(t.ppf(0.975, fewest - 1))
    variance *= fewest / (fewest - 1)
    if 0 < value < 1 and variance < 1e-20:  # all ties: the score is constant, or depends on the position alone
        return value, value
    largest = value * (1 - value) * (1 / n + 1 / m)
    # Wilson's interval for the largest variance. With almost no misranked reply the logit interval is unbounded: for
    # an AUROC of 0.99999 over 480 replies it would be 0 to 1.
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
