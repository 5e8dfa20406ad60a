"""Onsets of whole cohorts: the curve, and whether two cohorts differ."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import CensoredData, kstest, logrank

from persona_core.analysis.onset import Onset
from persona_core.analysis.survival import Lifetime, compare_cohorts, lifetime, survival
from persona_core.errors import SettingError


def cohort(rng: np.random.Generator, n: int = 60, mean: float = 60.0) -> list[Lifetime]:
    """Onsets at a constant rate; replies end at 40 to 100 tokens."""
    onsets, ends = rng.exponential(mean, n).astype(int), rng.integers(40, 100, n)
    return [Lifetime(int(min(o, e)), bool(o < e)) for o, e in zip(onsets, ends, strict=True)]


def test_the_curve_is_that_of_kaplan_and_meier() -> None:
    lifetimes = cohort(np.random.default_rng(0))
    found, share = survival(lifetimes), 1.0
    for token in range(100):
        at_risk = sum(one.tokens >= token for one in lifetimes)
        onsets = sum(one.onset and one.tokens == token for one in lifetimes)
        share *= 1 - onsets / at_risk if at_risk else 1
        assert found.at(token) == pytest.approx(share)
    assert found.n == 60 and found.n_onsets == sum(one.onset for one in lifetimes)
    assert ((found.low <= found.free + 1e-12) & (found.free <= found.high + 1e-12)).all()
    assert found.median == min(t for t in range(100) if found.at(t) <= 0.5)


def test_a_reply_that_ends_without_an_onset_says_nothing_about_later_tokens() -> None:
    ends = [Lifetime(10, False)] * 10 + [Lifetime(50, True)] * 10
    assert survival(ends).at(20) == 1.0 and survival(ends).at(50) == 0.0


def test_the_interval_covers_the_true_share_as_often_as_it_says() -> None:
    truth, covered = np.exp(-30 / 60), 0
    for seed in range(300):
        found = survival(cohort(np.random.default_rng(seed), 78))
        index = int(np.searchsorted(found.tokens, 29, side="right")) - 1
        covered += found.low[index] <= truth <= found.high[index]
    assert 0.92 <= covered / 300 <= 0.98


def test_no_onset_at_all_is_a_flat_line() -> None:
    found = survival([Lifetime(80, False)] * 12)
    assert found.free.tolist() == [1.0] and found.median is None and found.n_onsets == 0
    assert found.low.tolist() == [1.0]  # nothing but ones
    assert compare_cohorts([Lifetime(80, False)] * 12, [Lifetime(60, False)] * 12).p == 1.0


def test_the_statistic_is_the_log_rank_one() -> None:
    rng = np.random.default_rng(2)
    first, second = cohort(rng, mean=80), cohort(rng, mean=40)

    def censored(lifetimes: list[Lifetime]) -> CensoredData:
        return CensoredData(
            uncensored=[one.tokens for one in lifetimes if one.onset],
            right=[one.tokens for one in lifetimes if not one.onset],
        )

    found = compare_cohorts(first, second, 200)
    assert abs(found.statistic) == pytest.approx(abs(logrank(censored(first), censored(second)).statistic))
    assert found.statistic > 0 > compare_cohorts(second, first, 200).statistic
    assert found.p < 0.05


def test_identical_cohorts_give_uniform_p_values() -> None:
    p = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        p.append(compare_cohorts(cohort(rng, 30), cohort(rng, 30), 199, seed).p)
    assert kstest(p, "uniform").pvalue > 0.01
    assert 0.01 <= np.mean(np.array(p) <= 0.05) <= 0.09


def test_a_cohort_against_itself_does_not_differ() -> None:
    own = cohort(np.random.default_rng(3))
    assert (compare_cohorts(own, own).statistic, compare_cohorts(own, own).p) == (0.0, 1.0)


def test_an_answer_becomes_a_lifetime() -> None:
    assert lifetime(Onset("before the reply", 3, None, 20.0), 50) == Lifetime(0, True)
    assert lifetime(Onset("onset", 30, 27, 20.0, 25, 28, 5.0), 50) == Lifetime(27, True)
    assert lifetime(Onset("none", None, None, 2.0), 50) == Lifetime(50, False)


def test_too_few_replies_or_unpaired_ones_are_refused() -> None:
    own = cohort(np.random.default_rng(3))
    with pytest.raises(SettingError, match="3 replies; a survival curve needs at least 10"):
        survival(own[:3])
    with pytest.raises(SettingError, match="for every prompt"):
        compare_cohorts(own, own[:20])
    with pytest.raises(SettingError, match="at least 10"):
        compare_cohorts(own[:5], own[:5])
