"""HOW traits vary together: couplings at the same token, and some tokens later, beyond those of neutral replies.

Coupling. Each trait's series is whitened (`analysis.prewhitening`), the innovations of two traits are correlated within
each reply, and Fisher's z is averaged over replies with weights n - 3. The lags are fixed in advance; at a positive lag
k the source leads: its token t is paired with the target's token t + k.

Null. Any two directions a and b of a state are correlated, whatever the text says: by a'Σb / sqrt(a'Σa · b'Σb), with Σ
the states' covariance. That is their cosine only if Σ is a multiple of the identity. So the neutral replies' own
coupling of the same pair is measured in the same way, and only the difference of the two Fisher z's, the excess, is
claimed (`analysis.excess`).

Control. A text that is not neutral moves the states, and with them the couplings of all directions, random ones too.
So the whole interval of an edge's excess must also lie beyond a bar (`couplings.MIN_EXCESS`), and beyond the excess of
most pairs of random directions, where some were read along (`vectors.random_directions`).

Scores. z, a projection, and not the specific score: that one falls where another trait's rises, so that traits are
coupled by how it is made.

A coupling means that two scores vary together, a lagged one that one helps to predict the other. Neither is a cause:
that takes an intervention. Nor need it come from the traits: scores follow the words, and words follow each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, permutations

import numpy as np

from persona_core.analysis.couplings import CONTROL_QUANTILE, MIN_EXCESS, NO_NEUTRAL, Coupling, Couplings
from persona_core.analysis.excess import (
    FisherSample,
    ends,
    mean_z,
    p_values,
    resampled_z,
)
from persona_core.analysis.innovations import Innovations
from persona_core.analysis.prewhitening import MAX_ORDER, MIN_REPLIES
from persona_core.analysis.series import reply_scores
from persona_core.analysis.statistics import Estimate
from persona_core.errors import SettingError
from persona_core.traces.trace import Kind, Trace
from persona_core.utils.checks import check_integer, is_integer

LAGS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Tokens by which one trait may lead another. Fixed in advance: choosing the best of many lags is itself a test."""

MIN_SHUFFLES = 99
Series = Sequence[np.ndarray]


def trait_series(traces: Sequence[Trace], traits: Sequence[str] | None = None, kind: Kind = "z") -> list[np.ndarray]:
    """Scores of the reply tokens at each trait's best block, float64 `[n_traits, n_reply_tokens]` each; NaN at sinks.

    Args:
        traces: with the same reader and vectors.
        traits: which; None: all.
        kind: of score. A coupling is the same for "z" and "raw".

    Raises:
        SettingError: no trace, or traces of different readers, vectors or blocks.
    """
    if not traces:
        raise SettingError("No traces to analyse.")
    names = traces[0].traits if traits is None else tuple(traits)
    return [np.stack(rows) for rows in zip(*(reply_scores(traces, t, kind) for t in names), strict=True)]


def measure_couplings(
    traits: Sequence[str],
    series: Series,
    groups: Sequence[str] | None = None,
    *,
    neutral: Series | None = None,
    neutral_groups: Sequence[str] | None = None,
    control: Sequence[str] = (),
    lags: Sequence[int] = LAGS,
    max_order: int = MAX_ORDER,
    n_shuffles: int = 999,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Couplings:
    """The coupling of every pair of traits, at the same token and at each lag, and its excess over neutral replies.

    Args:
        traits: names, in the order of the series' first axis.
        series: scores of each reply's tokens, unsmoothed, `[n_traits, n_reply_tokens]` each; NaN at sink tokens, which
            are passed over.
        groups: prompt of each reply, where several replies answer one, or where the neutral replies answer the same
            prompts. None: every reply is its own group.
        neutral: the same of neutral replies, read by the same model with the same vectors. Without them nothing is
            claimed.
        neutral_groups: prompt of each neutral reply.
        control: those of the traits that are random directions: they are paired among themselves.
        lags: in tokens, above 0, fixed before looking.
        max_order: maximum order of the whitening.
        n_shuffles, n_resamples, seed: of the null and of the intervals.

    Raises:
        SettingError: fewer than `MIN_REPLIES` replies that are long enough or `MIN_GROUPS` prompts, smoothed series, or
            wrong shapes.

    >>> rng = np.random.default_rng(0)
    >>> def replies(r):  # two traits that correlate by r
    ...     return [rng.multivariate_normal([0, 0], [[1, r], [r, 1]], size=60).T for _ in range(30)]
    >>> found = measure_couplings(["flattery", "deceit"], replies(0.8), neutral=replies(0.5), lags=(4,))
    >>> found.together[0].claimed, found.lagged[0].claimed
    (True, False)
    """
    run = Innovations.of(traits, series, groups, max_order)
    null = None if neutral is None else Innovations.of(traits, neutral, neutral_groups, max_order, "neutral reply")
    return compare_couplings(
        traits,
        run,
        null,
        control=control,
        lags=lags,
        n_shuffles=n_shuffles,
        n_resamples=n_resamples,
        seed=seed,
    )


def compare_couplings(
    traits: Sequence[str],
    run: Innovations,
    null: Innovations | None,
    *,
    control: Sequence[str] = (),
    lags: Sequence[int] = LAGS,
    n_shuffles: int = 999,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Couplings:
    """`measure_couplings` of series that are whitened already."""
    if len(set(traits)) < len(traits) or len(traits) - len(control) < 2 or not set(control) <= set(traits):
        raise SettingError(f"Traits {list(traits)!r}; at least two different ones are needed, beside the control's.")
    if not lags or len(set(lags)) < len(lags) or not all(is_integer(k, minimum=1) for k in lags):
        raise SettingError(f"lags={list(lags)!r}; expected distinct whole numbers from 1.")
    check_integer("n_shuffles", n_shuffles, MIN_SHUFFLES)
    rng = np.random.default_rng(seed)
    families = []
    for names in ([t for t in traits if t not in control], list(control)):
        own = [traits.index(t) for t in names]
        together = [(a, b, 0) for a, b in combinations(own, 2)]
        later = [(a, b, lag) for lag in lags for a, b in permutations(own, 2)]
        for pairs in (together, later):
            families.append(_measured(traits, pairs, run, null, n_shuffles, n_resamples, rng))
    bars = tuple(_bar(pairs) for pairs in families[2:])
    claimed = [
        tuple(replace(c, claimed=c.exceeds(bar)) for c in pairs) for bar, pairs in zip(bars, families[:2], strict=True)
    ]
    return Couplings(
        together=claimed[0],
        lagged=claimed[1],
        control=(*families[2], *families[3]),
        bars=(bars[0], bars[1]),
        missing=NO_NEUTRAL if null is None else None,
        orders={t: order for t, order in run.orders.items() if t not in control},
        n_replies=len(run.replies),
        n_prompts=run.n_prompts,
        n_neutral=len(null.replies) if null else 0,
        n_neutral_prompts=null.n_prompts if null else 0,
        left_out=run.left_out,
        n_shuffles=n_shuffles,
    )


def _measured(
    traits: Sequence[str],
    pairs: Sequence[tuple[int, int, int]],
    run: Innovations,
    null: Innovations | None,
    n_shuffles: int,
    n_resamples: int,
    rng: np.random.Generator,
) -> list[Coupling]:
    """One family of tests: pairs (source, target, lag) whose p-values are adjusted together."""
    if not pairs:
        return []
    own = run.fisher(pairs)
    other = null.fisher(pairs) if null else (np.zeros((0, len(pairs))),) * 2
    sample = FisherSample.of(own, run.prompts, other, null.prompts if null else run.prompts[:0])
    sums = sample.sums()  # [2 samples, 2, n_prompts, n_pairs]
    z, samples = np.stack([mean_z(one.sum(1)) for one in sums]), resampled_z(sums, n_resamples, rng)
    n = (run.n_prompts, null.n_prompts if null else 0)
    r_low, r_high = np.tanh(ends(samples[0], n[0]))
    reached = [(weight > 0).sum(0) for _, weight in (own, other)]  # replies, [n_pairs] each
    reasons = [_too_few([int(count[k]) for count in reached], pairs[k][2], null) for k in range(len(pairs))]
    tested = np.array([reason is None for reason in reasons])
    if null is not None:
        null_low, null_high = np.tanh(ends(samples[1], n[1]))
        low, high = ends(samples[0] - samples[1], min(n))
        units = sample.units()
        observed = units.statistics(units.neutral[None])[0]
        shuffled = units.statistics(units.permuted(n_shuffles, rng))
    else:
        tested[:] = False
    ps = np.full((2, len(pairs)), np.nan)
    if tested.any():
        ps[:, tested] = p_values(observed[tested], shuffled[:, tested])
    found = []
    for k, (a, b, lag) in enumerate(pairs):
        estimate = None if reasons[k] else Estimate(float(np.tanh(z[0, k])), float(r_low[k]), float(r_high[k]), n[0])
        null_of = excess = None
        if tested[k]:
            null_of = Estimate(float(np.tanh(z[1, k])), float(null_low[k]), float(null_high[k]), n[1])
            excess = Estimate(float(z[0, k] - z[1, k]), float(low[k]), float(high[k]), min(n))
        p, q = (float(v) if tested[k] else None for v in ps[:, k])
        found.append(Coupling(traits[a], traits[b], lag, estimate, null_of, excess, p, q, False, reasons[k]))
    return found


def _too_few(counts: Sequence[int], lag: int, null: Innovations | None) -> str | None:
    for count, what in zip(counts, ("replies", "neutral replies"), strict=True):
        if count < MIN_REPLIES and (what == "replies" or null):
            return f"{count} {what} reach over a lag of {lag} tokens; {MIN_REPLIES} are needed."
    return None


def _bar(control: Sequence[Coupling]) -> float:
    known = [abs(c.excess.value) for c in control if c.excess is not None]
    return max(MIN_EXCESS, float(np.quantile(known, CONTROL_QUANTILE))) if known else MIN_EXCESS
