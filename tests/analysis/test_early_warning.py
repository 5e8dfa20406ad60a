"""WHERE: what a score knew before t*, compared with chance, with position alone, and with a slow count by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, mannwhitneyu, norm

from persona_core.analysis.early_warning import (
    alarm_threshold,
    early_warning,
    first_alarm,
    permuted,
)
from persona_core.analysis.separation import separation
from persona_core.errors import SettingError
from tests.analysis.test_onset import noise

Replies = list[np.ndarray]


def replies(rng: np.random.Generator, n: int, **kind: Any) -> Replies:
    return [noise(rng, int(rng.integers(40, 110)), **kind) for _ in range(n)]


def warned(rng: np.random.Generator, n: int, lead: int, size: float = 8.0, **kind: Any) -> tuple[Replies, list[int]]:
    """Replies that rise by `size` from `lead` tokens before t* on."""
    found, first = replies(rng, n, **kind), []
    for z in found:
        at = int(rng.integers(20, len(z)))
        z += size * (np.arange(len(z)) >= at - lead)
        first.append(at)
    return found, first


def by_hand(trait: Replies, first: list[int], neutral: Replies, k: int) -> float:
    """Mean over replies of the share of neutral replies that score lower at the same position; loops only."""
    shares = []
    for z, position in zip(trait, first, strict=True):
        at, won, n = position - k, 0.0, 0
        if at < 0:
            continue
        for other in neutral:
            if at < len(other):
                n += 1
                won += 1.0 if z[at] > other[at] else 0.5 if z[at] == other[at] else 0.0
        if n:
            shares.append(won / n)
    return float(np.mean(shares))


# What the AUROC is.


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(0, 12), levels=st.integers(2, 40))
def test_it_is_what_a_count_by_hand_gives_ties_and_short_replies_included(seed: int, k: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    trait, neutral = (
        [rng.integers(0, levels, int(rng.integers(1, 25))).astype(float) for _ in range(n)] for n in (12, 20)
    )
    first = [int(rng.integers(0, len(z))) for z in trait]
    (found,) = separation(trait, first, neutral, ahead=(k,))
    longest = max(map(len, neutral))
    assert found.n == sum(0 <= position - k < longest for position in first)
    if found.auroc is not None:
        assert found.auroc.value == pytest.approx(by_hand(trait, first, neutral, k))
        assert found.auroc.low <= found.auroc.value <= found.auroc.high


def test_at_one_position_it_is_the_mann_whitney_statistic_and_anywhere_that_over_all_tokens() -> None:
    rng = np.random.default_rng(0)
    trait, neutral = replies(rng, 30), replies(rng, 50)
    (found,) = separation(trait, [15] * 30, neutral, ahead=(3,))
    positive = [z[12] for z in trait]
    same = mannwhitneyu(positive, [z[12] for z in neutral]).statistic / (30 * 50)
    all_tokens = np.concatenate(neutral)
    assert found.auroc is not None and found.auroc.value == pytest.approx(same)
    anywhere = mannwhitneyu(positive, all_tokens).statistic / (30 * len(all_tokens))
    assert found.auroc_anywhere is not None and found.auroc_anywhere.value == pytest.approx(anywhere)


@pytest.mark.parametrize("lead", [0, 2, 5])
def test_a_planted_lead_is_seen_up_to_its_length_and_not_a_token_further(lead: int) -> None:
    rng = np.random.default_rng(lead)
    trait, first = warned(rng, 60, lead)
    found = separation(trait, first, replies(rng, 200), ahead=range(12))
    values = [one.auroc.value for one in found if one.auroc]
    assert min(values[: lead + 1]) > 0.99 and max(values[lead + 1 :]) < 0.65


def test_position_alone_is_at_chance_at_the_same_position_and_not_against_all_tokens() -> None:
    rng = np.random.default_rng(1)
    trait, neutral = ([np.arange(int(rng.integers(50, 90)), dtype=float) for _ in range(n)] for n in (40, 100))
    for one in separation(trait, [int(rng.integers(35, 50)) for _ in trait], neutral):
        assert one.auroc is not None and one.auroc_anywhere is not None
        assert (one.auroc.value, one.auroc.low, one.auroc.high) == (0.5, 0.5, 0.5)
    (late,) = separation(trait, [49] * 40, neutral, ahead=(0,))
    assert late.auroc_anywhere is not None and late.auroc_anywhere.value > 0.65


def test_a_drift_that_all_replies_share_is_no_warning() -> None:
    rng = np.random.default_rng(2)
    trait, first = warned(rng, 80, lead=0, slope=0.2)
    (found,) = separation(trait, first, replies(rng, 300, slope=0.2), ahead=(4,))
    assert found.auroc and found.auroc.low < 0.5 < found.auroc.high
    assert found.auroc_anywhere and found.auroc_anywhere.low > 0.5


def test_full_stops_are_held_against_full_stops_where_the_starts_of_sentences_are_given() -> None:
    """The token before a start dips by 5: at t* - 1 that alone looks like something."""
    rng = np.random.default_rng(3)

    def sentences() -> tuple[np.ndarray, list[int]]:
        starts = [int(p) for p in np.cumsum(rng.integers(4, 16, 12)) if p < 80]
        z = rng.normal(size=80)
        z[np.array(starts) - 1] -= 5.0
        return z, starts

    neutral, starts = zip(*(sentences() for _ in range(300)), strict=True)
    trait, own = zip(*(sentences() for _ in range(40)), strict=True)
    first = [int(rng.choice(s)) for s in own]
    (anywhere,), (start,) = (separation(trait, first, neutral, (1,), neutral_starts=s) for s in (None, starts))
    assert anywhere.auroc and anywhere.auroc.high < 0.2
    assert start.auroc and start.auroc.low < 0.5 < start.auroc.high
    with pytest.raises(SettingError, match="2 lists of starts for 300"):
        separation(trait, first, neutral, (1,), neutral_starts=starts[:2])


# Chance.


@pytest.mark.slow
def test_permuted_labels_give_one_half_although_the_trait_is_there() -> None:
    rng = np.random.default_rng(4)
    trait, first = warned(rng, 60, lead=6)
    neutral = replies(rng, 200)
    values, lengths = [], sorted(map(len, [*trait, *neutral]))
    for seed in range(60):
        again = permuted(trait, first, neutral, seed=seed)
        assert sorted(again[1]) == sorted(first) and sorted(map(len, [*again[0], *again[2]])) == lengths
        values.append([one.auroc.value for one in separation(*again) if one.auroc])
    assert np.abs(np.mean(values, axis=0) - 0.5).max() < 0.025
    real = separation(trait, first, neutral, (4,))[0].auroc
    assert real and real.value > max(v[3] for v in values)


@pytest.mark.parametrize("seed", range(3))
def test_white_noise_and_constants_warn_of_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    trait, neutral = replies(rng, 60, phi=0.0), replies(rng, 400, phi=0.0)
    first = [int(rng.integers(16, len(z))) for z in trait]
    found = early_warning(trait, first, neutral, seed=seed)
    excluded = sum(not one.auroc.low <= 0.5 <= one.auroc.high for one in found.ahead if one.auroc)
    assert excluded <= 1 and found.false_alarms.low <= 0.05 <= found.false_alarms.high
    flat = early_warning([np.ones_like(z) for z in trait], first, [np.ones_like(z) for z in neutral])
    assert {one.auroc.value for one in flat.ahead if one.auroc} == {0.5}
    assert flat.false_alarms.value == 0 and flat.lead.never.value == 1 and flat.lead.quantiles == {}
    assert flat.alarms_per_1000.value == 0 < flat.alarms_per_1000.high < 1


# Intervals.


@pytest.mark.parametrize(
    ("true", "n", "m"), [(0.5, 40, 200), (0.8, 40, 200), (0.8, 200, 30), (0.95, 40, 200), (0.99, 40, 200)]
)
@pytest.mark.slow
def test_the_interval_holds_the_truth_as_often_as_it_says(true: float, n: int, m: int) -> None:
    rng = np.random.default_rng(int(1000 * true))
    level = np.array([0.0, 4.0, -3.0])  # of each position
    covered, runs = 0, 400
    for _ in range(runs):
        trait = rng.normal(norm.ppf(true) * np.sqrt(2), 1, (n, 3)) + level
        neutral = rng.normal(size=(m, 1)) + level  # one neutral reply is as high at every position
        (found,) = separation([*trait], rng.integers(0, 3, n).tolist(), [*neutral], (0,))
        assert found.auroc is not None
        covered += found.auroc.low <= true <= found.auroc.high
    assert 0.93 <= covered / runs <= (0.99 if true < 0.95 else 1.0)


def test_over_groups_it_is_wider_where_replies_to_a_prompt_move_together() -> None:
    own = alone = 0
    runs, true = 200, 0.8
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        prompt = np.repeat(np.arange(30), 8)
        shift = norm.ppf(true) * np.sqrt(2 * 5)
        trait = [np.array([v]) for v in rng.normal(size=240) + 2 * rng.normal(size=30)[prompt] + shift]
        neutral = [np.array([v]) for v in rng.normal(size=240) + 2 * rng.normal(size=30)[prompt]]
        groups = (prompt.tolist(), (100 + prompt).tolist())
        over, by_reply = (separation(trait, [0] * 240, neutral, (0,), g)[0].auroc for g in (groups, None))
        assert over is not None and by_reply is not None and over.value == by_reply.value
        own += over.low <= true <= over.high
        alone += by_reply.low <= true <= by_reply.high
    assert own / runs > 0.91 > 0.75 > alone / runs


def test_a_perfect_score_on_a_few_replies_is_not_certain() -> None:
    trait, neutral = [np.array([9.0])] * 10, [np.array([0.0])] * 10
    (found,) = separation(trait, [0] * 10, neutral, (0,))
    assert found.auroc and found.auroc.value == found.auroc.high == 1.0 and found.auroc.low < 0.75
    (worst,) = separation(neutral, [0] * 10, trait, (0,))
    assert worst.auroc and worst.auroc.value == worst.auroc.low == 0.0 and worst.auroc.high > 0.25


def test_one_narrow_miss_among_many_does_not_make_the_interval_wider_than_none() -> None:
    """On the logit scale alone an AUROC of 0.9998 over 60 replies would reach from 0.1 to 1."""
    rng = np.random.default_rng(0)
    trait, neutral = [np.array([9.0 + v]) for v in rng.random(60)], [np.array([v]) for v in rng.random(90)]
    (perfect,) = separation(trait, [0] * 60, neutral, (0,))
    (nearly,) = separation([np.array([np.sort(np.ravel(neutral))[-2] + 1e-9]), *trait[1:]], [0] * 60, neutral, (0,))
    assert perfect.auroc and nearly.auroc and 0.999 < nearly.auroc.value < 1 == perfect.auroc.value
    assert perfect.auroc.low - 0.02 < nearly.auroc.low < nearly.auroc.value < nearly.auroc.high <= 1


# Alarms.


def test_the_rate_of_false_alarms_is_that_of_whole_replies_and_is_reported_on_others() -> None:
    hits = total = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        trait, first = warned(rng, 5, lead=3)
        neutral = replies(rng, 600)
        found = early_warning(trait, first, neutral, seed=seed)
        others = np.random.default_rng(seed).permutation(600)[1::2]  # not the half that gave the threshold
        assert found.false_alarms.value == np.mean([neutral[i].max() > found.threshold for i in others])
        assert found.n_calibration == found.n_held_out == found.false_alarms.n == 300
        hits += round(found.false_alarms.value * 300)
        total += 300
    interval = binomtest(hits, total).proportion_ci()
    assert 0.03 <= hits / total <= 0.08 and interval.low < 0.055


def test_the_threshold_is_a_quantile_of_largest_scores_and_not_of_tokens() -> None:
    rng = np.random.default_rng(5)
    nulls = replies(rng, 400)
    threshold = alarm_threshold(nulls, 0.05)
    assert sum(z.max() > threshold for z in nulls) == 19  # the 381st of 400
    assert np.mean(np.concatenate(nulls) > threshold) < 0.01


def test_recall_and_lead_times_are_what_a_loop_over_the_replies_counts() -> None:
    rng = np.random.default_rng(6)
    trait, first = warned(rng, 80, lead=5, size=5.0)
    first[0], first[1] = 0, 3  # too early for most k
    found = early_warning(trait, first, replies(rng, 400))
    alarms = [next((t for t, v in enumerate(z) if v > found.threshold), None) for z in trait]
    for one in found.ahead:
        possible = [(a, p) for a, p in zip(alarms, first, strict=True) if p >= one.k]
        in_time = sum(a is not None and a + one.k <= p for a, p in possible)
        exact = binomtest(in_time, len(possible)).proportion_ci()
        assert one.n == len(possible) and one.recall is not None
        assert one.recall.value == pytest.approx(in_time / len(possible))
        assert one.recall.low == pytest.approx(exact.low)
    leads = [p - a for a, p in zip(alarms, first, strict=True) if a is not None]
    assert found.lead.quantiles[0.5] == np.median(leads) and found.lead.quantiles[0.05] == np.quantile(leads, 0.05)
    shares = [found.lead.early.value, found.lead.late.value, found.lead.never.value]
    assert sum(shares) == pytest.approx(1)
    assert shares[0] == pytest.approx(np.mean([a is not None and a < p for a, p in zip(alarms, first, strict=True)]))


def test_recall_falls_with_k_and_an_alarm_at_t_star_is_late() -> None:
    rng = np.random.default_rng(7)
    trait, first = warned(rng, 60, lead=0, size=30.0)
    found = early_warning(trait, first, replies(rng, 400))
    recalls = [one.recall.value for one in found.ahead if one.recall]
    assert recalls[0] > 0.9 > 0.3 > recalls[1] and recalls == sorted(recalls, reverse=True)
    assert found.lead.late.value > 0.7


def test_an_alarm_that_stays_on_is_one_alarm() -> None:
    rng = np.random.default_rng(8)
    neutral = replies(rng, 400, phi=0.8)
    found = early_warning(neutral[:5], [1] * 5, neutral, rate=0.5, seed=3)
    rest = [neutral[i] for i in np.random.default_rng(3).permutation(400)[1::2]]
    crossings = sum(
        z[t] > found.threshold and (t == 0 or z[t - 1] <= found.threshold) for z in rest for t in range(len(z))
    )
    n = sum(map(len, rest))
    assert crossings < sum((z > found.threshold).sum() for z in rest)
    assert found.alarms_per_1000.value == pytest.approx(1000 * crossings / n)
    assert found.alarms_per_1000.low < found.alarms_per_1000.value < found.alarms_per_1000.high


def test_an_alarm_does_not_know_the_future() -> None:
    z = np.array([0.0, 1.0, 5.0, 0.0, 9.0])
    assert first_alarm(z, 4.0) == 2 == first_alarm(z[:3], 4.0) and first_alarm(z[:2], 4.0) is None


def test_each_prompt_counts_once_for_the_threshold() -> None:
    rng = np.random.default_rng(11)
    maxima = rng.normal(size=300)
    of = (-maxima).argsort().argsort()  # by rank: the 100 highest replies answer 10 prompts, the others one each
    of = np.where(of < 100, of // 10, of)
    threshold = alarm_threshold([np.array([-9.0, m]) for m in maxima], 0.1, of.tolist())
    n, allowed = len(set(of.tolist())), []
    for candidate in maxima:
        share = np.mean([np.mean(maxima[of == g] > candidate) for g in set(of.tolist())])
        if (n * share + 1) / (n + 1) <= 0.1:
            allowed.append(candidate)
    assert threshold == min(allowed) < alarm_threshold([np.array([m]) for m in maxima], 0.1) - 0.5


# Sink tokens.


@pytest.mark.parametrize("k", [0, 2])
def test_a_token_without_a_score_is_compared_with_nothing(k: int) -> None:
    rng = np.random.default_rng(12)
    trait, neutral = ([rng.normal(size=12).round(1) for _ in range(n)] for n in (15, 40))
    for z in (*trait, *neutral):
        z[rng.integers(0, 12, size=4)] = np.nan
    first = rng.integers(2, 11, size=15).tolist()
    (found,) = separation(trait, first, neutral, (k,))
    shares, anywhere = [], []
    flat = [v for z in neutral for v in z if v == v]
    for z, at in zip(trait, first, strict=True):
        own = z[at - k]
        others = [v[at - k] for v in neutral if v[at - k] == v[at - k]]
        if own == own and others:
            shares.append(np.mean([(own > v) + (own == v) / 2 for v in others]))
            anywhere.append(np.mean([(own > v) + (own == v) / 2 for v in flat]))
    assert found.n == len(shares) < 15 and found.auroc is not None and found.auroc_anywhere is not None
    assert found.auroc.value == pytest.approx(np.mean(shares))
    assert found.auroc_anywhere.value == pytest.approx(np.mean(anywhere))


def test_an_alarm_goes_on_over_a_sink_token_and_none_is_raised_at_one() -> None:
    rng = np.random.default_rng(13)
    neutral = [rng.normal(size=30) for _ in range(400)]
    high = np.full(30, 50.0)
    high[10] = np.nan
    neutral[:40] = [high] * 40
    found = early_warning([high] * 5, [20] * 5, neutral, rate=0.2, seed=2)
    rest = [neutral[i] for i in np.random.default_rng(2).permutation(400)[1::2]]
    crossings = sum(1 if z is high else sum(z[t] > found.threshold and (t == 0 or z[t - 1] <= found.threshold)
                                            for t in range(30)) for z in rest)  # fmt: skip
    assert found.alarms_per_1000.value == pytest.approx(1000 * crossings / sum(np.isfinite(z).sum() for z in rest))
    gap = np.full(30, 50.0)
    gap[:21] = np.nan
    late = early_warning([gap] * 5, [20] * 5, neutral, rate=0.2, seed=2)
    assert late.ahead[0].n == 0 and late.ahead[0].recall is None and late.lead.late.value == 1.0


# What cannot be judged.


def test_a_k_for_which_no_reply_is_long_enough_is_not_defined_and_not_an_error() -> None:
    rng = np.random.default_rng(9)
    trait = [np.array([3.0]), np.array([4.0])]  # one token, and it shows the trait
    found = early_warning(trait, [0, 0], replies(rng, 400))
    assert found.ahead[0].n == 2 and found.ahead[0].auroc is not None
    for one in found.ahead[1:]:
        assert (one.n, one.auroc, one.auroc_anywhere, one.recall) == (0, None, None, None)
    assert json.loads(json.dumps(found.to_dict()))["ahead"][1]["auroc"] is None


def test_a_reply_longer_than_every_neutral_one_is_not_held_against_anything() -> None:
    (found,) = separation([np.zeros(50)] * 3, [40] * 3, [np.zeros(30)] * 5, (0,))
    assert found.n == 0 and found.auroc is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first": [5, 40]}, "t\\* of reply 1 is 40; the reply has positions 0 to 39"),
        ({"first": [-1, 5]}, "t\\* of reply 0 is -1"),
        ({"first": [5]}, "2 replies with the trait, but 1 positions"),
        ({"trait_scores": [np.zeros(40), np.full(40, np.nan)]}, "Reply 1 has no token with a score"),
        ({"trait_scores": [np.zeros(40), np.full(40, np.inf)]}, "Reply 1 contains inf at token 0"),
        ({"trait_scores": [np.zeros(40), np.zeros(0)]}, "Reply 1 has no token"),
        ({"neutral_scores": [np.full(9, np.inf)] * 400}, "Neutral reply 0 contains inf"),
        ({"neutral_scores": []}, "both are needed"),
        ({"neutral_scores": [np.zeros(9)] * 77}, "77 neutral prompts; rate=0.05 needs 78"),
        ({"rate": 0.005}, "400 neutral prompts; rate=0.005 needs 798"),
        ({"groups": ([1, 2], [i % 60 for i in range(400)])}, "60 neutral prompts; rate=0.05 needs 78"),
        ({"rate": 1.0}, "between 0 and 1"),
        ({"ahead": (-1,)}, "from 0"),
        ({"groups": ([1], [1])}, "1 and 1 groups for 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_bad_input_is_refused_with_the_reason(change: dict[str, Any], message: str) -> None:
    rng = np.random.default_rng(0)
    given: dict[str, Any] = {
        "trait_scores": [rng.normal(size=40) for _ in range(2)],
        "first": [5, 9],
        "neutral_scores": [rng.normal(size=40) for _ in range(400)],
    }
    with pytest.raises(SettingError, match=message):
        early_warning(**(given | change))


def test_smoothed_series_are_refused() -> None:
    rng = np.random.default_rng(0)
    smooth = [np.convolve(z, np.ones(5) / 5, "valid") for z in replies(rng, 400)]
    with pytest.raises(SettingError, match="running means"):
        separation(smooth[:10], [3] * 10, smooth[10:])


# What the threshold has seen, and what counts as early.


def test_the_threshold_uses_one_half_of_the_neutral_replies_and_a_group_is_never_split() -> None:
    rng = np.random.default_rng(3)
    trait, first = warned(rng, 12, lead=3)
    names = [f"p{i % 100}" for i in range(400)]
    level = {f"p{i}": 100.0 * i for i in range(100)}  # all four replies of a prompt have the same maximum
    apart = [np.r_[noise(rng, 60), level[name]] for name in names]
    for seed in range(3):
        found = early_warning(trait, first, apart, groups=([f"t{i}" for i in range(12)], names), seed=seed)
        assert found.n_calibration == found.n_held_out == 200
        # A prompt on both sides would hold the very threshold on the other side too; here it lies between two prompts.
        above = sum(value > found.threshold for value in level.values())
        assert found.false_alarms.value * 50 == pytest.approx(round(found.false_alarms.value * 50))
        assert above >= found.false_alarms.value * 50
    neutral = [noise(rng, 60) for _ in range(400)]
    found = early_warning(trait, first, neutral, seed=1)
    half = [neutral[i] for i in sorted(np.random.default_rng(1).permutation(400)[::2])]
    assert found.threshold == alarm_threshold(half, 0.05)
    rest = [z for i, z in enumerate(neutral) if i not in set(np.random.default_rng(1).permutation(400)[::2].tolist())]
    assert found.false_alarms.value == np.mean([z.max() > found.threshold for z in rest])


def test_an_alarm_at_the_first_trait_token_is_late_and_counted_once() -> None:
    rng = np.random.default_rng(4)
    trait = [np.zeros(40) for _ in range(20)]
    for z in trait:
        z[15:] = 100.0
    found = early_warning(trait, [15] * 20, [noise(rng, 60) for _ in range(400)])
    assert (found.lead.early.value, found.lead.late.value, found.lead.never.value) == (0.0, 1.0, 0.0)
    sooner = early_warning(trait, [16] * 20, [noise(rng, 60) for _ in range(400)])
    assert (sooner.lead.early.value, sooner.lead.late.value) == (1.0, 0.0)
