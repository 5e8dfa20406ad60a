"""One rate for all watched traits: each prompt counts once, every length keeps the rate, fewer traits get lower
thresholds."""

from __future__ import annotations

import json
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from persona_core.analysis.null_peaks import NullPeaks, running_peaks, stretches, supported_length
from persona_core.analysis.onset import OnsetDetector
from persona_core.analysis.onset_calibration import FOLDS, calibrate_onsets
from persona_core.errors import CorruptFile, SettingError, UnknownTrait
from tests.analysis.test_onset import noise

TRAITS = ("evil", "flattery", "refusal")
Replies = list[np.ndarray]


def replies_of(
    rng: np.random.Generator, n_prompts: int, per_prompt: int = 1, lengths: tuple[int, int] = (40, 90), tau: float = 0.4
) -> tuple[dict[str, Replies], list[int]]:
    """Correlated scores of three traits; the replies to one prompt share a shift of all their tokens."""
    found: dict[str, Replies] = {t: [] for t in TRAITS}
    prompts = []
    for prompt in range(n_prompts):
        shift = tau * rng.normal(size=len(TRAITS))
        for _ in range(per_prompt):
            n = int(rng.integers(*lengths))
            shared = noise(rng, n, phi=0.4)
            for k, trait in enumerate(TRAITS):
                found[trait].append(0.5 * shared + 0.8 * noise(rng, n, phi=0.4) + shift[k])
            prompts.append(prompt)
    return found, prompts


def slow_rate(detectors: dict[str, OnsetDetector], replies: dict[str, Replies], upto: int) -> list[bool]:
    """Which replies raise an alarm of any trait by a token."""
    alarms = [[detectors[t].find(z).alarm for z in replies[t]] for t in detectors]
    return [any(a is not None and a < upto for a in one) for one in zip(*alarms, strict=True)]


def peaks_of(values: list[list[float]], prompts: list[int] | None = None) -> NullPeaks:
    """One stretch of ten tokens, one trait a column."""
    array = np.array(values)
    numbers = np.arange(len(array)) if prompts is None else np.array(prompts)
    names = TRAITS[: array.shape[1]]
    return NullPeaks(names, numbers, np.full(len(array), 10), np.array([10]), array[..., None])


def test_the_threshold_is_the_lowest_that_one_more_prompt_could_not_spoil() -> None:
    """(n F + 1) / (n + 1) <= rate: 99 prompts at 5 % leave four alarms."""
    peaks = peaks_of([[float(i)] for i in range(99)])
    threshold = peaks.threshold(0.05)
    assert threshold == 94.0 and sum(i > threshold for i in range(99)) == 4
    assert (4 + 1) / 100 <= 0.05 < (5 + 1) / 100


def test_replies_to_one_prompt_count_once() -> None:
    """Ten replies to a strange prompt, all high, are one alarm among sixty, not ten among sixty-nine."""
    ordinary = [[float(i) / 100] for i in range(59)]
    strange = [[9.0]] * 10
    clustered = peaks_of(ordinary + strange, [*range(59), *[59] * 10])
    apart = peaks_of(ordinary + strange)
    assert clustered.threshold(0.05) < 1.0 <= apart.threshold(0.05)
    assert clustered.rate(5.0).value == pytest.approx(1 / 60) and clustered.rate(5.0).n_prompts == 60


def test_an_alarm_of_any_watched_trait_counts_and_fewer_traits_get_a_lower_threshold() -> None:
    values = np.random.default_rng(0).exponential(size=(400, 3)).round(4)
    peaks = peaks_of(values.tolist())
    for traits in (TRAITS, TRAITS[:2], TRAITS[2:]):
        columns = [TRAITS.index(t) for t in traits]
        largest = values[:, columns].max(1)
        allowed = [c for c in largest if (np.sum(largest > c) + 1) / 401 <= 0.05]
        assert peaks.threshold(0.05, traits) == min(allowed)
        assert peaks.select(traits).threshold(0.05) == min(allowed)
    assert peaks.threshold(0.05) > peaks.threshold(0.05, TRAITS[:1])
    assert peaks.rate(3.0, ["evil"]).value == pytest.approx(np.mean(values[:, 0] > 3.0))


def test_alarms_that_few_replies_could_have_had_count_for_the_many_that_ended_before() -> None:
    """Half of the replies end after 10 tokens: an alarm after that stands for two."""
    n = 100
    lengths = np.repeat([10, 20], n // 2)
    peaks = np.zeros((n, 1, 2))
    peaks[:2, 0] = 5.0  # two short replies alarm early
    peaks[-2:, 0, 1] = 5.0  # two long ones late
    known = NullPeaks(("evil",), np.arange(n), lengths, np.array([10, 20]), peaks)
    early, late = 2 / n, 2 / (n // 2)
    assert known.rate(1.0).value == pytest.approx(early + late)


def test_the_interval_is_the_one_that_the_draw_of_the_prompts_gives() -> None:
    """Over many nulls of 200 prompts, the true rate of the chosen threshold lies in the stated interval."""
    rng, inside, rates = np.random.default_rng(3), [], []
    for _ in range(400):
        peaks = peaks_of(rng.exponential(size=(200, 1)).tolist())
        threshold = peaks.threshold(0.05)
        true, stated = float(np.exp(-threshold)), peaks.rate(threshold)
        inside.append(stated.low <= true <= stated.high)
        rates.append(true)
    assert 0.92 <= np.mean(inside) <= 0.98
    assert 0.045 <= np.mean(rates) <= 0.0505  # on average at most the nominal rate, and hardly less


def test_the_interval_holds_where_late_alarms_weigh_more() -> None:
    """Two thirds of the replies end after 20 tokens, a third after 200: a late alarm stands for three, in its variance
    too. As a plain count it was covered in 77 %, and the value was a fifth too low."""
    rng, n = np.random.default_rng(5), 300
    lengths = np.where(np.arange(n) % 3 == 2, 200, 20)
    ends = stretches(200)
    inside, values, rates = [], [], []
    for _ in range(400):
        peaks = running_peaks(rng.normal(size=(n, 200)), lengths, ends)
        known = NullPeaks(("evil",), np.arange(n), lengths, ends, peaks[:, None])
        threshold = known.threshold(0.05)
        stated = known.rate(threshold)
        true = 1 - NormalDist().cdf(threshold) ** 200
        inside.append(stated.low <= true <= stated.high)
        values.append(stated.value)
        rates.append(true)
    assert 0.93 <= np.mean(inside) <= 0.985
    assert np.mean(values) == pytest.approx(np.mean(rates), abs=0.003)


def test_a_threshold_that_was_not_chosen_from_the_peaks_has_the_exact_binomial_interval() -> None:
    peaks = peaks_of([[float(i)] for i in range(1, 101)])
    for threshold, k in ((90.5, 10), (200.0, 0), (0.5, 100)):
        stated = peaks.rate(threshold)
        exact = binomtest(k, 100).proportion_ci()
        assert stated.value == pytest.approx(k / 100)
        assert (stated.low, stated.high) == pytest.approx((exact.low, exact.high))
    assert peaks.rate(0.0).low == peaks.rate(0.5).low  # no reply has a statistic of 0: it is what is not above 0


def test_no_alarm_at_all_leaves_room_for_one_where_few_replies_arrive() -> None:
    """A third of the replies reaches the end: none in 33 says less than none in 100."""
    lengths = np.where(np.arange(99) % 3 == 2, 20, 10)
    known = NullPeaks(("evil",), np.arange(99), lengths, np.array([10, 20]), np.zeros((99, 1, 2)))
    stated = known.rate(1.0)
    assert stated.value == stated.low == 0.0
    assert stated.high == pytest.approx(binomtest(0, 33).proportion_ci().high)


@pytest.mark.slow
@pytest.mark.parametrize("per_prompt", [1, 3])
def test_new_prompts_alarm_as_often_as_stated_over_all_traits_and_at_every_length(per_prompt: int) -> None:
    alarms: list[bool] = []
    lengths: list[int] = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        nulls, prompts = replies_of(rng, 200, per_prompt)
        detectors, peaks = calibrate_onsets(nulls, prompts=prompts, seed=seed)
        held_out, _ = replies_of(rng, 200)
        alarms += slow_rate(detectors, held_out, int(peaks.ends[-1]))
        lengths += [len(z) for z in held_out["evil"]]
    long = np.array(lengths) >= 70
    assert 0.02 <= np.mean(alarms) <= 0.07
    assert np.mean(np.array(alarms)[long]) <= 0.08


def test_a_null_of_short_replies_states_no_rate_for_long_ones() -> None:
    rng = np.random.default_rng(0)
    nulls, _ = replies_of(rng, 300, lengths=(10, 31))
    for trait in TRAITS:
        nulls[trait][0] = noise(rng, 300)  # a single long one does not make the rate known up to 300 tokens
    detectors, peaks = calibrate_onsets(nulls)
    assert peaks.ends[-1] == detectors["evil"].supported < 30
    assert peaks.n_prompts == detectors["evil"].n_prompts == 300


def test_the_replies_of_one_prompt_never_measure_themselves() -> None:
    """The folds are of prompts: a prompt whose replies differ from all others does not hide in its own scale."""
    rng = np.random.default_rng(1)
    nulls, prompts = replies_of(rng, 80, per_prompt=4, tau=0.0)
    for z in nulls["evil"][:4]:
        z += 6.0
    _, peaks = calibrate_onsets(nulls, prompts=prompts)
    assert (peaks.peaks[:4, 0, -1] > np.sort(peaks.peaks[4:, 0, -1])[-1]).all()


@pytest.mark.parametrize("rate", [0.05, 0.1])
def test_the_detectors_threshold_is_the_one_of_the_rate_that_was_asked_for(rate: float) -> None:
    nulls, _ = replies_of(np.random.default_rng(6), 100, lengths=(60, 61))
    detectors, peaks = calibrate_onsets(nulls, rate=rate, timed=False)
    largest = peaks.peaks.max(axis=(1, 2))  # of each reply, over traits and tokens
    allowed = [c for c in largest if (np.sum(largest > c) + 1) / 101 <= rate]
    for trait, detector in detectors.items():
        assert detector.threshold == min(allowed)
        assert detector.rate == peaks.rate(detector.threshold, [trait]).value


def test_each_folds_peaks_are_those_of_what_was_fitted_on_the_other_folds() -> None:
    """A reply that had a part in its own scale would exceed a threshold less often than a new one."""
    rng, n = np.random.default_rng(7), 100
    nulls = {"evil": [noise(rng, 40) * rng.choice([1.0, 3.0]) for _ in range(n)]}
    _, peaks = calibrate_onsets(nulls, seed=3, timed=False)
    fold = np.random.default_rng(3).permutation(n) % FOLDS
    for part in range(FOLDS):
        others = {"evil": [z for z, own in zip(nulls["evil"], fold, strict=True) if own != part]}
        fitted = calibrate_onsets(others, rate=0.1, timed=False)[0]["evil"]
        for i in np.flatnonzero(fold == part):
            statistic = fitted.statistic(nulls["evil"][i])
            wanted = [max(0.0, *statistic[:end]) for end in peaks.ends]
            np.testing.assert_allclose(peaks.peaks[i, 0], wanted, atol=1e-4)


def test_what_cannot_be_kept_is_refused() -> None:
    peaks = peaks_of([[float(i)] for i in range(99)])
    for rate in (0.0, 0.5, -1.0):
        with pytest.raises(SettingError, match="rate"):
            peaks.threshold(rate)
    with pytest.raises(UnknownTrait, match="greed"):
        peaks.threshold(0.05, ["greed"])
    with pytest.raises(SettingError, match="No trait to watch; name at least one of "):
        peaks.threshold(0.05, [])
    with pytest.raises(SettingError, match="differ in number or length"):
        calibrate_onsets({"a": [np.zeros(5)] * 80, "b": [np.zeros(6)] * 80})


def test_running_peaks_end_with_the_reply() -> None:
    rng = np.random.default_rng(2)
    statistic, lengths, ends = rng.normal(size=(20, 30)), rng.integers(1, 31, 20), stretches(24)
    assert ends.tolist() == [3, 6, 9, 12, 15, 18, 21, 24]
    found = running_peaks(statistic, lengths, ends)
    for i, length in enumerate(lengths):
        for j, end in enumerate(ends):
            assert found[i, j] == pytest.approx(max(0.0, *statistic[i, : min(end, length)]), abs=1e-4)
    assert supported_length(np.array([10, 20, 30, 40]), np.array([0, 0, 1, 2]), 2.5) == 20


def test_peaks_survive_json() -> None:
    nulls, prompts = replies_of(np.random.default_rng(4), 70, 2)
    peaks = calibrate_onsets(nulls, prompts=prompts)[1]
    record = json.loads(json.dumps(peaks.to_dict()))
    again = NullPeaks.from_dict(record)
    assert again.threshold(0.05) == peaks.threshold(0.05)
    np.testing.assert_array_equal(again.peaks, peaks.peaks)
    changes: list[dict[str, Any]] = [{"peaks": []}, {"ends": [3, 2]}, {"prompts": "many"}, {"lengths": [1]}]
    for change in changes:
        with pytest.raises(CorruptFile):
            NullPeaks.from_dict({**record, **change})
