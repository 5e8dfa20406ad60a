"""Other traits' vectors on this trait's replies, and this vector on theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from persona_core.traces.specific import LogOdds
from persona_core.vectors.held_out import CrossTrait, project_states
from persona_core.vectors.specificity import best_other_vector, replies_of_other_traits
from persona_core.vectors.states import ArrayStates, States
from persona_core.vectors.verdict import flags
from tests.support.judged import BEST, D_MODEL, N_BLOCKS, TRAIT, held_out, judged
from tests.vectors.test_validation import figures


def axis(*numbers: int) -> np.ndarray:
    """A vector along the sum of some axes, at every block."""
    return np.tile(np.eye(D_MODEL, dtype=np.float32)[list(numbers)].sum(0), (N_BLOCKS, 1))


def others(n: int = 60, own: float = 0.0, also: float = 0.0, score: float = 3.0, seed: int = 0) -> CrossTrait:
    """Replies to 15 questions that show another trait, along axis 5; `own` of this trait's axis is in their states.

    Args:
        also: the share of them that shows this trait too, at 3 along its axis, as the judge sees.
    """
    rng = np.random.default_rng(seed)
    states, marks = rng.normal(0, 0.5, (n, N_BLOCKS, D_MODEL)), np.full(n, score)
    states[:, :, 5] += 3
    states[:, :, TRAIT] += own
    both = np.arange(n) < also * n
    states[both, :, TRAIT] += 3
    return CrossTrait(ArrayStates(states), np.where(both, 80.0, marks), np.arange(n) % 15)


def calm(n: int = 200, seed: int = 1) -> ArrayStates:
    return ArrayStates(np.random.default_rng(seed).normal(0, 0.5, (n, N_BLOCKS, D_MODEL)))


def along(vector: np.ndarray) -> Callable[[States], np.ndarray]:
    return lambda states: project_states(states, vector, BEST)


# Another trait's vector on this trait's replies.


def test_the_best_other_is_the_one_with_the_highest_auroc_and_the_lead_is_over_it() -> None:
    report = held_out(judged(2, noise=1.5))
    vectors = {"own": axis(TRAIT), "blind": axis(9), "near": axis(TRAIT, 6, 7)}
    found = best_other_vector("own", vectors, BEST, report)
    aurocs = {t: roc_auc_score(report.shows, report.states.block(BEST) @ v[BEST]) for t, v in vectors.items()}
    assert found is not None and found["other"] == "near"
    assert found["auroc"]["value"] == pytest.approx(aurocs["near"], abs=1e-5)
    assert found["own_minus_other"]["value"] == pytest.approx(aurocs["own"] - aurocs["near"], abs=1e-5)


def test_two_vectors_without_an_error_are_not_told_apart() -> None:
    found = figures(judged(1, trait=4.0), judged(2, trait=4.0), {"near": axis(TRAIT, 6)})
    other = found["best_other_vector"]
    assert other["auroc"]["value"] == 1.0 and other["own_minus_other"]["low"] < -0.2
    assert "best_other_vector" in {flag["control"] for flag in found["flags"]}


def test_a_vector_far_ahead_of_the_others_is_not_flagged() -> None:
    found = figures(judged(1), judged(2), {"blind": axis(9)})
    assert found["best_other_vector"]["own_minus_other"]["low"] > 0.1 and not found["flags"]


def test_without_another_vector_at_the_block_there_is_nothing_to_compare() -> None:
    absent = axis(5) * np.nan
    assert best_other_vector("own", {"own": axis(TRAIT)}, BEST, held_out(judged(2))) is None
    assert best_other_vector("own", {"own": axis(TRAIT), "gone": absent}, BEST, held_out(judged(2))) is None


# This vector on other traits' replies.


def flagged(found: dict[str, Any] | None) -> list[str]:
    """Sentences of the control on figures that are fine otherwise."""
    good = figures(judged(1), judged(2), {"blind": axis(9)})
    return [f["says"] for f in flags({**good, "other_traits": found}) if f["control"] == "other_traits"]


def test_shares_and_auroc_are_those_of_plain_counting() -> None:
    report, theirs, neutral = held_out(judged(2)), others(own=0.8), calm()
    found = replies_of_other_traits(along(axis(TRAIT)), report, theirs, neutral)
    own = report.states.block(BEST)[report.shows, TRAIT]
    other = theirs.states.block(BEST)[:, TRAIT]
    level = np.quantile(neutral.block(BEST)[:, TRAIT], 0.95)
    assert found is not None and found["replies"] == 60
    assert found["taken"]["value"] == pytest.approx(np.mean(other > level), abs=1e-5) and found["taken"]["n"] == 15
    assert found["found"]["value"] == pytest.approx(np.mean(own > level), abs=1e-5) and found["found"]["n"] == 20
    pooled = roc_auc_score(np.r_[np.ones(len(own)), np.zeros(60)], np.r_[own, other])
    assert found["auroc"]["value"] == pytest.approx(pooled, abs=1e-5) and found["auroc"]["n"] == 35


def test_a_vector_of_anything_unusual_takes_the_replies_of_other_traits_for_its_own() -> None:
    """It tells its trait from neutral without an error, and fires on every other trait too."""
    found = replies_of_other_traits(along(axis(TRAIT, 5)), held_out(judged(2)), others(), calm())
    assert found is not None and found["taken"]["value"] == 1.0 and flagged(found)


def test_a_vector_that_fires_on_many_of_them_is_flagged_though_its_own_score_higher() -> None:
    report = held_out(judged(2, trait=3.0))
    found = replies_of_other_traits(along(axis(TRAIT)), report, others(own=1.0), calm())
    assert found is not None and found["auroc"]["low"] > 0.9 and found["taken"]["low"] > 0.3
    assert "not neutral, rather than which trait" in flagged(found)[0]


def test_a_specific_vector_is_not_flagged() -> None:
    found = replies_of_other_traits(along(axis(TRAIT)), held_out(judged(2)), others(), calm())
    assert found is not None and found["taken"]["value"] < 0.15 and not flagged(found)


def test_replies_that_show_both_traits_do_not_count_as_taken() -> None:
    found = replies_of_other_traits(along(axis(TRAIT)), held_out(judged(2)), others(also=0.5), calm())
    assert found is not None and found["replies"] == 30 and found["taken"]["value"] < 0.2
    assert replies_of_other_traits(along(axis(TRAIT)), held_out(judged(2)), others(also=1.0), calm()) is None


def test_without_neutral_replies_only_the_auroc_is_known() -> None:
    found = replies_of_other_traits(along(axis(TRAIT)), held_out(judged(2)), others(), None)
    assert found is not None and found["taken"] is found["found"] is None and found["auroc"] is not None
    assert not flagged(found)


def test_the_specific_score_decides_where_there_is_one() -> None:
    """Both vectors see that a reply is not neutral; their odds against each other tell the two traits apart."""
    shared, made_of, read, theirs = 6, judged(1, trait=2.0), judged(2, trait=2.0), others()
    for states, shows in (
        (made_of.states, made_of.positive),
        (read.states, read.positive),
        (theirs.states._array, np.ones(60, bool)),  # type: ignore[attr-defined]
    ):
        states[shows, :, shared] += 5
    vectors = {"malice": axis(5, shared)}
    odds = LogOdds(np.full(2, 3.0), np.full(2, -6.0), np.zeros(2), np.ones(2))
    plain, specific = (figures(made_of, read, vectors, theirs, neutral=calm(), odds=given) for given in (None, odds))
    assert plain["other_traits"]["taken"]["low"] > 0.5 and plain["other_traits"]["specific"] is None
    assert specific["other_traits"]["taken"] == plain["other_traits"]["taken"]
    assert specific["other_traits"]["specific"]["taken"]["high"] < 0.3
    assert specific["other_traits"]["specific"]["found"]["low"] > 0.7
    assert ["other_traits" in {flag["control"] for flag in f["flags"]} for f in (plain, specific)] == [True, False]
