"""AUROC held against scikit-learn, and intervals that cover the truth as often as they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from persona_core.analysis.statistics import (
    Estimate,
    auroc,
    auroc_over_replies,
    bounded,
    bounded_difference,
    exact_share,
    false_discovery,
    jackknifed,
    over_clusters,
    pearson,
    rank_auroc,
    share_over_replies,
    sign_flip_p,
)
from persona_core.errors import SettingError

# Few distinct scores: ties everywhere.
scored = st.lists(st.tuples(st.integers(-3, 3), st.booleans(), st.integers(0, 3)), min_size=2, max_size=60)


@settings(deadline=None, max_examples=80)
@given(scored)
def test_auroc_equals_scikit_learns_with_ties(rows: list[tuple[int, bool, int]]) -> None:
    from sklearn.metrics import roc_auc_score

    scores, labels, _ = (np.array(column) for column in zip(*rows, strict=True))
    assume(labels.any() and not labels.all())
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@settings(deadline=None, max_examples=80)
@given(scored)
def test_auroc_equals_scikit_learns_with_weights(rows: list[tuple[int, bool, int]]) -> None:
    from sklearn.metrics import roc_auc_score

    scores, labels, weights = (np.array(column) for column in zip(*rows, strict=True))
    assume(weights[labels].sum() > 0 and weights[~labels].sum() > 0)
    wanted = roc_auc_score(labels, scores, sample_weight=weights)
    assert auroc(scores, labels, weights.astype(float)) == pytest.approx(wanted, abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.booleans()), min_size=2, max_size=40))
def test_auroc_is_unchanged_by_an_increasing_map_and_mirrors_with_the_sign(
    rows: list[tuple[float, bool]],
) -> None:
    scores, labels = (np.array(column) for column in zip(*rows, strict=True))
    assume(labels.any() and not labels.all())
    value = auroc(scores, labels)
    assert auroc(scores * 8.0, labels) == pytest.approx(value, abs=1e-12)
    assert auroc(-scores, labels) == pytest.approx(1 - value, abs=1e-12)
    assert auroc(scores, ~labels) == pytest.approx(1 - value, abs=1e-12)


def test_auroc_is_a_half_where_all_scores_are_equal_and_nan_where_a_class_is_empty() -> None:
    assert auroc(np.zeros(4), np.array([True, False, True, False])) == 0.5
    assert np.isnan(auroc(np.arange(3.0), np.array([True] * 3)))
    assert np.isnan(auroc(np.arange(3.0), np.array([False] * 3)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused(value: float) -> None:
    scores, labels = np.array([0.0, value, 2.0, 3.0]), np.array([True, False, True, False])
    with pytest.raises(SettingError, match="finite"):
        auroc_over_replies([scores, scores], [labels, labels])
    if np.isnan(value):  # infinity has a rank, NaN has none
        with pytest.raises(SettingError):
            auroc(scores, labels)


def test_a_class_without_a_token_is_refused_with_the_counts() -> None:
    scores = [np.arange(3.0), np.arange(2.0)]
    for label, count in ((True, "5 positives of 5"), (False, "0 positives of 5")):
        with pytest.raises(SettingError, match=count):
            auroc_over_replies(scores, [np.full(3, label), np.full(2, label)])


def test_scores_and_labels_of_different_lengths_are_refused() -> None:
    with pytest.raises(SettingError):
        auroc_over_replies([np.arange(3.0), np.arange(2.0)], [np.array([True, False]), np.array([True, False, True])])


# Intervals.


def replies_with_an_effect(rng: np.random.Generator, n: int, shift: float, spread: float) -> Any:
    """Token scores whose noise is half the reply's own (all its tokens move together); labels at random."""
    labels = [rng.random(10) < 0.4 for _ in range(n)]
    scores = [shift * own + rng.normal(0, spread) + rng.normal(0, 1, 10) for own in labels]
    return scores, labels


def test_the_value_is_the_pooled_auroc_and_the_interval_stays_between_0_and_1() -> None:
    from sklearn.metrics import roc_auc_score

    scores, labels = replies_with_an_effect(np.random.default_rng(0), 12, 1.0, 1.0)
    one = auroc_over_replies(scores, labels)
    assert one.value == pytest.approx(roc_auc_score(np.concatenate(labels), np.concatenate(scores)))
    assert 0 < one.low < one.value < one.high < 1 and one.n == 12


def test_the_interval_is_over_whole_replies() -> None:
    """The same tokens, each counted as a reply of its own, would look far more certain than they are."""
    rng = np.random.default_rng(1)
    labels = [np.full(20, i % 2 == 0) for i in range(30)]  # a reply is of one kind as a whole
    scores = [own.astype(float) + rng.normal(0, 2) + rng.normal(0, 1, 20) for own in labels]
    whole = auroc_over_replies(scores, labels)
    tokens = auroc_over_replies([s[None] for s in np.concatenate(scores)], [y[None] for y in np.concatenate(labels)])
    assert whole.value == pytest.approx(tokens.value)
    assert whole.high - whole.low > 2 * (tokens.high - tokens.low)


def test_the_interval_of_an_auroc_covers_the_truth_in_about_95_percent_of_samples() -> None:
    rng, shift, spread, n_samples = np.random.default_rng(2), 1.2, 0.7, 150
    # Two tokens of different replies differ by normal noise of variance 2 (1 + spread²).
    truth = NormalDist().cdf(shift / np.sqrt(2 * (1 + spread**2)))
    covered = 0
    for _ in range(n_samples):
        scores, labels = replies_with_an_effect(rng, 40, shift, spread)
        estimate = auroc_over_replies(scores, labels)
        covered += estimate.low <= truth <= estimate.high
    assert 0.90 <= covered / n_samples <= 0.985


def test_the_interval_of_a_share_covers_the_truth_in_about_95_percent_of_samples() -> None:
    rng, n_samples, truth = np.random.default_rng(3), 300, 2 / 3
    covered = 0
    for _ in range(n_samples):
        totals = rng.integers(3, 9, 60)
        hits = rng.binomial(totals, rng.beta(2, 1, 60))  # replies differ in their own share
        estimate = share_over_replies(hits.tolist(), totals.tolist())
        covered += estimate.low <= truth <= estimate.high
    assert 0.915 <= covered / n_samples <= 0.98


def test_a_share_is_pooled_over_sentences_not_averaged_over_replies() -> None:
    estimate = share_over_replies([1, 0, 8], [1, 1, 8])
    assert estimate.value == 0.9 and estimate.n == 3 and estimate.low <= 0.9 <= estimate.high <= 1.0
    assert share_over_replies([2, 0], [2, 0]).value == 1.0  # an empty reply counts nothing


def test_nothing_to_count_is_refused() -> None:
    for hits, totals in (([], []), ([0, 0], [0, 0])):
        with pytest.raises(SettingError, match="empty"):
            share_over_replies(hits, totals)


def test_an_estimate_is_rounded_and_plain_for_a_config() -> None:
    record = Estimate(0.98765432, 0.9, 1.0, 30).to_dict()
    assert record == {"value": 0.98765, "low": 0.9, "high": 1.0, "n": 30}
    assert json.loads(json.dumps(record)) == record
    assert str(Estimate(0.5, 0.25, 0.75, 3)) == "0.500 [0.250, 0.750]"


def test_a_share_of_zero_has_an_exact_interval() -> None:
    """Resampling zeros gives zeros; 0 of 200 replies do not show that the share is 0."""
    none, every = share_over_replies([0] * 200, [5] * 200), share_over_replies([5] * 200, [5] * 200)
    assert none.value == none.low == 0 and 0.01 < none.high < 0.02
    assert every.value == every.high == 1 and 0.98 < every.low < 0.99


# Clusters: all replies to one question move together.


def estimate(statistic: Callable[[np.ndarray], float], clusters: np.ndarray, n: int, **settings: int) -> Estimate:
    """One that is there."""
    found = over_clusters(statistic, clusters, n, **settings)
    assert found is not None
    return found


def asked_twice(rng: np.random.Generator, n_questions: int, spread: float) -> Any:
    """Five replies of each side to every question; questions differ in their level and in their effect."""
    question = np.repeat(np.arange(n_questions), 10)
    shows = np.tile(np.repeat([True, False], 5), n_questions)
    level, effect = rng.normal(0, spread, (2, n_questions))
    return question, shows, 1.2 * shows + rng.normal(size=len(shows)) + level[question] + effect[question] * shows


def scored_twice(rng: np.random.Generator, n_questions: int, spread: float) -> Any:
    """Ten replies to every question, each with a score and a projection that has to do with it."""
    question = np.repeat(np.arange(n_questions), 10)
    score = rng.normal(size=len(question)) + rng.normal(0, spread, n_questions)[question]
    return question, score, score + rng.normal(size=len(question)) + rng.normal(0, spread, n_questions)[question]


@pytest.mark.parametrize("spread", [0.0, 0.7])
def test_the_interval_over_ten_questions_covers_the_true_auroc(spread: float) -> None:
    rng, n_samples, covered = np.random.default_rng(5), 250, 0
    # Two replies of different questions differ by normal noise of variance 2 + 3 spread².
    truth = NormalDist().cdf(1.2 / np.sqrt(2 + 3 * spread**2))
    for _ in range(n_samples):
        question, shows, values = asked_twice(rng, 10, spread)
        found = estimate(rank_auroc(values, shows), question, 150)
        covered += found.low <= truth <= found.high
    assert 0.90 <= covered / n_samples <= 0.98


@pytest.mark.parametrize("spread", [0.0, 0.7])
def test_the_interval_over_ten_questions_covers_the_true_correlation(spread: float) -> None:
    rng, n_samples, covered = np.random.default_rng(6), 250, 0
    truth = np.sqrt(0.5)  # of the projection's variance, half is the score's
    for _ in range(n_samples):
        question, score, values = scored_twice(rng, 10, spread)
        found = estimate(partial(pearson, values, score), question, 150)
        covered += found.low <= truth <= found.high
    assert 0.90 <= covered / n_samples <= 0.98


def test_the_interval_of_a_mean_is_students() -> None:
    """The half width of Student's interval over 10 values is 2.262 standard errors; a plain percentile gives 1.86."""
    values = np.random.default_rng(7).normal(size=10)
    found = estimate(lambda w: float(w @ values / w.sum()), np.arange(10), 20_000)
    error = values.std(ddof=1) / np.sqrt(10)
    assert (found.high - found.low) / 2 == pytest.approx(2.262 * error, rel=0.06)


def test_repeating_every_observation_three_times_adds_no_certainty() -> None:
    question, shows, values = asked_twice(np.random.default_rng(8), 10, 0.7)
    once = estimate(rank_auroc(values, shows), question, 200)
    thrice = estimate(rank_auroc(np.tile(values, 3), np.tile(shows, 3)), np.tile(question, 3), 200)
    assert thrice.n == 10 and [thrice.low, thrice.high] == pytest.approx([once.low, once.high])
    alone = estimate(rank_auroc(np.tile(values, 3), np.tile(shows, 3)), np.arange(300), 200)
    assert alone.high - alone.low < 0.7 * (once.high - once.low)


def test_the_names_of_clusters_do_not_matter_and_the_seed_does() -> None:
    question, shows, values = asked_twice(np.random.default_rng(9), 24, 0.5)
    one = estimate(rank_auroc(values, shows), question, 100)
    assert estimate(rank_auroc(values, shows), question * 7 + 3, 100) == one
    assert estimate(rank_auroc(values, shows), question, 100, seed=1) != one


def test_what_is_not_defined_has_no_estimate() -> None:
    values, shows = np.arange(6.0), np.array([True, False] * 3)
    assert over_clusters(rank_auroc(values, shows), np.zeros(6), 50) is None, "one question has no spread"
    assert over_clusters(lambda w: float(w @ values), np.arange(6) % 2, 50) is None, "two have too little to go by"
    assert over_clusters(rank_auroc(values[:0], shows[:0]), np.zeros(0), 50) is None
    assert over_clusters(rank_auroc(values, np.ones(6, bool)), np.arange(6), 50) is None
    assert over_clusters(lambda w: pearson(np.ones(6), values, w), np.arange(6), 50) is None
    # Defined on the whole, but on two resamples of five only: those in which the first question comes once.
    assert over_clusters(lambda w: 1.0 if w[0] == 1 else float("nan"), np.arange(6), 200) is None


def test_resamples_without_one_of_the_classes_are_left_out() -> None:
    values, shows = np.arange(24.0), np.array([True] + [False] * 23)  # a third of the resamples miss the only one
    found = estimate(rank_auroc(values, shows), np.arange(24), 400)
    assert found.value == found.low == found.high == 0.0


def test_ranks_found_once_give_the_auroc_of_any_weights() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(10)
    scores, shows = rng.integers(0, 5, 40).astype(float), rng.random(40) < 0.5
    for _ in range(5):
        weights = rng.integers(0, 3, 40).astype(float)
        wanted = roc_auc_score(shows, scores, sample_weight=weights)
        assert rank_auroc(scores, shows)(weights) == pytest.approx(wanted, abs=1e-9)
    for strange in (np.nan, np.inf):
        assert np.isnan(rank_auroc(np.where(scores == 2, strange, scores), shows)(np.ones(40)))


def test_a_weighted_correlation_is_that_of_repeated_rows() -> None:
    rng = np.random.default_rng(11)
    x, y, weights = rng.normal(size=30), rng.normal(size=30), rng.integers(0, 4, 30)
    wanted = np.corrcoef(np.repeat(x, weights), np.repeat(y, weights))[0, 1]
    assert pearson(x, y, weights.astype(float)) == pytest.approx(wanted)
    assert pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])


@pytest.mark.parametrize("still", [np.full(9, 0.1), np.zeros(9), np.full(9, 1e9), np.full(9, np.nan)])
def test_what_does_not_vary_correlates_with_nothing(still: np.ndarray) -> None:
    moving = np.arange(9.0) / 7
    assert np.isnan(pearson(still, moving)) and np.isnan(pearson(moving, still))
    assert np.isnan(pearson(moving, moving, np.zeros(9))) and np.isnan(pearson(moving, moving, np.eye(9)[4]))


# Few clusters, and figures near an end of their range.


@pytest.mark.parametrize("n", [3, 5])
def test_a_mean_over_few_questions_is_covered_as_often_as_it_says(n: int) -> None:
    rng, n_samples, covered = np.random.default_rng(10), 300, 0
    for _ in range(n_samples):
        values = rng.normal(size=n)
        found = estimate(lambda w, x=values: float(w @ x / w.sum()), np.arange(n), 60)  # type: ignore[misc]
        covered += found.low <= 0 <= found.high
    assert 0.915 <= covered / n_samples <= 0.98, "a bootstrap alone covers 72 % for 3 and 91 % for 5"


@pytest.mark.parametrize(("n", "shift"), [(3, 3.0), (5, 1.5), (10, 3.0), (20, 4.5)])
def test_an_auroc_near_one_is_covered_at_least_as_often_as_it_says(n: int, shift: float) -> None:
    rng, n_samples, covered = np.random.default_rng(11), 200, 0
    truth = NormalDist().cdf(shift / np.sqrt(2 * 1.25))
    for _ in range(n_samples):
        question, shows = np.repeat(np.arange(n), 4), np.arange(4 * n) % 2 == 0
        values = shift * shows + rng.normal(size=4 * n) + rng.normal(0, 0.5, n)[question]
        found = bounded(rank_auroc(values, shows), question)
        assert found is not None and 0 <= found.low <= found.value <= found.high <= 1
        covered += found.low <= truth <= found.high
    assert covered / n_samples >= 0.92


@pytest.mark.parametrize(("first", "second"), [(3.0, 3.0), (4.5, 3.0), (4.5, 4.5)])
def test_the_difference_of_two_aurocs_near_one_is_covered_at_least_as_often_as_it_says(
    first: float, second: float
) -> None:
    rng, n, n_samples, covered = np.random.default_rng(12), 10, 200, 0
    truth = NormalDist().cdf(first / np.sqrt(2)) - NormalDist().cdf(second / np.sqrt(2))
    for _ in range(n_samples):
        question, shows = np.repeat(np.arange(n), 4), np.arange(4 * n) % 2 == 0
        shared = rng.normal(size=4 * n)
        a, b = (s * shows + 0.6 * shared + 0.8 * rng.normal(size=4 * n) for s in (first, second))
        found = bounded_difference(rank_auroc(a, shows), rank_auroc(b, shows), question)
        assert found is not None
        covered += found.low <= truth <= found.high
    assert covered / n_samples >= 0.92


def test_a_figure_in_the_middle_of_its_range_has_students_interval_by_the_jackknife_on_the_logit_scale() -> None:
    values = np.random.default_rng(13).uniform(20, 80, 30)
    found = bounded(lambda w: float(w @ values / w.sum()), np.arange(30), 0, 100)
    mean, error = values.mean() / 100, values.std(ddof=1) / np.sqrt(30) / 100
    ends = [np.log(mean / (1 - mean)) + s * 2.04523 * error / (mean * (1 - mean)) for s in (-1, 1)]  # t of 29
    assert found is not None and found.value == pytest.approx(100 * mean) and found.n == 30
    assert [found.low, found.high] == pytest.approx([100 / (1 + np.exp(-x)) for x in ends], rel=1e-4)


def test_without_a_single_error_the_interval_is_exact_with_a_question_as_the_trial() -> None:
    question, shows = np.repeat(np.arange(10), 6), np.arange(60) % 2 == 0
    found = bounded(rank_auroc(shows.astype(float), shows), question)
    exact = exact_share(10, 10)
    assert found is not None and (found.low, found.high) == pytest.approx((exact.low, exact.high))
    perfect = rank_auroc(shows.astype(float), shows)
    same = bounded_difference(perfect, perfect, question)
    assert same is not None and (same.value, same.low, same.high) == pytest.approx((0, exact.low - 1, 1 - exact.low))


def test_what_two_figures_share_cancels_in_their_difference() -> None:
    """In the middle of the range the interval is that of the jackknife of the difference itself."""
    rng, n = np.random.default_rng(15), 30
    question, shows = np.repeat(np.arange(n), 4), np.arange(4 * n) % 2 == 0
    shared = rng.normal(size=4 * n)
    a, b = (rank_auroc(0.9 * shows + shared + 0.2 * rng.normal(size=4 * n), shows) for _ in range(2))
    found, plain = bounded_difference(a, b, question), jackknifed(lambda w: a(w) - b(w), question)
    alone = bounded(a, question)
    assert found is not None and plain is not None and alone is not None
    assert found.high - found.low == pytest.approx(plain.high - plain.low, rel=0.2)
    assert found.high - found.low < 0.6 * (alone.high - alone.low)


def test_two_clusters_have_no_interval_of_any_kind() -> None:
    values, shows = np.arange(8.0), np.arange(8) % 4 < 2
    statistic = rank_auroc(values, shows)
    assert bounded(statistic, np.arange(8) % 2) is None and jackknifed(statistic, np.arange(8) % 2) is None
    assert bounded_difference(statistic, statistic, np.arange(8) % 2) is None
    assert bounded(statistic, np.arange(8) // 2) is not None
    undefined = rank_auroc(values, values == 0)  # without its question there is no positive left
    assert bounded(undefined, np.arange(8) // 2) is None


def test_very_many_clusters_are_left_out_in_groups() -> None:
    """The interval of 2,000 shares is that of the formula, though only 400 groups are left out."""
    rng = np.random.default_rng(14)
    hits = rng.binomial(10, 0.3, 2000)
    found = share_over_replies(hits.tolist(), [10] * 2000)
    error = (hits / 10).std(ddof=1) / np.sqrt(2000)
    assert found.n == 2000 and found.high - found.low == pytest.approx(2 * 1.966 * error, rel=0.15)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_difference_that_is_not_finite_has_no_p_value(value: float) -> None:
    """Every comparison with NaN is false, so it would have p = 0."""
    for n in (4, 40):
        with pytest.raises(SettingError, match=f"differences contain {value}"):
            sign_flip_p([1.0] * n + [value])


def test_q_values_leave_out_what_was_not_tested_and_refuse_what_is_no_p_value() -> None:
    assert false_discovery([None, None]) == [None, None] and false_discovery([]) == []
    for value in (np.nan, -0.1, 1.5):
        with pytest.raises(SettingError, match=f"{value} is no p-value"):
            false_discovery([0.01, None, value])


@pytest.mark.parametrize(("hits", "n"), [(0, 0), (3, 2), (-1, 4)])
def test_a_share_needs_trials(hits: int, n: int) -> None:
    with pytest.raises(SettingError, match=f"{hits} of {n} trials"):
        exact_share(hits, n)
