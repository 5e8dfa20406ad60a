"""WHEN: the stated rate of false alarms holds, a planted step is found where it is, and what cannot be told is said."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from persona_core.analysis.detection_power import power
from persona_core.analysis.onset import OnsetDetector
from persona_core.analysis.onset_calibration import MIN_PROMPTS, calibrate_onset
from persona_core.analysis.series import refuse_smoothed, reply_scores
from persona_core.errors import CorruptFile, SettingError
from persona_core.traces.dataset import load_results
from persona_core.traces.trace import Trace
from tests.traces.test_dataset import SHIPPED


def noise(rng: np.random.Generator, n: int, phi: float = 0.65, slope: float = 0.0) -> np.ndarray:
    """AR(1) of unit variance, drifting over the first 30 tokens."""
    e = rng.normal(0, np.sqrt(1 - phi**2), n + 60)
    x = np.zeros(n + 60)
    for t in range(1, n + 60):
        x[t] = phi * x[t - 1] + e[t]
    return x[60:] + slope * np.minimum(np.arange(n), 30)


def replies(rng: np.random.Generator, n: int, **kind: Any) -> list[np.ndarray]:
    return [noise(rng, int(rng.integers(40, 140)), **kind) for _ in range(n)]


@pytest.fixture(scope="module")
def detector() -> OnsetDetector:
    return calibrate_onset(replies(np.random.default_rng(0), 400))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [{"phi": 0.0}, {"phi": 0.65}, {"phi": 0.65, "slope": 0.05}], ids=str)
def test_the_rate_of_false_alarms_is_the_one_that_is_stated(kind: dict[str, float]) -> None:
    alarms = total = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        found = calibrate_onset(replies(rng, 400, **kind), seed=seed)
        held_out = replies(rng, 300, **kind)
        alarms += sum(found.find(z).answer != "none" for z in held_out)
        total += len(held_out)
    interval = binomtest(alarms, total).proportion_ci()
    assert 0.03 <= alarms / total <= 0.08 and interval.low < 0.07


def test_a_rate_that_ignores_the_reply_would_be_far_off(detector: OnsetDetector) -> None:
    """The contrast: a rule on the first three tokens "finds" something in nearly every neutral reply."""
    rng = np.random.default_rng(9)
    held_out = replies(rng, 300)
    naive = np.mean([(z[3:] > z[:3].mean() + z[:3].std()).any() for z in held_out])
    ours = np.mean([detector.find(z).answer != "none" for z in held_out])
    assert naive > 0.9 and ours < 0.12


def test_a_step_is_found_where_it_is(detector: OnsetDetector) -> None:
    rng = np.random.default_rng(3)
    distances = []
    for _ in range(200):
        at = int(rng.integers(8, 60))
        found = detector.find(noise(rng, 100) + 6.0 * (np.arange(100) >= at))  # the size of the demo's
        assert found.alarm is not None and found.peak > detector.threshold
        if found.onset is not None and found.alarm >= at:
            distances.append(found.onset - at)
    assert len(distances) > 185 and np.mean(np.abs(distances) <= 2) > 0.9


@pytest.mark.parametrize("size", [2.0, 4.0, 7.0])
def test_the_interval_of_an_onset_holds_the_truth_as_often_as_it_says(detector: OnsetDetector, size: float) -> None:
    rng, covered, widths = np.random.default_rng(int(size)), [], []
    for _ in range(500):
        n = int(rng.integers(40, 140))
        at = int(rng.integers(1, n))
        found = detector.find(noise(rng, n) + size * (np.arange(n) >= at))
        if found.low is not None and found.high is not None and found.onset is not None:
            assert 0 <= found.low <= found.onset <= found.high
            covered.append(found.low <= at <= found.high)
            widths.append(found.high - found.low)
    assert 0.92 <= np.mean(covered) <= 0.995
    assert np.median(widths) <= {2.0: 60, 4.0: 15, 7.0: 5}[size]


def test_the_interval_knows_that_a_trait_rises_over_a_few_tokens_and_varies_more_than_neutral_ones(
    detector: OnsetDetector,
) -> None:
    """As in texts of the demo world: at its height after 4 tokens, with 1.8 times the spread."""
    rng, covered = np.random.default_rng(11), []
    for _ in range(400):
        n = int(rng.integers(40, 140))
        at = int(rng.integers(1, n))
        since = np.arange(n) - at
        rise = np.interp(since, [-1, 0, 1, 2, 3], [0.0, 0.28, 0.68, 0.95, 1.0])
        found = detector.find(np.where(since >= 0, 1.8, 1.0) * noise(rng, n) + 5.0 * rise)
        if found.low is not None and found.high is not None:
            covered.append(found.low <= at <= found.high)
    assert len(covered) > 300 and 0.92 <= np.mean(covered) <= 0.995


def test_an_effect_too_small_to_be_timed_is_reported_as_such(detector: OnsetDetector) -> None:
    rng = np.random.default_rng(7)

    def answers(size: float) -> list[Any]:
        found = [detector.find(noise(rng, 120) + size * (np.arange(120) >= 50)) for _ in range(100)]
        return [f for f in found if f.answer == "onset"]

    small, large = answers(1.2), answers(6.0)
    assert np.mean([f.timed for f in small]) < 0.3 and np.mean([f.timed for f in large]) > 0.85
    assert all("too small or too slow to be timed" in str(f) for f in small if not f.timed)
    assert all(str(f).startswith(f"rises at token {f.onset} [") for f in large if f.timed)
    assert detector.smallest is not None and 0.75 <= detector.smallest <= 2.0
    assert np.median([f.size for f in large]) == pytest.approx(6.0, abs=0.7)


def test_a_trait_from_the_first_token_on_is_not_given_an_onset(detector: OnsetDetector) -> None:
    rng = np.random.default_rng(4)
    answers = [detector.find(noise(rng, 60) + 5.0).answer for _ in range(100)]
    assert answers.count("before the reply") > 80 and "none" not in answers
    assert detector.find(np.zeros(60)).answer == "none" and detector.find(np.zeros(0)).answer == "none"
    assert str(detector.find(np.array([0.1]))) == "no reliable onset"
    early = detector.find(np.full(60, 5.0))
    assert str(early) == "not neutral at the first token already, no trait in particular: when it began cannot be said"
    specific = replace(detector, kind="specific").find(np.full(60, 5.0))
    assert str(specific) == "raised at the first token already: when it began cannot be said"


def test_a_score_that_is_high_from_the_start_and_then_far_higher_says_when(detector: OnsetDetector) -> None:
    rng, near = np.random.default_rng(12), []
    for _ in range(100):
        at = int(rng.integers(10, 80))
        found = detector.find(1.8 * noise(rng, 100) + np.where(np.arange(100) < at, 6.0, 60.0))
        assert found.answer == "before the reply" and found.doubles is not None and found.onset is None
        near.append(abs(found.doubles - at) <= 2)
    assert np.mean(near) >= 0.95
    says = str(detector.find(np.repeat([6.0, 60.0], 30)))
    assert says == ("not neutral at the first token already, no trait in particular; more than doubles at token 30")


def test_a_score_that_is_high_at_the_first_tokens_only_says_when_it_falls(detector: OnsetDetector) -> None:
    rng, near = np.random.default_rng(12), []
    for _ in range(100):
        at = int(rng.integers(10, 60))
        found = detector.find(noise(rng, 100) + np.where(np.arange(100) < at, 6.0, 0.0))
        assert found.answer == "before the reply" and found.falls is not None and found.doubles is None
        near.append(abs(found.falls - at) <= 2)
    assert np.mean(near) >= 0.9
    specific = replace(detector, kind="specific")
    assert str(specific.find(np.repeat([6.0, 0.0], 30))) == (
        "raised at the first tokens; falls by more than half at token 30"
    )
    assert str(specific.find(np.repeat([6.0, 0.0, 40.0], 30))).endswith(
        "falls by more than half at token 30, more than doubles at token 60"
    )


@pytest.mark.parametrize(("size", "spread"), [(3.0, 1.0), (4.0, 1.8), (8.0, 1.8), (60.0, 4.0)])
def test_a_steady_score_is_said_neither_to_double_nor_to_fall(
    detector: OnsetDetector, size: float, spread: float
) -> None:
    rng = np.random.default_rng(13)
    found = [detector.find(size + spread * noise(rng, 100)) for _ in range(200)]
    assert sum(f.answer == "before the reply" for f in found) > 150
    assert sum(f.doubles is not None for f in found) <= 10
    assert sum(f.falls is not None for f in found) <= 10


def test_a_fall_is_no_onset(detector: OnsetDetector) -> None:
    assert detector.find(np.repeat([0.0, -6.0], 50)).answer == "none"


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(0, 90), at=st.integers(0, 90), size=st.floats(-2, 8))
def test_the_online_detector_agrees(detector: OnsetDetector, seed: int, n: int, at: int, size: float) -> None:
    z = noise(np.random.default_rng(seed), n) + size * (np.arange(n) >= at)
    whole, online = detector.find(z), detector.online()
    alarms = [t for t, value in enumerate(z) if online.push(float(value))]
    assert (online.result.answer, online.result.onset) == (whole.answer, whole.onset)
    assert (online.result.low, online.result.high) == (whole.low, whole.high)
    assert (online.result.doubles, online.result.falls) == (whole.doubles, whole.falls)
    assert alarms == ([] if whole.alarm is None else [whole.alarm])
    assert online.result.peak == pytest.approx(whole.peak)


def slow_statistic(detector: OnsetDetector, z: np.ndarray) -> list[float]:
    """The larger of the scaled sums after each token, token by token."""
    sums, found = [0.0] * len(detector.drifts), []
    for t, value in enumerate(z):
        if not np.isnan(value):
            position = min(t, len(detector.mean) - 1)
            x = (value - detector.mean[position]) / detector.spread[position]
            sums = [max(0.0, s + x - drift) for s, drift in zip(sums, detector.drifts, strict=True)]
        found.append(max((s - a) / b for s, a, b in zip(sums, detector.location, detector.scale, strict=True)))
    return found


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), gaps=st.sets(st.integers(0, 79)), size=st.floats(0, 8))
def test_a_token_without_evidence_leaves_the_sums_as_they_are_and_counts_as_a_position(
    detector: OnsetDetector, seed: int, gaps: set[int], size: float
) -> None:
    z = noise(np.random.default_rng(seed), 80) + size * (np.arange(80) >= 30)
    z[list(gaps)] = np.nan
    expected = slow_statistic(detector, z)
    np.testing.assert_allclose(detector.statistic(z), expected)
    over = [t for t, value in enumerate(expected) if value > detector.threshold]
    found, online = detector.find(z), detector.online()
    assert found.alarm == (over[0] if over else None)
    for value in z:
        online.push(float(value))
    again = online.result
    assert (again.answer, again.onset, again.low, again.size) == (found.answer, found.onset, found.low, found.size)
    if found.onset is not None:
        assert found.onset not in gaps


def test_a_large_step_is_found_sooner_than_by_a_small_drift_alone_and_a_small_one_as_often() -> None:
    """The reason for two sums: each drift alone loses at one end."""
    rng = np.random.default_rng(0)
    nulls = replies(rng, 400)
    bank, slow, fast = (calibrate_onset(nulls, rate=0.01, drifts=d) for d in ((0.75, 1.5), (0.75,), (1.5,)))
    held_out = replies(rng, 300)

    def delay(detector: OnsetDetector) -> float:
        return power(detector, held_out, 6.0, at=20).delay or 0.0

    def found(detector: OnsetDetector) -> float:
        return power(detector, held_out, 1.5, at=20).found

    assert delay(bank) < delay(slow) and found(bank) > found(fast)


def test_records_with_a_single_drift_give_the_alarms_they_always_gave(detector: OnsetDetector) -> None:
    old = {
        "mean": [0.0] * 32, "spread": [1.0] * 32, "threshold": 9.0, "rate": 0.05, "drift": 0.75, "n_nulls": 400,
        "tested": 139, "errors": detector.to_dict()["errors"], "smallest": 1.0,
    }  # fmt: skip
    restored = OnsetDetector.from_dict(old)
    z = noise(np.random.default_rng(2), 90) + 3.0 * (np.arange(90) >= 30)
    total, alarm = 0.0, None
    for t, value in enumerate(z):
        total = max(0.0, total + value - 0.75)
        if total > 9.0 and alarm is None:
            alarm = t
    assert alarm is not None and restored.find(z).alarm == alarm
    assert (restored.kind, restored.supported, restored.n_prompts) == ("z", 139, 400)


def test_the_alarm_does_not_know_the_future(detector: OnsetDetector) -> None:
    z = noise(np.random.default_rng(5), 90) + 4.0 * (np.arange(90) >= 30)
    found = detector.find(z)
    assert found.alarm is not None
    cut = detector.find(z[: found.alarm + 1])
    assert (cut.answer, cut.alarm, cut.onset) == (found.answer, found.alarm, found.onset)
    assert detector.find(z[: found.alarm]).answer == "none"


def test_small_effects_are_seldom_found_and_the_detector_says_so(detector: OnsetDetector) -> None:
    held_out = replies(np.random.default_rng(6), 300)
    small, large = (power(detector, held_out, shift, at=30) for shift in (0.5, 2.0))
    assert small.found < 0.5 < 0.9 < large.found
    assert large.delay is not None and small.delay is not None and large.delay < small.delay
    with pytest.raises(SettingError, match="longer than 500"):
        power(detector, held_out, 1.0, at=500)


def test_too_few_neutral_replies_say_how_many_are_needed() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(SettingError, match=f"at least {MIN_PROMPTS}"):
        calibrate_onset(replies(rng, MIN_PROMPTS - 1))
    with pytest.raises(SettingError, match="400 neutral replies to 5 different prompts; at least 60"):
        calibrate_onset(replies(rng, 400), prompts=[i % 5 for i in range(400)])
    with pytest.raises(SettingError, match=r"100 neutral prompts are too few for rate=0\.01: it needs 199"):
        calibrate_onset(replies(rng, 100), rate=0.01)
    with pytest.raises(SettingError, match="99 prompts for 100 neutral replies"):
        calibrate_onset(replies(rng, 100), prompts=list(range(99)))
    with pytest.raises(SettingError, match="rate"):
        calibrate_onset(replies(rng, 320), rate=1.0)
    with pytest.raises(SettingError, match="do not vary"):
        calibrate_onset([np.zeros(50)] * 320)
    with pytest.raises(SettingError, match="too short"):
        calibrate_onset([rng.normal(size=1) for _ in range(320)])


def test_series_that_cannot_be_judged_are_refused(detector: OnsetDetector) -> None:
    rng = np.random.default_rng(0)
    z = noise(rng, 50)
    z[7] = np.inf
    with pytest.raises(SettingError, match="at token 7"):
        detector.find(z)
    with pytest.raises(SettingError, match="Neutral reply 2"):
        calibrate_onset([*replies(rng, 2), z, *replies(rng, 320)])
    with pytest.raises(SettingError, match="token 0"):
        detector.online().push(np.inf)
    with pytest.raises(SettingError, match="shape"):
        detector.find(np.zeros((2, 5)))


@pytest.mark.parametrize("window", [2, 3, 5, 10])
@pytest.mark.parametrize("phi", [0.0, 0.65])
def test_smoothed_series_are_refused_and_raw_ones_are_not(phi: float, window: int) -> None:
    raw = replies(np.random.default_rng(window), 300, phi=phi)
    refuse_smoothed(raw)
    with pytest.raises(SettingError, match="running means"):
        calibrate_onset([np.convolve(z, np.ones(window) / window, "valid") for z in raw])


def test_real_series_are_not_taken_for_smoothed_ones_and_mixed_models_are_refused() -> None:
    baseline, contaminated = (
        [Trace.from_row(r) for r in load_results(SHIPPED, c)] for c in ("baseline", "contaminated")
    )
    for trait in baseline[0].traits:
        refuse_smoothed(reply_scores(baseline, trait))
        refuse_smoothed(reply_scores(contaminated, trait))
    with pytest.raises(SettingError, match="2 different models"):
        reply_scores([baseline[0], contaminated[0]], "deception")


def test_a_detector_survives_json_to_the_last_digit(detector: OnsetDetector) -> None:
    again = OnsetDetector.from_dict(json.loads(json.dumps(detector.to_dict())))
    rng = np.random.default_rng(1)
    for size in (0.0, 2.0, 6.0):
        z = noise(rng, 90) + size * (np.arange(90) >= 30)
        assert again.find(z) == detector.find(z)
    changes: list[dict[str, Any]] = [
        {"spread": [0.0] * 32},
        {"mean": [1.0]},
        {"threshold": "high"},
        {"threshold": None},
        {"errors": {}},
        {"scale": [0.0, 1.0]},
        {"drifts": [0.75]},
    ]
    for change in changes:
        with pytest.raises(CorruptFile):
            OnsetDetector.from_dict({**detector.to_dict(), **change})
