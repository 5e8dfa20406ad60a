"""Wordings and styles left out: a vector of one wording, or of one style, does not pass for one of the trait."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from persona_core.vectors.extraction import mean_difference
from persona_core.vectors.held_out_groups import has_layout, styles, wordings
from tests.support.judged import BEST, D_MODEL, N_PAIRS, JudgedReplies, extracted, held_out, judged
from tests.vectors.test_validation import figures

WORDING = 10  # the first of four axes, one a wording


def by_wording(seed: int) -> JudgedReplies:
    """The states say which side's instruction was given, along an axis of each wording, and nothing of the trait."""
    j = judged(seed, trait=0.0)
    j.states[np.arange(len(j.question)), :, WORDING + j.question % N_PAIRS] += np.where(j.positive, 3, -3)[:, None]
    return j


def found_for(made_of: JudgedReplies, tried: JudgedReplies, **more: Any) -> dict[str, Any]:
    found = wordings(extracted(made_of), held_out(tried), BEST, mean_difference, **more)
    assert found is not None
    return found


def test_a_vector_of_the_wordings_is_found_out_though_its_auroc_is_high() -> None:
    found = figures(by_wording(1), by_wording(2))
    assert found["auroc"]["value"] > 0.99, "new questions, but the wordings of the extraction"
    assert found["wordings"]["auroc"]["value"] < 0.65
    assert "wordings" in {flag["control"] for flag in found["flags"]}


def test_a_vector_of_the_trait_is_as_good_on_a_wording_that_it_was_made_without() -> None:
    found = found_for(judged(1), judged(2))
    assert found["auroc"]["low"] > 0.85 and set(found["groups"]) == {"0", "1", "2", "3"}


def test_each_wording_is_scored_along_the_direction_of_the_others() -> None:
    made_of, read = judged(1, noise=2.0), judged(2, noise=2.0)
    found = found_for(made_of, read)
    right = pairs = 0
    for pair in range(N_PAIRS):
        kept, rows = made_of.question % N_PAIRS != pair, read.question % N_PAIRS == pair
        vector = (made_of.states[made_of.positive & kept].mean(0) - made_of.states[~made_of.positive & kept].mean(0))[
            BEST
        ]
        own, shows = read.states[rows][:, BEST] @ vector, read.score[rows] >= 50
        auroc = roc_auc_score(shows, own)
        assert found["groups"][str(pair)]["auroc"]["value"] == pytest.approx(auroc, abs=1e-5)
        right, pairs = right + auroc * shows.sum() * (~shows).sum(), pairs + shows.sum() * (~shows).sum()
    assert found["auroc"]["value"] == pytest.approx(right / pairs, abs=1e-5) and found["auroc"]["n"] == 20


def test_directions_are_whitened_before_they_are_read_along() -> None:
    """One loud axis drowns the trait along the mean difference; whitening takes it down."""
    made_of, read = judged(1, n_questions=40), judged(2, n_questions=40)
    for j, seed in ((made_of, 3), (read, 4)):
        j.states[:, :, 7] += np.random.default_rng(seed).normal(0, 30, (len(j.question), 1))
    weights = np.ones(D_MODEL)
    weights[7] = 1 / 900
    plain = found_for(made_of, read)
    whitened = found_for(made_of, read, to_reading=lambda direction: weights * direction)
    assert whitened["auroc"]["value"] > 0.95 > 0.9 > plain["auroc"]["value"]


def test_a_single_wording_cannot_be_left_out() -> None:
    source, report = extracted(judged(1)), held_out(judged(2))
    ones = replace(
        source,
        positive_pairs=np.zeros_like(source.positive_questions),
        negative_pairs=np.zeros_like(source.negative_questions),
    )
    same = replace(report, pair=np.zeros(len(report), int))
    assert wordings(ones, same, BEST, mean_difference) is None
    assert wordings(replace(source, positive_pairs=None), report, BEST, mean_difference) is None
    assert wordings(source, replace(report, pair=None), BEST, mean_difference) is None


def test_a_wording_that_only_the_evaluation_has_is_held_out_anyway() -> None:
    report = held_out(judged(2))
    assert report.pair is not None
    found = wordings(extracted(judged(1)), replace(report, pair=report.pair + 100), BEST, mean_difference)
    assert found is not None and set(found["groups"]) == {"100", "101", "102", "103"}


# Styles.


def test_a_vector_that_works_on_long_replies_only_is_found_out() -> None:
    """In short replies the axis of the trait has the other sign."""

    def plant(seed: int) -> JudgedReplies:
        j = judged(seed)
        long = np.random.default_rng(seed).random(len(j.question)) < 0.5
        j.states[:, :, 0] *= np.where(long, 1, -1)[:, None]
        j.texts = [text * 4 if yes else text for text, yes in zip(j.texts, long, strict=True)]
        return j

    found = figures(plant(1), plant(2))
    assert found["styles"]["length"]["auroc"]["value"] < 0.2
    says = {flag["control"]: flag["says"] for flag in found["flags"]}
    assert "another length" in says["styles"]


def test_short_and_long_lists_and_prose_are_held_out_where_there_are_both() -> None:
    def plant(seed: int) -> JudgedReplies:
        j = judged(seed)
        j.texts = [f"- {t}\n- more" if i % 3 == 0 else t for i, t in enumerate(j.texts)]
        return j

    found = styles(extracted(plant(1)), held_out(plant(2)), BEST, mean_difference)
    assert found["length"] is not None and set(found["length"]["groups"]) == {"long", "short"}
    assert found["layout"] is not None and set(found["layout"]["groups"]) == {"layout", "prose"}
    assert found["layout"]["groups"]["layout"]["replies"] == sum(has_layout(t) for t in plant(2).texts)
    prose = styles(extracted(judged(1)), held_out(judged(2)), BEST, mean_difference)
    assert prose["layout"] is None


@pytest.mark.parametrize("text", ["- a\n- b", "Well:\n1. flour\n2. salt", "# Title", "So **very** good", "```\nx\n```"])
def test_markdown_is_seen(text: str) -> None:
    assert has_layout(text)


@pytest.mark.parametrize("text", ["It was 1999. He left.", "a - b", "5 * 3 is 15", "", "C# it is", "#1 in town"])
def test_prose_is_not_taken_for_markdown(text: str) -> None:
    assert not has_layout(text)
