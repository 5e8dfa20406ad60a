"""Reading directions: the mean difference, whitened by how states vary within a class."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from persona_core.analysis.statistics import auroc
from persona_core.errors import NumericalError, SettingError
from persona_core.vectors.whitening import (
    MIN_SHRINKAGE,
    ReadingDirections,
    plain_tokens,
    reading_directions,
    within_class_covariance,
)


def anisotropic(n: int, mean: np.ndarray, seed: int) -> np.ndarray:
    """States that vary ten times more along some channels than along others."""
    rng = np.random.default_rng(seed)
    scale = np.geomspace(0.5, 5, len(mean))
    turned = np.linalg.qr(np.random.default_rng(9).normal(size=(len(mean), len(mean))))[0]
    return ((rng.normal(size=(n, len(mean))) * scale) @ turned + mean).astype("f4")


def test_the_covariance_is_ledoit_and_wolfs() -> None:
    classes = [anisotropic(300, np.zeros(12), 1), anisotropic(200, np.full(12, 7.0), 2)]
    found = within_class_covariance(classes, min_shrinkage=0.0)
    centred = np.concatenate([c - c.mean(0) for c in classes])
    oracle = LedoitWolf(assume_centered=True).fit(centred)
    np.testing.assert_allclose(found.shrinkage, oracle.shrinkage_, rtol=1e-4)
    wanted = np.linalg.solve(oracle.covariance_, np.arange(12.0))
    np.testing.assert_allclose(found.solve(np.arange(12.0)[None])[0], wanted, rtol=1e-3)


def test_it_is_shrunk_at_least_as_far_as_is_asked_for() -> None:
    classes = [anisotropic(300, np.zeros(12), 1), anisotropic(200, np.full(12, 7.0), 2)]
    found, rule = within_class_covariance(classes), within_class_covariance(classes, min_shrinkage=0.0)
    assert rule.shrinkage < MIN_SHRINKAGE == found.shrinkage
    wanted = 0.7 * rule.sample + 0.3 * np.trace(rule.sample) / 12 * np.eye(12)
    np.testing.assert_allclose(found.solve(np.arange(12.0)[None])[0], np.linalg.solve(wanted, np.arange(12.0)))


def test_fewer_tokens_than_channels_still_give_a_direction() -> None:
    found = within_class_covariance([anisotropic(60, np.zeros(100), 3)])
    assert 0 < found.shrinkage < 1 and np.isfinite(found.solve(np.ones((1, 100)))).all()


@pytest.mark.parametrize("n", [0, 20])
def test_a_handful_of_tokens_is_refused(n: int) -> None:
    with pytest.raises(SettingError, match=f"{n} sampled tokens"):
        within_class_covariance([np.zeros((n, 4), "f4")])


def test_states_that_do_not_vary_are_refused() -> None:
    with pytest.raises(SettingError, match="nothing to whiten by"):
        within_class_covariance([np.full((600, 4), value, "f4") for value in (1.0, 2.0)])


def test_classes_of_one_token_each_say_nothing_about_how_states_vary() -> None:
    """Around its own mean a single token does not vary: what is left is the rounding of the mean."""
    states = anisotropic(600, np.zeros(12), 1)
    with pytest.raises(SettingError, match="600 sampled tokens in 600 classes"):
        within_class_covariance([one[None] for one in states])
    with pytest.raises(SettingError, match="needs at least 50 more than there are classes"):
        within_class_covariance(np.split(states[:98], 49))
    assert within_class_covariance(np.split(states[:100], 50)).n_tokens == 100


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_state_that_is_not_finite_is_called_that(value: float) -> None:
    states = anisotropic(600, np.zeros(12), 1)
    states[100, 3] = value
    with np.errstate(invalid="ignore"), pytest.raises(NumericalError, match="NaN or infinite"):
        within_class_covariance([states, anisotropic(600, np.zeros(12), 2)])


def test_each_block_is_read_with_its_own_states_of_every_class() -> None:
    """Classes whose states differ from block to block: each block as if it were the only one."""
    rng = np.random.default_rng(4)
    own = {name: [anisotropic(300, rng.normal(size=8), 7 * i + b) * (1 + b) for b in range(3)]
           for i, name in enumerate(("candour", "malice", "other", "neutral"))}  # fmt: skip
    vectors = {t: np.stack([own[t][b].mean(0) - own["neutral"][b].mean(0) for b in range(3)])
               for t in ("candour", "malice")}  # fmt: skip

    def read(blocks: list[int]) -> ReadingDirections:
        at = {name: (lambda b, s=states: s[blocks[b]]) for name, states in own.items()}
        positive = {t: at[t] for t in vectors}
        return reading_directions({t: v[blocks] for t, v in vectors.items()}, positive, [at["other"]], at["neutral"])

    together = read([0, 1, 2])
    for b in range(3):
        alone = read([b])
        for trait in vectors:
            np.testing.assert_array_equal(together.directions[trait][b], alone.directions[trait][0])
            np.testing.assert_array_equal(together.log_odds[trait][b], alone.log_odds[trait][0])
        assert together.shrinkage[b] == alone.shrinkage[0]
    # The log odds cross zero half-way between the means of both classes at this very block.
    for b in range(3):
        slope, offset = together.log_odds["candour"][b]
        middle = (own["candour"][b].mean(0) + own["neutral"][b].mean(0)) / 2 @ together.directions["candour"][b]
        assert slope > 0 and slope * middle + offset == pytest.approx(0, abs=1e-2)


def two_traits(n: int, seed: int) -> dict[str, np.ndarray]:
    means = {"candour": np.eye(16)[0] * 2.0, "malice": np.eye(16)[5] * 2.0, "neutral": np.zeros(16)}
    return {name: anisotropic(n, mean, seed + i) for i, (name, mean) in enumerate(means.items())}


def reading(
    states: dict[str, np.ndarray], whiten: bool = True, min_shrinkage: float = 0.0
) -> tuple[dict[str, np.ndarray], ReadingDirections]:
    vectors = {t: (states[t].mean(0) - states["neutral"].mean(0))[None] for t in ("candour", "malice")}
    positive = {t: (lambda _, t=t: states[t]) for t in vectors}
    return vectors, reading_directions(vectors, positive, [], lambda _: states["neutral"], whiten, min_shrinkage)


def test_the_direction_is_that_of_a_linear_discriminant() -> None:
    states = two_traits(4000, 0)
    vectors, found = reading(states)
    pooled = np.concatenate([s - s.mean(0) for s in states.values()]).astype(float)
    wanted = np.linalg.solve(pooled.T @ pooled, vectors["candour"][0])
    cosine = found.directions["candour"][0] @ wanted / np.linalg.norm(wanted)
    assert cosine > 0.999 and np.linalg.norm(found.directions["candour"][0]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("min_shrinkage", "gain"), [(0.0, 0.15), (MIN_SHRINKAGE, 0.05)])
def test_it_tells_held_out_tokens_apart_where_the_mean_difference_does_not(min_shrinkage: float, gain: float) -> None:
    vectors, found = reading(two_traits(2000, 0), min_shrinkage=min_shrinkage)
    held_out = two_traits(2000, 50)

    def area(direction: np.ndarray) -> float:
        scores = np.concatenate([held_out["candour"] @ direction, held_out["neutral"] @ direction])
        return auroc(scores, np.repeat([True, False], 2000))

    assert area(found.directions["candour"][0]) > area(vectors["candour"][0]) + gain


def test_the_log_odds_are_those_of_a_discriminant_with_equal_priors() -> None:
    states = two_traits(4000, 0)
    _, found = reading(states)
    both = np.concatenate([states["candour"], states["neutral"]])
    oracle = LinearDiscriminantAnalysis(solver="lsqr", priors=[0.5, 0.5]).fit(both, np.repeat([1, 0], 4000))
    slope, offset = found.log_odds["candour"][0]
    ours = slope * (both @ found.directions["candour"][0]) + offset
    np.testing.assert_allclose(ours, oracle.decision_function(both), atol=0.7)
    assert np.corrcoef(ours, oracle.decision_function(both))[0, 1] > 0.995


def test_unwhitened_reading_is_along_the_vector() -> None:
    vectors, found = reading(two_traits(500, 0), whiten=False)
    wanted = vectors["malice"][0] / np.linalg.norm(vectors["malice"][0])
    np.testing.assert_allclose(found.directions["malice"][0], wanted, rtol=1e-5)
    assert found.log_odds["malice"][0, 0] > 0


def test_a_direction_that_points_the_wrong_way_gives_no_evidence() -> None:
    states = two_traits(500, 0)
    turned = {t: -(states[t].mean(0) - states["neutral"].mean(0))[None] for t in ("candour", "malice")}
    positive = {t: (lambda _, t=t: states[t]) for t in turned}
    found = reading_directions(turned, positive, [], lambda _: states["neutral"])
    assert found.log_odds["candour"][0].tolist() == [0.0, 0.0]


def test_sink_tokens_and_empty_slots_are_no_tokens() -> None:
    states = np.ones((2, 3, 4), "f4")
    states[0, 1] = np.nan
    states[1, 2] = np.nan
    assert plain_tokens(states).shape == (4, 4)
