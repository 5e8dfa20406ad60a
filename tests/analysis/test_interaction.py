"""Couplings between traits: few where the text is neutral, the planted excess, lag and direction where there is one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.signal import lfilter
from scipy.stats import pearsonr

from persona_core.analysis import coupling_controls
from persona_core.analysis.coupling_controls import edges_on_neutral
from persona_core.analysis.couplings import MIN_EXCESS, NO_NEUTRAL, Coupling, Couplings
from persona_core.analysis.excess import FisherSample, p_values
from persona_core.analysis.graph import trait_graph
from persona_core.analysis.innovations import Innovations
from persona_core.analysis.interaction import (
    LAGS,
    compare_couplings,
    measure_couplings,
    trait_series,
)
from persona_core.analysis.interventional import (
    MIN_PROMPTS,
    InterventionalEffects,
    interventional_effects,
    relative_to_others,
)
from persona_core.analysis.precedence import PrecedenceTable, precedence
from persona_core.analysis.prewhitening import whiten
from persona_core.analysis.statistics import Estimate, expanded_tail
from persona_core.elicitation.prompts import prompt_of
from persona_core.errors import SettingError
from persona_core.traces.dataset import load_results
from persona_core.traces.trace import Trace
from tests.analysis.test_precedence import cascade
from tests.traces.test_dataset import SHIPPED

TRAITS = ["flattery", "deceit", "evil"]
Mix = Callable[[np.ndarray], np.ndarray]
QUICK: Any = {"n_shuffles": 99, "n_resamples": 50}


def replies(seed: int, phi: float = 0.65, mix: Mix = lambda e: e, n: int = 78, k: int = 3) -> list[np.ndarray]:
    """AR(1) series of 40 to 140 tokens; `mix` couples their noise, `[n_traits, n]`."""
    rng = np.random.default_rng(seed)
    noise = [mix(rng.normal(size=(k, int(rng.integers(40, 141)) + 132))) for _ in range(n)]
    return [lfilter([1.0], [1.0, -phi], e, axis=1)[:, 132:] for e in noise]


def leading(r: float, lag: int) -> Mix:
    """The second trait's noise correlates by r with the first's, `lag` tokens before."""

    def mix(noise: np.ndarray) -> np.ndarray:
        mixed = noise.copy()
        mixed[1, lag:] = r * noise[0, : noise.shape[1] - lag] + np.sqrt(1 - r**2) * noise[1, lag:]
        return mixed

    return mix


def shared(r: float) -> Mix:
    """All traits' noise correlates by r at the same token, through one more row of noise."""
    return lambda noise: np.sqrt(1 - r) * noise[:-1] + np.sqrt(r) * noise[-1]


def of(couplings: Couplings, source: str, target: str, lag: int) -> Coupling:
    pairs = (*couplings.together, *couplings.lagged)
    (found,) = [c for c in pairs if (c.source, c.target, c.lag) == (source, target, lag)]
    return found


def correlated(seed: int, r: float, n: int = 78, phi: float = 0.65) -> list[np.ndarray]:
    return replies(seed, phi, shared(r), n, k=len(TRAITS) + 1)


@pytest.mark.slow
@pytest.mark.parametrize("phi", [0.0, 0.65, 0.9])
def test_what_neutral_replies_share_is_no_coupling_however_strong_and_slow(phi: float) -> None:
    """Three traits that correlate by 0.6 in the run and in the null: a false edge in at most 5 % of runs."""
    runs = 0
    for seed in range(40):
        found = measure_couplings(
            TRAITS,
            correlated(seed, 0.6, 40, phi),
            neutral=correlated(1000 + seed, 0.6, 60, phi),
            n_shuffles=199,
            n_resamples=50,
            seed=seed,
        )
        assert all(c.estimate is not None and abs(c.estimate.value - 0.6) < 0.1 for c in found.together)
        runs += any(c.significant for c in found.together) + any(c.significant for c in found.lagged)
        assert not any(c.claimed for c in (*found.together, *found.lagged))
    assert runs <= 9  # of 80 families at 5 %: 4 are expected, 9 or fewer in 99 % of cases


def test_without_neutral_replies_nothing_is_claimed_and_the_reason_is_given() -> None:
    found = measure_couplings(TRAITS, correlated(1, 0.8), **QUICK)
    assert found.missing == NO_NEUTRAL
    pairs = (*found.together, *found.lagged)
    assert all(
        c.estimate is not None and (c.null, c.excess, c.p, c.q, c.claimed) == (None,) * 4 + (False,) for c in pairs
    )
    assert trait_graph(TRAITS, found).edges == ()


def test_more_and_less_than_in_neutral_replies_are_both_edges() -> None:
    for own, null in ((0.6, 0.3), (0.3, 0.6)):
        found = measure_couplings(TRAITS, correlated(2, own), neutral=correlated(3, null), n_shuffles=199)
        for pair in found.together:
            assert pair.claimed and pair.excess is not None and pair.null is not None
            assert pair.excess.value == pytest.approx(np.arctanh(own) - np.arctanh(null), abs=0.08)
            assert pair.null.low <= null <= pair.null.high
            assert pair.excess.low <= pair.excess.value <= pair.excess.high
        assert not any(c.claimed for c in found.lagged)


def test_a_small_excess_is_significant_and_no_edge() -> None:
    found = measure_couplings(TRAITS, correlated(4, 0.56, 300), neutral=correlated(5, 0.5, 300), n_shuffles=199)
    assert all(c.significant and not c.claimed for c in found.together)
    assert all(c.excess is not None and 0 < c.excess.low < MIN_EXCESS for c in found.together)


@pytest.mark.slow
@pytest.mark.parametrize(("phi", "lag"), [(0.0, 4), (0.65, 8), (0.65, 1), (0.9, 16)])
def test_a_planted_lead_is_found_at_its_lag_and_in_its_direction(phi: float, lag: int) -> None:
    right = 0
    for seed in range(8):
        run, neutral = replies(100 + seed, phi, leading(0.2, lag)), replies(200 + seed, phi)
        found = measure_couplings(TRAITS, run, neutral=neutral, n_shuffles=199, n_resamples=200, seed=seed)
        right += [(c.source, c.target, c.lag) for c in found.lagged if c.claimed] == [("flattery", "deceit", lag)]
    assert right >= 7


def test_a_lead_that_neutral_replies_have_as_well_is_no_edge() -> None:
    run, neutral = (replies(seed, 0.65, leading(0.3, 4)) for seed in (1, 2))
    found = measure_couplings(TRAITS, run, neutral=neutral, n_shuffles=199)
    pair = of(found, "flattery", "deceit", 4)
    assert pair.estimate is not None and pair.estimate.low > 0.2 and not pair.significant


@pytest.mark.slow
@pytest.mark.parametrize("paired", [True, False])
def test_intervals_of_the_excess_hold_the_truth_as_often_as_they_say(paired: bool) -> None:
    held = 0
    for seed in range(150):
        run, neutral = correlated(seed, 0.5, 30), correlated(5000 + seed, 0.3, 60)
        groups = [f"p{i % 30}" for i in range(60)] if paired else [f"q{i // 2}" for i in range(60)]
        options: Any = {"lags": (4,), "max_order": 2, "n_shuffles": 99, "n_resamples": 400, "seed": seed}
        found = measure_couplings(
            TRAITS, run, [f"p{i}" for i in range(30)], neutral=neutral, neutral_groups=groups, **options
        )
        excess = found.together[0].excess
        assert excess is not None and excess.n == 30
        held += excess.low <= np.arctanh(0.5) - np.arctanh(0.3) <= excess.high
    assert 0.90 <= held / 150 <= 0.99


def pooled(series: list[np.ndarray], a: int, b: int, lag: int) -> tuple[float, float]:
    """Mean of Fisher's z, and its weight, by a plain loop over replies."""
    whitened = [whiten([z[k] for z in series]).innovations for k in range(3)]
    total = weight = 0.0
    for i, reply in enumerate(series):
        n = reply.shape[1]
        x, y = ({n - len(w[i]) + t: v for t, v in enumerate(w[i])} for w in (whitened[a], whitened[b]))
        pairs = [(x[t], y[t + lag]) for t in x if t + lag in y and np.isfinite(x[t]) and np.isfinite(y[t + lag])]
        if len(pairs) > 3:
            r = pearsonr(*zip(*pairs, strict=True))[0]
            total, weight = total + (len(pairs) - 3) * np.arctanh(r), weight + len(pairs) - 3
    return total / weight, weight


def test_the_interval_of_the_excess_is_that_of_a_bootstrap_of_both_samples() -> None:
    """Of the run's prompts and of the neutral replies' prompts, each drawn anew; here the neutral ones are fewer."""
    run, null = correlated(1, 0.5), correlated(2, 0.5, n=30)
    found = of(measure_couplings(TRAITS, run, neutral=null, lags=(4,), n_shuffles=99), "flattery", "deceit", 0)
    assert found.excess is not None
    rng, means = np.random.default_rng(9), []
    for series in (run, null):
        z, weight = (one[:, 0] for one in Innovations.of(TRAITS, series).fisher([(0, 1, 0)]))
        drawn = rng.integers(len(z), size=(4000, len(z)))
        means.append((z * weight)[drawn].sum(1) / weight[drawn].sum(1))
    tail = expanded_tail(30)
    low, high = np.quantile(means[0] - means[1], [tail, 1 - tail])
    assert found.excess.high - found.excess.low == pytest.approx(high - low, rel=0.1)
    assert found.excess.low == pytest.approx(low, abs=0.1 * (high - low))


def test_estimate_null_and_excess_are_those_of_a_plain_loop() -> None:
    run, neutral = replies(7, 0.65, leading(0.4, 3), n=30), replies(8, 0.65, n=25)
    for z in (run[3], run[9], neutral[4]):
        z[1, 20:23] = np.nan  # sink tokens
    found = measure_couplings(TRAITS, run, neutral=neutral, lags=(3, 12), **QUICK)
    for c in (*found.together, *found.lagged):
        a, b = TRAITS.index(c.source), TRAITS.index(c.target)
        own, null = (pooled(series, a, b, c.lag)[0] for series in (run, neutral))
        assert c.estimate is not None and c.estimate.value == pytest.approx(np.tanh(own), abs=1e-9)
        assert c.null is not None and c.null.value == pytest.approx(np.tanh(null), abs=1e-9)
        assert c.excess is not None and c.excess.value == pytest.approx(own - null, abs=1e-9)


def test_the_statistic_is_the_difference_over_its_standard_error_by_hand() -> None:
    rng = np.random.default_rng(0)
    z, w = rng.normal(size=(9, 2)), rng.integers(5, 50, size=(9, 2)).astype(float)
    sample = FisherSample.of((z[:4], w[:4]), np.array(list("abcd")), (z[4:], w[4:]), np.array(list("efghi")))
    found = sample.statistics(sample.neutral[None])[0]
    for k in range(2):
        means, variance = [], 0.0
        for own in (slice(0, 4), slice(4, 9)):
            mean = sum(w[own, k] * z[own, k]) / sum(w[own, k])
            variance += sum((w[own, k] * (z[own, k] - mean)) ** 2) / sum(w[own, k]) ** 2
            means.append(mean)
        assert found[k] == pytest.approx((means[0] - means[1]) / np.sqrt(variance))


def test_labels_are_permuted_within_shared_prompts_and_between_the_others_as_a_whole() -> None:
    values = np.ones((9, 1))
    prompts = np.array(["a", "b", "c"]), np.array(["a", "a", "c", "d", "d", "e"])
    sample = FisherSample.of((values[:3], values[:3]), prompts[0], (values[3:], values[3:]), prompts[1])
    units = sample.units()
    assert len(units.neutral) == 3 + 2 + 1 + 1 + 1  # a: 3 replies, c: 2, b, d and e as a whole
    names = np.array(list("abcde"))[units.prompt]
    permuted = units.permuted(500, np.random.default_rng(0))
    for labels in permuted:
        assert labels[names == "a"].sum() == 2 and labels[names == "c"].sum() == 1
        assert labels[np.isin(names, ["b", "d", "e"])].sum() == 2
    assert 0.2 < 1 - permuted[:, list(names).index("b")].mean() < 0.47  # the run has b in a third of them


def test_no_p_is_below_one_over_the_number_of_shuffles_plus_one() -> None:
    found = measure_couplings(TRAITS, correlated(2, 0.9), neutral=correlated(3, 0.1), **QUICK)
    assert all(c.p == c.q == 0.01 for c in found.together)


def test_q_is_the_share_of_shuffles_whose_largest_statistic_reaches_as_far() -> None:
    rng = np.random.default_rng(1)
    observed, shuffled = rng.normal(0, 2, size=4), rng.normal(size=(99, 4))
    ps, qs = p_values(observed, shuffled)
    for k in range(4):
        assert ps[k] == (1 + sum(abs(row[k]) >= abs(observed[k]) for row in shuffled)) / 100
        assert qs[k] == (1 + sum(max(abs(v) for v in row) >= abs(observed[k]) for row in shuffled)) / 100


@pytest.mark.slow
def test_replies_to_one_prompt_do_not_count_apart() -> None:
    """What all replies to a prompt share in both traits is one piece of chance, not eight."""
    naive = grouped = 0
    for seed in range(25):
        rng = np.random.default_rng(seed)
        made = []
        for _ in range(2):
            common = rng.normal(size=(12, 2, 60))
            made.append([common[i // 8] + 0.3 * rng.normal(size=(2, 60)) for i in range(96)])
        options: Any = {"neutral": made[1], "lags": (1,), "n_shuffles": 199, "max_order": 2, "seed": seed}
        prompts = [[f"{side}{i // 8}" for i in range(96)] for side in "rn"]
        found = measure_couplings(TRAITS[:2], made[0], prompts[0], neutral_groups=prompts[1], **options)
        assert found.n_prompts == found.n_neutral_prompts == 12
        grouped += found.together[0].significant
        naive += measure_couplings(TRAITS[:2], made[0], **options).together[0].significant
    assert grouped <= 4 and naive >= 10


def test_random_directions_are_paired_among_themselves_and_raise_the_bar() -> None:
    control = ["random 1", "random 2", "random 3"]
    run, neutral = (
        [np.concatenate([x[:, :40], y[:, :40]]) for x, y in zip(correlated(a, r), correlated(b, s), strict=True)]
        for a, b, r, s in ((2, 3, 0.5, 0.6), (4, 5, 0.3, 0.3))
    )
    found = measure_couplings([*TRAITS, *control], run, neutral=neutral, control=control, lags=(4,), n_shuffles=199)
    for pairs, names in ((found.control, control), ((*found.together, *found.lagged), TRAITS)):
        assert {t for c in pairs for t in (c.source, c.target)} == set(names)
    assert len(found.together) == 3 and len(found.lagged) == 6 and len(found.control) == 3 + 6
    assert found.to_dict()["control"]["together"]["value"] == 1.0
    share = found.control_share()
    assert share is not None and share.value == 1.0, "every pair of random directions moves as well"
    excess = [abs(c.excess.value) for c in found.control if c.excess is not None and not c.lag]
    assert found.bars[0] == pytest.approx(np.quantile(excess, 0.95)) and found.bars[1] == MIN_EXCESS
    assert all(c.significant and not c.claimed for c in found.together)
    alone = measure_couplings(TRAITS, [z[:3] for z in run], neutral=[z[:3] for z in neutral], lags=(4,), n_shuffles=199)
    assert all(c.claimed for c in alone.together) and alone.control_share() is None


def test_neutral_replies_are_held_against_those_to_other_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    neutral = correlated(6, 0.6, 80)
    found = edges_on_neutral(
        TRAITS, neutral, [f"p{i // 2}" for i in range(80)], n_halvings=4, n_shuffles=199, lags=(4,)
    )
    assert (found.n_prompts, found.n_together, found.n_lagged, found.together) == (40, 12, 24, 0)
    mixed = [*correlated(6, 0.9, 40), *correlated(7, 0.0, 40)]  # prompts of two kinds: halves differ by chance only
    assert edges_on_neutral(TRAITS, mixed, n_halvings=4, n_shuffles=199, lags=(4,)).together <= 1
    compared = []

    def recorded(traits: list[str], run: Innovations, null: Innovations, **options: Any) -> Couplings:
        compared.append((set(run.prompts), set(null.prompts)))
        return compare_couplings(traits, run, null, **options)

    monkeypatch.setattr(coupling_controls, "compare_couplings", recorded)
    edges_on_neutral(TRAITS, neutral, [f"p{i // 2}" for i in range(80)], n_halvings=3, n_shuffles=99, lags=(4,))
    assert all((len(run), len(null), len(run | null)) == (20, 20, 40) for run, null in compared)
    assert compared[0] != compared[1]
    with pytest.raises(SettingError, match="answer 19 prompts; 20 are needed to halve them"):
        edges_on_neutral(TRAITS, neutral, [f"p{i % 19}" for i in range(80)])


def test_lags_that_few_replies_reach_are_not_tested_and_say_so() -> None:
    series = [z[:, :30] if i > 10 else z for i, z in enumerate(replies(3))]
    for run, neutral, what in ((series, replies(4), "replies"), (replies(4), series, "neutral replies")):
        found = measure_couplings(TRAITS, run, neutral=neutral, max_order=2, lags=(4, 32), **QUICK)
        far = of(found, "evil", "deceit", 32)
        assert (far.estimate, far.p, far.q, far.claimed) == (None, None, None, False)
        assert far.reason == f"11 {what} reach over a lag of 32 tokens; 20 are needed."
        assert of(found, "evil", "deceit", 4).p is not None


def test_short_replies_are_left_out_and_counted() -> None:
    series, neutral = replies(3, n=30), replies(4, n=30)
    with_short = [np.ones((3, 1)), *series, np.zeros((3, 11)), np.zeros((3, 0)), np.full((3, 40), np.nan)]
    found = measure_couplings(TRAITS, with_short, neutral=neutral, **QUICK)
    assert (found.left_out, found.n_replies, found.n_neutral) == (4, 30, 30)
    plain = measure_couplings(TRAITS, series, neutral=neutral, **QUICK)
    assert [c.excess and round(c.excess.value, 9) for c in found.lagged] == [
        c.excess and round(c.excess.value, 9) for c in plain.lagged
    ]
    with pytest.raises(SettingError, match="5 of 8 replies have 12 tokens or more; at least 20 are needed"):
        measure_couplings(TRAITS, [*series[:5], *[np.ones((3, 1))] * 3])
    with pytest.raises(SettingError, match="5 of 5 neutral replies have 12 tokens"):
        measure_couplings(TRAITS, series, neutral=series[:5])


def test_an_edge_is_both_significant_and_beyond_the_bar_with_its_whole_interval() -> None:
    def pair(low: float, high: float, q: float | None) -> Coupling:
        excess = Estimate((low + high) / 2, low, high, 20)
        return Coupling("a", "b", 0, excess, excess, excess, q, q, claimed=False, reason=None)

    assert pair(0.2, 0.4, 0.05).exceeds(0.1) and pair(-0.4, -0.2, 0.01).exceeds(0.1)
    assert not pair(0.2, 0.4, 0.06).exceeds(0.1) and not pair(0.2, 0.4, None).exceeds(0.1)
    assert not pair(0.05, 0.4, 0.01).exceeds(0.1) and not pair(-0.4, 0.4, 0.01).exceeds(0.1)


def test_what_cannot_be_judged_is_refused() -> None:
    series = replies(4)
    broken = [z.copy() for z in series]
    broken[5][1, 9] = np.inf
    with pytest.raises(SettingError, match="deceit in reply 5 contains inf at token 9"):
        measure_couplings(TRAITS, broken)
    smooth = [np.stack([np.convolve(row, np.ones(5) / 5, "valid") for row in z]) for z in series]
    with pytest.raises(SettingError, match="flattery: The series look like running means"):
        measure_couplings(TRAITS, smooth)
    flat = [np.stack([z[0], np.zeros(z.shape[1]), z[2]]) for z in series]
    with pytest.raises(SettingError, match="deceit: The series do not vary"):
        measure_couplings(TRAITS, flat)
    settings: Any = (
        {"lags": (0,)}, {"lags": (1, 1)}, {"lags": ()}, {"groups": ["a"]},
        {"control": ["evil", "deceit"]}, {"control": ["random"]}, {"n_shuffles": 9},
    )  # fmt: skip
    for bad in settings:
        with pytest.raises(SettingError):
            measure_couplings(TRAITS, series, **bad)
    with pytest.raises(SettingError, match="answer 9 prompts; at least 10"):
        measure_couplings(TRAITS, series, [f"p{i % 9}" for i in range(len(series))])
    with pytest.raises(SettingError, match="Traits"):
        measure_couplings(["evil"], [z[:1] for z in series])
    with pytest.raises(SettingError, match="Reply 0 has shape"):
        measure_couplings(TRAITS[:2], series)


def test_series_come_from_traces_that_belong_together() -> None:
    baseline, contaminated = (
        [Trace.from_row(r) for r in load_results(SHIPPED, c)][:4] for c in ("baseline", "contaminated")
    )
    series = trait_series(baseline, ("deception", "evil"))
    assert np.array_equal(series[2][1], baseline[2].reply_scores("evil", "z").astype(float))
    raw = trait_series(baseline, ("deception", "evil"), "raw")
    assert np.allclose(np.corrcoef(series[0]), np.corrcoef(raw[0]), atol=1e-5)
    assert len(trait_series(baseline)[0]) == 8
    with pytest.raises(SettingError, match="2 different models"):
        trait_series([baseline[0], contaminated[0]])
    with pytest.raises(SettingError, match="No trace"):
        trait_series([])


@pytest.mark.slow
def test_the_published_baseline_is_as_its_neutral_replies_and_they_as_each_other() -> None:
    rows = {c: load_results(SHIPPED, c) for c in ("baseline", "neutral")}
    traces = {c: [Trace.from_row(r) for r in own] for c, own in rows.items()}
    prompts = {c: [prompt_of(r["id"]) for r in own] for c, own in rows.items()}
    series = {c: trait_series(own) for c, own in traces.items()}
    names = traces["baseline"][0].traits
    found = measure_couplings(
        names, series["baseline"], prompts["baseline"], neutral=series["neutral"], neutral_groups=prompts["neutral"]
    )
    assert len(found.together) == 28 and len(found.lagged) == 56 * len(LAGS)
    assert all(c.estimate is not None for c in found.together)
    # Whitened directions share less: the median over pairs is 0.24 for plain z, and was 0.53 along mean differences.
    assert sum(abs(c.estimate.value) > 0.15 for c in found.together if c.estimate) > 10
    assert not any(c.claimed for c in (*found.together, *found.lagged))
    halves = edges_on_neutral(names, series["neutral"], prompts["neutral"], n_halvings=5, n_shuffles=199)
    assert halves.together == halves.lagged == 0


# ---- the graph ----


def tables() -> tuple[Couplings, PrecedenceTable, InterventionalEffects]:
    series, neutral = replies(5, 0.65, leading(0.25, 4)), replies(6)
    rng = np.random.default_rng(0)
    pushed = rng.normal(size=(12, 2, 3))
    arms = {"evil": pushed + np.array([4.0, 0.0, 6.0])}, {"evil": pushed[::-1]}
    return (
        measure_couplings(TRAITS, series, neutral=neutral, n_shuffles=199),
        precedence(TRAITS, cascade(0), "behaviour", n_resamples=100),
        interventional_effects(TRAITS, arms[0], arms[1], "shown", n_flips=999),
    )


def test_a_graph_holds_the_three_kinds_of_edges_and_all_that_was_tested() -> None:
    couplings, clock, confirmation = tables()
    found = trait_graph(TRAITS, couplings, [clock], [confirmation])
    kinds = {(e.source, e.target, e.kind, e.clock): e for e in found.edges}
    later = kinds["flattery", "deceit", "follows", "series"]
    assert later.lag == 4 and later.estimate is not None and abs(later.estimate.value - 0.25) < 0.07
    assert later.own is not None and later.null is not None and abs(later.null.value) < 0.05
    shown = kinds["flattery", "deceit", "follows", "behaviour"]
    assert shown.estimate is not None and shown.estimate.value == 1.0 and shown.lag is not None and 17 < shown.lag < 23
    pushed = kinds["evil", "flattery", "confirmed", "behaviour"]
    assert pushed.estimate is not None and abs(pushed.estimate.value - 4) < 1 and pushed.lag is None
    assert all(e.q is not None and e.q <= 0.05 for e in found.edges) and not any(
        e.source == e.target for e in found.edges
    )
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert record["nodes"] == TRAITS and len(record["edges"]) == len(found.edges)
    assert len(record["couplings"]["lagged"]) == 6 * len(LAGS) and len(record["couplings"]["together"]) == 3
    assert len(record["clocks"][0]["pairs"]) == 6 and len(record["confirmed"][0]["effects"]) == 3
    assert set(record["edges"][0]) == {
        "source", "target", "kind", "clock", "lag", "estimate", "p", "q", "own", "null",
    }  # fmt: skip
    assert trait_graph(TRAITS).edges == ()
    scores = dataclasses.replace(confirmation, measure="score")
    assert scores.pair("evil", "flattery").significant and trait_graph(TRAITS, confirmed=[scores]).edges == ()
    with pytest.raises(SettingError, match="tables have"):
        trait_graph(["evil"], couplings)


def test_same_token_edges_carry_what_they_are_compared_with() -> None:
    run, neutral = replies(5, 0.65, leading(0.5, 0)), replies(6, 0.65, leading(0.2, 0))
    couplings = measure_couplings(TRAITS, run, neutral=neutral, n_shuffles=199)
    (edge,) = trait_graph(TRAITS, couplings).edges
    assert (edge.kind, edge.lag, edge.clock) == ("together", None, "series")
    assert edge.own is not None and edge.null is not None and edge.estimate is not None
    assert edge.estimate.value == pytest.approx(np.arctanh(edge.own.value) - np.arctanh(edge.null.value))


def test_an_effect_of_steering_is_paired_by_prompt_and_its_p_by_flipping_signs() -> None:
    rng = np.random.default_rng(1)
    prompts: np.ndarray = 5 * rng.normal(size=(12, 1, 1))  # prompts differ far more than the arms
    vector, random = prompts + rng.normal(size=(12, 3, 2)) + np.array([0.0, 1.2]), prompts + rng.normal(size=(12, 3, 2))
    found = interventional_effects(["a", "b"], {"a": vector}, {"a": random}, "score", n_flips=20_000)
    effect = found.pair("a", "b")
    differences = [np.mean(vector[q, :, 1]) - np.mean(random[q, :, 1]) for q in range(12)]
    signs = (np.arange(2**12)[:, None] >> np.arange(12)) % 2 * 2 - 1
    exact = np.mean(np.abs(signs @ differences) >= abs(sum(differences)) - 1e-9)
    none = [np.mean(vector[q, :, 0]) - np.mean(random[q, :, 0]) for q in range(12)]
    chance = np.mean(np.abs(signs @ none) >= abs(sum(none)) - 1e-9)
    assert chance > 0.1 and found.pair("a", "a").p == pytest.approx(chance, abs=0.02)
    assert effect.estimate is not None and effect.estimate.value == pytest.approx(np.mean(differences))
    assert effect.estimate.n == 12 and effect.p == pytest.approx(exact, abs=0.01) and effect.significant
    assert effect.vector == pytest.approx(vector[..., 1].mean()) and effect.random == pytest.approx(
        random[..., 1].mean()
    )
    assert found.pair("a", "a").q is None and not found.pair("a", "a").significant
    with pytest.raises(SettingError, match="not measured"):
        found.pair("b", "a")


def test_steering_without_effect_gives_few_edges() -> None:
    runs = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        arms = [{t: (rng.random((20, 2, 3)) < 0.3).astype(float) for t in TRAITS} for _ in range(2)]
        found = interventional_effects(TRAITS, arms[0], arms[1], "shown", n_flips=999, n_resamples=20)
        runs += any(e.significant for e in found.effects)
    assert runs <= 8


def test_replies_without_a_measure_are_missing_in_both_arms() -> None:
    rng = np.random.default_rng(2)
    vector, random = rng.normal(size=(12, 2, 2)), rng.normal(size=(12, 2, 2))
    vector[0, 0], random[1] = np.nan, np.nan
    effect = interventional_effects(["a", "b"], {"a": vector}, {"a": random}, "score", n_flips=99).pair("a", "b")
    wanted = [vector[0, 1, 1] - random[0, 1, 1], *((vector[q] - random[q]).mean(0)[1] for q in range(2, 12))]
    assert effect.estimate is not None and effect.estimate.n == 11
    assert effect.estimate.value == pytest.approx(np.mean(wanted))
    vector[: 12 - MIN_PROMPTS + 1] = np.nan
    nothing = interventional_effects(["a", "b"], {"a": vector}, {"a": random}, "score", n_flips=99).pair("a", "b")
    assert (nothing.estimate, nothing.p, nothing.q, nothing.significant) == (None, None, None, False)


def test_what_all_traits_but_the_steered_one_share_is_no_effect_of_steering() -> None:
    """A push that makes every score rise: in mean z all are moved, beside each other only the one that rises more."""
    rng = np.random.default_rng(3)
    names = [*TRAITS, "candour"]
    vector, random = (rng.normal(0, 0.3, size=(20, 2, 4)) for _ in range(2))
    vector += np.array([6.0, 2.0, 2.0, 2.0])
    plain = interventional_effects(names, {"flattery": vector}, {"flattery": random}, "score", n_flips=999)
    assert sum(e.significant for e in plain.effects) == 3
    arms = [{"flattery": relative_to_others(arm, 0)} for arm in (vector, random)]
    beside = interventional_effects(names, arms[0], arms[1], "relative", n_flips=999)
    assert sum(e.significant for e in beside.effects) <= 1
    own = beside.pair("flattery", "flattery").estimate
    assert own is not None and abs(own.value - 4) < 0.3
    by_hand = vector[3, 1, 2] - (vector[3, 1, 1] + vector[3, 1, 3]) / 2
    assert relative_to_others(vector, 0)[3, 1, 2] == pytest.approx(by_hand)
    with pytest.raises(SettingError, match="three"):
        relative_to_others(vector[..., :2], 0)


def test_arms_that_do_not_belong_together_are_refused() -> None:
    arm = np.zeros((12, 2, 2))
    for vector, random in (({"a": arm}, {"b": arm}), ({"a": arm}, {"a": arm[:, :1]}), ({"a": arm[:9]}, {"a": arm[:9]})):
        with pytest.raises(SettingError):
            interventional_effects(["a", "b"], vector, random, "score")
    with pytest.raises(SettingError, match="measure"):
        interventional_effects(["a", "b"], {"a": arm}, {"a": arm}, "mood")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="infinity"):
        interventional_effects(["a", "b"], {"a": arm + np.inf}, {"a": arm}, "score")
