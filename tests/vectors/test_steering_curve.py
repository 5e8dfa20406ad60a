"""The random arm is pushed until it is as incoherent as the vector arm, and compared there."""

from __future__ import annotations

import numpy as np
import pytest

from persona_core.vectors.steering_curve import MATCH_STEPS, Scores, _difference, matched_on_coherence, steering_curve
from persona_core.vectors.verdict import steering_flags

QUESTIONS, SEEDS = 12, 3
STRENGTHS = (0.5, 1.0)


class World:
    """Coherence falls with the strength, faster along the vector; the trait comes with incoherence, or along it only.

    Args:
        slope: points of coherence that the random arm loses per unit of strength; the vector arm loses 40.
        along_only: whether random pushes leave the trait alone.
    """

    def __init__(self, slope: float, along_only: bool = True) -> None:
        self.slope, self.along_only = slope, along_only
        self.tried: list[float] = []
        self._rng = np.random.default_rng(0)

    def cell(self, arm: str, strength: float) -> Scores:
        lost = {"none": 0.0, "vector": 40.0, "random": self.slope}[arm] * strength
        trait = lost if arm == "vector" or not self.along_only else 0.0
        noise = self._rng.normal(0, 2, (2, QUESTIONS, SEEDS))
        return {
            (arm, strength, "coherence"): np.clip(100 - lost + noise[0], 0, 100),
            (arm, strength, "trait"): np.clip(trait + noise[1], 0, 100),
        }

    def grid(self) -> Scores:
        cells = [("none", 0.0), *((arm, s) for s in STRENGTHS for arm in ("vector", "random"))]
        return {key: scores for arm, s in cells for key, scores in self.cell(arm, s).items()}

    def more(self, strength: float) -> Scores:
        self.tried.append(strength)
        return self.cell("random", strength)


@pytest.mark.parametrize("slope", [3.0, 10.0, 25.0, 90.0, 300.0])
def test_the_match_has_the_coherence_of_the_vector_arm_whether_random_pushes_do_less_or_more_harm(slope: float) -> None:
    world = World(slope)
    found = matched_on_coherence(world.grid(), 1.0, world.more)
    assert found["coherence_vector"]["value"] == pytest.approx(60, abs=2)
    assert found["coherence_random"]["value"] == pytest.approx(found["coherence_vector"]["value"], abs=5)
    assert found["strength"] == pytest.approx(40 / slope, rel=0.2) and len(world.tried) <= MATCH_STEPS
    assert found["effect"]["low"] > 30


def test_a_trait_that_comes_with_any_incoherence_is_unmasked_by_the_match() -> None:
    """At the same norm the vector is far ahead; at the same coherence it is not."""
    world = World(5.0, along_only=False)
    scores = world.grid()
    curve = steering_curve(scores, STRENGTHS)
    assert curve["effect_at"] == 1.0 and curve["effect"]["low"] > 25
    matched = matched_on_coherence(scores, 1.0, world.more)
    assert matched["effect"]["low"] < 5 and matched["trait_random"]["value"] == pytest.approx(40, abs=6)
    flagged = {**curve, "matched": {**matched, "effect": {**matched["effect"], "low": -1.0}}}
    ((control, says),) = steering_flags(flagged)
    assert control == "steering" and "equal coherence" in says


def test_where_no_random_push_is_as_incoherent_there_is_no_comparison_and_the_control_says_so() -> None:
    world = World(0.0)
    scores = world.grid()
    found = matched_on_coherence(scores, 1.0, world.more)
    assert found["effect"] is None and max(world.tried) == 16.0 and found["coherence_random"]["value"] > 95
    ((control, says),) = steering_flags({**steering_curve(scores, STRENGTHS), "matched": found})
    assert control == "steering" and "at no strength tried were replies along random directions as incoherent" in says


def test_nothing_is_written_where_the_arms_are_equally_coherent_already() -> None:
    world = World(40.0)
    assert matched_on_coherence(world.grid(), 1.0, world.more)["strength"] == 1.0 and not world.tried


def test_a_score_of_zero_everywhere_is_no_certainty() -> None:
    world = World(10.0)
    scores = world.grid()
    scores["none", 0.0, "trait"] = np.zeros((QUESTIONS, SEEDS))
    at_zero = steering_curve(scores, STRENGTHS)["vector"][0]["trait"]
    assert (at_zero["value"], at_zero["low"]) == (0, 0)
    assert at_zero["high"] == pytest.approx(100 * (1 - 0.025 ** (1 / QUESTIONS)), abs=1e-3)


def test_older_curves_without_a_match_are_judged_by_their_effect() -> None:
    older = {"effect": {"value": 20.0, "low": 8.0, "high": 30.0, "n": 10}}
    assert not list(steering_flags(older))


@pytest.mark.parametrize(("share", "concentration"), [(0.1, 1.0), (0.2, 5.0), (0.4, 1.0)])
def test_the_effects_interval_covers_where_the_random_arm_never_shows_the_trait(
    share: float, concentration: float
) -> None:
    """20 questions with 3 replies each, which show the trait or not; 250 data sets."""
    rng, covered, found_some = np.random.default_rng(4), 0, 0
    for _ in range(250):
        of_question = rng.beta(concentration * share, concentration * (1 - share), 20)
        first = 100.0 * (rng.random((20, 3)) < of_question[:, None])
        found = _difference(first, np.zeros((20, 3)))
        assert found is not None
        covered += found["low"] <= 100 * share <= found["high"]
        found_some += found["low"] > 0
    assert covered / 250 >= 0.92
    assert found_some / 250 > (0.9 if share >= 0.2 else 0.1)
