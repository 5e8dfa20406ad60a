"""HOW traits go together: at the same token, some tokens later, and the graph of all edges that hold.

Floor. Vectors are not orthogonal: what moves along one moves along the other by the cosine between them, whatever the
text says. `cosines` gives it, and every same-token coupling carries it.

Coupling. Each trait's series is whitened (`analysis.whitening`), innovations of two traits are correlated within each
reply, and Fisher's z of the replies is averaged with the weights n - 3. The lags are fixed in advance; a positive lag k
says that the source leads: its token t goes with the target's token t + k. The null puts the source of one reply
beside the target of another (trial shuffle), which keeps the persistence and the positions of both. Several replies to
one prompt are shuffled and resampled together.

A lagged coupling says that one score helps to foretell the other. It is no cause: that takes an intervention. Nor need
it be the traits' doing: both scores follow the words, and words follow each other. In 163 neutral texts of the demo
world, where there is no trait at all, 115 of 560 couplings at later lags had q <= 0.05, the largest of 0.108. Taking
off what all traits share left as many, whitening across traits as well. So an edge must also be larger than that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations, permutations
from typing import Any

import numpy as np

from persona_core.analysis.permutation import LEVEL, group_indices, trial_shuffles
from persona_core.analysis.prewhitening import MAX_ORDER, MIN_REPLIES, SPREAD_TOKENS, whiten
from persona_core.analysis.series import checked, reply_scores
from persona_core.analysis.statistics import Estimate, expanded_tail, false_discovery
from persona_core.errors import SettingError
from persona_core.traces.trace import Trace
from persona_core.utils.checks import is_integer

LAGS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Tokens by which one trait may lead another. Fixed in advance: the best of many lags is a test of its own."""

MIN_COUPLING = 0.1
"""Correlation that an edge must exceed with its whole interval. 0.1 is one per cent of the innovations' variance; in
nine runs of the demo model, with and without traits, no coupling at a later lag was above 0.11."""

FEW = 10
"""A p is counted where so many shuffles reach the statistic. Beyond, it is the normal tail of the shuffles' own mean
and spread: a lone edge among 56 pairs and 10 lags needs p < 9e-5, which 999 shuffles cannot count."""


@dataclass(frozen=True)
class Coupling:
    """Two traits at one lag.

    Attributes:
        source, target: the target's token is `lag` tokens after the source's.
        lag: 0 at the same token; the pair then has no direction.
        estimate: correlation of the innovations, pooled over replies; n counts replies, or groups.
        p: two-sided, by trial shuffle.
        q: the same after Benjamini-Hochberg, over all pairs at lag 0 or over all ordered pairs and later lags.
        floor: cosine of the two vectors; None where none were given, and at later lags.
        reason: why it was not tested; None where it was.
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
        """Whether it is more than chance, be it ever so small."""
        return self.q is not None and self.q <= LEVEL

    @property
    def claimed(self) -> bool:
        """Whether this is an edge: more than chance, and larger than what words alone do."""
        e = self.estimate
        return self.significant and e is not None and max(e.low, -e.high) > MIN_COUPLING

    @property
    def beyond_floor(self) -> bool | None:
        """Whether the interval lies wholly beyond the cosine, away from zero; None without a floor."""
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
        n_replies, n_groups: what it rests on.
        left_out: replies too short to be whitened, those of one token among them.
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
    """z of the replies' own tokens at each trait's best block, float64 `[n_traits, n_own]` a reply.

    Raises:
        SettingError: no trace, or traces of different readers, vectors or blocks.
    """
    if not traces:
        raise SettingError("No trace given.")
    names = traces[0].traits if traits is None else tuple(traits)
    return [np.stack(rows) for rows in zip(*(reply_scores(traces, t) for t in names), strict=True)]


def cosines(vectors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Cosine of each two traits' vectors, float64 `[n_traits, n_traits]`, in the order of the mapping.

    Args:
        vectors: trait -> `[d_model]`, all of one block.

    Raises:
        SettingError: vectors of different width, of no length, or not finite.

    >>> cosines({"evil": np.array([3.0, 0.0]), "refusal": np.array([0.0, 1.0])}).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    rows = {trait: checked(v, f"The vector of {trait!r}") for trait, v in vectors.items()}
    if len({len(v) for v in rows.values()}) > 1 or not all(np.linalg.norm(v) > 0 for v in rows.values()):
        raise SettingError("The vectors differ in width, or one has no length; give one direction of the same block.")
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
    """How every two traits go together, at the same token and at each lag.

    Args:
        traits: names, in the order of the series' first axis.
        series: z of each reply's own tokens, unsmoothed, `[n_traits, n_own]` each.
        groups: prompt of each reply, where several replies answer one. None: every reply stands for itself.
        floor: cosines of the vectors, `[n_traits, n_traits]`, from `cosines`.
        lags: in tokens, above 0, fixed before looking.
        max_order: highest order of the whitening.
        n_shuffles, n_resamples, seed: of the null and of the intervals.

    Raises:
        SettingError: fewer than `MIN_REPLIES` replies that are long enough, NaN, smoothed series, shapes that do
            not fit.
    """
    if len(traits) < 2 or len(set(traits)) < len(traits):
        raise SettingError(f"Traits {list(traits)!r}; at least two are needed, each once.")
    if not lags or len(set(lags)) < len(lags) or not all(is_integer(k, minimum=1) for k in lags):
        raise SettingError(f"lags={list(lags)!r}; expected different whole numbers from 1.")
    if floor is not None and np.shape(floor) != (len(traits), len(traits)):
        raise SettingError(f"floor has the shape {np.shape(floor)}; ({len(traits)}, {len(traits)}) is expected.")
    if groups is not None and len(groups) != len(series):
        raise SettingError(f"{len(groups)} groups for {len(series)} replies; give one for each.")
    for i, reply in enumerate(series):
        if np.ndim(reply) != 2 or len(reply) != len(traits):
            raise SettingError(f"Reply {i} has the shape {np.shape(reply)}; [{len(traits)}, n_own] is expected.")
        for trait, row in zip(traits, reply, strict=True):
            checked(row, f"{trait} in reply {i}")

    # 1. Whiten; what is too short for it is left out and counted.
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
    places = group_indices(None if groups is None else [groups[i] for i in kept], len(kept))

    # 2. Correlate each reply's source with each reply's target; the diagonal is what was observed.
    aligned = _Aligned.of([w.innovations for w in whitened], [series[i].shape[1] for i in kept])
    rng = np.random.default_rng(seed)
    others = trial_shuffles(places, n_shuffles, rng)  # [n_shuffles, n_replies]
    n_groups = int(places.max()) + 1
    weights = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_resamples)  # [n_resamples, n_groups]

    def pairs_at(lag: int) -> list[Coupling]:
        windows = aligned.windows(lag)
        ordered = permutations(range(len(traits)), 2) if lag else combinations(range(len(traits)), 2)
        found = []
        for a, b in ordered:
            z, w = windows.fisher(a, b)  # each [n_replies, n_replies]
            bottom = float(floor[a, b]) if floor is not None and not lag else None
            n = int((np.diagonal(w) > 0).sum())
            estimate, p, reason = None, None, None
            if n < MIN_REPLIES:
                reason = f"{n} replies reach over a lag of {lag} tokens; {MIN_REPLIES} are needed."
            else:
                estimate = _pooled(np.diagonal(z), np.diagonal(w), places, weights)
                p = _p(z, w, others)
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


@dataclass(frozen=True, eq=False)
class _Aligned:
    """Innovations of all traits on the same tokens, zeros behind each reply's end."""

    values: np.ndarray  # [n_traits, n_replies, longest]
    there: np.ndarray  # 1.0 within the reply, [n_replies, longest]

    @classmethod
    def of(cls, innovations: Sequence[Sequence[np.ndarray]], lengths: Sequence[int]) -> _Aligned:
        """Every trait loses as many first tokens as the one of the highest order."""
        shortest = [min(len(trait[i]) for trait in innovations) for i in range(len(lengths))]
        values = np.zeros((len(innovations), len(lengths), max(shortest)))
        for k, trait in enumerate(innovations):
            for i, n in enumerate(shortest):
                values[k, i, :n] = trait[i][len(trait[i]) - n :]
        there = (np.arange(max(shortest)) < np.array(shortest)[:, None]).astype(float)
        return cls(values, there)

    def windows(self, lag: int) -> _Windows:
        n = max(0, self.values.shape[2] - lag)
        early, late = self.values[..., :n], self.values[..., lag:]
        there_early, there_late = self.there[:, :n], self.there[:, lag:]
        return _Windows(
            early=early,
            late=late,
            n=there_early @ there_late.T,
            sums=(early @ there_late.T, there_early @ late.swapaxes(1, 2)),
            squares=(early**2 @ there_late.T, there_early @ (late**2).swapaxes(1, 2)),
        )


@dataclass(frozen=True, eq=False)
class _Windows:
    """Sums over the tokens that reply i (as source) and reply j (as target, `lag` tokens later) have in common."""

    early: np.ndarray  # [n_traits, n_replies, longest - lag]
    late: np.ndarray  # [n_traits, n_replies, longest - lag]
    n: np.ndarray  # [n_replies, n_replies]
    sums: tuple[np.ndarray, np.ndarray]  # of source and target, each [n_traits, n_replies, n_replies]
    squares: tuple[np.ndarray, np.ndarray]

    def fisher(self, a: int, b: int) -> tuple[np.ndarray, np.ndarray]:
        """Fisher's z of trait a in reply i and trait b in reply j, and its weight n - 3, each `[n_replies, n_replies]`.

        The weight is 0 where there are too few tokens, or one of the two does not vary.
        """
        n = np.maximum(self.n, 1.0)
        product = self.early[a] @ self.late[b].T - self.sums[0][a] * self.sums[1][b] / n
        spread_a = self.squares[0][a] - self.sums[0][a] ** 2 / n
        spread_b = self.squares[1][b] - self.sums[1][b] ** 2 / n
        good = (self.n > 3) & (spread_a > 1e-12 * self.squares[0][a]) & (spread_b > 1e-12 * self.squares[1][b])
        r = np.divide(product, np.sqrt(np.where(good, spread_a * spread_b, 1.0)), out=np.zeros_like(n), where=good)
        return np.arctanh(np.clip(r, -0.999999, 0.999999)), np.where(good, self.n - 3.0, 0.0)


def _pooled(z: np.ndarray, w: np.ndarray, places: np.ndarray, weights: np.ndarray) -> Estimate | None:
    """The pooled correlation with a 95 % bootstrap interval over groups, as `over_clusters` takes it, all at once."""
    n_groups = weights.shape[1]
    top, bottom = np.bincount(places, z * w, minlength=n_groups), np.bincount(places, w, minlength=n_groups)
    below = weights @ bottom  # [n_resamples]
    samples = (weights @ top)[below > 0] / below[below > 0]
    if len(samples) < len(weights) / 2:
        return None
    tail = expanded_tail(n_groups)
    low, high = np.tanh(np.quantile(samples, [tail, 1 - tail]))
    return Estimate(float(np.tanh(top.sum() / bottom.sum())), float(low), float(high), int((bottom > 0).sum()))


def _p(z: np.ndarray, w: np.ndarray, others: np.ndarray) -> float:
    """Two-sided p of the pooled z over its standard error, among the shuffles."""
    from scipy.special import ndtr  # here: importing it takes a quarter of a second

    rows = np.arange(len(z))

    def statistic(columns: np.ndarray) -> np.ndarray:
        weight = w[rows, columns].sum(-1)
        return (z * w)[rows, columns].sum(-1) / np.sqrt(np.maximum(weight, 1.0))

    shuffled = statistic(others)  # [n_shuffles]
    distance = abs(float(statistic(rows)) - shuffled.mean())
    reached = int((np.abs(shuffled - shuffled.mean()) >= distance).sum())
    counted = (1 + reached) / (1 + len(others))
    spread = float(shuffled.std())
    return counted if reached >= FEW or not spread > 0 else min(counted, 2 * float(ndtr(-distance / spread)))


def _corrected(pairs: Sequence[Coupling]) -> tuple[Coupling, ...]:
    qs = false_discovery([pair.p for pair in pairs])
    return tuple(replace(pair, q=q) for pair, q in zip(pairs, qs, strict=True))
