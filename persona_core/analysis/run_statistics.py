"""The statistics of a run: how high each trait is, how it spreads, where it peaks, and what it is confounded with.

All figures are of z over the replies' own tokens. A reply counts as one, however long it is, except where tokens are
counted ("share above", "token share", "autocorrelation"). Intervals resample prompts: all replies to a prompt move
together, and tokens never move alone.

Formulae, with z_it of reply i at token t, d_it = z_it minus the mean of its reply, n_i its tokens:

- spread between replies: SD of the reply means, as observed: it holds the noise of finitely many tokens as well
- spread within replies: sqrt(sum d^2 / sum (n_i - 1))
- drift: 100 * sum d_it (t - mean t of i) / sum (t - mean t of i)^2, so that replies of other levels make no slope
- autocorrelation: r = (sum d_it d_i,t+1 / sum (n_i - 1)) / (sum d^2 / sum n_i), corrected for the means that were taken
  out: r is too low by (1 + rho) / n for replies of n tokens on average, so (r n + 1) / (n - 1)
- token share: the covariance of a token's z with the mean z of the same token id in *other* prompts, over the variance
  of z. For noise that is 0 on average, with either sign, where an R^2 of means that hold the token itself would be the
  number of token ids over the number of tokens. Its interval is a jackknife over prompts: a prompt that a bootstrap
  draws twice takes the place of another one, and the share of such samples is too low (0.43 came out as 0.34 to 0.40).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from persona_core.analysis.series import checked, refuse_smoothed, reply_scores
from persona_core.analysis.statistics import Estimate, jackknifed, over_clusters
from persona_core.errors import SettingError
from persona_core.traces.trace import Trace

BINS = (0, 5, 10, 20, 40, 80, 160, 320)
"""First tokens of the bins of position; the last has no end."""

NORMAL_95 = 1.645
"""The 95th percentile of a normal distribution: what counts as high where no neutral reply says it."""

MIN_PROMPTS = 5
"""An interval over fewer holds the truth less often than in 90 % of cases."""

MIN_NULL_TOKENS = 1000
"""Fewer tokens leave the 95th percentile of an AR(0.65) series uncertain by more than 0.2 SD."""


@dataclass(frozen=True)
class Extreme:
    """A token, or a whole reply where `token` is None.

    Attributes:
        id: of the prompt.
        reply: number of the reply in the run, from 0.
        place: of the token in the trace; None for a whole reply.
        token: as displayed.
        value: z, or the mean z of the reply.
    """

    id: str
    reply: int
    place: int | None
    token: str | None
    value: float

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "value": round(self.value, 5)}


@dataclass(frozen=True)
class PositionBin:
    """Mean z at some positions of the reply.

    Attributes:
        start, end: own tokens from 0; no end for the last bin.
        n_replies: that reach it.
        mean: over the replies that reach it; None for replies to fewer than five prompts.
    """

    start: int
    end: int | None
    n_replies: int
    mean: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "mean": self.mean and self.mean.to_dict()}


@dataclass(frozen=True)
class TraitStatistics:
    """One trait over a run. An estimate is None where it is not defined.

    Attributes:
        trait: which.
        mean: of the reply means.
        between, within: spread, see the module.
        highest, lowest: tokens.
        highest_reply, lowest_reply: by mean.
        threshold: above which a token counts as high: the 95th percentile of neutral tokens, or of a normal.
        threshold_from: which of the two.
        share_above: share of tokens above it.
        token_share: share of the variance that goes with the token id.
        drift: slope in SD per 100 tokens.
        positions: mean by position.
        autocorrelation: at a lag of one token.
    """

    trait: str
    mean: Estimate | None
    between: Estimate | None
    within: Estimate | None
    highest: Extreme
    lowest: Extreme
    highest_reply: Extreme
    lowest_reply: Extreme
    threshold: float
    threshold_from: Literal["neutral replies", "normal distribution"]
    share_above: Estimate | None
    token_share: Estimate | None
    drift: Estimate | None
    positions: tuple[PositionBin, ...]
    autocorrelation: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"trait": self.trait}
        for name in ("mean", "between", "within", "share_above", "token_share", "drift", "autocorrelation"):
            estimate: Estimate | None = getattr(self, name)
            found[name] = estimate and estimate.to_dict()
        for name in ("highest", "lowest", "highest_reply", "lowest_reply"):
            found[name] = getattr(self, name).to_dict()
        found |= {"threshold": round(self.threshold, 5), "threshold_from": self.threshold_from}
        return {**found, "positions": [b.to_dict() for b in self.positions]}


@dataclass(frozen=True)
class RunStatistics:
    """A run.

    Attributes:
        traits: by name.
        n_prompts, n_replies, n_tokens: that the figures rest on.
        n_neutral: neutral replies that say what is high; 0: none was given.
        empty: prompts with a reply of no token.
    """

    traits: dict[str, TraitStatistics]
    n_prompts: int
    n_replies: int
    n_tokens: int
    n_neutral: int
    empty: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        counts = {k: getattr(self, k) for k in ("n_prompts", "n_replies", "n_tokens", "n_neutral")}
        traits = {name: found.to_dict() for name, found in self.traits.items()}
        return {**counts, "empty": list(self.empty), "traits": traits}


def run_statistics(
    traces: Sequence[Trace],
    ids: Sequence[str],
    traits: Sequence[str] | None = None,
    neutral: Sequence[Trace] = (),
    n_resamples: int = 1000,
    seed: int = 0,
) -> RunStatistics:
    """The statistics of every trait of a run.

    Args:
        traces: of the replies, all of one reader and one set of vectors.
        ids: of the prompts that they answer, as many; of a repeated prompt, its own (see `prompts.prompt_of`).
            Replies of the same id move together in the intervals.
        traits: which; None: all.
        neutral: neutral replies read with the same vectors, by the same reader or, for a changed model, by the one that
            it is held against.
        n_resamples, seed: of the bootstrap over prompts.

    Raises:
        SettingError: no reply with a token, traces that do not belong together, a score that is not finite, smoothed
            scores, or too few neutral tokens.
    """
    if len(traces) != len(ids):
        raise SettingError(f"{len(traces)} traces and {len(ids)} ids; every trace needs the id of its prompt.")
    kept = [k for k, t in enumerate(traces) if t.reply_positions]
    if not kept:
        raise SettingError("No reply with a token of its own: there is nothing to describe.")
    names = traces[kept[0]].traits if traits is None else tuple(traits)
    found = {t: _trait(t, [traces[k] for k in kept], kept, ids, neutral, n_resamples, seed) for t in names}
    return RunStatistics(
        traits=found,
        n_prompts=len({ids[k] for k in kept}),
        n_replies=len(kept),
        n_tokens=sum(len(traces[k].reply_positions) for k in kept),
        n_neutral=len(neutral),
        empty=tuple(i for i, t in zip(ids, traces, strict=True) if not t.reply_positions),
    )


def _trait(
    trait: str,
    traces: Sequence[Trace],
    numbers: Sequence[int],
    ids: Sequence[str],
    neutral: Sequence[Trace],
    n_resamples: int,
    seed: int,
) -> TraitStatistics:
    own_ids = [ids[k] for k in numbers]
    z = [checked(s, f"The reply to {i!r}") for i, s in zip(own_ids, reply_scores(traces, trait), strict=True)]
    refuse_smoothed(z)
    threshold = _threshold(trait, traces[0], neutral)
    means = np.array([s.mean() for s in z])
    prompts = np.unique(own_ids, return_inverse=True)[1]

    def estimate(statistic: Callable[[np.ndarray], float]) -> Estimate | None:
        return over_clusters(statistic, prompts, n_resamples, seed)

    def token(pick: Callable[[np.ndarray], Any]) -> Extreme:
        k = int(pick(np.array([s[pick(s)] for s in z])))
        at = traces[k].reply_positions[int(pick(z[k]))]
        return Extreme(own_ids[k], numbers[k], at, traces[k].tokens[at], float(z[k][int(pick(z[k]))]))

    def reply(pick: Callable[[np.ndarray], Any]) -> Extreme:
        k = int(pick(means))
        return Extreme(own_ids[k], numbers[k], None, None, float(means[k]))

    n = np.array([len(s) for s in z], float)
    limit = NORMAL_95 if threshold is None else threshold
    above = np.array([(s > limit).sum() for s in z], float)
    tokens = [np.array([t.token_ids[p] for p in t.reply_positions]) for t in traces]
    return TraitStatistics(
        trait=trait,
        mean=estimate(_ratio(means, np.ones(len(z)))),
        between=estimate(lambda w: _spread(means, w)),
        within=estimate(_root(_ratio(np.array([((s - s.mean()) ** 2).sum() for s in z]), n - 1))),
        highest=token(np.argmax),
        lowest=token(np.argmin),
        highest_reply=reply(np.argmax),
        lowest_reply=reply(np.argmin),
        threshold=limit,
        threshold_from="normal distribution" if threshold is None else "neutral replies",
        share_above=estimate(_ratio(above, n)),
        token_share=jackknifed(token_share(z, tokens, prompts), prompts),
        drift=estimate(drift(z)),
        positions=tuple(
            _bin(z, a, b, prompts, n_resamples, seed) for a, b in zip(BINS, (*BINS[1:], None), strict=True)
        ),
        autocorrelation=estimate(autocorrelation(z)),
    )


# ---- statistics as functions of how often each reply counts, `[n_replies]` ----

Statistic = Callable[[np.ndarray], float]


def drift(z: Sequence[np.ndarray]) -> Statistic:
    """Slope over positions within replies, in SD per 100 tokens; NaN where no reply has two tokens.

    >>> drift([np.array([5.0, 5.1, 5.2]), np.array([0.0, 0.1])])(np.ones(2))
    10.0...
    """
    places = [np.arange(len(s)) - (len(s) - 1) / 2 for s in z]
    products = np.array([float(p @ s) for p, s in zip(places, z, strict=True)])
    squares = np.array([float(p @ p) for p in places])
    return _ratio(100 * products, squares)


def autocorrelation(z: Sequence[np.ndarray]) -> Statistic:
    """At a lag of one token, pooled over replies; NaN where nothing varies, or no reply has two tokens."""
    centred = [s - s.mean() for s in z]
    products = np.array([float(d[:-1] @ d[1:]) for d in centred])
    squares = np.array([float(d @ d) for d in centred])
    n = np.array([len(s) for s in z], float)

    def of(w: np.ndarray) -> float:
        total, pairs, replies = float(w @ n), float(w @ (n - 1)), float(w.sum())
        if not w @ squares > 0 or not pairs > 0:
            return float("nan")
        r = (w @ products / pairs) / (w @ squares / total)
        average = total / replies
        return float((r * average + 1) / (average - 1))

    return of


def token_share(z: Sequence[np.ndarray], tokens: Sequence[np.ndarray], groups: np.ndarray) -> Statistic:
    """Share of the variance of z that goes with the token id; see the module. A group's own tokens never guess it.

    Tokens that no other group holds count as not explained, so the share is a lower bound for short runs.

    Args:
        z, tokens: for each reply, `[n_tokens]`.
        groups: which prompt each reply answers, `[n_replies]`, from 0.
    """
    n_groups = int(groups.max()) + 1
    group = np.repeat(groups, [len(s) for s in z])
    flat, token = np.concatenate(z), np.unique(np.concatenate(tokens), return_inverse=True)[1]
    # One entry for each token id in each group: how often, and the sum of z there.
    pairs, at = np.unique(group * (token.max() + 1) + token, return_inverse=True)
    of_group, of_token = np.divmod(pairs, token.max() + 1)
    count = np.bincount(at).astype(float)  # [n_pairs]
    total = np.bincount(at, flat)
    sums, squares, n = (np.bincount(group, x, minlength=n_groups) for x in (flat, flat**2, np.ones(len(flat))))
    first = np.unique(groups, return_index=True)[1]  # all replies of a group have its weight

    def of(w: np.ndarray) -> float:
        weights = w[first]  # [n_groups]
        mean = weights @ sums / (weights @ n)
        variance = weights @ squares - mean**2 * (weights @ n)
        if not variance > 1e-12 * (weights @ squares):
            return float("nan")
        w_pair, centred = weights[of_group], total - mean * count
        others = np.bincount(of_token, w_pair * count)[of_token] - w_pair * count
        guess = np.bincount(of_token, w_pair * centred)[of_token] - w_pair * centred
        guess = np.divide(guess, others, out=np.zeros_like(guess), where=others > 0.5)
        return float((w_pair * centred) @ guess / variance)

    return of


def _ratio(over: np.ndarray, under: np.ndarray) -> Statistic:
    def of(w: np.ndarray) -> float:
        whole = float(w @ under)
        return float(w @ over) / whole if whole > 0 else float("nan")

    return of


def _root(statistic: Statistic) -> Statistic:
    return lambda w: float(np.sqrt(statistic(w)))


def _spread(values: np.ndarray, w: np.ndarray) -> float:
    n = float(w.sum())
    if n <= 1:
        return float("nan")
    d = values - w @ values / n
    return float(np.sqrt(w @ d**2 / (n - 1)))


def _bin(
    z: Sequence[np.ndarray], start: int, end: int | None, prompts: np.ndarray, n_resamples: int, seed: int
) -> PositionBin:
    reach = [k for k, s in enumerate(z) if len(s) > start]
    if len(set(prompts[reach])) < MIN_PROMPTS:
        return PositionBin(start, end, len(reach), None)
    means = np.array([z[k][start:end].mean() for k in reach])
    found = over_clusters(_ratio(means, np.ones(len(means))), prompts[reach], n_resamples, seed)
    return PositionBin(start, end, len(reach), found)


def _threshold(trait: str, trace: Trace, neutral: Sequence[Trace]) -> float | None:
    """The 95th percentile of neutral tokens; None without neutral replies."""
    if not neutral:
        return None
    kinds = {(t.provenance.vectors, t.best_block.get(trait)) for t in (trace, *neutral)}
    if len(kinds) > 1:
        raise SettingError("The neutral replies were read with other vectors or at another block than the run.")
    flat = checked(np.concatenate(reply_scores(neutral, trait)), "The neutral replies")
    if len(flat) < MIN_NULL_TOKENS:
        raise SettingError(
            f"{len(flat)} neutral tokens; at least {MIN_NULL_TOKENS} are needed for a 95th percentile. Give more "
            "neutral replies, or none: then z > 1.645 counts as high."
        )
    return float(np.quantile(flat, 0.95))
