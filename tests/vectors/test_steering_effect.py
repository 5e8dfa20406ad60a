"""Steering curves: two arms of the same norm, paired seeds, no score for no score, and no work done twice."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from persona_core.elicitation.elicit import write_replies
from persona_core.errors import SettingError
from persona_core.inference.sampling import Sampling
from persona_core.judging.judge import COHERENCE, Question, Score
from persona_core.vectors.steering_effect import SteeringPlan, steering_effect
from persona_core.vectors.vectors import PersonaVectors
from persona_core.vectors.verdict import steering_flags
from tests.elicitation.test_elicit import trait
from tests.support.tiny import tiny_lm

PLAN = SteeringPlan(strengths=(-1.0, 2.0), seeds=2, n_questions=3, sampling=Sampling(8, 1.0), batch_size=4, seed=7)


class ByLength:
    """Scores a text by its number of letters "e", and calls everything coherent, unless told otherwise."""

    name = "by length"

    def __init__(self, coherence: float = 90.0, silent: Any = lambda text: False) -> None:
        self.asked: list[Question] = []
        self._coherence, self._silent = coherence, silent

    def score(self, questions: Sequence[Question], progress: bool = True) -> Iterator[tuple[Question, Score]]:
        self.asked += questions
        for question in questions:
            if question.trait == COHERENCE:
                yield question, Score(self._coherence, "text")
            elif self._silent(question.answer):
                yield question, Score(None, "refusal")
            else:
                yield question, Score(float(question.answer.count("e")), "text")


def vectors() -> PersonaVectors:
    generator = torch.Generator().manual_seed(1)
    lm = tiny_lm("llama", "chatml")
    tensor = 3 * torch.randn(len(lm.blocks), lm.blocks.d_model, generator=generator)
    return PersonaVectors.from_tensors({"candour": tensor}, best_block={"candour": 1})


def definition() -> Any:
    return trait("candour", n=6)


def curve(judge: Any, plan: SteeringPlan = PLAN, **more: Any) -> dict[str, Any]:
    lm = tiny_lm("llama", "chatml")
    return steering_effect(lm, vectors(), definition(), judge, plan, progress=False, **more)


def test_without_strength_the_replies_are_those_of_the_unsteered_model() -> None:
    judge = ByLength()
    found = curve(judge)
    questions = definition().evaluation_questions[3:]
    plain = [r.text for r in write_replies(tiny_lm("llama", "chatml"), list(questions) * 2, PLAN.sampling, 7, 4)]
    asked = [q.answer for q in judge.asked if q.key.startswith("none/") and q.trait != COHERENCE]
    assert asked == plain
    at_zero = [next(p for p in found[arm] if p["strength"] == 0) for arm in ("vector", "random")]
    assert at_zero[0] == at_zero[1]
    assert at_zero[0]["trait"]["value"] == pytest.approx(np.mean([text.count("e") for text in plain]), abs=1e-5)


def test_both_arms_add_the_vectors_norm_and_each_seed_has_its_own_random_direction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    added: list[tuple[float, torch.Tensor]] = []
    from persona_core.vectors import steering_effect as module

    def recorded(*args: Any, **kwargs: Any) -> Any:
        added.extend((i.amount, i.direction) for i in kwargs["interventions"])
        return write_replies(*args, **kwargs)

    monkeypatch.setattr(module, "write_replies", recorded)
    found = curve(ByLength())
    norm = float(vectors().tensor("candour")[1].norm())
    assert found["norm"] == pytest.approx(norm, rel=1e-4) and found["block"] == 1
    assert {round(amount / norm, 6) for amount, _ in added} == {-1.0, 2.0}
    assert all(float(direction.norm()) == pytest.approx(1, rel=1e-5) for _, direction in added)
    distinct = {tuple(np.round(direction.numpy(), 5)) for _, direction in added}
    assert len(distinct) == 1 + PLAN.seeds


def test_the_effect_is_vector_minus_random_paired_by_question() -> None:
    judge = ByLength()
    found = curve(judge)
    texts = {q.key: q.answer.count("e") for q in judge.asked if q.trait != COHERENCE}
    wanted = np.mean(
        [
            texts[f"vector/2.0/{k}/{q}/candour"] - texts[f"random/2.0/{k}/{q}/candour"]
            for k in range(2)
            for q in range(3)
        ]
    )
    assert (
        found["effect_at"] == 2.0
        and found["norm_in_sd"] is None
        and found["effect"]["value"] == pytest.approx(wanted, abs=1e-5)
    )
    assert found["effect"]["n"] == 3  # questions, not replies
    # Both arms are equally coherent at the same strength, so nothing else is tried.
    assert found["matched"]["strength"] == 2.0 and found["matched"]["effect"] == found["effect"]


def test_where_all_is_noise_the_smallest_strength_is_reported() -> None:
    plan = replace(PLAN, strengths=(1.0, 2.0))
    assert curve(ByLength(coherence=10.0), plan)["effect_at"] == 1.0
    assert curve(ByLength(coherence=50.0), plan)["effect_at"] == 2.0


def test_where_all_is_noise_there_is_no_effect_and_the_control_fails() -> None:
    found = curve(ByLength(coherence=10.0))
    assert found["effect"] is None and found["vector"][-1]["trait"] is not None
    ((control, says),) = steering_flags(found)
    assert control == "steering" and "at no strength" in says


def test_a_reply_without_a_score_is_missing_and_not_zero() -> None:
    everything = ByLength(silent=lambda text: True)
    found = curve(everything)
    assert found["effect"] is None and all(p["trait"] is None for p in found["vector"])
    some = curve(ByLength(silent=lambda text: "e" not in text))
    assert all(p["trait"] is None or p["trait"]["value"] >= 1 for p in some["vector"])


def test_a_finished_curve_is_found_again_unless_something_has_changed(tmp_path: Path) -> None:
    first = ByLength()
    found = curve(first, folder=tmp_path)
    again = ByLength()
    assert curve(again, folder=tmp_path) == found and not again.asked
    assert curve(again, replace(PLAN, seed=8), folder=tmp_path) != found and again.asked
    assert json.loads((tmp_path / "candour.json").read_text())["curve"]["block"] == 1


class Killed(Exception):
    pass


def test_a_kill_loses_at_most_one_arm_and_strength(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from persona_core.vectors import steering_effect as module

    left = 3
    asked: list[int] = []

    def dying(*args: Any, **kwargs: Any) -> Any:
        asked.append(len(args[1]))
        if len(asked) > left:
            raise Killed
        return write_replies(*args, **kwargs)

    monkeypatch.setattr(module, "write_replies", dying)
    with pytest.raises(Killed):
        curve(ByLength(), folder=tmp_path)
    with (tmp_path / "candour.replies.jsonl").open("a") as file:
        file.write('{"settings": "cut o')
    asked.clear()
    left = 100
    found = curve(ByLength(), folder=tmp_path)
    # Calls: none 1, and for two strengths vector 1 and random 2 each. Before the kill: none, vector, half of random.
    assert len(asked) == 7 - 2
    monkeypatch.undo()
    assert found == curve(ByLength())
    # Another judge asks about the same replies; nothing is written again.
    monkeypatch.setattr(module, "write_replies", dying)
    left = 0
    other = ByLength()
    other.name = "another"
    assert curve(other, folder=tmp_path) == found and other.asked


def test_replies_are_not_taken_from_another_model_or_seed(tmp_path: Path) -> None:
    curve(ByLength(), folder=tmp_path)
    again = curve(ByLength(), replace(PLAN, seed=8), folder=tmp_path)
    assert again == curve(ByLength(), replace(PLAN, seed=8))
    lm = tiny_lm("llama", "chatml")
    other = replace(lm, revision="1" * 40)
    silent = ByLength()
    steering_effect(other, vectors(), definition(), silent, PLAN, tmp_path, progress=False)
    assert silent.asked


def test_a_question_that_chose_the_block_is_not_reused_for_lack_of_others() -> None:
    lone = trait("candour", n=1)
    with pytest.raises(SettingError, match="1 evaluation question"):
        steering_effect(tiny_lm("llama", "chatml"), vectors(), lone, ByLength(), PLAN, progress=False)


def test_the_number_of_questions_is_never_above_the_one_known_before(tmp_path: Path) -> None:
    class Steadfast(ByLength):
        """Random pushes leave every reply coherent, so each step of the search is taken."""

        def score(self, questions: Sequence[Question], progress: bool = True) -> Iterator[tuple[Question, Score]]:
            for question, score in super().score(questions, progress):
                low = question.trait == COHERENCE and question.key.startswith("vector")
                yield question, Score(60.0, "text") if low else score

    judge, most = Steadfast(), PLAN.n_judged(definition())
    found = curve(judge)
    assert len(judge.asked) <= most and found["matched"]["effect"] is None
    strengths = {float(q.key.split("/")[1]) for q in judge.asked if q.key.startswith("random")}
    assert max(strengths) == 2.0 * 16 and found["matched"]["coherence_random"]["value"] == 90.0


def test_a_curve_with_unanswered_questions_counts_them_and_is_not_kept(tmp_path: Path) -> None:
    class Down(ByLength):
        def score(self, questions: Sequence[Question], progress: bool = True) -> Iterator[tuple[Question, Score]]:
            return iter(list(super().score(questions, progress))[:-5])

    assert curve(Down(), folder=tmp_path)["unanswered"] == 5 and not (tmp_path / "candour.json").exists()
    assert curve(ByLength(), folder=tmp_path)["unanswered"] == 0 and (tmp_path / "candour.json").exists()


@pytest.mark.parametrize(
    "changes",
    [{"strengths": ()}, {"strengths": (-1.0,)}, {"strengths": (1.0, float("nan"))}, {"seeds": 0}, {"n_questions": 0}],
)
def test_a_plan_without_a_push_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        SteeringPlan(**changes)
