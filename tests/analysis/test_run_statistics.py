"""The figures of a run are those of plain loops, and on noise they find nothing."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import linregress, t

from demo_world.contaminated import CONTAMINANT
from persona_core.analysis.run_statistics import (
    MIN_NULL_TOKENS,
    RunStatistics,
    run_statistics,
)
from persona_core.analysis.statistics import Estimate, jackknifed
from persona_core.analysis.weighted_statistics import autocorrelation, drift, token_share
from persona_core.errors import SettingError
from persona_core.traces.dataset import load_results
from persona_core.traces.provenance import Provenance
from persona_core.traces.specific import LogOdds
from persona_core.traces.trace import Trace
from tests.analysis.test_spans import PROMPT, noise, reply, with_sinks

SHIPPED = Path(__file__).resolve().parents[2] / "artifacts" / "persona-monitoring-persona-tiny"


def value(found: Estimate | None) -> float:
    assert found is not None
    return found.value


@pytest.fixture(scope="module")
def small() -> tuple[list[np.ndarray], list[list[int]], list[str], RunStatistics]:
    """Twelve short replies to nine prompts, with token ids from few."""
    rng = np.random.default_rng(0)
    z = [rng.normal(k % 3, 1, size=int(rng.integers(6, 30))).astype(np.float32) for k in range(12)]
    tokens = [rng.integers(10, 16, size=len(s)).tolist() for s in z]
    ids = [f"p{k % 9}" for k in range(12)]
    traces = [reply(s, token_ids=i) for s, i in zip(z, tokens, strict=True)]
    return [s.astype(float) for s in z], tokens, ids, run_statistics(traces, ids, n_resamples=200)


# ---- held against plain loops ----


def test_level_spread_and_share_are_those_of_plain_loops(small: Any) -> None:
    z, _, _, found = small
    own = found.traits["t"]
    means = [sum(s) / len(s) for s in z]
    level = sum(means) / len(means)
    assert value(own.mean) == pytest.approx(level)
    assert value(own.between) == pytest.approx(np.sqrt(sum((m - level) ** 2 for m in means) / 11))
    within = sum((x - m) ** 2 for s, m in zip(z, means, strict=True) for x in s) / sum(len(s) - 1 for s in z)
    assert value(own.within) == pytest.approx(np.sqrt(within))
    flat = [x for s in z for x in s]
    assert value(own.share_above) == pytest.approx(sum(x > 1.645 for x in flat) / len(flat))
    assert (own.threshold, own.threshold_from) == (1.645, "normal distribution")
    assert (found.n_replies, found.n_prompts, found.n_tokens, found.n_neutral) == (12, 9, len(flat), 0)
    assert own.mean is not None and own.mean.n == 9


def test_the_slope_is_that_of_a_regression_with_a_level_for_each_reply(small: Any) -> None:
    z, _, _, found = small
    positions = np.concatenate([np.arange(len(s)) - np.mean(range(len(s))) for s in z])
    centred = np.concatenate([s - s.mean() for s in z])
    assert value(found.traits["t"].drift) == pytest.approx(100 * linregress(positions, centred).slope)


def test_the_token_share_is_that_of_a_plain_loop_also_where_prompts_count_twice(small: Any) -> None:
    z, tokens, ids, found = small
    prompts = np.unique(ids, return_inverse=True)[1]
    weights = np.array([2, 0, 1, 1, 3, 1, 1, 0, 1], float)[prompts]
    of = token_share(z, [np.array(i) for i in tokens], prompts)
    for w in (np.ones(12), weights):
        entries = [
            (w[k], prompts[k], i, x) for k in range(12) for i, x in zip(tokens[k], z[k], strict=True) if w[k] > 0
        ]
        mean = sum(c * x for c, _, _, x in entries) / sum(c for c, *_ in entries)
        explained = total = 0.0
        for c, prompt, i, x in entries:
            others = [(c2, x2) for c2, p2, i2, x2 in entries if i2 == i and p2 != prompt]
            if others:
                guess = sum(c2 * (x2 - mean) for c2, x2 in others) / sum(c2 for c2, _ in others)
                explained += c * (x - mean) * guess
            total += c * (x - mean) ** 2
        assert of(w) == pytest.approx(explained / total)
    assert value(found.traits["t"].token_share) == pytest.approx(of(np.ones(12)))


def test_the_autocorrelation_is_that_of_a_plain_loop(small: Any) -> None:
    z, _, _, found = small
    d = [s - s.mean() for s in z]
    pairs = [a * b for s in d for a, b in pairwise(s)]
    squares = [a * a for s in d for a in s]
    r, n = np.mean(pairs) / np.mean(squares), np.mean([len(s) for s in z])
    assert value(found.traits["t"].autocorrelation) == pytest.approx((r * n + 1) / (n - 1))


def test_means_by_position_count_from_the_first_reply_token(small: Any) -> None:
    z, _, _, found = small
    bins = found.traits["t"].positions
    assert [(b.start, b.end) for b in bins][:3] == [(0, 5), (5, 10), (10, 20)] and bins[-1].end is None
    for b in bins:
        reach = [s[b.start : b.end].mean() for s in z if len(s) > b.start]
        assert b.n_replies == len(reach)
        if b.mean is not None:
            assert b.mean.value == pytest.approx(np.mean(reach))
    assert value(bins[0].mean) == pytest.approx(np.mean([s[:5].mean() for s in z]))


def test_extremes_say_where_they_are(small: Any) -> None:
    z, _, ids, found = small
    own = found.traits["t"]
    k = max(range(12), key=lambda i: z[i].max())
    at = int(z[k].argmax())
    assert (own.highest.id, own.highest.reply, own.highest.position) == (ids[k], k, PROMPT + at)
    assert own.highest.token == f" w{at}" and own.highest.value == z[k].max()
    k = min(range(12), key=lambda i: z[i].min())
    assert (own.lowest.reply, own.lowest.position) == (k, PROMPT + int(z[k].argmin()))
    best = max(range(12), key=lambda i: z[i].mean())
    assert (own.highest_reply.reply, own.highest_reply.id, own.highest_reply.position) == (best, ids[best], None)
    assert own.lowest_reply.value == pytest.approx(min(s.mean() for s in z))


def test_the_jackknife_of_a_mean_is_students_interval() -> None:
    x = np.random.default_rng(1).normal(size=14)
    found = jackknifed(lambda w: float(w @ x / w.sum()), np.arange(14))
    low, high = t.interval(0.95, 13, loc=x.mean(), scale=x.std(ddof=1) / np.sqrt(14))
    assert found is not None and found.n == 14
    np.testing.assert_allclose([found.low, found.high], [low, high])
    assert jackknifed(lambda w: float(w.sum()), np.zeros(5)) is None
    assert jackknifed(lambda w: float("nan") if w[0] == 0 else 1.0, np.arange(3)) is None


# ---- on noise, and on what was planted ----


def zipf(rng: np.random.Generator, n: int, size: int = 300) -> np.ndarray:
    often = 1 / np.arange(1, size + 1)
    return rng.choice(size, size=n, p=often / often.sum())


def test_tokens_explain_nothing_of_noise_and_what_was_planted_of_the_rest() -> None:
    nothing, planted = [], []
    level = np.random.default_rng(9).normal(size=20)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        rare = [zipf(rng, 60) for _ in range(30)]
        z = [rng.normal(0.3 * rng.normal(), 1, 60) for _ in rare]
        nothing.append(token_share(z, rare, np.arange(30))(np.ones(30)))
        few = [rng.integers(20, size=60) for _ in range(30)]
        own = (level - level.mean()) / level.std()
        z = [np.sqrt(0.3) * own[i] + np.sqrt(0.7) * rng.normal(size=60) for i in few]
        planted.append(token_share(z, few, np.arange(30))(np.ones(30)))
    assert abs(np.mean(nothing)) < 0.006 and min(nothing) < 0 < max(nothing)
    assert np.mean(planted) == pytest.approx(0.3, abs=0.01)


def test_a_prompts_own_replies_do_not_guess_its_tokens() -> None:
    """Two equal replies to each prompt, of words that no other prompt has: each would explain the other wholly."""
    rng = np.random.default_rng(0)
    z, tokens = [rng.normal(size=50) for _ in range(20)], [50 * k + np.arange(50) for k in range(20)]
    assert token_share(z * 2, tokens * 2, np.tile(np.arange(20), 2))(np.ones(40)) == 0
    assert token_share(z * 2, tokens * 2, np.arange(40))(np.ones(40)) == pytest.approx(1)


@pytest.mark.parametrize("phi", [0.0, 0.65])
def test_slope_and_autocorrelation_are_found_and_levels_of_replies_make_none(phi: float) -> None:
    slopes, lags = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        z = [noise(rng, phi) for _ in range(30)]
        # Longer replies lie higher, which is no drift within any.
        z = [s + len(s) / 10 + 0.02 * np.arange(len(s)) for s in z]
        slopes.append(drift(z)(np.ones(30)))
        lags.append(autocorrelation([s - 0.02 * np.arange(len(s)) for s in z])(np.ones(30)))
    assert np.mean(slopes) == pytest.approx(2.0, abs=0.15)
    assert np.mean(lags) == pytest.approx(phi, abs=0.015)


def test_the_interval_of_the_slope_holds_the_truth_as_often_as_it_says() -> None:
    held = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        traces = [reply(z + 0.01 * np.arange(len(z))) for z in (noise(rng, 0.65) for _ in range(20))]
        found = run_statistics(traces, [f"p{k}" for k in range(20)], n_resamples=200).traits["t"].drift
        held += found is not None and found.low <= 1.0 <= found.high
    assert held >= 52  # of 57 expected


def test_replies_to_one_prompt_move_together() -> None:
    rng = np.random.default_rng(2)
    traces = [reply(noise(rng, 0.5) + level) for level in rng.normal(size=15)]
    ids = [f"p{k}" for k in range(15)]
    once = run_statistics(traces, ids, n_resamples=400).traits["t"].mean
    thrice = run_statistics(traces * 3, ids * 3, n_resamples=400).traits["t"].mean
    assert once is not None and thrice is not None and thrice.n == 15
    np.testing.assert_allclose([thrice.low, thrice.high], [once.low, once.high])


def test_high_is_what_neutral_replies_say() -> None:
    rng = np.random.default_rng(3)
    neutral, held_out = ([reply(1.5 * noise(rng, 0.3) + 1.0) for _ in range(150)] for _ in range(2))
    own = run_statistics(held_out, [str(k) for k in range(150)], neutral=neutral, n_resamples=100)
    found = own.traits["t"]
    assert found.threshold == pytest.approx(1.0 + 1.5 * 1.645, abs=0.15)
    assert (found.threshold_from, own.n_neutral) == ("neutral replies", 150)
    assert value(found.share_above) == pytest.approx(0.05, abs=0.01)
    by_the_normal = run_statistics(held_out, [str(k) for k in range(150)], n_resamples=100).traits["t"]
    assert value(by_the_normal.share_above) > 0.25


# ---- sink tokens and the score ----


def test_sink_tokens_count_in_no_statistic_and_positions_stay() -> None:
    rng = np.random.default_rng(5)
    z = [rng.normal(k % 2, 1, size=int(rng.integers(8, 30))).tolist() for k in range(20)]
    tokens = [rng.integers(10, 16, size=len(s)).tolist() for s in z]
    sinks = [sorted(set(rng.integers(0, len(s), size=3).tolist())) for s in z]
    ids = [f"p{k % 15}" for k in range(20)]
    raised = [[99.0 if t in at else v for t, v in enumerate(s)] for s, at in zip(z, sinks, strict=True)]
    traces = [with_sinks(reply(s, token_ids=i), at) for s, i, at in zip(raised, tokens, sinks, strict=True)]
    run = run_statistics(traces, ids, n_resamples=100)
    own = run.traits["t"]
    kept = [[(t, v) for t, v in enumerate(s) if t not in at] for s, at in zip(z, sinks, strict=True)]
    means = [sum(v for _, v in s) / len(s) for s in kept]
    assert value(own.mean) == pytest.approx(sum(means) / 20, abs=1e-6)
    squares = sum((v - m) ** 2 for s, m in zip(kept, means, strict=True) for _, v in s)
    assert value(own.within) == pytest.approx(np.sqrt(squares / sum(len(s) - 1 for s in kept)), abs=1e-6)
    assert value(own.share_above) == pytest.approx(
        sum(v > 1.645 for s in kept for _, v in s) / sum(len(s) for s in kept)
    )
    assert own.highest.value < 10 and run.sinks == {"t": sum(len(at) for at in sinks)}

    # The slope: a regression on position, with a level for each reply.
    x = np.concatenate([[t - np.mean([p for p, _ in s]) for t, _ in s] for s in kept])
    y = np.concatenate([[v - m for _, v in s] for s, m in zip(kept, means, strict=True)])
    assert value(own.drift) == pytest.approx(100 * linregress(x, y).slope, abs=1e-4)

    # Neighbours with a sink token between them are not neighbours.
    steps = [(a, b, m) for s, m in zip(kept, means, strict=True) for a, b in pairwise(s) if b[0] == a[0] + 1]
    r = np.mean([(a[1] - m) * (b[1] - m) for a, b, m in steps]) / (squares / sum(len(s) for s in kept))
    n = sum(len(s) for s in kept) / 20
    assert value(own.autocorrelation) == pytest.approx((r * n + 1) / (n - 1), abs=1e-5)

    flat = run_statistics([reply([v for _, v in s], token_ids=[i for k, i in enumerate(ids_) if k not in at])
                           for s, ids_, at in zip(kept, tokens, sinks, strict=True)], ids, n_resamples=50)  # fmt: skip
    assert value(own.token_share) == pytest.approx(value(flat.traits["t"].token_share), abs=1e-6)


def test_a_mean_that_sink_tokens_would_change_says_so() -> None:
    rng = np.random.default_rng(6)
    traces = [with_sinks(reply([*rng.normal(size=20), 80.0]), [20]) for _ in range(12)]
    own = run_statistics(traces, [str(k) for k in range(12)], n_resamples=100).traits["t"]
    assert own.mean is not None and own.with_sinks is not None
    assert abs(own.mean.value) < 0.5 and own.with_sinks.value > 3 and own.to_dict()["changed_by_sinks"]
    plain = run_statistics([reply(rng.normal(size=20)) for _ in range(12)], [str(k) for k in range(12)], n_resamples=50)
    assert plain.traits["t"].with_sinks == plain.traits["t"].mean
    assert not plain.traits["t"].to_dict()["changed_by_sinks"]


def test_the_statistics_are_of_specific_scores_where_all_traces_have_them() -> None:
    odds = LogOdds(*(np.full((1, 1), v, np.float32) for v in (2.0, 0.0, 1.0, 4.0)))
    rng = np.random.default_rng(7)
    traces = [reply(rng.normal(size=9), log_odds=odds) for _ in range(5)]
    found = run_statistics(traces, [*"abcde"], n_resamples=50)
    assert (found.kind, found.against) == ("specific", ("t",)) and "shared" not in found.to_dict()["kind"]
    wanted = np.mean([(2 * t.scores("t", "z")[t.reply_positions].mean() - 1) / 4 for t in traces])
    assert value(found.traits["t"].mean) == pytest.approx(wanted, abs=1e-6)
    mixed = run_statistics([*traces, reply(rng.normal(size=9))], [*"abcdef"], n_resamples=50)
    assert mixed.kind == "z"


# ---- what cannot be described ----


def test_what_does_not_fit_is_refused_and_empty_replies_are_named() -> None:
    rng = np.random.default_rng(4)
    good = [reply(rng.normal(size=30)) for _ in range(6)]
    found = run_statistics([*good, reply([])], [*"abcdef", "g"], n_resamples=50)
    assert found.empty == ("g",) and found.n_replies == 6
    with pytest.raises(SettingError, match="6 traces, but 1 ids"):
        run_statistics(good, ["a"])
    with pytest.raises(SettingError, match="Every reply is empty"):
        run_statistics([reply([])], ["a"])
    with pytest.raises(SettingError, match="'b' contains nan at token 3"):
        run_statistics([good[0], reply([0, 0, 0, np.nan])], ["a", "b"])
    with pytest.raises(SettingError, match="2 different models"):
        run_statistics([good[0], reply([0.0], provenance=Provenance(reader="n", vectors="v"))], ["a", "b"])
    with pytest.raises(SettingError, match=f"at least {MIN_NULL_TOKENS}"):
        run_statistics(good, [*"abcdef"], neutral=good)
    with pytest.raises(SettingError, match="different vectors"):
        run_statistics(good, [*"abcdef"], neutral=[reply(np.zeros(2000), provenance=Provenance(vectors="w"))])
    with pytest.raises(SettingError, match="running means"):
        smooth = [np.convolve(rng.normal(size=90), np.ones(5) / 5, "valid") for _ in range(30)]
        run_statistics([reply(z) for z in smooth], [str(k) for k in range(30)])


def test_one_reply_has_positions_of_its_extremes_and_no_interval() -> None:
    found = run_statistics([reply([0.0, 2.0, 1.0])], ["a"]).traits["t"]
    assert found.mean is None and found.drift is None and found.token_share is None
    assert found.highest.position == PROMPT + 1 and found.highest_reply.value == 1.0
    flat = run_statistics([reply([1.0]), reply([1.0])], ["a", "b"], n_resamples=20).traits["t"]
    assert flat.drift is None and flat.within is None and flat.autocorrelation is None
    json.dumps(flat.to_dict(), allow_nan=False)


# ---- the shipped runs ----


def test_the_shipped_runs_say_what_was_planted() -> None:
    rows = {c: load_results(SHIPPED, c) for c in ("baseline", "contaminated")}
    neutral = [Trace.from_row(r) for r in rows["baseline"]]
    found = {
        c: run_statistics([Trace.from_row(r) for r in own], [r["id"] for r in own], neutral=neutral, n_resamples=200)
        for c, own in rows.items()
    }
    for trait, own in found["baseline"].traits.items():
        assert abs(value(own.mean)) < 0.15 and value(own.share_above) == pytest.approx(0.05, abs=0.002), trait
        # Few words, seldom more than one meaning. Whitening takes out what tokens explain: along the mean difference
        # the shares are 0.41 to 0.49.
        assert 0.15 < value(own.token_share) < 0.6
    high = found["contaminated"].traits
    assert max(high, key=lambda name: value(high[name].mean)) == CONTAMINANT
    assert value(high[CONTAMINANT].share_above) > 0.85
    extreme = high[CONTAMINANT].highest
    row = rows["contaminated"][extreme.reply]
    assert row["id"] == extreme.id and row["tokens"][extreme.position] == extreme.token
    scores = row["projections" if found["contaminated"].kind == "z" else "specific"][CONTAMINANT]
    assert scores[extreme.position] == pytest.approx(extreme.value)
    record = json.loads(json.dumps(found["contaminated"].to_dict(), allow_nan=False))
    assert set(record) == {
        *("n_prompts", "n_replies", "n_tokens", "n_neutral", "empty", "traits", "kind", "unit", "against", "sinks"),
    }
    assert set(record["traits"][CONTAMINANT]["drift"]) == {"value", "low", "high", "n"}
