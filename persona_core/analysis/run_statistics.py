"""The statistics of a run: how high each trait is, how it varies, where it peaks, and what it is confounded with.

All are of one score over the reply tokens that are not sink tokens: specific where all traces have it, else z. A reply
counts once, however long it is, except where tokens are counted ("share above", "token share", "autocorrelation").
Intervals resample prompts, with all replies to them, and never single tokens.

Formulae, with z_it the score of reply i at token t, d_it = z_it minus the mean of its reply, n_i its tokens:

- spread between replies: SD of the reply means as observed, so it includes the noise of finitely many tokens
- spread within replies: sqrt(sum d^2 / sum (n_i - 1))
The others are in `weighted_statistics`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from persona_core.analysis.comparison_results import overlap
from persona_core.analysis.series import checked_replies, refuse_smoothed, shared_kind
from persona_core.analysis.statistics import Estimate, jackknifed, over_clusters
from persona_core.analysis.weighted_statistics import autocorrelation, drift, ratio, root, spread, token_share
from persona_core.errors import SettingError
from persona_core.traces.trace import UNITS, Kind, Trace

BINS = (0, 5, 10, 20, 40, 80, 160, 320)
"""First tokens of the bins of position; the last has no end."""

NORMAL_95 = 1.645
"""The 95th percentile of a normal distribution: the threshold without neutral replies."""

MIN_PROMPTS = 5
"""Intervals over fewer have a coverage below 90 %."""

ESTIMATES = ("mean", "with_sinks", "between", "within", "share_above", "token_share", "drift", "autocorrelation")

MIN_NULL_TOKENS = 1000
"""With fewer tokens, the 95th percentile of an AR(0.65) series is uncertain by more than 0.2 SD."""


@dataclass(frozen=True)
class Extreme:
    """The token, or the reply, with an extreme score; a whole reply where `token` is None.

    Attributes:
        id: of the prompt.
        reply: index of the reply in the run.
        position: of the token in the trace; None for a whole reply.
        token: as displayed.
        value: score, or the mean score of the reply.
    """

    id: str
    reply: int
    position: int | None
    token: str | None
    value: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "reply": self.reply,
            "place": self.position,
            "token": self.token,
            "value": round(self.value, 5),
        }


@dataclass(frozen=True)
class PositionBin:
    """Mean score at some positions of the reply.

    Attributes:
        start, end: positions in the reply; no end for the last bin.
        n_replies: replies that reach it.
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
    """One trait over a run. An estimate is None where undefined.

    Attributes:
        trait: which.
        mean: of the reply means.
        with_sinks: the same with sink tokens put back; where the two intervals do not overlap, the mean is no result.
        between, within: spread; see the module.
        highest, lowest: tokens.
        highest_reply, lowest_reply: by mean.
        threshold: above which a token counts as high: the 95th percentile of neutral tokens, or of a normal.
        threshold_from: which of the two.
        share_above: share of tokens above it.
        token_share: share of the variance explained by the token id.
        drift: slope in SD per 100 tokens.
        positions: mean by position.
        autocorrelation: at a lag of one token.
    """

    trait: str
    mean: Estimate | None
    with_sinks: Estimate | None
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
        for name in ESTIMATES:
            estimate: Estimate | None = getattr(self, name)
            found[name] = estimate and estimate.to_dict()
        found["changed_by_sinks"] = not overlap(self.mean, self.with_sinks)
        for name in ("highest", "lowest", "highest_reply", "lowest_reply"):
            found[name] = getattr(self, name).to_dict()
        found |= {"threshold": round(self.threshold, 5), "threshold_from": self.threshold_from}
        return {**found, "positions": [b.to_dict() for b in self.positions]}


@dataclass(frozen=True)
class RunStatistics:
    """A run.

    Attributes:
        traits: by name.
        n_prompts, n_replies, n_tokens: sample size.
        n_neutral: neutral replies behind the threshold.
        empty: prompts with an empty reply.
        kind: of the scores, "specific" or "z".
        against: the traits that were read together: each one's specific score is what the others do not share.
        sinks: trait -> reply tokens left out as sink tokens; a reply of nothing else counts as empty for that trait.
    """

    traits: dict[str, TraitStatistics]
    n_prompts: int
    n_replies: int
    n_tokens: int
    n_neutral: int
    empty: tuple[str, ...]
    kind: Kind
    against: tuple[str, ...]
    sinks: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        counts = {k: getattr(self, k) for k in ("n_prompts", "n_replies", "n_tokens", "n_neutral")}
        traits = {name: found.to_dict() for name, found in self.traits.items()}
        about = {"kind": self.kind, "unit": UNITS[self.kind], "against": list(self.against), "sinks": dict(self.sinks)}
        return {**counts, "empty": list(self.empty), **about, "traits": traits}


def run_statistics(
    traces: Sequence[Trace],
    ids: Sequence[str],
    traits: Sequence[str] | None = None,
    neutral: Sequence[Trace] = (),
    n_resamples: int = 1000,
    seed: int = 0,
    kind: Kind | None = None,
) -> RunStatistics:
    """The statistics of every trait of a run.

    Args:
        traces: of the replies, all with one reader and one set of vectors.
        ids: prompt of each reply; for a repeated prompt the original id (see `prompts.prompt_of`). Replies with the
            same id are resampled together.
        traits: which; None: all.
        neutral: neutral replies read with the same vectors by the same reader, or by the baseline of a changed model.
        n_resamples, seed: for the bootstrap over prompts.
        kind: of the scores; None: "specific" where all traces have it, the neutral ones as well, else "z".

    Raises:
        SettingError: no reply with a token, traces of different readers or vectors, a score that is not finite,
            smoothed scores, or too few neutral tokens.
    """
    if len(traces) != len(ids):
        raise SettingError(f"{len(traces)} traces, but {len(ids)} ids; give the prompt id of each trace.")
    kept = [k for k, t in enumerate(traces) if t.reply_positions]
    if not kept:
        raise SettingError("Every reply is empty: there is nothing to describe.")
    names = traces[kept[0]].traits if traits is None else tuple(traits)
    kind = kind or shared_kind((*traces, *neutral))
    sinks = {t: sum(int(np.isnan(traces[k].reply_scores(t, kind)).sum()) for k in kept) for t in names}
    return RunStatistics(
        traits={t: _trait(t, [traces[k] for k in kept], kept, ids, neutral, n_resamples, seed, kind) for t in names},
        n_prompts=len({ids[k] for k in kept}),
        n_replies=len(kept),
        n_tokens=sum(len(traces[k].reply_positions) for k in kept),
        n_neutral=len(neutral),
        empty=tuple(i for i, t in zip(ids, traces, strict=True) if not t.reply_positions),
        kind=kind,
        against=traces[kept[0]].traits,
        sinks=sinks,
    )


def _trait(
    trait: str,
    traces: Sequence[Trace],
    numbers: Sequence[int],
    ids: Sequence[str],
    neutral: Sequence[Trace],
    n_resamples: int,
    seed: int,
    kind: Kind,
) -> TraitStatistics:
    scores = checked_replies(traces, trait, kind, [ids[k] for k in numbers])
    refuse_smoothed(scores)
    known = [k for k, s in enumerate(scores) if np.isfinite(s).any()]
    if not known:
        raise SettingError(f"Every reply token is a sink token at the best block of {trait!r}: nothing to describe.")
    z, traces, numbers = [scores[k] for k in known], [traces[k] for k in known], [numbers[k] for k in known]
    prompt_ids = [ids[k] for k in numbers]
    threshold = _threshold(trait, traces[0], neutral, kind)
    means = np.array([np.nanmean(s) for s in z])
    put_back = np.array([t.scores(trait, kind)[t.reply_positions].astype(float).mean() for t in traces])
    prompts = np.unique(prompt_ids, return_inverse=True)[1]

    def estimate(statistic: Callable[[np.ndarray], float]) -> Estimate | None:
        return over_clusters(statistic, prompts, n_resamples, seed)

    def token(pick: Callable[[np.ndarray], Any]) -> Extreme:
        k = int(pick(np.array([s[pick(s)] for s in z])))
        at = traces[k].reply_positions[int(pick(z[k]))]
        return Extreme(prompt_ids[k], numbers[k], at, traces[k].tokens[at], float(z[k][int(pick(z[k]))]))

    def reply(pick: Callable[[np.ndarray], Any]) -> Extreme:
        k = int(pick(means))
        return Extreme(prompt_ids[k], numbers[k], None, None, float(means[k]))

    n = np.array([np.isfinite(s).sum() for s in z], float)
    limit = NORMAL_95 if threshold is None else threshold
    above = np.array([(s > limit).sum() for s in z], float)
    tokens = [np.array([t.token_ids[p] for p in t.reply_positions]) for t in traces]
    return TraitStatistics(
        trait=trait,
        mean=estimate(ratio(means, np.ones(len(z)))),
        with_sinks=estimate(ratio(put_back, np.ones(len(z)))),
        between=estimate(lambda w: spread(means, w)),
        within=estimate(root(ratio(np.array([np.nansum((s - np.nanmean(s)) ** 2) for s in z]), n - 1))),
        highest=token(np.nanargmax),
        lowest=token(np.nanargmin),
        highest_reply=reply(np.argmax),
        lowest_reply=reply(np.argmin),
        threshold=limit,
        threshold_from="normal distribution" if threshold is None else "neutral replies",
        share_above=estimate(ratio(above, n)),
        token_share=jackknifed(token_share(z, tokens, prompts), prompts),
        drift=estimate(drift(z)),
        positions=tuple(
            _bin(z, a, b, prompts, n_resamples, seed) for a, b in zip(BINS, (*BINS[1:], None), strict=True)
        ),
        autocorrelation=estimate(autocorrelation(z)),
    )


def _bin(
    z: Sequence[np.ndarray], start: int, end: int | None, prompts: np.ndarray, n_resamples: int, seed: int
) -> PositionBin:
    reach = [k for k, s in enumerate(z) if np.isfinite(s[start:end]).any()]
    if len(set(prompts[reach])) < MIN_PROMPTS:
        return PositionBin(start, end, len(reach), None)
    means = np.array([np.nanmean(z[k][start:end]) for k in reach])
    found = over_clusters(ratio(means, np.ones(len(means))), prompts[reach], n_resamples, seed)
    return PositionBin(start, end, len(reach), found)


def _threshold(trait: str, trace: Trace, neutral: Sequence[Trace], kind: Kind) -> float | None:
    """The 95th percentile of neutral tokens; None without neutral replies."""
    if not neutral:
        return None
    kinds = {(t.provenance.vectors, t.best_block.get(trait)) for t in (trace, *neutral)}
    if len(kinds) > 1:
        raise SettingError(
            "The neutral replies were read with different vectors, or at a different block, than the run."
        )
    flat = np.concatenate(checked_replies(neutral, trait, kind))
    flat = flat[np.isfinite(flat)]
    if len(flat) < MIN_NULL_TOKENS:
        raise SettingError(
            f"{len(flat)} neutral tokens; a 95th percentile needs at least {MIN_NULL_TOKENS}. Give more neutral "
            "replies, or none: then a score above 1.645 counts as high."
        )
    return float(np.quantile(flat, 0.95))
