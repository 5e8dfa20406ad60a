"""How often a 95 % interval covers the truth, and whether p-values of two equal models are uniform.

    python -m benchmarks.coverage

Data sets with a known truth are simulated, and every kind of interval in the reports is computed for each: the mean
over prompts, the effects of a comparison, a share and an AUROC over replies, the figures of a run, and the false-alarm
rate of a threshold. Values are normal, or skewed (lognormal, skewness 1.8 and 6.2), or have two levels (prompts that
differ, replies that differ within a prompt). Where other methods exist, they are tried on the same data. Writes
`benchmarks/results/coverage.json`. About twenty minutes on one core.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from scipy.signal import lfilter
from scipy.special import log_ndtr, ndtr, ndtri, stdtrit
from scipy.stats import beta, kstest
from tqdm import tqdm

from benchmarks.common import save, share
from persona_core.analysis.comparison import effect, mean_over_prompts
from persona_core.analysis.null_peaks import NullPeaks, running_peaks, stretches, supported_length
from persona_core.analysis.statistics import (
    Estimate,
    auroc_over_replies,
    bounded,
    bounded_difference,
    jackknifed,
    over_clusters,
    pearson,
    rank_auroc,
    share_over_replies,
    sign_flip_p,
)
from persona_core.analysis.weighted_statistics import autocorrelation, drift, token_share

SIZES = (20, 78)
FEW = (3, 5, 10, 20, 50)  # questions
N_DATASETS = 1000
N_RESAMPLES = 1000
FEWER_RESAMPLES = 500  # a thousand everywhere would take an hour, and cover 0.2 % more
SEED = 20_000
SHIFT = 1.5  # of the tokens that show the trait, where an AUROC is taken

Draw = Callable[[np.random.Generator, int], Any]
LIBRARY = "library"
Intervals = Mapping[str, Mapping[str, Estimate | None]]  # by figure, then by method
Case = tuple[str, int, Mapping[str, float], Callable[[np.random.Generator], Intervals]]  # kind, n, truths, intervals

# Values of mean 0 and variance 1.
KINDS: dict[str, Draw] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "skewed, 1.8": lambda rng, n: _lognormal(rng, n, 0.5),
    "skewed, 6.2": lambda rng, n: _lognormal(rng, n, 1.0),
}


def main() -> int:
    cases = [*means(), *effects(), *shares(), *aurocs(), *validation_figures(), *run_figures(), *alarm_rates()]
    with tqdm(total=len(cases) * N_DATASETS, desc="coverage", unit="data set") as bar:
        figures = {
            "nominal": 0.95,
            "n_datasets": N_DATASETS,
            "n_resamples": {"mean over prompts": N_RESAMPLES, "others": FEWER_RESAMPLES},
            "intervals": [figure for case in cases for figure in covered(case, bar)],
            "p_values": p_values(),
        }
    save("coverage", figures)
    return 0


def covered(case: Case, bar: tqdm[Any]) -> list[dict[str, Any]]:
    """For each figure and method: how often the interval covers the truth, misses it on either side, and its width."""
    kind, n, truths, intervals = case
    found: dict[str, dict[str, list[Estimate | None]]] = {what: {} for what in truths}
    for seed in range(N_DATASETS):
        for what, methods in intervals(np.random.default_rng(SEED + seed)).items():
            for method, estimate in methods.items():
                found[what].setdefault(method, []).append(estimate)
        bar.update()
    return [
        {"what": what, "kind": kind, "n": n, "truth": round(truth, 5), **_methods(found[what], truth)}
        for what, truth in truths.items()
    ]


def _methods(found: Mapping[str, list[Estimate | None]], truth: float) -> dict[str, Any]:
    """Figures of the library's method, and of the others."""
    methods = {}
    for method, estimates in found.items():
        known = [e for e in estimates if e is not None]
        methods[method] = {
            "covered": share(sum(e.low <= truth <= e.high for e in known), len(known)),
            "below": round(sum(e.high < truth for e in known) / len(known), 5),
            "above": round(sum(e.low > truth for e in known) / len(known), 5),
            "width": round(float(np.mean([e.high - e.low for e in known])), 5),
            "not_defined": len(estimates) - len(known),
        }
    return {**methods.pop(LIBRARY), "others": methods}


# ---- what is simulated ----


def means() -> list[Case]:
    """The mean over prompts, of values of one kind, and of two levels."""
    cases: list[Case] = []
    for n in SIZES:
        for kind in KINDS:
            cases.append((kind, n, {"mean over prompts": 0.0}, partial(_one_level, n=n, kind=kind)))
        cases.append(("two levels", n, {"mean over prompts, 3 replies each": 0.0}, partial(_two_levels, n=n)))
    return cases


def _one_level(rng: np.random.Generator, n: int, kind: str) -> Intervals:
    return {"mean over prompts": _of_a_mean(KINDS[kind](rng, n))}


def _two_levels(rng: np.random.Generator, n: int) -> Intervals:
    values = (_lognormal(rng, n, 0.5)[:, None] + rng.normal(size=(n, 3))).ravel()
    methods = {LIBRARY: np.repeat(np.arange(n), 3), "replies resampled": np.arange(3 * n)}

    def mean(w: np.ndarray) -> float:
        return float(w @ values / w.sum())

    return {
        "mean over prompts, 3 replies each": {
            method: over_clusters(mean, clusters, FEWER_RESAMPLES) for method, clusters in methods.items()
        }
    }


def effects() -> list[Case]:
    """The weights and the text effect of a comparison, through the rows of four cells."""
    truths = {"weights effect": 0.3, "text effect": 1.0}
    return [(kind, n, truths, partial(_effects, n=n, kind=kind)) for n in SIZES for kind in ("normal", "skewed, 1.8")]


def _effects(rng: np.random.Generator, n: int, kind: str) -> Intervals:
    found = effect("t", *_four_cells(rng, n, KINDS[kind]), n_resamples=FEWER_RESAMPLES)
    return {"weights effect": {LIBRARY: found.weights}, "text effect": {LIBRARY: found.text}}


def _four_cells(rng: np.random.Generator, n: int, draw: Draw) -> tuple[list[Any], list[Any], list[Any]]:
    """Rows of both runs and of the replay; the effects differ from prompt to prompt."""
    weights, text = 0.3 + 0.3 * draw(rng, n), 1.0 + draw(rng, n)
    lengths = rng.integers(20, 60, size=n)

    def rows(reader: str, writer: str) -> list[dict[str, Any]]:
        return [
            {
                "id": str(i),
                "reader": reader,
                "writer": writer,
                "traits": ["t"],
                "blocks": [0],
                "best_block": {"t": 0},
                "null_mean": {"t": [0.0]},
                "null_std": {"t": [1.0]},
                "provenance": {"vectors": "v"},
                "n_prompt": 0,
                "roles": ["assistant"] * lengths[i],
                "token_ids": range(lengths[i]),
                "projections": {
                    "t": rng.normal(size=lengths[i]) + weights[i] * (reader == "C") + text[i] * (writer == "C")
                },
            }
            for i in range(n)
        ]

    return rows("B", "B"), rows("C", "C"), rows("C", "B") + rows("B", "C")


def shares() -> list[Case]:
    """A share of sentences over replies that differ in their share."""
    kinds = {"replies alike": (8.0, 12.0), "replies differ": (0.8, 1.2), "rare": (0.3, 2.7)}
    return [
        (kind, n, {"share over replies": a / (a + b)}, partial(_shares, n=n, a=a, b=b))
        for n in SIZES
        for kind, (a, b) in kinds.items()
    ]


def _shares(rng: np.random.Generator, n: int, a: float, b: float) -> Intervals:
    totals = rng.integers(3, 9, size=n)
    hits = rng.binomial(totals, rng.beta(a, b, size=n))
    return {
        "share over replies": {
            LIBRARY: share_over_replies(hits.tolist(), totals.tolist()),
            "bootstrap": over_clusters(_pooled(hits, totals), np.arange(n), FEWER_RESAMPLES),
        }
    }


def aurocs() -> list[Case]:
    """Token AUROC: every other reply shows the trait in its second half, and replies differ in their level."""
    cases: list[Case] = []
    for kind in ("normal", "skewed, 1.8"):
        rng = np.random.default_rng(1)
        high, low = (KINDS[kind](rng, 2_000_000) + rng.normal(size=2_000_000) for _ in range(2))
        truth = float((high + SHIFT > low).mean())
        cases += [(kind, n, {"AUROC over replies": truth}, partial(_aurocs, n=n, kind=kind)) for n in SIZES]
    return cases


def _aurocs(rng: np.random.Generator, n: int, kind: str, length: int = 20) -> Intervals:
    labels = np.zeros((n, length), bool)
    labels[::2, length // 2 :] = True
    scores = KINDS[kind](rng, n)[:, None] + rng.normal(size=(n, length)) + SHIFT * labels
    statistic = rank_auroc(scores.ravel(), labels.ravel())
    return {
        "AUROC over replies": {
            LIBRARY: auroc_over_replies(list(scores), list(labels)),
            "bootstrap": over_clusters(statistic, np.repeat(np.arange(n), length), FEWER_RESAMPLES),
        }
    }


def validation_figures() -> list[Case]:
    """The figures of a vector's card: two replies of each side to every question, questions differ in their level.

    "own minus other": the AUROCs of two projections whose noise is correlated (0.6).
    """
    cases: list[Case] = []
    for n in FEW:
        for shift in (1.5, 3.0, 4.5):
            auroc = float(ndtr(shift / np.sqrt(2.5)))
            truths = {
                "AUROC over questions": auroc,
                "own minus other AUROC": auroc - float(ndtr(shift / np.sqrt(5))),
                "own minus equal AUROC": 0.0,
            }
            cases.append((f"true AUROC {auroc:.3f}", n, truths, partial(_validation, n=n, shift=shift)))
        truths = {"correlation over questions": 0.5**0.5, "mean over questions": 0.0}
        cases.append(("normal", n, truths, partial(_scores, n=n, kind="normal")))
        cases.append(("skewed, 1.8", n, {"mean over questions": 0.0}, partial(_scores, n=n, kind="skewed, 1.8")))
    return cases


def _validation(rng: np.random.Generator, n: int, shift: float) -> Intervals:
    question, shows = np.repeat(np.arange(n), 4), np.arange(4 * n) % 2 == 0
    level, shared = 0.5 * rng.normal(size=n)[question], rng.normal(size=4 * n)

    def auroc_of(effect: float, scale: float = 1.0) -> Callable[[np.ndarray], float]:
        noise = 0.6 * shared + 0.8 * rng.normal(size=4 * n)
        return rank_auroc(effect * shows + scale * (level + noise), shows)

    own, equal, other = auroc_of(shift), auroc_of(shift), auroc_of(shift, 2**0.5)
    figures: dict[str, Mapping[str, Estimate | None]] = {
        "AUROC over questions": {
            LIBRARY: bounded(own, question),
            "bootstrap": over_clusters(own, question, 200),
        }
    }
    for name, second in (("own minus other AUROC", other), ("own minus equal AUROC", equal)):

        def difference(w: np.ndarray, second: Callable[[np.ndarray], float] = second) -> float:
            return own(w) - second(w)

        figures[name] = {
            LIBRARY: bounded_difference(own, second, question),
            "jackknife": jackknifed(difference, question),
        }
    return figures


def _scores(rng: np.random.Generator, n: int, kind: str) -> Intervals:
    question = np.repeat(np.arange(n), 4)
    score = rng.normal(size=4 * n) + 0.5 * rng.normal(size=n)[question]
    projection = score + rng.normal(size=4 * n) + 0.5 * rng.normal(size=n)[question]
    values = KINDS[kind](rng, n)[question] + rng.normal(size=4 * n)

    def mean(w: np.ndarray) -> float:
        return float(w @ values / w.sum())

    correlation = partial(pearson, projection, score)
    found: dict[str, Mapping[str, Estimate | None]] = {
        "mean over questions": {LIBRARY: over_clusters(mean, question, 200), "jackknife": jackknifed(mean, question)},
        "correlation over questions": {
            LIBRARY: bounded(correlation, question, -1, 1),
            "bootstrap": over_clusters(correlation, question, 200),
        },
    }
    return found if kind == "normal" else {"mean over questions": found["mean over questions"]}


def run_figures() -> list[Case]:
    """Slope, autocorrelation and share above of AR(0.65) replies, and what the token id explains."""
    cases: list[Case] = []
    series = {"drift over position": 1.0, "autocorrelation": 0.65}
    for n in SIZES:
        for kind in ("normal", "skewed, 1.8"):
            cases.append((f"AR(0.65), slopes {kind}", n, series, partial(_slopes, n=n, kind=kind)))
        above = {"share of tokens above 1.645": float(ndtr(-1.645))}
        cases.append(("AR(0.65)", n, above, partial(_above, n=n)))
        for kind, explained in (("one fifth explained", 0.2), ("noise only", 0.0)):
            cases.append((kind, n, {"token share": explained}, partial(_tokens, n=n, explained=explained)))
    return cases


def _slopes(rng: np.random.Generator, n: int, kind: str) -> Intervals:
    """Slopes differ between replies, 1 SD per 100 tokens on average; the autocorrelation is of the rest."""
    noise, slopes = _replies(rng, n), 1.0 + KINDS[kind](rng, n)
    z = [s * np.arange(len(x)) / 100 + x for s, x in zip(slopes, noise, strict=True)]
    figures = {"drift over position": drift(z), "autocorrelation": autocorrelation(noise)}
    return {what: {LIBRARY: over_clusters(f, np.arange(n), FEWER_RESAMPLES)} for what, f in figures.items()}


def _above(rng: np.random.Generator, n: int) -> Intervals:
    z = _replies(rng, n)
    pooled = _pooled(np.array([(s > 1.645).sum() for s in z]), np.array([len(s) for s in z]))
    return {"share of tokens above 1.645": {LIBRARY: over_clusters(pooled, np.arange(n), FEWER_RESAMPLES)}}


def _tokens(rng: np.random.Generator, n: int, explained: float) -> Intervals:
    """Forty token ids, some frequent and some rare, each with a level that is the same in all data sets."""
    often = 1 / np.arange(1, 41)
    often /= often.sum()
    level = np.random.default_rng(0).normal(size=40)
    level = (level - often @ level) / np.sqrt(often @ (level - often @ level) ** 2)
    tokens = [rng.choice(40, size=int(k), p=often) for k in rng.integers(40, 140, size=n)]
    z = [np.sqrt(explained) * level[t] + np.sqrt(1 - explained) * rng.normal(size=len(t)) for t in tokens]
    statistic = token_share(z, tokens, np.arange(n))
    return {
        "token share": {
            LIBRARY: jackknifed(statistic, np.arange(n)),
            "bootstrap": over_clusters(statistic, np.arange(n), 200),
        }
    }


LENGTHS: dict[str, Draw] = {
    "replies of 100 tokens": lambda _, n: np.full(n, 100),
    "replies of 10 to 220 tokens": lambda rng, n: rng.integers(10, 221, size=n),
    "20 tokens, a third 200": lambda _, n: np.where(np.arange(n) % 3 == 2, 200, 20),
}


def alarm_rates() -> list[Case]:
    """The rate of a threshold at a nominal 5 %, over replies of white noise to 300 prompts.

    Each data set has a threshold of its own, so the truth is taken off: what is covered is 0.
    """
    truths = {"false-alarm rate": 0.0}
    return [(kind, 300, truths, partial(_alarm_rates, kind=kind)) for kind in LENGTHS]


def _alarm_rates(rng: np.random.Generator, kind: str, n: int = 300) -> Intervals:
    lengths = LENGTHS[kind](rng, n)
    ends = stretches(supported_length(lengths, np.arange(n), n / 3))
    peaks = running_peaks(rng.normal(size=(n, int(lengths.max()))), lengths, ends)
    known = NullPeaks(("t",), np.arange(n), lengths, ends, peaks[:, None])
    threshold = known.threshold(0.05)
    found, true = known.rate(threshold), float(-np.expm1(ends[-1] * log_ndtr(threshold)))
    share = known.rate(np.nextafter(threshold, np.inf)).value  # of the alarms above it
    low, high = beta.ppf((0.025, 0.975), n * share + 1, n - n * share) - true
    return {
        "false-alarm rate": {
            LIBRARY: Estimate(found.value - true, found.low - true, found.high - true, n),
            "weighted alarms as a count": Estimate(share - true, float(low), float(high), n),
        }
    }


def _replies(rng: np.random.Generator, n: int, phi: float = 0.65) -> list[np.ndarray]:
    lengths = rng.integers(40, 140, size=n)
    noise = rng.normal(0, np.sqrt(1 - phi**2), size=(n, 200))
    return [x[-k:] for x, k in zip(lfilter([1.0], [1.0, -phi], noise, axis=1), lengths, strict=True)]


def _pooled(hits: np.ndarray, totals: np.ndarray) -> Callable[[np.ndarray], float]:
    return lambda w: float(w @ hits / (w @ totals))


# ---- other intervals ----


def _of_a_mean(x: np.ndarray) -> Mapping[str, Estimate | None]:
    """The library's interval, and common alternatives: percentiles as they are, BCa, studentised, Student's t."""
    n, value = len(x), float(x.mean())
    draws = x[np.random.default_rng(0).integers(n, size=(N_RESAMPLES, n))]  # [n_resamples, n]
    samples, error = draws.mean(1), float(x.std(ddof=1) / np.sqrt(n))

    def of(ends: np.ndarray) -> Estimate:
        return Estimate(value, float(ends[0]), float(ends[1]), n)

    d = x - value  # BCa (Efron 1987): the acceleration of a mean is its skewness / 6
    acceleration = (d**3).sum() / (6 * (d**2).sum() ** 1.5)
    bias = ndtri(np.clip((samples < value).mean(), 1e-3, 1 - 1e-3))
    z = bias + ndtri(np.array([0.025, 0.975]))
    spreads = np.maximum(draws.std(1, ddof=1) / np.sqrt(n), 1e-12)
    studentised = np.quantile((samples - value) / spreads, [0.975, 0.025])
    return {
        LIBRARY: mean_over_prompts(x.tolist(), N_RESAMPLES),
        "percentile": of(np.quantile(samples, [0.025, 0.975])),
        "BCa": of(np.quantile(samples, ndtr(bias + z / (1 - acceleration * z)))),
        "studentised": of(value - studentised * error),
        "Student's t": of(value + np.array([-1, 1]) * stdtrit(n - 1, 0.975) * error),
    }


def _lognormal(rng: np.random.Generator, n: int, sigma: float) -> np.ndarray:
    """Of mean 0 and variance 1."""
    mean = np.exp(sigma**2 / 2)
    return (rng.lognormal(0, sigma, size=n) - mean) / (mean * np.sqrt(np.exp(sigma**2) - 1))


# ---- p-values ----


def p_values() -> list[dict[str, Any]]:
    """Of the sign-flip permutation where nothing differs: two cohorts of one kind, prompt by prompt."""
    found = []
    for n in SIZES:
        for kind, draw in KINDS.items():
            for what in ("identical cohorts", "differences of mean 0 that are not symmetric"):
                p = []
                for seed in range(2 * N_DATASETS):
                    rng = np.random.default_rng(SEED + seed)
                    if what == "identical cohorts":
                        level = rng.normal(size=n)
                        differences = (level + draw(rng, n)) - (level + draw(rng, n))
                    else:
                        differences = draw(rng, n)
                    p.append(sign_flip_p(differences, 1999, seed))
                found.append(
                    {
                        "what": what,
                        "kind": kind,
                        "n": n,
                        "ks_p": round(float(kstest(p, "uniform").pvalue), 5),
                        "below_0.05": share(sum(x < 0.05 for x in p), len(p)),
                        "below_0.01": share(sum(x < 0.01 for x in p), len(p)),
                    }
                )
    return found


if __name__ == "__main__":
    raise SystemExit(main())
