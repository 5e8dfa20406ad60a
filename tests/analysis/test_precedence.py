"""First times on two clocks: which trait comes after which, by how many tokens, and when that is chance."""

from __future__ import annotations

import json
from math import comb

import numpy as np
import pytest
from scipy.stats import binomtest, kstest

from persona_core.analysis.onset_calibration import calibrate_onset
from persona_core.analysis.permutation import MIN_GROUPS, group_indices, trial_shuffles
from persona_core.analysis.precedence import (
    activation_times,
    behaviour_times,
    precedence,
    relative_series,
)
from persona_core.analysis.statistics import false_discovery
from persona_core.errors import SettingError

TRAITS = ["flattery", "deceit", "evil"]


def independent(seed: int, n: int = 78, k: int = 3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random((n, k)) < 0.5, rng.integers(0, 60, size=(n, k)), np.nan)


def cascade(seed: int, n: int = 78, lag: int = 20) -> np.ndarray:
    """In a third of the replies deceit follows flattery by about `lag` tokens; evil comes when it likes."""
    rng = np.random.default_rng(seed)
    times = independent(seed, n)
    times[:, :2] = np.nan
    both = rng.random(n) < 1 / 3
    times[both, 0] = rng.integers(0, 40, size=int(both.sum()))
    times[both, 1] = times[both, 0] + lag + rng.integers(-5, 6, size=int(both.sum()))
    return times


def test_a_planted_order_is_found_with_its_lag_and_its_direction() -> None:
    for seed in range(10):
        clock = precedence(TRAITS, cascade(seed), "behaviour", n_shuffles=999, n_resamples=200, seed=seed)
        assert [(p.source, p.target) for p in clock.pairs if p.claimed][:1] == [("flattery", "deceit")]
        forth, back = clock.pair("flattery", "deceit"), clock.pair("deceit", "flattery")
        assert forth.lag is not None and forth.lag.low <= 20 <= forth.lag.high and abs(forth.lag.value - 20) < 3
        assert forth.first is not None and forth.first.value == 1.0 and forth.n_after == forth.n_both == forth.n_source
        assert back.n_after == 0 and back.p == 1.0 and back.lag is None


def test_the_counts_shares_and_medians_are_those_of_a_plain_loop() -> None:
    times = independent(3, n=40)
    clock = precedence(TRAITS, times, "activation", n_shuffles=99, n_resamples=50)
    for a, source in enumerate(TRAITS):
        for b, target in enumerate(TRAITS):
            if a == b:
                continue
            pair = clock.pair(source, target)
            both = [(t[a], t[b]) for t in times if t[a] == t[a] and t[b] == t[b]]
            ahead = [y - x for x, y in both if y > x]
            exact = binomtest(len(ahead), len(both)).proportion_ci()
            assert (pair.n_both, pair.n_after) == (len(both), len(ahead))
            assert pair.first is not None and (pair.lag is not None) == (len(ahead) >= 3)
            assert pair.first.value == pytest.approx(len(ahead) / len(both))
            assert (pair.first.low, pair.first.high) == pytest.approx((exact.low, exact.high))
            assert pair.lag is None or pair.lag.value == np.median(ahead)


def test_p_is_that_of_a_shuffle_by_hand() -> None:
    """All orders of a small table: six replies show both and in all six deceit is later; the others show neither."""
    times = np.full((20, 2), np.nan)
    times[:6] = [[i, 30 + i] for i in range(6)]
    found = precedence(TRAITS[:2], times, "behaviour", n_shuffles=40_000, n_resamples=50).pair("flattery", "deceit")
    # Deceit comes after flattery in all six only where the same six replies are drawn for it again.
    exact = 1 / comb(20, 6)
    assert found.p is not None and found.p <= 5 / 40_000 and exact < 3e-5
    less = times.copy()
    less[3:6, 1] = np.nan  # three of six: hypergeometric
    found = precedence(TRAITS[:2], less, "behaviour", n_shuffles=40_000, n_resamples=50).pair("flattery", "deceit")
    exact = comb(6, 3) / comb(20, 3)
    assert found.p == pytest.approx(exact, abs=4 * np.sqrt(exact / 40_000))


def test_equal_times_are_no_order() -> None:
    times = np.repeat(np.arange(30.0)[:, None], 2, axis=1)
    clock = precedence(TRAITS[:2], times, "behaviour", n_shuffles=99, n_resamples=50)
    for pair in clock.pairs:
        assert pair.n_both == 30 and pair.n_after == 0 and pair.first is not None and pair.first.value == 0
        assert pair.lag is None and not pair.claimed


def test_traits_that_come_together_in_any_order_do_not_follow_each_other() -> None:
    """A common cause: each is later than the other more often than by chance, but in no more than half."""
    claimed = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        times = np.full((78, 2), np.nan)
        both = rng.random(78) < 0.3
        times[both] = rng.integers(0, 60, size=(int(both.sum()), 2))
        clock = precedence(TRAITS[:2], times, "behaviour", n_shuffles=999, n_resamples=50, seed=seed)
        assert all(pair.p is not None and pair.p < 0.05 for pair in clock.pairs)
        claimed += sum(pair.claimed for pair in clock.pairs)
    assert claimed <= 3


def test_independent_times_give_few_edges_and_uniform_p() -> None:
    edges, ps = 0, []
    for seed in range(100):
        clock = precedence(TRAITS, independent(seed), "behaviour", n_shuffles=199, n_resamples=20, seed=seed)
        edges += any(pair.q is not None and pair.q <= 0.05 for pair in clock.pairs)
        ps.append(clock.pairs[seed % 6].p)
    assert edges <= 10  # of 100 runs; 5 are expected at most
    assert kstest(ps, "uniform").pvalue > 0.01


def test_a_trait_that_never_comes_is_not_tested_and_costs_nothing() -> None:
    times = cascade(0)
    times[:, 2] = np.nan
    clock = precedence(TRAITS, times, "behaviour", n_resamples=50)
    silent = clock.pair("flattery", "evil")
    assert (silent.p, silent.q, silent.first, silent.lag, silent.n_target) == (None, None, None, None, 0)
    forth = clock.pair("flattery", "deceit")
    assert forth.p is not None and forth.q == pytest.approx(2 * forth.p)  # two tests were made, not six


def test_replies_to_one_prompt_do_not_count_apart() -> None:
    """Twelve prompts, ten copies of each reply: what is chance among twelve stays chance."""
    false = 0
    for seed in range(30):
        times = np.repeat(independent(seed, n=12, k=2), 10, axis=0)
        prompts = [f"p{i // 10}" for i in range(120)]
        clock = precedence(TRAITS[:2], times, "behaviour", groups=prompts, n_shuffles=199, n_resamples=50, seed=seed)
        assert clock.n_groups == 12 and clock.n_replies == 120
        false += any(pair.p is not None and pair.p <= 0.05 for pair in clock.pairs)
    alone = [
        precedence(
            TRAITS[:2], np.repeat(independent(s, 12, 2), 10, axis=0), "behaviour", n_shuffles=199, n_resamples=20
        )
        for s in range(30)
    ]
    naive = sum(any(p.p is not None and p.p <= 0.05 for p in clock.pairs) for clock in alone)
    assert false <= 7 and naive >= 12


def test_shuffles_move_whole_groups_and_every_reply_gets_a_partner() -> None:
    group_of = group_indices([str(g) for g in [0] * 3 + list(range(1, 30))], 32)
    rng = np.random.default_rng(0)
    for order in trial_shuffles(group_of, 200, rng):
        assert len(order) == 32 and len({group_of[j] for j in order[:3]}) == 1  # the three stay with one group
        assert sorted({group_of[j] for j in order}) == sorted(set(group_of))
    singles = trial_shuffles(np.arange(25), 200, rng)
    assert all(sorted(order) == list(range(25)) for order in singles)
    assert len({tuple(order) for order in singles}) == 200


def test_activation_times_are_those_of_each_traits_own_detector() -> None:
    rng = np.random.default_rng(0)
    nulls = [rng.normal(size=60) for _ in range(400)]
    flat, strict = calibrate_onset(nulls), calibrate_onset([50 * z for z in nulls])
    late = np.where(np.arange(60) >= 20, 2.0, 0.0)  # a small step: the alarm comes some tokens after the onset
    reply = np.stack([late, late, np.full(60, 2.0)])
    assert (flat.find(late).alarm or 0) > 20
    times = activation_times(TRAITS, [reply], {"flattery": flat, "deceit": strict, "evil": flat})
    assert times[0, 0] == 20 and np.isnan(times[0, 1]) and times[0, 2] == 0
    with pytest.raises(SettingError, match="detector for evil"):
        activation_times(TRAITS, [reply], {"flattery": flat, "deceit": strict})
    with pytest.raises(SettingError, match="2 series; 3 traits are expected"):
        activation_times(TRAITS, [reply[:2]], dict.fromkeys(TRAITS, flat))


def test_relative_series_take_out_what_all_traits_share() -> None:
    rng = np.random.default_rng(0)
    reply, shared = rng.normal(size=(3, 40)), rng.normal(size=40)
    assert np.allclose(relative_series([reply + shared])[0], relative_series([reply])[0])
    by_hand = [reply[1, t] - (reply[0, t] + reply[2, t]) / 2 for t in range(40)]
    assert np.allclose(relative_series([reply])[0][1], by_hand)
    with pytest.raises(SettingError, match="two traits"):
        relative_series([reply[:1]])


def test_behaviour_times_are_the_first_visible_tokens() -> None:
    spans = [[("deceit", 30, 40), ("deceit", 12, 20), ("small talk", 0, 5)], []]
    times = behaviour_times(TRAITS, spans)
    assert times[0, 1] == 12 and np.isnan(times[0, 0]) and np.isnan(times[1]).all()
    with pytest.raises(SettingError, match="Reply 0: a span from 5 to 5"):
        behaviour_times(TRAITS, [[("deceit", 5, 5)]])


def test_false_discovery_is_benjamini_hochberg_by_hand() -> None:
    ps = [0.01, 0.2, None, 0.03, 0.02]
    known = sorted(p for p in ps if p is not None)
    wanted = [None if p is None else min(known[j] * 4 / (j + 1) for j in range(4) if known[j] >= p) for p in ps]
    assert false_discovery(ps) == [None if w is None else pytest.approx(w) for w in wanted]
    assert false_discovery([None]) == [None]


def test_a_clock_is_plain_json() -> None:
    record = json.loads(
        json.dumps(precedence(TRAITS, cascade(1), "behaviour", n_shuffles=99).to_dict(), allow_nan=False)
    )
    assert record["clock"] == "behaviour" and len(record["pairs"]) == 6
    assert set(record["pairs"][0]["first"]) == {"value", "low", "high", "n"} and record["pairs"][2]["lag"] is None


def test_what_cannot_be_told_is_refused() -> None:
    times = cascade(0)
    with pytest.raises(SettingError, match="19 replies; at least 20"):
        precedence(TRAITS, times[:19], "behaviour")
    with pytest.raises(SettingError, match=f"2 groups; at least {MIN_GROUPS}"):
        precedence(TRAITS, times, "behaviour", groups=["a"] * 40 + ["b"] * 38)
    with pytest.raises(SettingError, match="3 groups for 78 replies"):
        precedence(TRAITS, times, "behaviour", groups=["a", "b", "c"])
    with pytest.raises(SettingError, match="shape"):
        precedence(TRAITS[:2], times, "behaviour")
    with pytest.raises(SettingError, match="negative"):
        precedence(TRAITS, times - 100, "behaviour")
    with pytest.raises(SettingError, match="clock"):
        precedence(TRAITS, times, "wall")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="n_shuffles"):
        precedence(TRAITS, times, "behaviour", n_shuffles=20)
