"""What a judge is asked, what its answers mean, and that no answer is lost or requested twice."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona_core.elicitation.store import ElicitationRequest, Reply, ReplyStore
from persona_core.elicitation.traits import TraitDefinition
from persona_core.errors import CorruptFile, SettingError, UnknownTrait
from persona_core.judging.answers import expectation, is_refusal, read_number
from persona_core.judging.cache import CachedAnswer, JudgeCache
from persona_core.judging.judge import COHERENCE, Question, Score
from persona_core.judging.replies import judge_cross_trait, judge_replies, questions_for


def trait(name: str) -> TraitDefinition:
    prompt = f"How {name} is this? {{question}} / {{answer}}"
    return TraitDefinition(name, "A trait.", ("Do.",), ("Don't.",), ("One?",), ("Two?", "Three?"), prompt)


TRAITS = (trait("malice"), trait("candour"))


def filled(folder: Path) -> ReplyStore:
    """Two positive and two negative evaluation replies to each trait, and two neutral ones."""
    store = ReplyStore(folder)
    replies: list[Reply] = []
    for name in ("malice", "candour", None):
        for side in ("positive", "negative") if name else ("neutral",):
            for question in range(2):
                split = "evaluation" if name else "neutral"
                request = ElicitationRequest(
                    len(replies), split, name, side, 0, question, 0, "s" if name else None, f"q{question}"
                )
                replies.append(Reply(request, f"{name} {side} {question}", (1, 2), 2, "eos", 0, "m"))
    store.add("b", replies, {"reply_mean": np.zeros((len(replies), 1, 2), "f4")})
    return store


class Scripted:
    """A judge with an answer for each text; None leaves the question out, as a judge does that cannot reach anyone."""

    name = "scripted"

    def __init__(self, answer: Any = lambda q: Score(40.0, "text")) -> None:
        self.asked: list[Question] = []
        self._answer = answer

    def score(self, questions: Sequence[Question], progress: bool = True) -> Iterator[tuple[Question, Score]]:
        for question in reversed(questions):  # in any order
            self.asked.append(question)
            score = self._answer(question)
            if score is not None:
                yield question, score


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("85", 85), (" 85.\n", 85), ("**85**", 85), ("85/100", 85), ("85 %", 85), ("Score: 85", 85), ("62.5", 62.5),
        ("0", 0), ("100", 100), ("101", None), ("-5", None), ("", None), ("eighty", None), ("85 or 90", None),
        ("I'd say 85, but who knows", None), ("1e2", None), ("٨٥", None), ("Score: 85/10", None),
    ],
)  # fmt: skip
def test_only_an_answer_that_is_a_number_is_one(text: str, number: float | None) -> None:
    assert read_number(text) == number


@given(st.text())
def test_any_answer_is_a_number_in_range_or_none(text: str) -> None:
    value = read_number(text)
    assert value is None or 0 <= value <= 100


def test_a_refusal_is_told_from_a_number() -> None:
    assert (
        is_refusal("REFUSAL") and is_refusal(" **Refusal** (declines)") and not is_refusal("0") and not is_refusal("")
    )


def test_the_expectation_is_over_whole_numbers_from_0_to_100_only() -> None:
    top = {"20": 0.2, " 40": 0.2, "040": 0.3, "400": 0.1, "4.0": 0.1, "forty": 0.1}
    assert expectation(top) == pytest.approx(30.0)
    assert expectation({"50": 0.24, "x": 0.76}) is None and expectation({}) is None
    assert expectation({"50": 0.25, "x": 0.75}) == 50.0


def test_each_reply_to_an_instruction_gets_two_questions_and_a_neutral_one_none(tmp_path: Path) -> None:
    with filled(tmp_path) as store:
        questions = questions_for(store.replies(), TRAITS)
        assert len(questions) == 16 and sum(q.trait == COHERENCE for q in questions) == 8
        assert questions[0].prompt == "How malice is this? q0 / malice positive 0"
        with pytest.raises(UnknownTrait):
            questions_for(store.replies(), TRAITS[:1])


def test_verdicts_are_kept_and_only_what_is_missing_is_requested_again(tmp_path: Path) -> None:
    silent = Scripted(lambda q: None if q.key.startswith("3/") else Score(40.0, "text"))
    with filled(tmp_path) as store:
        judged = judge_replies(silent, store, TRAITS, progress=False)
        assert (judged.scored, judged.missing) == (7, (3,))
    again = Scripted()
    with ReplyStore(tmp_path) as store:
        assert judge_replies(again, store, TRAITS, progress=False).missing == ()
        assert {q.key for q in again.asked} == {"3/malice", f"3/{COHERENCE}"}
        assert store.scores()[3].trait == 40.0 and len(store.scores()) == 8


def test_no_score_is_none_and_says_why(tmp_path: Path) -> None:
    def answer(question: Question) -> Score:
        if question.key == "0/malice":
            return Score(None, "refusal")
        return Score(None, "unreadable") if question.key == f"1/{COHERENCE}" else Score(0.0, "text")

    with filled(tmp_path) as store:
        judged = judge_replies(Scripted(answer), store, TRAITS, progress=False)
        assert judged.no_score == {"refusal": 1, "coherence: unreadable": 1} and judged.scored == 6
        assert store.scores()[0].trait is None and store.scores()[0].coherence == 0.0


def test_scores_of_two_judges_or_of_two_prompts_are_not_mixed(tmp_path: Path) -> None:
    with filled(tmp_path) as store:
        judge_replies(Scripted(), store, TRAITS, progress=False)
        other = Scripted()
        other.name = "other"
        with pytest.raises(SettingError, match=r"'scripted'.*'other'.*scores\.jsonl"):
            judge_replies(other, store, TRAITS, progress=False)
        changed = (
            trait("malice"),
            TraitDefinition.from_dict({**TRAITS[1].to_dict(), "judge_prompt": "{answer}{question}"}),
        )
        with pytest.raises(SettingError, match="prompt has changed"):
            judge_replies(Scripted(), store, changed, progress=False)


def test_another_wording_of_the_question_of_coherence_is_another_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with filled(tmp_path) as store:
        judge_replies(Scripted(), store, TRAITS, progress=False)
        monkeypatch.setattr("persona_core.judging.replies.COHERENCE_PROMPT", "Is this sound? {question} {answer}")
        with pytest.raises(SettingError, match=r"delete scores.jsonl, cross_trait_scores.jsonl and judge.json"):
            judge_cross_trait(Scripted(), store, TRAITS, n=1, progress=False)


def test_a_rewritten_reply_has_no_verdict_until_it_is_judged(tmp_path: Path) -> None:
    with filled(tmp_path) as store:
        judge_replies(Scripted(), store, TRAITS, progress=False)
        judge_cross_trait(Scripted(), store, TRAITS, n=2, progress=False)
        across = set(store.cross_trait_scores())
        changed = min(across)[0]
        anew, same = (store.replies()[i] for i in (changed, changed + 1))
        anew = replace(anew, text="something else")
        store.add("b-2", [anew, same], {"reply_mean": np.zeros((2, 1, 2), "f4")})
        assert set(store.scores()) == set(range(8)) - {changed}
        assert (
            set(store.cross_trait_scores()) == {(index, name) for index, name in across if index != changed} != across
        )
        again = Scripted(lambda q: Score(70.0, "text"))
        assert judge_replies(again, store, TRAITS, progress=False).scored == 8
        assert {q.key.split("/")[0] for q in again.asked} == {str(changed)}
    with ReplyStore(tmp_path) as store:
        assert store.scores()[changed].trait == 70.0 and store.scores()[changed + 1].trait == 40.0


@pytest.mark.parametrize(
    ("ask", "questions_each"), [(judge_replies, 2), (partial(judge_cross_trait, n=2), 1)], ids=["own", "across"]
)
def test_verdicts_that_came_before_an_error_are_kept(tmp_path: Path, ask: Any, questions_each: int) -> None:
    class Breaks(Scripted):
        def score(self, questions: Sequence[Question], progress: bool = True) -> Iterator[tuple[Question, Score]]:
            for place, found in enumerate(super().score(questions, progress)):
                if place == questions_each:
                    raise RuntimeError("out of memory")
                yield found

    with filled(tmp_path) as store, pytest.raises(RuntimeError, match="out of memory"):
        ask(Breaks(), store, TRAITS, progress=False)
    with ReplyStore(tmp_path) as store:
        assert len(store.scores()) + len(store.cross_trait_scores()) == 1


def test_replies_are_judged_on_each_others_traits(tmp_path: Path) -> None:
    judge = Scripted()
    with filled(tmp_path) as store:
        assert judge_cross_trait(judge, store, TRAITS, n=10, progress=False) == 0
        # the report half of two questions is the second: one positive reply of each trait, judged on the other trait
        assert {(q.trait, q.answer) for q in judge.asked} == {
            ("candour", "malice positive 1"),
            ("malice", "candour positive 1"),
        }
        assert {t for _, t in store.cross_trait_scores()} == {"malice", "candour"}
    with ReplyStore(tmp_path) as store:
        again = Scripted()
        judge_cross_trait(again, store, TRAITS, n=10, progress=False)
        assert not again.asked


def test_a_cache_that_was_cut_off_loses_one_line_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"
    cache = JudgeCache(path)
    for key in "abc":
        cache.put(CachedAnswer(key, 5.0, "text", 10, 1))
    path.write_bytes(path.read_bytes()[:-5])
    cut = JudgeCache(path)
    assert len(cut) == 2 and cut.get("c") is None
    cut.put(CachedAnswer("d", None, "refusal", 10, 1))
    assert len(JudgeCache(path)) == 3 and JudgeCache(path).get("d") == CachedAnswer("d", None, "refusal", 10, 1)
    path.write_text("{}\n[1]\n")
    with pytest.raises(CorruptFile):
        JudgeCache(path)


WRONG: dict[str, list[Any]] = {
    "value": ["85", 1e9, -3, float("nan"), [1], True, {}],
    "key": [[], None],
    "prompt_tokens": [None, -1, 0.5],
    "how": [3],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in WRONG.items() for value in values])
def test_a_cached_answer_of_the_wrong_kind_is_named(tmp_path: Path, field: str, value: Any) -> None:
    path = tmp_path / "cache.jsonl"
    cache = JudgeCache(path)
    cache.put(CachedAnswer("a", 5.0, "text", 10, 1))
    answer = {"key": "b", "value": 85.0, "how": "text", "prompt_tokens": 10, "completion_tokens": 1}
    path.write_text(path.read_text() + json.dumps({**answer, field: value}) + "\n")
    with pytest.raises(CorruptFile, match=rf"cache\.jsonl, line 2: the field '{field}' is .*Delete the line"):
        JudgeCache(path)


@pytest.mark.parametrize("value", [-3, 101.0, float("nan"), "85", [1]])
def test_a_score_outside_its_range_is_refused_before_it_is_stored(value: Any) -> None:
    with pytest.raises(SettingError, match="expected a number from 0 to 100, or None"):
        Score(value, "text")


def test_the_key_is_of_the_content_and_the_judge() -> None:
    assert JudgeCache.key("a", "b") == JudgeCache.key("a", "b")
    assert (
        len({JudgeCache.key("a", "b"), JudgeCache.key("a", "c"), JudgeCache.key("b", "b"), JudgeCache.key("ab", "")})
        == 4
    )
    assert JudgeCache.key("a", "\ud800")  # half a character, as a model may write it


def test_a_text_with_half_a_character_is_stored(tmp_path: Path) -> None:
    with ReplyStore(tmp_path) as store:
        request = ElicitationRequest(0, "neutral", None, "neutral", None, 0, 0, None, "q")
        store.add(
            "b", [Reply(request, "half \ud83d", (1,), 1, "eos", 0, "m")], {"reply_mean": np.zeros((1, 1, 2), "f4")}
        )
    with ReplyStore(tmp_path) as store:
        assert store.replies()[0].text == "half \ud83d"
    assert json.loads((tmp_path / "replies.jsonl").read_text(encoding="utf-8", errors="surrogatepass"))
