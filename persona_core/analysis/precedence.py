"""HOW, by temporal precedence: which trait follows which, on one of two clocks.

The activation clock is when a trait's scores rise (the onsets of `OnsetDetector`); the behaviour clock is when the text
first shows it (spans of a judge, or the truth). A score may rise long before anything shows, or because another trait
does: every vector also responds to "not neutral". Where flattery brings on deceit 40 tokens later (three sets of 163
texts of the demo world), the activation clock finds a lag of 4 to 6 tokens and claims 9 to 13 edges; where no trait
brings on another, 1 to 7. On `relative_series` it claims only the planted edge, with a lag of 37 tokens, and no other.

An edge "B follows A" means: B's first time lies after A's in more replies than under trial shuffle, which pairs A's
time in one reply with B's in another. That preserves how often, and when, each trait occurs, and breaks only that the
two belong to one reply. A common cause that triggers both in any order puts B after A too often, and A after B as well;
so an edge also needs A first in more than half of the replies that show both. It says nothing about causes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from typing import Any, Literal

import numpy as np

from persona_core.analysis.onset import OnsetDetector
from persona_core.analysis.permutation import LEVEL, group_indices, trial_shuffles
from persona_core.analysis.statistics import Estimate, exact_share, false_discovery, over_clusters
from persona_core.errors import SettingError

ClockName = Literal["activation", "behaviour"]

N_SHUFFLES = 9_999
"""With 8 traits, 56 pairs are tested: a single edge needs p < 0.05 / 56, which 999 shuffles cannot resolve."""


@dataclass(frozen=True)
class Precedence:
    """One ordered pair of traits on one clock.

    Attributes:
        source, target: does `target` come after `source`?
        n_source, n_target, n_both: replies in which they occur.
        n_after: replies in which the target comes after the source.
        first: of the replies with both, the share in which the source comes first; ties count as not first. None
            without such a reply.
        lag: median tokens from source to target where the source comes first; None in fewer than two replies (groups).
        p: of `n_after` under trial shuffle, one-sided; None where one of the two never occurs.
        q: the same after Benjamini-Hochberg over all ordered pairs.
    """

    source: str
    target: str
    n_source: int
    n_target: int
    n_both: int
    n_after: int
    first: Estimate | None
    lag: Estimate | None
    p: float | None
    q: float | None

    @property
    def claimed(self) -> bool:
        """Whether this is an edge: later more often than by chance, and the source first in more than half."""
        return self.q is not None and self.q <= LEVEL and self.first is not None and self.first.low > 0.5

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            **{k: v and v.to_dict() for k, v in (("first", self.first), ("lag", self.lag))},
            "claimed": self.claimed,
        }


@dataclass(frozen=True)
class PrecedenceTable:
    """All ordered pairs of traits on one clock.

    Attributes:
        name: "activation" or "behaviour".
        pairs: every ordered pair, claimed or not.
        n_replies, n_groups: sample size.
        n_shuffles: trial shuffles behind each p.
    """

    name: ClockName
    pairs: tuple[Precedence, ...]
    n_replies: int
    n_groups: int
    n_shuffles: int

    def pair(self, source: str, target: str) -> Precedence:
        """One of the pairs.

        Raises:
            SettingError: no such pair.
        """
        for pair in self.pairs:
            if (pair.source, pair.target) == (source, target):
                return pair
        raise SettingError(f"No pair {source!r}, {target!r} on this clock.")

    def to_dict(self) -> dict[str, Any]:
        return {
            "clock": self.name,
            "n_replies": self.n_replies,
            "n_groups": self.n_groups,
            "n_shuffles": self.n_shuffles,
            "pairs": [pair.to_dict() for pair in self.pairs],
        }


def relative_series(series: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Each trait's z minus the mean of the others', `[n_traits, n_reply_tokens]` each: removes what all vectors share.

    In the demo world a trait raises its own z by about 6 and every other by 2 to 3. Calibrate the detectors on neutral
    replies in the same form.

    Raises:
        SettingError: a reply with fewer than two traits.

    >>> relative_series([np.array([[6.0], [2.0], [2.0]])])[0].ravel().tolist()
    [4.0, -2.0, -2.0]
    """
    replies = [np.asarray(reply, float) for reply in series]
    for i, reply in enumerate(replies):
        if reply.ndim != 2 or len(reply) < 2:
            raise SettingError(
                f"Reply {i} has shape {reply.shape}; [n_traits, n_reply_tokens] with two traits or more is needed."
            )
    return [reply - (reply.sum(0) - reply) / (len(reply) - 1) for reply in replies]


def activation_times(
    traits: Sequence[str], series: Sequence[np.ndarray], detectors: Mapping[str, OnsetDetector]
) -> np.ndarray:
    """When each trait's scores rise, float64 `[n_replies, n_traits]`; NaN for never.

    Args:
        traits: names, in the order of the series' first axis.
        series: z of each reply's tokens, `[n_traits, n_reply_tokens]` each, unsmoothed, NaN at sink tokens; or
            `relative_series` of them.
        detectors: trait -> its detector, calibrated on the same form. "Before the reply" counts as token 0.

    Raises:
        SettingError: a trait without a detector.
    """
    missing = [t for t in traits if t not in detectors]
    if missing:
        raise SettingError(f"No onset detector for {', '.join(missing)}; calibrate them with calibrate_onset.")
    times = np.full((len(series), len(traits)), np.nan)
    for i, reply in enumerate(series):
        if len(reply) != len(traits):
            raise SettingError(f"Reply {i} has {len(reply)} series; {len(traits)} traits are expected.")
        for k, trait in enumerate(traits):
            found = detectors[trait].find(reply[k])
            if found.answer != "none":
                times[i, k] = 0.0 if found.onset is None else found.onset
    return times


def behaviour_times(traits: Sequence[str], spans: Sequence[Sequence[tuple[str, int, int]]]) -> np.ndarray:
    """When the text first shows each trait, float64 `[n_replies, n_traits]`; NaN for never.

    Args:
        traits: names, in the order of the result's last axis; spans of others are passed over.
        spans: for each reply (trait, first token, token after the last), counted over the reply tokens.

    >>> behaviour_times(["evil", "refusal"], [[("evil", 12, 30), ("evil", 4, 9)]])
    array([[ 4., nan]])
    """
    times = np.full((len(spans), len(traits)), np.nan)
    column = {trait: k for k, trait in enumerate(traits)}
    for i, reply in enumerate(spans):
        for trait, start, end in reply:
            if not 0 <= start < end:
                raise SettingError(f"Reply {i}: a span from {start} to {end}; expected 0 <= start < end.")
            if trait in column:
                times[i, column[trait]] = np.fmin(times[i, column[trait]], start)
    return times


def precedence(
    traits: Sequence[str],
    times: np.ndarray,
    clock: ClockName,
    groups: Sequence[str] | None = None,
    n_shuffles: int = N_SHUFFLES,
    n_resamples: int = 1000,
    seed: int = 0,
) -> PrecedenceTable:
    """Which trait follows which.

    Args:
        traits: names.
        times: first times in tokens of the reply, `[n_replies, n_traits]`; NaN for never.
        clock: what the times measure.
        groups: prompt of each reply, where several replies answer one: whole prompts are shuffled and resampled. None:
            every reply is its own group.
        n_shuffles: trial shuffles.
        n_resamples: bootstrap samples for the lag.
        seed: of shuffles and bootstrap.

    Raises:
        SettingError: fewer than `MIN_REPLIES` replies or `MIN_GROUPS` groups, or times of the wrong shape.

    >>> rng = np.random.default_rng(0)
    >>> times = rng.uniform(0, 40, size=(60, 2))
    >>> times[:30, 1] = times[:30, 0] + 12
    >>> times[30:] = np.nan
    >>> found = precedence(["flattery", "deceit"], times, "behaviour")
    >>> found.pair("flattery", "deceit").lag.value, found.pair("deceit", "flattery").claimed
    (12.0, False)
    """
    times = np.asarray(times, float)
    if clock not in ("activation", "behaviour"):
        raise SettingError(f"clock={clock!r}; expected 'activation' or 'behaviour'.")
    if times.ndim != 2 or times.shape[1] != len(traits):
        raise SettingError(f"times has shape {times.shape}; expected [n_replies, {len(traits)}].")
    if not ((times >= 0) & (times < np.inf) | np.isnan(times)).all():
        raise SettingError("A first time is negative or infinite; use NaN for never.")
    group = group_indices(groups, len(times))
    others = trial_shuffles(group, n_shuffles, np.random.default_rng(seed))  # [n_shuffles, n_replies]
    rows, occurs = np.arange(len(times)), np.isfinite(times)
    found = []
    for a, b in permutations(range(len(traits)), 2):
        after = times[None, :, b] > times[:, None, a]  # [n_replies of A, n_replies of B]; False for NaN
        n_after = int(np.trace(after))
        both = occurs[:, a] & occurs[:, b]
        p = None
        if occurs[:, a].any() and occurs[:, b].any():
            shuffled = after[rows, others].sum(1)  # [n_shuffles]
            p = float((1 + (shuffled >= n_after).sum()) / (1 + n_shuffles))
        ahead = np.diagonal(after)
        found.append(
            Precedence(
                source=traits[a],
                target=traits[b],
                n_source=int(occurs[:, a].sum()),
                n_target=int(occurs[:, b].sum()),
                n_both=int(both.sum()),
                n_after=n_after,
                first=_share(ahead[both], group[both], n_resamples, seed),
                lag=_median((times[:, b] - times[:, a])[ahead], group[ahead], n_resamples, seed),
                p=p,
                q=None,
            )
        )
    qs = false_discovery([pair.p for pair in found])
    pairs = tuple(Precedence(**{**vars(pair), "q": q}) for pair, q in zip(found, qs, strict=True))
    return PrecedenceTable(clock, pairs, len(times), len(np.unique(group)), n_shuffles)


def _share(hits: np.ndarray, group: np.ndarray, n_resamples: int, seed: int) -> Estimate | None:
    """Exact binomial interval; where groups hold several replies, a bootstrap over groups."""
    if not len(hits):
        return None
    if len(np.unique(group)) < len(hits):
        return over_clusters(lambda w: float(w @ hits / w.sum()), group, n_resamples, seed)
    return exact_share(int(hits.sum()), len(hits))


def _median(values: np.ndarray, group: np.ndarray, n_resamples: int, seed: int) -> Estimate | None:
    """Median with an interval over groups; None for fewer than three."""
    if not len(values):
        return None
    order = np.argsort(values, kind="stable")
    ranked = values[order]

    def median(weights: np.ndarray) -> float:
        reached = np.cumsum(weights[order])
        half = reached[-1] / 2
        low, high = np.searchsorted(reached, half), np.searchsorted(reached, half, side="right")
        return float(ranked[low] + ranked[min(high, len(ranked) - 1)]) / 2

    return over_clusters(median, group, n_resamples, seed)
