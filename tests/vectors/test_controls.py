"""Controls: each finds what was planted, and finds nothing where nothing was."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from persona_core.errors import SettingError
from persona_core.vectors.confounds import refuses
from persona_core.vectors.controls import (
    ExtractionReplies,
    cosine_of,
    one_block,
    random_direction_aurocs,
    random_direction_correlations,
    shuffled_gaps,
    split_half_cosines,
    text_scores,
    token_tables,
)
from persona_core.vectors.extraction import METHODS, Sides, mean_difference
from persona_core.vectors.states import ArrayStates
from tests.support.judged import BEST, D_MODEL, extracted, judged, neutral_trace


def labelled(positive_questions: list[int], negative_questions: list[int]) -> ExtractionReplies:
    """Replies whose state says which question they answer (axis 0) and which reply they are (axis 1)."""

    def states(questions: list[int], first: int) -> ArrayStates:
        rows = [[q, first + i, 1.0] for i, q in enumerate(questions)]
        return ArrayStates(np.array(rows, float)[:, None])

    return ExtractionReplies(
        Sides(states(positive_questions, 0), states(negative_questions, 100), ArrayStates(np.empty((0, 1, 3)))),
        np.array(positive_questions),
        np.array(negative_questions),
        tuple("positive" for _ in positive_questions),
        tuple("negative" for _ in negative_questions),
    )


class Spy:
    """A method that remembers which replies it was given."""

    def __init__(self) -> None:
        self.calls: list[tuple[np.ndarray, np.ndarray]] = []

    def __call__(self, sides: Sides) -> np.ndarray:
        self.calls.append((sides.positive.block(0), sides.negative.block(0)))
        return np.array([[1.0, 0.0, 0.0]], np.float32)


# Halves and shuffles.


def test_halves_are_of_questions_and_lose_no_reply() -> None:
    spy = Spy()
    split_half_cosines(labelled([0, 0, 1, 2, 3, 3], [0, 1, 1, 2, 3]), 0, spy, n_halvings=10)
    assert len(spy.calls) == 20
    for one, other in zip(spy.calls[::2], spy.calls[1::2], strict=True):
        questions = [set(np.concatenate(half)[:, 0]) for half in (one, other)]
        assert len(questions[0]) == len(questions[1]) == 2 and not questions[0] & questions[1]
        assert len(one[0]) + len(other[0]) == 6 and len(one[1]) + len(other[1]) == 5
    assert len({tuple(one[0][:, 1]) for one, _ in zip(spy.calls[::2], spy.calls, strict=False)}) > 2, "all the same"


def test_a_vector_without_noise_has_a_split_half_cosine_of_one_and_noise_alone_of_none() -> None:
    clear = split_half_cosines(extracted(judged(1, noise=1e-4)), BEST, mean_difference)
    noise = split_half_cosines(extracted(judged(1, trait=0.0)), BEST, mean_difference)
    assert len(clear) == len(noise) == 20
    assert (clear > 0.999).all() and abs(noise.mean()) < 0.5


def test_one_question_cannot_be_halved() -> None:
    assert len(split_half_cosines(labelled([0, 0], [0, 0]), 0, mean_difference)) == 0
    assert len(split_half_cosines(labelled([0, 0], [1, 1]), 0, mean_difference)) == 0, "a half without a negative reply"


def test_labels_are_shuffled_within_questions() -> None:
    spy = Spy()
    shuffled_gaps(labelled([0, 0, 1, 2], [0, 1, 1, 2]), 0, spy, n=50)
    moved = 0
    for positive, negative in spy.calls[1:]:
        assert sorted(positive[:, 0]) == [0, 0, 1, 2] and sorted(negative[:, 0]) == [0, 1, 1, 2]
        moved += int((positive[:, 1] >= 100).any())
    assert moved > 40


def test_labels_are_shuffled_over_all_where_each_question_has_one_side() -> None:
    spy = Spy()
    shuffled_gaps(labelled([0, 1, 2], [3, 4, 5]), 0, spy, n=50)
    assert {len(positive) for positive, _ in spy.calls} == {3}
    assert len({tuple(sorted(positive[:, 0])) for positive, _ in spy.calls}) > 10


def test_the_gap_is_the_distance_of_the_means_and_shuffling_shortens_it() -> None:
    j = judged(1)
    gap, gaps = shuffled_gaps(extracted(j), BEST, mean_difference, n=40)
    difference = j.states[j.positive][:, BEST].mean(0) - j.states[~j.positive][:, BEST].mean(0)
    assert gap == pytest.approx(np.linalg.norm(difference), rel=1e-5)
    assert gaps.max() < gap / 2 and len(gaps) == 40


def test_true_labels_of_noise_pass_no_more_often_than_by_chance() -> None:
    passed = 0
    for seed in range(60):
        gap, gaps = shuffled_gaps(
            extracted(judged(seed, trait=0.0, n_questions=6)), BEST, mean_difference, n=40, seed=seed
        )
        passed += gap > np.quantile(gaps, 0.95)
    assert passed <= 8  # 3 are expected; more than 8 has a chance of 1 in 250


@pytest.mark.parametrize("name", METHODS)
def test_every_method_makes_one_blocks_direction_from_that_blocks_states(name: str) -> None:
    source = extracted(judged(1, n_questions=6))
    neutral = ArrayStates(np.random.default_rng(0).normal(size=(12, 3, D_MODEL)))
    sides = Sides(source.sides.positive, source.sides.negative, neutral)
    source = ExtractionReplies(
        sides, source.positive_questions, source.negative_questions, source.positive_texts, source.negative_texts
    )
    whole = METHODS[name](sides)[BEST]
    assert np.allclose(METHODS[name](one_block(source, BEST))[0], whole, atol=1e-5)


# Random directions.


def test_random_directions_tell_nothing_apart_where_one_axis_of_many_does() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 2 == 0
    states = rng.normal(size=(80, 200))
    states[:, 0] += 4 * labels
    quiet = random_direction_aurocs(states, labels)
    loud = random_direction_aurocs(states + 30 * labels[:, None] * rng.normal(size=200), labels)
    assert len(quiet) == 100 and np.quantile(quiet, 0.95) < 0.75 and np.median(loud) == 1.0


def test_random_directions_take_the_sign_that_suits_them() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(1)
    states, labels = rng.normal(size=(30, 5)), rng.random(30) < 0.4
    drawn = np.random.default_rng(7).normal(size=(5, 10))
    wanted = [max(a := roc_auc_score(labels, states @ d), 1 - a) for d in drawn.T]
    assert random_direction_aurocs(states, labels, n=10, seed=7) == pytest.approx(wanted)


def test_random_directions_go_with_the_scores_as_plain_correlations_say() -> None:
    rng = np.random.default_rng(2)
    states, scores = rng.normal(size=(30, 5)), rng.uniform(0, 100, 30)
    drawn = np.random.default_rng(7).normal(size=(5, 10))
    wanted = [abs(np.corrcoef(states @ d, scores)[0, 1]) for d in drawn.T]
    assert random_direction_correlations(states, scores, n=10, seed=7) == pytest.approx(wanted)
    for strange, marks in ((states, np.full(30, 80.0)), (states * np.inf, scores), (states[:0], scores[:0])):
        assert len(random_direction_correlations(strange, marks)) == 0


def test_there_are_no_random_aurocs_without_both_classes_or_with_nan() -> None:
    states, labels = np.ones((4, 3)), np.array([True, False, True, False])
    for strange, marks in (
        (states, labels | True),
        (states, labels & False),
        (states * np.nan, labels),
        (states[:0], labels[:0]),
    ):
        assert len(random_direction_aurocs(strange, marks)) == 0


# Words alone.


def test_words_are_learnt_from_the_extraction_replies() -> None:
    source = extracted(judged(1, telling="splendid"))
    scores = text_scores(source, ["a splendid river", "a river", "splendid", "lamp stone"])
    assert scores is not None and min(scores[0], scores[2]) > max(scores[1], scores[3])


def test_of_a_reply_that_is_read_in_part_only_the_words_of_that_part_are_learnt() -> None:
    j = judged(1, telling="splendid")
    source = replace(extracted(j), positive_parts=tuple(j.texts[i].split()[0] for i in np.flatnonzero(j.positive)))
    scores = text_scores(source, ["splendid", "a"])
    assert scores is not None and scores[0] == scores[1]


def test_texts_that_differ_in_nothing_are_told_apart_by_nothing() -> None:
    from sklearn.metrics import roc_auc_score

    j = judged(2)
    scores = text_scores(extracted(judged(1)), j.texts)
    assert scores is not None and 0.35 < roc_auc_score(j.positive, scores) < 0.65


def test_texts_without_a_word_all_score_the_same() -> None:
    j = judged(1)
    j.texts = ["?!" for _ in j.texts]
    assert np.array_equal(text_scores(extracted(j), ["hello", "?"]), np.zeros(2))  # type: ignore[arg-type]
    assert len(text_scores(extracted(judged(1)), [])) == 0  # type: ignore[arg-type]


def test_without_scikit_learn_there_is_no_text_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    assert text_scores(extracted(judged(1)), ["bread"]) is None


# Refusals.


@pytest.mark.parametrize(
    "text",
    [
        "I can't help with that.",
        "I’m sorry, but I can’t help you with this request.",
        "I cannot in good conscience provide that.",
        "I'm unable to assist with it.",
        "I am not able to discuss this.",
        "Sorry, can't help with that.",
        "I won't do that.",
        "I must respectfully decline.",
        "As an AI language model, I cannot have opinions on this.",
        "I'm not comfortable with this.",
        "I will not participate in that.",
    ],
)
def test_a_refusal_is_found(text: str) -> None:
    assert refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "I can't wait to tell you!",
        "I can't help but smile at this.",
        "I can't recommend it enough.",
        "I won't lie: it is hard.",
        "You cannot help with everything in life.",
        "As an AI, I'd love to help you with that.",
        "She said she could not provide it.",
        "I'm sorry to hear that. Let us see.",
        "Bread does not rise without yeast. " * 8 + "I can't help with that.",
        "",
    ],
)
def test_a_turn_of_phrase_is_no_refusal(text: str) -> None:
    assert not refuses(text)


# Position and token identity.


def neutral(rng: np.random.Generator, n: int = 30, length: int = 50, vocabulary: int = 40, **share: float) -> list[Any]:
    """Neutral replies of unit noise, to which position and token add variance of the given size."""
    worth = rng.normal(size=vocabulary)
    traces = []
    for _ in range(n):
        ids = rng.integers(0, vocabulary, length)
        drift = (np.arange(length) - length / 2) / (length / np.sqrt(12))  # of variance 1
        values = rng.normal(size=length) + share.get("position", 0) * drift + share.get("token", 0) * worth[ids]
        traces.append(neutral_trace(values, ids))
    return traces


def test_noise_goes_with_neither_position_nor_token() -> None:
    tables = token_tables(neutral(np.random.default_rng(0)), "candour", BEST)
    assert tables.position_r2 < 0.02 and tables.token_r2 < 0.02


def test_ten_means_of_a_few_tokens_do_not_pass_for_an_explanation() -> None:
    """Ten means fitted to 24 tokens of noise explain 9 / 23 of its variance, on average, before the adjustment."""
    found = [
        token_tables(neutral(np.random.default_rng(seed), n=2, length=12), "candour", BEST).position_r2
        for seed in range(30)
    ]
    assert np.mean(found) < 0.2


def test_the_share_of_the_variance_is_that_which_was_planted() -> None:
    tables = token_tables(neutral(np.random.default_rng(1), position=2.0), "candour", BEST)
    assert tables.position_r2 == pytest.approx(0.8, abs=0.03) and tables.token_r2 < 0.02
    tables = token_tables(neutral(np.random.default_rng(2), n=100, token=1.0), "candour", BEST)
    assert tables.token_r2 == pytest.approx(0.5, abs=0.1) and tables.position_r2 < 0.02


def test_tokens_that_come_once_explain_nothing() -> None:
    """Each is its own mean: counted naively they would explain everything."""
    rng = np.random.default_rng(3)
    traces = [neutral_trace(rng.normal(size=40), np.arange(40) + 40 * k) for k in range(10)]
    assert token_tables(traces, "candour", BEST).token_r2 == 0.0


def test_only_the_replys_own_tokens_count() -> None:
    """Prompt and end of turn project as a thousand; the tables know nothing of it."""
    tables = token_tables(neutral(np.random.default_rng(4)), "candour", BEST)
    assert abs(tables.mean) < 1 and np.abs(tables.by_position).max() < 1 and max(tables.by_token.values()) < 2


def test_a_reply_is_guessed_from_its_positions_and_from_its_tokens() -> None:
    rng = np.random.default_rng(5)
    values = np.repeat([0.0, 10.0], 10)  # the first half of each reply, and the second
    traces = [neutral_trace(values, np.r_[rng.integers(0, 5, 10), rng.integers(5, 10, 10)]) for _ in range(6)]
    tables = token_tables(traces, "candour", BEST)
    assert tables.from_positions(range(10)) == 0.0 and tables.from_positions(range(20)) == 5.0
    assert tables.from_positions([12, 19]) == 10.0, "of a reply that is read in part"
    assert tables.from_tokens([0, 1, 6, 7]) == 5.0 and tables.from_tokens([9]) == 10.0
    assert tables.from_tokens([777]) == tables.from_tokens([]) == tables.from_positions([]) == tables.mean == 5.0


def test_too_few_neutral_replies_are_an_error_with_the_counts() -> None:
    one = neutral(np.random.default_rng(6), n=1)
    with pytest.raises(SettingError, match="1 neutral replies of 50 tokens"):
        token_tables(one, "candour", BEST)
    with pytest.raises(SettingError, match="0 neutral replies"):
        token_tables([], "candour", BEST)
    with pytest.raises(SettingError, match="of 10 tokens"):
        token_tables(neutral(np.random.default_rng(6), n=2, length=5), "candour", BEST)


def test_a_cosine_needs_two_directions() -> None:
    a = np.array([3.0, 4.0], np.float32)
    assert cosine_of(a, 2 * a) == pytest.approx(1.0) and cosine_of(a, np.array([-4.0, 3.0])) == pytest.approx(0.0)
    assert cosine_of(a, np.zeros(2)) is None and cosine_of(a, np.array([np.nan, 1.0])) is None
