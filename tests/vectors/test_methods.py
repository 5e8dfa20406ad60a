"""From kept replies to a vector: the filter, and each method against plain numpy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_core.elicitation.store import ElicitationRequest, Reply, ReplyScore
from persona_core.errors import SettingError
from persona_core.vectors.extraction import (
    METHODS,
    RunningMean,
    Sides,
    extract,
    keep,
    logistic_probe,
    mean_difference,
    mean_difference_without_neutral_components,
)
from persona_core.vectors.states import ArrayStates


def sides(positive: np.ndarray, negative: np.ndarray, neutral: np.ndarray | None = None) -> Sides:
    nothing = np.empty((0, *positive.shape[1:]))
    return Sides(ArrayStates(positive), ArrayStates(negative), ArrayStates(nothing if neutral is None else neutral))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


# Mean difference.


@settings(deadline=None, max_examples=40)
@given(
    n_positive=st.integers(2, 12),
    n_negative=st.integers(2, 12),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
    seed=st.integers(0),
)
def test_the_vector_is_the_difference_of_the_means(n_positive: int, n_negative: int, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    positive, negative = (rng.normal(5 * scale, scale, (n, 4, 6)).astype("f4") for n in (n_positive, n_negative))
    wanted = positive.astype("f8").mean(0) - negative.astype("f8").mean(0)
    found = mean_difference(sides(positive, negative))
    assert found.dtype == np.float32 and found.shape == (4, 6)
    assert np.allclose(found, wanted, rtol=1e-6, atol=1e-6 * scale)


def test_means_accumulate_beyond_float32() -> None:
    """A large common offset: a float32 sum over many replies would lose the difference."""
    rng = np.random.default_rng(0)
    positive = (1e4 + 1e-2 + rng.normal(0, 1e-3, (4000, 1, 3))).astype("f4")
    negative = (1e4 + rng.normal(0, 1e-3, (4000, 1, 3))).astype("f4")
    wanted = positive.astype("f8").mean(0) - negative.astype("f8").mean(0)
    assert np.allclose(mean_difference(sides(positive, negative)), wanted, rtol=1e-4)


def test_a_running_mean_is_the_mean_in_any_order() -> None:
    states = np.random.default_rng(1).normal(size=(9, 2, 3))
    for order in (range(9), range(8, -1, -1)):
        running = RunningMean()
        for i in order:
            running.add(states[i])
        assert running.count == 9 and np.allclose(running.mean, states.mean(0), rtol=1e-12)
    with pytest.raises(SettingError):
        _ = RunningMean().mean


class OneAtATime:
    """States that count how many were handed out at once."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array.astype("f4")
        self.whole_blocks = 0
        self.n_blocks, self.d_model = int(array.shape[1]), int(array.shape[2])

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self._array)

    def block(self, block: int) -> np.ndarray:
        self.whole_blocks += 1
        return self._array[:, block]

    def take(self, places: Sequence[int] | np.ndarray) -> Any:
        raise AssertionError("not needed")


def test_the_mean_difference_sees_one_reply_at_a_time() -> None:
    rng = np.random.default_rng(0)
    positive, negative = (OneAtATime(rng.normal(size=(9, 3, 4))) for _ in range(2))
    mean_difference(Sides(positive, negative, negative))
    assert positive.whole_blocks == negative.whole_blocks == 0


# The other methods.


def test_the_probe_finds_the_direction_beside_a_channel_a_thousand_times_as_large() -> None:
    """A massive activation that has nothing to do with the trait; the mean difference is thrown off by it."""
    rng = np.random.default_rng(0)
    trait = np.zeros(12)
    trait[3] = 1.0
    noise = rng.normal(size=(300, 2, 12))
    noise[..., 7] *= 1000
    positive, negative = noise[:150] + 1.5 * trait, noise[150:] - 1.5 * trait
    probe, difference = logistic_probe(sides(positive, negative)), mean_difference(sides(positive, negative))
    for block in range(2):
        assert cosine(probe[block], trait) > 0.9 > 0.5 > abs(cosine(difference[block], trait))


def test_the_probes_norm_is_the_distance_of_the_means_along_it() -> None:
    rng = np.random.default_rng(1)
    positive, negative = rng.normal(0.4, 1, (60, 2, 5)), rng.normal(-0.4, 1, (50, 2, 5))
    for vector, gap in zip(logistic_probe(sides(positive, negative)), positive.mean(0) - negative.mean(0), strict=True):
        assert np.linalg.norm(vector) == pytest.approx(vector @ gap / np.linalg.norm(vector), rel=1e-4)


def test_what_neutral_replies_vary_by_is_taken_out() -> None:
    rng = np.random.default_rng(2)
    nuisance = np.linalg.qr(rng.normal(size=(8, 8)))[0][:2]  # two directions of large variance
    neutral = rng.normal(size=(200, 1, 2)) * [9, 7] @ nuisance + rng.normal(0, 0.1, (200, 1, 8))
    positive, negative = rng.normal(1, 0.1, (30, 1, 8)) + 5 * nuisance[0], rng.normal(-1, 0.1, (30, 1, 8))
    found = mean_difference_without_neutral_components(sides(positive, negative, neutral), variance=0.99)[0]
    plain = mean_difference(sides(positive, negative))[0]
    assert np.abs(nuisance @ found).max() < 0.02 * np.linalg.norm(found) < np.abs(nuisance @ plain).max()
    values, axes = np.linalg.eigh(np.cov(neutral[:, 0].T))
    top = axes[:, np.argsort(-values)[:2]]
    assert np.allclose(found, plain - top @ (top.T @ plain), atol=1e-3)


def test_the_fewest_components_that_explain_the_share_are_taken_out() -> None:
    rng = np.random.default_rng(3)
    neutral = np.zeros((400, 1, 4))
    neutral[:, 0] = rng.normal(size=(400, 4)) * [10, 5, 1, 0.1]
    positive, negative = np.ones((3, 1, 4)), np.zeros((3, 1, 4))
    by_share = {
        v: mean_difference_without_neutral_components(sides(positive, negative, neutral), v)[0] for v in (0.5, 0.9)
    }
    assert (np.abs(by_share[0.5]) > 0.5).tolist() == [False, True, True, True]
    assert (np.abs(by_share[0.9]) > 0.5).tolist() == [False, False, True, True]


def test_without_neutral_replies_there_are_no_components() -> None:
    with pytest.raises(SettingError, match="0 neutral replies"):
        mean_difference_without_neutral_components(sides(np.ones((3, 1, 2)), np.zeros((3, 1, 2))))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_points_to_more_of_the_trait(name: str) -> None:
    rng = np.random.default_rng(4)
    positive, negative, neutral = (rng.normal(m, 1, (40, 2, 6)) for m in (0.8, -0.8, 0.0))
    vector = extract("malice", sides(positive, negative, neutral), METHODS[name])
    assert vector.shape == (2, 6) and vector.dtype == np.float32
    assert ((positive * vector).sum(-1).mean(0) > (negative * vector).sum(-1).mean(0)).all()


def test_a_method_of_ones_own_goes_the_same_way() -> None:
    def medians(both: Sides) -> np.ndarray:
        return np.median(list(both.positive), axis=0) - np.median(list(both.negative), axis=0)

    positive, negative = np.ones((3, 2, 4)), np.zeros((3, 2, 4))
    assert (extract("malice", sides(positive, negative), medians) == 1).all()


@pytest.mark.parametrize(
    ("returned", "says"),
    [(np.ones((1, 4)), "shape"), (np.full((2, 4), np.nan), "NaN"), (np.zeros((2, 4)), "zero vector")],
)
def test_a_method_that_returns_no_directions_is_named(returned: np.ndarray, says: str) -> None:
    def odd_one(_: Sides) -> np.ndarray:
        return returned

    with pytest.raises(SettingError, match=f"odd_one.*{says}"):
        extract("malice", sides(np.ones((3, 2, 4)), np.zeros((3, 2, 4))), odd_one)


@pytest.mark.parametrize(("n_positive", "n_negative"), [(0, 5), (1, 5), (5, 1), (5, 0), (0, 0)])
def test_too_few_replies_are_an_error_that_shows_the_counts(n_positive: int, n_negative: int) -> None:
    with pytest.raises(SettingError, match=rf"'malice'.*{n_positive} positive and {n_negative} negative"):
        extract("malice", sides(np.ones((n_positive, 1, 2)), np.zeros((n_negative, 1, 2))), mean_difference)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_mean_state_that_is_not_finite_is_refused(value: float) -> None:
    bad = np.ones((2, 2, 3), "f4")
    bad[1, 1, 2] = value
    with pytest.raises(SettingError, match="NaN or infinity"):
        mean_difference(sides(bad, np.zeros((2, 2, 3))))


# The filter.


def reply(index: int, side: str, n_tokens: int = 4) -> Reply:
    request = ElicitationRequest(index, "extraction", "malice", side, 0, 0, 0, "Be so.", "Hi?")
    return Reply(request, "Text.", (1, 2, 3, 4), n_tokens, "eos", index, "model")


def test_each_side_is_filtered_on_its_own() -> None:
    replies = [reply(i, "positive") for i in range(4)] + [reply(i, "negative") for i in range(4, 9)]
    trait = [50, 49.9, 90, 100, 0, 49.9, 50, 10, 20]
    coherence = [50, 90, 49.9, 90, 90, 90, 90, None, 80]
    scores = {i: ReplyScore(i, t, c, "text") for i, (t, c) in enumerate(zip(trait, coherence, strict=True))}
    kept = keep("malice", replies, scores)
    assert [r.request.index for r in kept.positive] == [0, 3] and [r.request.index for r in kept.negative] == [4, 5, 8]
    assert kept.counts["positive"] == {
        "written": 4, "kept": 2, "no_score": 0, "incoherent": 1, "off_side": 1, "empty": 0
    }  # fmt: skip
    assert kept.counts["negative"]["no_score"] == 1 and kept.counts["negative"]["off_side"] == 1


def test_a_reply_without_a_score_or_without_a_token_is_never_kept() -> None:
    replies = [reply(i, "negative", n_tokens=int(i != 0)) for i in range(4)] + [
        reply(i, "positive") for i in range(4, 7)
    ]
    scores = {i: ReplyScore(i, 0.0 if i < 4 else 100.0, 100.0, "text") for i in (0, 2, 3, 4, 5, 6)}
    assert [r.request.index for r in keep("malice", replies, scores).negative] == [2, 3]


def test_a_filter_that_leaves_nothing_shows_why() -> None:
    replies = [reply(i, "positive") for i in range(3)] + [reply(i, "negative") for i in range(3, 6)]
    scores = {i: ReplyScore(i, 10.0, 90.0, "text") for i in range(6)}
    with pytest.raises(SettingError, match=r"'malice'.*0 positive and 3 negative.*3 off_side"):
        keep("malice", replies, scores)
