"""Couplings between traits: the stated rate where there are none, the planted lag and direction where there is one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.signal import lfilter
from scipy.stats import binomtest, kstest, pearsonr

from persona_core.analysis.graph import trait_graph
from persona_core.analysis.interaction import (
    LAGS,
    MIN_COUPLING,
    Coupling,
    Couplings,
    cosines,
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
from persona_core.errors import SettingError
from persona_core.traces.dataset import load_results
from persona_core.traces.trace import Trace
from tests.analysis.test_precedence import cascade
from tests.traces.test_dataset import SHIPPED

TRAITS = ["flattery", "deceit", "evil"]
Mix = Callable[[np.ndarray], np.ndarray]


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


def of(couplings: Couplings, source: str, target: str, lag: int) -> Coupling:
    (found,) = [c for c in couplings.lagged if (c.source, c.target, c.lag) == (source, target, lag)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("phi", [0.0, 0.65, 0.9])
def test_independent_traits_have_few_couplings_however_slow_they_are(phi: float) -> None:
    significant = tests = runs = 0
    ps = []
    for seed in range(30):
        found = measure_couplings(TRAITS, replies(seed, phi), n_shuffles=499, n_resamples=50, seed=seed)
        hits = sum(c.significant for c in found.lagged)
        significant, tests, runs = significant + hits, tests + len(found.lagged), runs + (hits > 0)
        assert not any(c.claimed for c in (*found.together, *found.lagged))
        ps.append(found.lagged[seed].p)
    assert significant / tests <= 0.05
    assert binomtest(runs, 30, 0.05, "greater").pvalue > 0.01  # 5 % of the runs are expected to have one
    assert kstest(ps, "uniform").pvalue > 0.01


def test_the_naive_rules_would_find_couplings_everywhere() -> None:
    raw = [pearsonr(z[0], z[1]) for seed in range(4) for z in replies(seed, 0.9)]
    assert np.mean([p < 0.05 for _, p in raw]) > 0.4 and np.mean([abs(r) > 0.3 for r, _ in raw]) > 0.25


@pytest.mark.slow
@pytest.mark.parametrize(("phi", "lag"), [(0.0, 4), (0.65, 8), (0.65, 1), (0.9, 16)])
def test_a_planted_lead_is_found_at_its_lag_and_in_its_direction(phi: float, lag: int) -> None:
    right = 0
    for seed in range(12):
        found = measure_couplings(
            TRAITS, replies(100 + seed, phi, leading(0.17, lag)), n_shuffles=499, n_resamples=200, seed=seed
        )
        edges = [(c.source, c.target, c.lag) for c in found.lagged if c.claimed]
        right += edges == [("flattery", "deceit", lag)]
    assert right >= 11


@pytest.mark.slow
def test_what_is_shared_at_the_same_token_does_not_leak_into_the_lags() -> None:
    for phi in (0.65, 0.9):
        runs = 0
        for seed in range(10):
            found = measure_couplings(
                TRAITS, replies(seed, phi, leading(0.6, 0)), n_shuffles=499, n_resamples=100, seed=seed
            )
            first = found.together[0]
            assert first.claimed and first.estimate is not None and abs(first.estimate.value - 0.6) < 0.04
            runs += any(c.significant for c in found.lagged)
            assert not any(c.claimed for c in found.lagged)
        assert runs <= 3


@pytest.mark.slow
@pytest.mark.parametrize(("r", "lag"), [(0.3, 0), (0.2, 4), (0.0, 4)])
def test_intervals_hold_the_truth_as_often_as_they_say(r: float, lag: int) -> None:
    held = 0
    for seed in range(120):
        found = measure_couplings(
            TRAITS[:2],
            replies(seed, 0.65, leading(r, lag), n=40, k=2),
            lags=(4,),
            max_order=2,
            n_shuffles=99,
            n_resamples=400,
            seed=seed,
        )
        estimate = (found.lagged[0] if lag else found.together[0]).estimate
        assert estimate is not None and estimate.n == 40
        held += estimate.low <= r <= estimate.high
    assert 0.90 <= held / 120 <= 0.99


def test_the_pooled_correlation_is_that_of_a_plain_loop() -> None:
    series = replies(7, 0.65, leading(0.4, 3), n=30)
    whitened = [whiten([z[k] for z in series]).innovations for k in range(3)]
    found = measure_couplings(TRAITS, series, lags=(3, 12), n_shuffles=99, n_resamples=50)
    for c in (*found.together, *found.lagged):
        a, b = TRAITS.index(c.source), TRAITS.index(c.target)
        total = weight = 0.0
        for i in range(30):
            n = min(len(trait[i]) for trait in whitened)
            x, y = whitened[a][i][-n:], whitened[b][i][-n:]
            pairs = [(x[t], y[t + c.lag]) for t in range(n - c.lag)]
            if len(pairs) > 3:
                r = pearsonr(*zip(*pairs, strict=True))[0]
                total, weight = total + (len(pairs) - 3) * np.arctanh(r), weight + len(pairs) - 3
        assert c.estimate is not None and c.estimate.value == pytest.approx(np.tanh(total / weight), abs=1e-9)


def test_p_is_the_share_of_shuffles_that_reach_as_far() -> None:
    """By hand: the source of one reply beside the target of another, cut to the shorter."""
    series = replies(8, 0.65, leading(0.05, 2), n=25, k=2)
    found = measure_couplings(TRAITS[:2], series, lags=(2,), n_shuffles=4000, n_resamples=50).lagged[0]
    whitened = [whiten([z[k] for z in series]).innovations for k in range(2)]
    lengths = [min(len(x), len(y)) for x, y in zip(*whitened, strict=True)]
    source, target = ([trait[i][-n:] for i, n in enumerate(lengths)] for trait in whitened)
    rng = np.random.default_rng(99)

    def statistic(order: np.ndarray) -> float:
        total = weight = 0.0
        for i, j in enumerate(order):
            n = min(lengths[i], lengths[j] - 2)  # the target is read two tokens later
            total += (n - 3) * np.arctanh(pearsonr(source[i][:n], target[j][2 : n + 2])[0])
            weight += n - 3
        return float(total / np.sqrt(weight))

    observed = statistic(np.arange(25))
    shuffled = np.array([statistic(rng.permutation(25)) for _ in range(400)])
    by_hand = np.mean(np.abs(shuffled - shuffled.mean()) >= abs(observed - shuffled.mean()))
    assert found.p == pytest.approx(by_hand, abs=0.08)


@pytest.mark.slow
def test_replies_to_one_prompt_do_not_count_apart() -> None:
    """What all replies to a prompt share in both traits is one piece of chance, not eight."""
    naive = grouped = 0
    for seed in range(25):
        rng = np.random.default_rng(seed)
        shared = rng.normal(size=(12, 2, 60))
        series = [shared[i // 8] + 0.3 * rng.normal(size=(2, 60)) for i in range(96)]
        options: Any = {"lags": (1,), "n_shuffles": 499, "n_resamples": 200, "max_order": 2, "seed": seed}
        prompts = [f"p{i // 8}" for i in range(96)]
        together = measure_couplings(TRAITS[:2], series, groups=prompts, **options)
        assert together.n_groups == 12 and together.together[0].estimate.n == 12  # type: ignore[union-attr]
        grouped += together.together[0].significant
        naive += measure_couplings(TRAITS[:2], series, **options).together[0].significant
    assert grouped <= 4 and naive >= 10


def test_lags_that_few_replies_reach_are_not_tested_and_say_so() -> None:
    series = [z[:, :30] if i > 10 else z for i, z in enumerate(replies(3))]
    found = measure_couplings(TRAITS, series, max_order=2, lags=(4, 32), n_shuffles=99, n_resamples=50)
    far = of(found, "evil", "deceit", 32)
    assert (far.estimate, far.p, far.q, far.claimed) == (None, None, None, False)
    assert far.reason == "11 replies reach over a lag of 32 tokens; 20 are needed."
    assert of(found, "evil", "deceit", 4).p is not None


def test_short_replies_are_left_out_and_counted() -> None:
    series = replies(3, n=30)
    with_short = [np.ones((3, 1)), *series, np.zeros((3, 11)), np.zeros((3, 0))]
    options: Any = {"n_shuffles": 99, "n_resamples": 50}
    found, plain = measure_couplings(TRAITS, with_short, **options), measure_couplings(TRAITS, series, **options)
    assert (found.left_out, found.n_replies) == (3, 30)
    assert found.lagged == plain.lagged
    with pytest.raises(SettingError, match="5 of 8 replies have 12 tokens or more; at least 20 are needed"):
        measure_couplings(TRAITS, [*series[:5], *[np.ones((3, 1))] * 3])


def test_what_cannot_be_judged_is_refused() -> None:
    series = replies(4)
    broken = [z.copy() for z in series]
    broken[5][1, 9] = np.nan
    with pytest.raises(SettingError, match="deceit in reply 5 contains nan at token 9"):
        measure_couplings(TRAITS, broken)
    smooth = [np.stack([np.convolve(row, np.ones(5) / 5, "valid") for row in z]) for z in series]
    with pytest.raises(SettingError, match="flattery: The series look like running means"):
        measure_couplings(TRAITS, smooth)
    flat = [np.stack([z[0], np.zeros(z.shape[1]), z[2]]) for z in series]
    with pytest.raises(SettingError, match="deceit: The series do not vary"):
        measure_couplings(TRAITS, flat)
    settings: Any = ({"lags": (0,)}, {"lags": (1, 1)}, {"lags": ()}, {"floor": np.eye(2)}, {"groups": ["a"]})
    for bad in settings:
        with pytest.raises(SettingError):
            measure_couplings(TRAITS, series, **bad)
    with pytest.raises(SettingError, match="Traits"):
        measure_couplings(["evil"], series)
    with pytest.raises(SettingError, match="Reply 0 has shape"):
        measure_couplings(TRAITS[:2], series)


def test_cosines_are_the_floor_of_what_goes_together() -> None:
    rng = np.random.default_rng(0)
    vectors = {t: rng.normal(size=64) for t in TRAITS}
    vectors["deceit"] = vectors["flattery"] + 0.5 * vectors["deceit"]
    floor = cosines(vectors)
    assert floor[0, 1] == pytest.approx(
        sum(a * b for a, b in zip(vectors["flattery"], vectors["deceit"], strict=True))
        / (np.linalg.norm(vectors["flattery"]) * np.linalg.norm(vectors["deceit"]))
    )
    # States that go nowhere in particular: the scores couple by the cosine, and by nothing more.
    series = []
    for _ in range(60):
        states = rng.normal(size=(90, 64))
        series.append(np.stack([states @ (v / np.linalg.norm(v)) for v in vectors.values()]))
    found = measure_couplings(TRAITS, series, floor=floor, n_shuffles=199, n_resamples=200)
    for pair in found.together:
        assert pair.estimate is not None and pair.floor is not None
        assert abs(pair.estimate.value - pair.floor) < 0.06
    assert found.together[0].claimed and not found.together[0].beyond_floor
    assert all(c.floor is None and c.beyond_floor is None for c in found.lagged)
    shared = [z + 2 * rng.normal(size=z.shape[1]) for z in series]
    assert measure_couplings(TRAITS, shared, floor=floor, n_shuffles=99).together[0].beyond_floor
    with pytest.raises(SettingError, match="width"):
        cosines({"a": np.ones(3), "b": np.ones(4)})
    with pytest.raises(SettingError, match="zero length"):
        cosines({"a": np.ones(3), "b": np.zeros(3)})


@pytest.mark.slow
def test_eight_traits_are_held_against_each_other_at_every_lag() -> None:
    found = measure_couplings([f"t{i}" for i in range(8)], replies(0, k=8))
    assert len(found.lagged) == 56 * len(LAGS) and len(found.together) == 28


def test_series_come_from_traces_that_belong_together() -> None:
    baseline, contaminated = (
        [Trace.from_row(r) for r in load_results(SHIPPED, c)][:4] for c in ("baseline", "contaminated")
    )
    series = trait_series(baseline, ("deception", "evil"))
    assert np.array_equal(series[2][1], baseline[2].scores("evil")[baseline[2].reply_positions].astype(float))
    assert len(trait_series(baseline)[0]) == 8
    with pytest.raises(SettingError, match="2 different models"):
        trait_series([baseline[0], contaminated[0]])
    with pytest.raises(SettingError, match="No trace"):
        trait_series([])


@pytest.mark.slow
def test_what_words_alone_do_in_a_model_that_shows_no_trait_is_no_edge() -> None:
    """The published baseline is neutral: significant lags there are, small as they are, and none is claimed."""
    traces = [Trace.from_row(r) for r in load_results(SHIPPED, "baseline")]
    found = measure_couplings(traces[0].traits, trait_series(traces))
    small = [c for c in found.lagged if c.significant]
    assert len(small) > 10 and not any(c.claimed for c in found.lagged)
    assert all(c.estimate is not None and min(abs(c.estimate.low), abs(c.estimate.high)) < MIN_COUPLING for c in small)


# ---- the graph ----


def tables() -> tuple[Couplings, PrecedenceTable, InterventionalEffects]:
    series = replies(5, 0.65, leading(0.2, 4))
    floor = np.full((3, 3), 0.1)
    rng = np.random.default_rng(0)
    pushed = rng.normal(size=(12, 2, 3))
    arms = {"evil": pushed + np.array([4.0, 0.0, 6.0])}, {"evil": pushed[::-1]}
    return (
        measure_couplings(TRAITS, series, floor=floor, n_shuffles=499),
        precedence(TRAITS, cascade(0), "behaviour", n_resamples=100),
        interventional_effects(TRAITS, arms[0], arms[1], "shown", n_flips=999),
    )


def test_a_graph_holds_the_three_kinds_of_edges_and_all_that_was_tested() -> None:
    couplings, clock, confirmation = tables()
    found = trait_graph(TRAITS, couplings, [clock], [confirmation])
    kinds = {(e.source, e.target, e.kind, e.clock): e for e in found.edges}
    later = kinds["flattery", "deceit", "follows", "series"]
    assert later.lag == 4 and later.estimate is not None and abs(later.estimate.value - 0.2) < 0.05
    shown = kinds["flattery", "deceit", "follows", "behaviour"]
    assert shown.estimate is not None and shown.estimate.value == 1.0 and shown.lag is not None and 17 < shown.lag < 23
    pushed = kinds["evil", "flattery", "confirmed", "behaviour"]
    assert pushed.estimate is not None and abs(pushed.estimate.value - 4) < 1 and pushed.lag is None
    assert all(e.q <= 0.05 for e in found.edges) and not any(e.source == e.target for e in found.edges)
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert record["nodes"] == TRAITS and len(record["edges"]) == len(found.edges)
    assert len(record["couplings"]["lagged"]) == 6 * len(LAGS) and len(record["couplings"]["together"]) == 3
    assert len(record["clocks"][0]["pairs"]) == 6 and len(record["confirmed"][0]["effects"]) == 3
    assert set(record["edges"][0]) == {
        "source", "target", "kind", "clock", "lag", "estimate", "p", "q", "floor",
    }  # fmt: skip
    assert trait_graph(TRAITS).edges == ()
    scores = dataclasses.replace(confirmation, measure="score")
    assert scores.pair("evil", "flattery").significant and trait_graph(TRAITS, confirmed=[scores]).edges == ()
    with pytest.raises(SettingError, match="tables have"):
        trait_graph(["evil"], couplings)


def test_same_token_edges_carry_their_floor() -> None:
    couplings = measure_couplings(TRAITS, replies(5, 0.65, leading(0.5, 0)), floor=np.full((3, 3), 0.1), n_shuffles=199)
    (edge,) = trait_graph(TRAITS, couplings).edges
    assert (edge.kind, edge.floor, edge.lag, edge.clock) == ("together", 0.1, None, "series")


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
