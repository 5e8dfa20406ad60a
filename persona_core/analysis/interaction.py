"""HOW traits go together: couplings at the same token, and some tokens later.

Floor. Vectors are not orthogonal: what moves along one also moves along the other by the cosine between them, whatever
the text says. `cosines` gives it, and every same-token coupling carries it.

Coupling. Each trait's series is whitened (`analysis.prewhitening`), the innovations of two traits are correlated within
each reply, and Fisher's z is averaged over replies with weights n - 3. The lags are fixed in advance; at a positive lag
k the source leads: its token t is paired with the target's token t + k. The null pairs the source of one reply with the
target of another (trial shuffle), which preserves the persistence and the positions of both. Replies to one prompt are
shuffled and resampled together.

A lagged coupling means that one score helps to predict the other. It is not a cause: that takes an intervention. Nor
need it come from the traits: both scores follow the words, and words follow each other. In 163 neutral texts of the
demo world, which have no trait at all, 115 of 560 couplings at later lags had q <= 0.05, the largest of 0.108. Removing
what all traits share left as many, and so did whitening across traits. So an edge must also be larger than that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations, permutations
from typing import Any

import numpy as np

from persona_core.analysis.lagged_correlation import AlignedInnovations
from persona_core.analysis.permutation import LEVEL, group_indices, trial_shuffles
from persona_core.analysis.prewhitening import MAX_ORDER, MIN_REPLIES, SPREAD_TOKENS, whiten
from persona_core.analysis.series import checked, reply_scores
from persona_core.analysis.statistics import Estimate, expanded_tail, false_discovery
from persona_core.errors import SettingError
from persona_core.traces.trace import Trace
from persona_core.utils.checks import is_integer

LAGS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Tokens by which one trait may lead another. Fixed in advance: choosing the best of many lags is itself a test."""

MIN_COUPLING = 0.1
"""Correlation that an edge's whole interval must exceed. 0.1 is one per cent of the innovations' variance; in nine runs
of the demo model, with and without traits, no coupling at a later lag was above 0.11."""

FEW = 10
"""p is counted if at least this many shuffles reach the statistic. Otherwise it is a normal tail with the mean and
spread of the shuffles: a single edge among 56 pairs and 10 lags needs p < 9e-5, which 999 shuffles cannot resolve."""


@dataclass(frozen=True)
class Coupling:
    """Two traits at one lag.

    Attributes:
        source, target: the target's token is `lag` tokens after the source's.
        lag: 0 at the same token; the pair then has no direction.
        estimate: correlation of the innovations, pooled over replies; n counts replies, or groups.
        p: two-sided, by trial shuffle.
        q: the same after Benjamini-Hochberg, over all pairs at lag 0 or over all ordered pairs and later lags.
        floor: cosine of the two vectors; None without vectors, and at later lags.
        reason: why it was not tested; None if it was.
    """

    source: str
    target: str
    lag: int
    estimate: Estimate | None
    p: float | None
    q: float | None
    floor: float | None
    reason: str | None

    @property
    def significant(self) -> bool:
        """Whether it is more than chance, however small."""
        return self.q is not None and self.q <= LEVEL

    @property
    def claimed(self) -> bool:
        """Whether this is an edge: significant, and larger than words alone produce."""
        e = self.estimate
        return self.significant and e is not None and max(e.low, -e.high) > MIN_COUPLING

    @property
    def beyond_floor(self) -> bool | None:
        """Whether the whole interval lies beyond the cosine, away from zero; None without a floor."""
        if self.floor is None or self.estimate is None:
            return None
        above, below = self.estimate.low > max(self.floor, 0.0), self.estimate.high < min(self.floor, 0.0)
        return above or below

    def to_dict(self) -> dict[str, Any]:
        judged = {k: getattr(self, k) for k in ("significant", "claimed", "beyond_floor")}
        return {**asdict(self), "estimate": self.estimate and self.estimate.to_dict(), **judged}


@dataclass(frozen=True)
class Couplings:
    """All pairs of traits at all lags.

    Attributes:
        together: every pair at the same token.
        lagged: every ordered pair at every lag.
        orders: trait -> order of the autoregression that whitened it.
        n_replies, n_groups: sample size.
        left_out: replies too short to be whitened.
        n_shuffles: trial shuffles behind each p.
    """

    together: tuple[Coupling, ...]
    lagged: tuple[Coupling, ...]
    orders: Mapping[str, int]
    n_replies: int
    n_groups: int
    left_out: int
    n_shuffles: int

    def to_dict(self) -> dict[str, Any]:
        counts = {k: getattr(self, k) for k in ("n_replies", "n_groups", "left_out", "n_shuffles")}
        pairs = {k: [pair.to_dict() for pair in getattr(self, k)] for k in ("together", "lagged")}
        return {**counts, "orders": dict(self.orders), **pairs}


def trait_series(traces: Sequence[Trace], traits: Sequence[str] | None = None) -> list[np.ndarray]:
    """z of the reply tokens at each trait's best block, float64 `[n_traits, n_reply_tokens]` each.

    Raises:
        SettingError: no trace, or traces of different readers, vectors or blocks.
    """
    if not traces:
        raise SettingError("No traces to analyse.")
    names = traces[0].traits if traits is None else tuple(traits)
    return [np.stack(rows) for rows in zip(*(reply_scores(traces, t) for t in names), strict=True)]


def cosines(vectors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Cosines between the traits' vectors, float64 `[n_traits, n_traits]`, in the order of the mapping.

    Args:
        vectors: trait -> `[d_model]`, all of one block.

    Raises:
        SettingError: vectors of different width, of zero length, or not finite.

    >>> cosines({"evil": np.array([3.0, 0.0]), "refusal": np.array([0.0, 1.0])}).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    rows = {trait: checked(v, f"The vector of {trait!r}") for trait, v in vectors.items()}
    if len({len(v) for v in rows.values()}) > 1 or not all(np.linalg.norm(v) > 0 for v in rows.values()):
        raise SettingError(
            "The vectors differ in width, or one has zero length; give one direction of the same block for each trait."
        )
    units = np.stack([v / np.linalg.norm(v) for v in rows.values()])  # [n_traits, d_model]
    return units @ units.T


def measure_couplings(
    traits: Sequence[str],
    series: Sequence[np.ndarray],
    groups: Sequence[str] | None = None,
    floor: np.ndarray | None = None,
    lags: Sequence[int] = LAGS,
    max_order: int = MAX_ORDER,
    n_shuffles: int = 999,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Couplings:
    """The coupling of every pair of traits, at the same token and at each lag.

    Args:
        traits: names, in the order of the series' first axis.
        series: z of each reply's tokens, unsmoothed, `[n_traits, n_reply_tokens]` each.
        groups: prompt of each reply, where several replies answer one. None: every reply is its own group.
        floor: cosines of the vectors, `[n_traits, n_traits]`, from `cosines`.
        lags: in tokens, above 0, fixed before looking.
        max_order: maximum order of the whitening.
        n_shuffles, n_resamples, seed: of the null and of the intervals.

    Raises:
        SettingError: fewer than `MIN_REPLIES` replies that are long enough, NaN, smoothed series, or wrong shapes.
    """
    if len(traits) < 2 or len(set(traits)) < len(traits):
        raise SettingError(f"Traits {list(traits)!r}; at least two different ones are needed.")
    if not lags or len(set(lags)) < len(lags) or not all(is_integer(k, minimum=1) for k in lags):
        raise SettingError(f"lags={list(lags)!r}; expected distinct whole numbers from 1.")
    if floor is not None and np.shape(floor) != (len(traits), len(traits)):
        raise SettingError(f"floor has shape {np.shape(floor)}; expected ({len(traits)}, {len(traits)}).")
    if groups is not None and len(groups) != len(series):
        raise SettingError(f"{len(groups)} groups for {len(series)} replies; give one for each.")
    for i, reply in enumerate(series):
        if np.ndim(reply) != 2 or len(reply) != len(traits):
            raise SettingError(f"Reply {i} has shape {np.shape(reply)}; expected [{len(traits)}, n_reply_tokens].")
        for trait, row in zip(traits, reply, strict=True):
            checked(row, f"{trait} in reply {i}")

    # 1. Whiten; replies that are too short are left out and counted.
    kept = [i for i, reply in enumerate(series) if reply.shape[1] >= max_order + SPREAD_TOKENS]
    if len(kept) < MIN_REPLIES:
        raise SettingError(
            f"{len(kept)} of {len(series)} replies have {max_order + SPREAD_TOKENS} tokens or more; at least "
            f"{MIN_REPLIES} are needed."
        )
    whitened = []
    for k, trait in enumerate(traits):
        try:
            whitened.append(whiten([series[i][k] for i in kept], max_order))
        except SettingError as error:
            raise SettingError(f"{trait}: {error}") from error
    group = group_indices(None if groups is None else [groups[i] for i in kept], len(kept))

    # 2. Correlate each reply's source with each reply's target; the diagonal is the observed pairing.
    aligned = AlignedInnovations.of([w.innovations for w in whitened], [series[i].shape[1] for i in kept])
    rng = np.random.default_rng(seed)
    rows = np.arange(len(kept))
    pairings = rows * len(kept) + trial_shuffles(group, n_shuffles, rng)  # [n_shuffles, n_replies], of n_replies²
    n_groups = int(group.max()) + 1
    weights = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_resamples)  # [n_resamples, n_groups]

    def pairs_at(lag: int) -> list[Coupling]:
        sums = aligned.at_lag(lag)
        ordered = permutations(range(len(traits)), 2) if lag else combinations(range(len(traits)), 2)
        found = []
        for a, b in ordered:
            z, w = sums.fisher(a, b)  # each [n_replies, n_replies]
            bottom = float(floor[a, b]) if floor is not None and not lag else None
            n = int((np.diagonal(w) > 0).sum())
            estimate, p, reason = None, None, None
            if n < MIN_REPLIES:
                reason = f"{n} replies reach over a lag of {lag} tokens; {MIN_REPLIES} are needed."
            else:
                estimate = _pooled(np.diagonal(z), np.diagonal(w), group, weights)
                p = _p(z, w, pairings)
            found.append(Coupling(traits[a], traits[b], lag, estimate, p, None, bottom, reason))
        return found

    together, lagged = pairs_at(0), [pair for lag in lags for pair in pairs_at(lag)]
    return Couplings(
        together=_corrected(together),
        lagged=_corrected(lagged),
        orders={trait: w.order for trait, w in zip(traits, whitened, strict=True)},
        n_replies=len(kept),
        n_groups=n_groups,
        left_out=len(series) - len(kept),
        n_shuffles=n_shuffles,
    )


def _pooled(z: np.ndarray, w: np.ndarray, group: np.ndarray, weights: np.ndarray) -> Estimate | None:
    """The pooled correlation with a 95 % bootstrap interval over groups: a vectorised `over_clusters`."""
    n_groups = weights.shape[1]
    top, bottom = np.bincount(group, z * w, minlength=n_groups), np.bincount(group, w, minlength=n_groups)
    below = weights @ bottom  # [n_resamples]
    samples = (weights @ top)[below > 0] / below[below > 0]
    if len(samples) < len(weights) / 2:
        return None
    tail = expanded_tail(n_groups)
    low, high = np.tanh(np.quantile(samples, [tail, 1 - tail]))
    return Estimate(float(np.tanh(top.sum() / bottom.sum())), float(low), float(high), int((bottom > 0).sum()))


def _p(z: np.ndarray, w: np.ndarray, pairings: np.ndarray) -> float:
    """Two-sided p of the pooled z over its standard error, against the shuffles."""
    from scipy.special import ndtr  # here: importing it takes a quarter of a second

    weighted = z * w

    def statistic(flat: np.ndarray) -> np.ndarray:  # one flat index is several times as fast as a row and a column
        return weighted.take(flat).sum(-1) / np.sqrt(np.maximum(w.take(flat).sum(-1), 1.0))

    shuffled = statistic(pairings)  # [n_shuffles]
    distance = abs(float(statistic(np.arange(0, z.size, len(z) + 1))) - shuffled.mean())
    reached = int((np.abs(shuffled - shuffled.mean()) >= distance).sum())
    counted = (1 + reached) / (1 + len(pairings))
    spread = float(shuffled.std())
    return counted if reached >= FEW or not spread > 0 else min(counted, 2 * float(ndtr(-distance / spread)))


def _corrected(pairs: Sequence[Coupling]) -> tuple[Coupling, ...]:
    qs = false_discovery([pair.p for pair in pairs])
    return tuple(replace(pair, q=q) for pair, q in zip(pairs, qs, strict=True))
