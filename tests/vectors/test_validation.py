"""A good vector passes every control; each planted failure is flagged; nothing that cannot be told becomes a number."""

from __future__ import annotations

import json
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from persona_core.elicitation.shown import ShownParts
from persona_core.errors import SettingError
from persona_core.vectors.controls import TokenTables, token_tables
from persona_core.vectors.extraction import mean_difference
from persona_core.vectors.held_out import CrossTrait, HeldOut, halves
from persona_core.vectors.states import ArrayStates
from persona_core.vectors.validation import ValidationData, choose_block, validate, with_flags
from persona_core.vectors.verdict import verdict
from tests.support.judged import (
    BEST,
    D_MODEL,
    N_BLOCKS,
    REFUSES,
    TRAIT,
    JudgedReplies,
    extracted,
    held_out,
    judged,
    neutral_trace,
    tables,
)

N_QUESTIONS = 20
N_CHOOSING = 10
N_RESAMPLES = 120


def figures(
    made_of: JudgedReplies,
    read: JudgedReplies,
    others: dict[str, np.ndarray] | None = None,
    across: CrossTrait | None = None,
    token: TokenTables | None = None,
    block: int = BEST,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    **more: Any,
) -> dict[str, Any]:
    """Extract from `made_of`, validate on `read`."""
    source = extracted(made_of)
    vectors = {"candour": mean_difference(source.sides), **(others or {})}
    choice, report = halves(held_out(read), N_CHOOSING)
    data = ValidationData(choice, report, token or tables(), source, across, **more)
    return with_flags(validate("candour", vectors, block, data, mean_difference, n_resamples=n_resamples, seed=seed))


def failed(found: dict[str, Any]) -> set[str]:
    return {flag["control"] for flag in found["flags"]}


def axis(number: int) -> np.ndarray:
    """A vector along one axis at every block."""
    return np.tile(np.eye(D_MODEL, dtype=np.float32)[number], (N_BLOCKS, 1))


# The good vector.


@pytest.fixture(scope="module")
def good() -> dict[str, Any]:
    return figures(judged(1), judged(2), {"malice": axis(5)})


@pytest.mark.parametrize("seed", range(4))
def test_a_good_vector_passes_every_control_and_draws_no_remark(seed: int) -> None:
    found = figures(judged(10 + seed), judged(20 + seed), {"malice": axis(5)}, seed=seed)
    assert found["flags"] == [] and found["notes"] == []


def test_the_values_are_those_of_plain_formulas_on_the_second_half_of_the_questions(good: dict[str, Any]) -> None:
    from sklearn.metrics import roc_auc_score

    made_of, read = judged(1), judged(2)
    vector = made_of.states[made_of.positive].mean(0) - made_of.states[~made_of.positive].mean(0)
    late = read.question >= 10
    shows = read.score[late] >= 50
    for block in range(N_BLOCKS):
        unit = vector[block] / np.linalg.norm(vector[block])
        own = np.array([state @ unit for state in read.states[late][:, block]])
        assert good["auroc_by_block"][block]["value"] == pytest.approx(roc_auc_score(shows, own), abs=1e-4)
        if block == BEST:
            assert good["auroc"] == good["auroc_by_block"][block]
            for name, side in (("all", shows | True), ("high", read.positive[late]), ("low", ~read.positive[late])):
                r = np.corrcoef(own[side], read.score[late][side])[0, 1]
                assert good["correlation"][name]["value"] == pytest.approx(r, abs=1e-4)
            length = read.n_tokens[late].astype(float)
            pairs = np.concatenate(
                [np.stack([own[s] - own[s].mean(), length[s] - length[s].mean()], 1) for s in (shows, ~shows)]
            )
            within = good["confounds"]["length"]["correlation"]["value"]
            assert within == pytest.approx(np.corrcoef(pairs.T)[0, 1], abs=1e-4)
            assert good["cosine"]["malice"] == pytest.approx(unit[5], abs=1e-4)
    assert good["held_out"] == {"replies": 80, "show": 40, "questions": 10, "not_finite": 0}
    assert good["auroc"]["n"] == 10, "intervals are over questions"


def test_the_label_is_what_the_judge_saw_not_what_was_asked() -> None:
    read = judged(2)
    disobedient = read.question >= 15
    read.positive = read.positive ^ disobedient  # the other side's instruction, the same replies
    found = figures(judged(1), read)
    assert found["auroc"]["value"] == figures(judged(1), judged(2))["auroc"]["value"] > 0.99


def test_figures_are_plain_json_and_the_same_each_time(good: dict[str, Any]) -> None:
    again = figures(judged(1), judged(2), {"malice": axis(5)})
    assert json.dumps(good, allow_nan=False) == json.dumps(again, allow_nan=False)
    assert good != figures(judged(1), judged(2), {"malice": axis(5)}, seed=1)


def test_of_a_reply_that_is_read_in_part_words_positions_and_tokens_are_those_of_the_part() -> None:
    """The first token of each positive reply is 7, at a position that scores 5; only that one is read."""
    read = judged(2)
    read.token_ids = [(7, *ids[1:]) if yes else ids for ids, yes in zip(read.token_ids, read.positive, strict=True)]
    whole = held_out(read)
    part = replace(whole, parts=tuple(ShownParts("splendid", (0,)) if yes else None for yes in read.positive))
    known = tables(by_token={7: 5.0}, edges=np.array([1]), by_position=np.array([5.0, 0.0]))
    source = replace(extracted(judged(1)), positive_parts=("splendid",) * int(judged(1).positive.sum()))
    found = {}
    for name, of in (("whole", whole), ("part", part)):
        choice, report = halves(of, N_CHOOSING)
        data = ValidationData(choice, report, known, source)
        own = validate("candour", {"candour": axis(TRAIT)}, BEST, data, mean_difference)
        alone = {k: own["confounds"][k]["auroc"]["value"] for k in ("position", "token_identity")}
        found[name] = {**alone, "words": own["text_baseline"]["auroc"]["value"]}
    assert found["part"] == {"position": 1.0, "token_identity": 1.0, "words": 1.0}
    assert max(found["whole"]["position"], found["whole"]["words"]) < 0.7


# The splits.


def changed(j: JudgedReplies, where: np.ndarray, seed: int = 99) -> JudgedReplies:
    """The replies that are marked have other states, in random order of degree."""
    rng = np.random.default_rng(seed)
    return replace(j, states=np.where(where[:, None, None], rng.normal(size=j.states.shape), j.states))


def test_the_block_with_the_clearest_trait_is_chosen() -> None:
    vector = mean_difference(extracted(judged(1)).sides)
    block, correlations = choose_block("candour", halves(held_out(judged(2)), N_CHOOSING)[0], vector, range(N_BLOCKS))
    assert block == BEST == int(np.argmax(correlations))


def test_the_report_half_has_no_say_in_the_choice_of_the_block() -> None:
    vector, read = mean_difference(extracted(judged(1)).sides), judged(2)
    other = changed(read, read.question >= N_QUESTIONS // 2)
    found = [choose_block("candour", halves(held_out(j), N_CHOOSING)[0], vector, range(3)) for j in (read, other)]
    assert found[0] == found[1]


def test_the_choice_half_has_no_say_in_the_figures() -> None:
    read = judged(2)
    other = changed(read, read.question < N_QUESTIONS // 2)
    assert figures(judged(1), read) == figures(judged(1), other)


def test_the_halves_share_no_question_and_lose_no_reply() -> None:
    read = held_out(judged(2, n_questions=5))
    choice, report = halves(read, 3)
    assert set(choice.question) == {0, 1, 2} and set(report.question) == {3, 4}
    assert len(choice) + len(report) == len(read)
    assert np.array_equal(report.states.block(0), read.states.block(0)[len(choice) :])
    assert report.texts == read.texts[len(choice) :] and report.token_ids == read.token_ids[len(choice) :]


def test_no_block_can_be_chosen_where_nothing_shows_the_trait_or_nothing_varies() -> None:
    vector, read = axis(TRAIT), judged(2)
    with pytest.raises(SettingError, match="0 show the trait"):
        choose_block("candour", held_out(replace(read, score=np.zeros(len(read.score)))), vector, range(3))
    for value in (1.0, np.nan):
        still = held_out(replace(read, states=np.full_like(read.states, value)))
        with pytest.raises(SettingError, match="constant or not finite"):
            choose_block("candour", still, vector, range(3))
    states = read.states.copy()
    states[:, BEST] = 1.0  # one block says nothing: the next best is chosen
    assert choose_block("candour", held_out(replace(read, states=states)), vector, range(3))[0] == 2


# Planted failures.


@pytest.mark.parametrize(("longer", "said"), [(40.0, "longer"), (-40.0, "shorter")])
def test_a_vector_that_tracks_length_is_flagged(longer: float, said: str) -> None:
    plant: dict[str, Any] = {"trait": 0.0, "longer": longer, "sees_length": 1.0}
    found = figures(judged(1, **plant), judged(2, **plant))
    assert "length" in failed(found)
    assert any(f"Reply length alone ({said}) predicts" in flag["says"] for flag in found["flags"])
    assert found["auroc"]["value"] > 0.95, "the AUROC alone would have let it pass"
    assert found["confounds"]["length"]["correlation"]["value"] * np.sign(longer) > 0.8


def test_length_that_explains_as_well_as_a_good_vector_is_flagged_too() -> None:
    """Both at 1: nothing in these replies tells the two apart."""
    plant: dict[str, Any] = {"longer": 80.0, "trait": 4.0}
    found = figures(judged(1, **plant), judged(2, **plant))
    assert found["auroc"]["value"] == found["confounds"]["length"]["auroc"]["value"] == 1.0
    assert "length" in failed(found)


def test_length_that_tells_a_little_is_no_failure_of_a_vector_that_is_ahead_of_it() -> None:
    found = figures(judged(1, longer=8), judged(2, longer=8))
    assert found["confounds"]["length"]["auroc"]["low"] > 0.5
    assert found["confounds"]["length"]["vector_ahead"]["low"] > 0 and failed(found) == set()


@pytest.mark.parametrize("side", ["positive", "negative"])
def test_a_refusal_vector_for_a_trait_that_is_not_refusal_is_flagged(side: str) -> None:
    plant: dict[str, Any] = {"trait": 0.0, "declining": side, "sees_refusal": 4.0}
    found = figures(judged(1, **plant), judged(2, **plant))
    refusal = found["confounds"]["refusal"]
    assert "refusal" in failed(found) and found["auroc"]["value"] > 0.95
    assert (refusal["share_high"], refusal["share_low"]) == ((1, 0) if side == "positive" else (0, 1))


def test_a_few_refusals_on_both_sides_are_no_failure() -> None:
    read = judged(2)
    read.texts = [REFUSES if i % 9 == 0 else t for i, t in enumerate(read.texts)]
    assert failed(figures(judged(1), read)) == set()


def test_a_vector_of_shuffled_labels_is_flagged() -> None:
    n_flagged = 0
    for seed in range(10):
        made_of = judged(30 + seed)
        rng = np.random.default_rng(seed)
        for q in range(N_QUESTIONS):
            rows = np.flatnonzero(made_of.question == q)
            made_of.positive[rows] = made_of.positive[rng.permutation(rows)]
        n_flagged += "shuffled_labels" in failed(figures(made_of, judged(2), n_resamples=20))
    assert n_flagged >= 8  # 19 in 20 by construction


def test_a_vector_along_a_drift_is_flagged_and_one_without_is_not() -> None:
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 40, 60) for _ in range(20)]
    drifting = [neutral_trace(np.arange(60) / 20 + rng.normal(0, 0.5, 60), i) for i in ids]
    still = [neutral_trace(rng.normal(0, 0.5, 60), i) for i in ids]
    flagged = [
        failed(figures(judged(1), judged(2), token=token_tables(traces, "candour", BEST)))
        for traces in (drifting, still)
    ]
    assert flagged == [{"position"}, set()]


def test_a_vector_that_does_no_more_than_add_up_tokens_is_flagged() -> None:
    """The states are the mean of what each token projects as, regardless of context."""
    worth = {i: float(i % 2) for i in range(30)}

    def plant(j: JudgedReplies, rng: np.random.Generator) -> JudgedReplies:
        for row, high in enumerate(j.positive):
            even = rng.random(j.n_tokens[row]) < (0.4 if high else 0.6)
            j.token_ids[row] = tuple(int(i) for i in np.where(even, 0, 1) + 2 * rng.integers(0, 15, len(even)))
        means = np.array([np.mean([worth[i] for i in ids]) for ids in j.token_ids])
        j.states[:, :, TRAIT] += 40 * means[:, None]
        return j

    rng = np.random.default_rng(3)
    bag, read = (plant(judged(seed, trait=0.0), rng) for seed in (1, 2))
    token = tables(by_token=worth, mean=0.5)
    found = figures(bag, read, token=token)
    assert found["auroc"]["value"] > 0.9 and "token_identity" in failed(found)
    assert "token_identity" not in failed(figures(judged(1), judged(2), token=token))


def elsewhere() -> CrossTrait:
    """Replies elicited for another trait, along axis 5, that show none of this one."""
    rng = np.random.default_rng(0)
    states = rng.normal(0, 0.5, (40, N_BLOCKS, D_MODEL))
    states[:, :, 5] += 3
    return CrossTrait(ArrayStates(states), rng.uniform(0, 5, 40), np.repeat(np.arange(5, 15), 4))


def test_a_vector_that_goes_with_another_trait_as_well_is_flagged() -> None:
    made_of, read = judged(1), judged(2)
    vector = mean_difference(extracted(made_of).sides)
    near = vector + np.random.default_rng(1).normal(0, 0.05, vector.shape).astype(np.float32)
    found = figures(made_of, read, {"malice": axis(5), "near": near}, elsewhere())
    other = found["own_minus_best_other"]
    assert failed(found) == {"own_minus_best_other", "best_other_vector"} and other["other"] == "near"
    assert other["low"] < 0 < other["high"]


def test_own_minus_best_other_is_that_of_plain_loops() -> None:
    """Which other is best is recomputed in each resample of the questions."""
    made_of, read, across = judged(1), judged(2), elsewhere()
    own = mean_difference(extracted(made_of).sides)
    blends = [own + 2 * np.linalg.norm(own[BEST]) * axis(n) for n in (6, 7)]  # about as good as each other
    others = {"still": axis(9), "six": blends[0], "seven": blends[1]}
    late = read.question >= 10
    for j in (read.states, across.states._array):  # type: ignore[attr-defined]
        j[:, :, 9] = 0  # nothing goes with that one
    found = figures(made_of, read, others, across)["own_minus_best_other"]

    states = np.concatenate([read.states[late], across.states._array])[:, BEST]  # type: ignore[attr-defined]
    scores = np.r_[read.score[late], across.score]
    groups = [np.flatnonzero(read.question[late] == q) for q in range(10, 20)]
    groups += [80 + np.flatnonzero(across.cluster == c) for c in range(5, 15)]

    def difference(rows: np.ndarray) -> tuple[float, int]:
        r = [np.corrcoef(states[rows] @ v[BEST], scores[rows])[0, 1] for v in (own, *blends)]
        return r[0] - max(r[1:]), int(np.argmax(r[1:]))

    rng = np.random.default_rng(0)
    drawn = [difference(np.concatenate([groups[g] for g in rng.integers(20, size=20)])) for _ in range(N_RESAMPLES)]
    assert {best for _, best in drawn} == {0, 1}, "the test needs two others that take turns"
    value, best = difference(np.arange(120))
    tail = NormalDist().cdf(-np.sqrt(20 / 19) * 2.09302)  # Student's quantile of 19 degrees of freedom
    low, high = np.quantile([d for d, _ in drawn], [tail, 1 - tail])
    assert [found[k] for k in ("value", "low", "high")] == pytest.approx([value, low, high], abs=2e-5)
    assert found["other"] == ("six", "seven")[best] and found["n"] == 20 and found["n_cross_trait"] == 40


def test_a_vector_from_too_little_is_flagged_as_unstable() -> None:
    plant: dict[str, Any] = {"trait": 0.4, "noise": 2.0}
    found = figures(judged(1, **plant), judged(2, **plant))
    assert "split_half" in failed(found) and found["split_half_cosine"]["value"] < 0.9


def test_random_directions_that_do_as_well_are_flagged() -> None:
    """The sides differ in every channel at once, a hundred times the noise."""
    made_of, read = judged(1), judged(2)
    for j in (made_of, read):
        j.states += 50.0 * np.where(j.positive, 1, -1)[:, None, None] * np.linspace(1, 2, D_MODEL)
    found = figures(made_of, read)
    assert found["auroc"]["value"] == 1.0 and found["nulls"]["random_directions"]["auroc_95"] == 1.0
    assert failed(found) == {"random_directions"}


def test_random_directions_with_an_auroc_of_one_are_no_failure_of_a_vector_that_knows_the_degree() -> None:
    """The degree is in every channel, so some random directions see it too, through more noise."""
    made_of, read = judged(1, trait=0.0, noise=2.0), judged(2, trait=0.0, noise=2.0)
    for j in (made_of, read):
        j.states += (np.where(j.positive, 3, -3) + 3 * (j.score - 50) / 25)[:, None, None]
    found = figures(made_of, read)
    assert found["auroc"]["value"] == found["nulls"]["random_directions"]["auroc_95"] == 1.0
    assert found["correlation"]["all"]["value"] > found["nulls"]["random_directions"]["correlation_95"]
    assert "random_directions" not in failed(found)


def test_a_vector_that_reads_the_instruction_rather_than_the_degree_draws_a_remark() -> None:
    made_of, read = judged(1), judged(2)
    for j in (made_of, read):
        j.states[:, :, TRAIT] = np.random.default_rng(0).normal(0, 0.3, (len(j.positive), N_BLOCKS))
        j.states[:, :, TRAIT] += np.where(j.positive, 2, -2)[:, None]
    found = figures(made_of, read)
    assert failed(found) == set() and any("instruction rather than the degree" in note for note in found["notes"])


def test_words_that_do_as_well_are_flagged() -> None:
    found = figures(judged(1, telling="splendid"), judged(2, telling="splendid"))
    assert found["text_baseline"]["auroc"]["value"] == 1.0
    assert failed(found) == {"text_baseline"}
    assert "Words alone do as well" in found["flags"][0]["says"]


def test_a_vector_without_a_single_error_is_not_certain() -> None:
    """Ten questions: the interval is the exact binomial one with a question as the trial."""
    found = figures(judged(1, trait=4.0), judged(2, trait=4.0))
    assert found["auroc"] == {"value": 1.0, "low": pytest.approx(0.69150, abs=1e-5), "high": 1.0, "n": 10}


def test_over_two_questions_there_is_no_interval_and_the_text_says_why() -> None:
    found = figures(judged(1), only(judged(2), np.flatnonzero(judged(2).question % 10 < 2)))
    assert found["auroc"] is None
    says = {flag["control"]: flag["says"] for flag in found["flags"]}
    assert "to 2 questions" in says["auroc"] and "3 questions are needed" in says["auroc"]


def test_sink_tokens_that_change_the_auroc_are_flagged_and_their_figures_stand_side_by_side() -> None:
    """With them the states hold a huge number that has nothing to do with the trait."""
    read = judged(2)
    late = read.question >= 10
    kept = read.states[late].copy()
    same = figures(judged(1), read, with_sinks=ArrayStates(kept))
    assert same["sinks"]["with"] == same["sinks"]["without"] == same["auroc"] and "sinks" not in failed(same)
    kept[:, :, TRAIT] += np.random.default_rng(0).normal(0, 20, (len(kept), 1))
    found = figures(judged(1), read, with_sinks=ArrayStates(kept))
    assert found["sinks"]["without"] == found["auroc"] and found["sinks"]["with"]["value"] < 0.8
    assert found["sinks"]["with_minus_without"]["high"] < 0 and failed(found) == {"sinks"}
    assert figures(judged(1), read)["sinks"] is None


def test_a_vector_passes_every_control_only_where_each_was_measured() -> None:
    matched = {"effect": {"value": 18.0, "low": 6.0, "high": 30.0, "n": 10}}
    steering = {"effect": {"value": 20.0, "low": 8.0, "high": 30.0, "n": 10}, "matched": matched}
    calm = ArrayStates(np.random.default_rng(9).normal(0, 0.5, (60, N_BLOCKS, D_MODEL)))
    kept = ArrayStates(judged(2).states[judged(2).question >= 10])
    found = figures(judged(1), judged(2), {"malice": axis(5)}, elsewhere(), neutral=calm, with_sinks=kept)
    found["styles"]["layout"] = found["styles"]["length"]  # no reply has lists
    assert str(verdict(found)) == "fails no control that was measured; not measured: steering"
    assert verdict({**found, "sinks": None}).not_measured == ("sinks", "steering")
    assert verdict({**found, "styles": {**found["styles"], "layout": None}}).not_measured == ("steering", "styles")
    found = with_flags({**found, "steering": steering})
    assert verdict(found).passes and str(verdict(found)) == "passes every control"
    worse = with_flags({**found, "steering": {**steering, "matched": {"effect": None}}})
    assert str(verdict(worse)) == "fails 1 control: steering"
    alone = figures(judged(1), judged(2))
    assert str(verdict(alone)).endswith(
        "not measured: another trait's vector, own minus best other, other traits' replies, sink tokens, steering, "
        "styles held out"
    )


def test_a_config_of_an_older_version_keeps_its_flags_and_lacks_the_newer_controls() -> None:
    older = {k: v for k, v in figures(judged(1), judged(2)).items() if k not in ("wordings", "styles", "not_measured")}
    found = verdict({**older, "flags": [{"control": "length", "says": "Length tells it."}]})
    assert found.failed == ("length",) and {"wordings", "styles"} <= set(found.not_measured)


def test_figures_over_few_questions_draw_a_remark() -> None:
    read = judged(2)
    few = read.question % 10 < 3
    read = replace(
        read,
        **{name: getattr(read, name)[few] for name in ("states", "positive", "question", "score", "n_tokens")},
        texts=[t for t, keep in zip(read.texts, few, strict=True) if keep],
        token_ids=[t for t, keep in zip(read.token_ids, few, strict=True) if keep],
    )
    assert any("rest on 3 held-out questions" in note for note in figures(judged(1), read)["notes"])


@pytest.mark.parametrize(
    ("effect", "flagged"),
    [
        ({"value": 20.0, "low": 8.0, "high": 30.0, "n": 10}, False),
        ({"value": 4.0, "low": -2.0, "high": 9.0, "n": 10}, True),
        ({"value": -9.0, "low": -12.0, "high": -3.0, "n": 10}, True),
        (None, True),
    ],
)
def test_steering_that_does_no_more_than_chance_is_flagged(
    good: dict[str, Any], effect: dict[str, Any] | None, flagged: bool
) -> None:
    assert failed(with_flags({**good, "steering": {"effect": effect}})) == ({"steering"} if flagged else set())


def test_every_flag_says_its_numbers_in_one_sentence() -> None:
    plant: dict[str, Any] = {"trait": 0.0, "longer": 40.0, "sees_length": 1.0, "noise": 3.0}
    found = with_flags({**figures(judged(1, **plant), judged(2, **plant)), "steering": {"effect": None}})
    assert len(found["flags"]) >= 3
    for flag in found["flags"]:
        assert flag["says"].endswith(".") and "nan" not in flag["says"].lower() and "None" not in flag["says"]


# What cannot be told.


def only(j: JudgedReplies, places: np.ndarray) -> JudgedReplies:
    arrays = {n: getattr(j, n)[places] for n in ("states", "positive", "question", "score", "n_tokens")}
    return replace(j, **arrays, texts=[j.texts[i] for i in places], token_ids=[j.token_ids[i] for i in places])


def late_states(value: float, rows: slice) -> JudgedReplies:
    read = judged(2)
    read.states[np.flatnonzero(read.question >= 10)[rows]] = value
    return read


STRANGE = {
    "no reply": lambda: only(judged(2), np.flatnonzero(judged(2).question < 10)),
    "one reply": lambda: only(judged(2), np.array([0, 1, 100])),
    "one question": lambda: only(judged(2), np.flatnonzero(judged(2).question == 12)),
    "all show it": lambda: replace(judged(2), score=np.full(160, 80.0)),
    "none shows it": lambda: replace(judged(2), score=np.full(160, 10.0)),
    "NaN": lambda: late_states(np.nan, slice(3, 4)),
    "infinity": lambda: late_states(np.inf, slice(0, 2)),
}


@pytest.mark.parametrize("case", STRANGE)
def test_what_cannot_be_told_is_null_with_a_flag(case: str) -> None:
    found = figures(judged(1), STRANGE[case](), {"malice": axis(5)})
    assert found["auroc"] is None and "auroc" in failed(found)
    json.dumps(found, allow_nan=False)


def test_a_state_that_is_not_finite_is_named_as_the_reason() -> None:
    says = {f["control"]: f["says"] for f in figures(judged(1), late_states(np.nan, slice(0, 2)))["flags"]}
    assert "2 of 80 held-out replies are NaN" in says["auroc"]


def test_projections_that_are_all_the_same_tell_nothing() -> None:
    found = figures(judged(1), late_states(0.7, slice(None)), {"malice": axis(5)})
    assert found["auroc"]["value"] == 0.5 and "auroc" in failed(found)
    assert found["correlation"] == {"all": None, "high": None, "low": None}
    assert found["confounds"]["length"]["correlation"] is None
    json.dumps(found, allow_nan=False)


def test_white_noise_fails() -> None:
    told_by_chance = 0
    for seed in range(3):
        found = figures(judged(40 + seed, trait=0.0), judged(50 + seed, trait=0.0), {"malice": axis(5)})
        assert {"auroc", "split_half"} <= failed(found)
        told_by_chance += len({"length", "refusal", "position", "token_identity"} & failed(found))
        json.dumps(found, allow_nan=False)
    # Only the lengths vary here. Of their intervals one in forty may lie above 0.5 by chance, somewhat more over 10
    # questions; a rule without that condition would flag all twelve.
    assert told_by_chance <= 2, "the confounds tell nothing either"


def test_an_absent_block_has_no_figure() -> None:
    source, read = extracted(judged(1)), held_out(judged(2))
    vector = mean_difference(source.sides)
    vector[2] = np.nan
    choice, report = halves(read, N_CHOOSING)
    data = ValidationData(choice, report, tables(), source)
    found = validate("candour", {"candour": vector}, BEST, data, mean_difference, n_resamples=20)
    assert found["auroc_by_block"][2] is None and found["auroc_by_block"][BEST] is not None
    assert found["own_minus_best_other"] is None


def test_states_are_read_one_block_at_a_time() -> None:
    class Files(ArrayStates):
        """States that may not be iterated: that would read every block."""

        def __iter__(self) -> Any:
            raise AssertionError("all blocks were read")

        def take(self, places: Any) -> Any:
            return Files(self._array[np.asarray(places, int)])

    j = judged(1)
    source = extracted(j)
    lazy = replace(source, sides=type(source.sides)(*(Files(s._array) for s in vars(source.sides).values())))
    read: HeldOut = replace(held_out(judged(2)), states=Files(judged(2).states))
    choice, report = halves(read, N_CHOOSING)
    vector = {"candour": mean_difference(source.sides)}
    data = ValidationData(choice, report, tables(), lazy)
    found = validate("candour", vector, BEST, data, mean_difference, n_resamples=20)
    assert found["auroc"]["value"] > 0.9
