"""Marks: the sentences that show a trait, where they lie in the tokens, and what a judge could not say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from demo_world.grammar import load_world
from demo_world.judge import DEMO_JUDGE, TruthJudge
from demo_world.truth_labels import reply_truth
from persona_core.cli import mark
from persona_core.elicitation.traits import load_traits
from persona_core.errors import CorruptFile, NotFound, SettingError
from persona_core.judging.annotations import (
    Annotation,
    UnscoredSentence,
    annotate_sentences,
    annotated_positions,
    annotations_of,
    load_annotations,
    load_judged_traits,
    save_annotations,
    sentence_questions,
)
from persona_core.judging.judge import Question, Score
from persona_core.traces.dataset import load_results
from persona_core.traces.trace import Trace
from persona_core.utils.workdir import lock
from tests.analysis.test_spans import PROMPT, reply
from tests.support.openai_server import Answer, completion, error, serving

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "artifacts" / "persona-monitoring-persona-tiny"
TRAITS = ROOT / "artifacts" / "persona-tiny" / "traits"
ROWS = [
    {"id": "a", "prompt": "Should I?", "response": "Yes. You are so clever!\n\nGo on."},
    {"id": "b", "prompt": "Why?", "response": " \n"},
    {"id": "c", "prompt": "Who?", "response": "Clever you."},
]


class Stub:
    """Scores by what a sentence says; silent or without a number where it is told so."""

    name = "stub"

    def __init__(self, scores: dict[str, float | None], silent: str = "never") -> None:
        self.scores, self.silent = scores, silent
        self.asked: list[Question] = []

    def score(self, questions: Sequence[Question], progress: bool = True) -> Iterator[tuple[Question, Score]]:
        self.asked += questions
        for question in reversed(questions):  # answers come in any order
            if self.silent not in question.answer:
                value = self.scores.get(question.answer, 0.0)
                yield question, Score(value, "refusal" if value is None else "text")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """The shipped runs as persona monitor leaves them: nothing is analysed yet."""
    return Path(shutil.copytree(SHIPPED, tmp_path / "results", ignore=shutil.ignore_patterns("analysis")))


# ---- the judge ----


def test_sentences_of_fifty_and_more_are_marked_in_the_response() -> None:
    judge = Stub({"You are so clever!": 50.0, "Go on.": 49.9, "Clever you.": 100.0})
    found = annotate_sentences(ROWS, load_traits(["sycophancy"]), judge, "run", progress=False)
    assert found.annotations == (
        Annotation("a", "run", "sycophancy", 4, 23, 50.0, "text", "You are so clever!"),
        Annotation("c", "run", "sycophancy", 0, 11, 100.0, "text", "Clever you."),
    )
    assert ROWS[0]["response"][4:23] == " You are so clever!"
    assert found.unscored == () and found.n_sentences == 4 and found.empty == ("b",)


def test_the_judge_sees_the_question_and_one_sentence_for_each_trait() -> None:
    traits, judge = load_traits(["sycophancy", "evil"]), Stub({})
    annotate_sentences(ROWS, traits, judge, "run", progress=False)
    assert [(q.trait, q.question, q.answer) for q in judge.asked][:3] == [
        ("sycophancy", "Should I?", "Yes."),
        ("evil", "Should I?", "Yes."),
        ("sycophancy", "Should I?", "You are so clever!"),
    ]
    assert all(q.prompt == traits[q.trait == "evil"].judge_question(q.question, q.answer) for q in judge.asked)
    assert len({q.key for q in judge.asked}) == len(judge.asked) == 8
    assert sentence_questions(ROWS, traits) == judge.asked


def test_what_the_judge_could_not_answer_is_missing_and_neither_marked_nor_dropped() -> None:
    judge = Stub({"You are so clever!": None, "Clever you.": 90.0}, silent="Yes")
    found = annotate_sentences(ROWS, load_traits(["sycophancy"]), judge, "run", progress=False)
    assert [str(m) for m in found.unscored] == [
        "run/a, sycophancy, characters 0 to 4: no answer",
        "run/a, sycophancy, characters 4 to 23: refusal",
    ]
    assert [m.id for m in found.annotations] == ["c"]


def test_two_readings_of_one_reply_are_refused() -> None:
    with pytest.raises(SettingError, match="'a' occurs twice"):
        annotate_sentences([ROWS[0], ROWS[0]], load_traits(["evil"]), Stub({}), "replay")


# ---- tokens ----


def test_a_token_belongs_to_the_annotation_of_its_last_character() -> None:
    #         0-2    3-5    6    7   half an e-acute, and the rest: 8-9   10
    pieces = ["Yes", ". N", "o", ".", "", "", " é", "!"]
    trace = reply([0.0] * 8, pieces)

    def of(start: int, end: int) -> list[int]:
        return [t - PROMPT for t in annotated_positions(trace, [Annotation("p", "run", "t", start, end)])]

    assert of(0, 4) == [0] and of(4, 8) == [1, 2, 3] and of(8, 11) == [4, 5, 6, 7] and of(0, 11) == [*range(8)]
    assert of(9, 10) == [6] and of(1, 2) == []
    two = [Annotation("p", "run", "t", 10, 11), Annotation("p", "run", "t", 4, 7)]
    assert annotated_positions(trace, two) == [PROMPT + 1, PROMPT + 2, PROMPT + 7]
    for start, end in ((0, 12), (-1, 3), (3, 3)):
        with pytest.raises(SettingError, match="of 11 characters"):
            annotated_positions(trace, [Annotation("p", "run", "t", start, end)])


def test_marks_are_picked_by_reply_and_trait() -> None:
    marks = [
        Annotation("a", "x", "t", 5, 6),
        Annotation("a", "x", "t", 0, 2, 60.0),
        Annotation("a", "y", "t", 0, 1),
        Annotation("b", "x", "t", 0, 1),
    ]
    marks.append(Annotation("a", "x", "u", 0, 1))
    assert annotations_of(marks, "a", "x", "t") == [marks[1], marks[0]]


# ---- files ----


def test_a_file_gives_back_the_marks_in_order_and_people_may_leave_the_score_out(tmp_path: Path) -> None:
    marks = [
        Annotation("é", "run", "t", 4, 9, 72.5, "text"),
        Annotation("a", "run", "t", 0, 3),
        Annotation("a", "run", "t", 0, 2, 51.0),
    ]
    path = save_annotations(marks, tmp_path / "deep" / "marks.jsonl")
    assert load_annotations(path) == [marks[2], marks[1], marks[0]]
    by_hand = tmp_path / "own.jsonl"
    by_hand.write_text('\n{"id": "a", "config": "run", "trait": "t", "start": 0, "end": 3}', encoding="utf-8-sig")
    assert load_annotations(by_hand) == [Annotation("a", "run", "t", 0, 3, None, "given")]
    assert by_hand.read_text(encoding="utf-8-sig").endswith("}")  # a file of the user's own is left as it is
    assert load_annotations(save_annotations([], tmp_path / "none.jsonl")) == []
    with pytest.raises(NotFound, match="absent"):
        load_annotations(tmp_path / "absent.jsonl")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"start": -1}, "line 2: the field 'start' is -1; expected an integer of at least 0"),
        ({"start": 1.5}, "the field 'start' is 1.5"),
        ({"end": True}, "the field 'end' is True"),
        ({"end": 0}, "the field 'end' is 0; it must be greater than start, 0"),
        ({"score": "high"}, "the field 'score' is 'high'; expected a number from 0 to 100"),
        ({"score": 101}, "the field 'score' is 101"),
        ({"score": float("nan")}, "the field 'score' is nan"),
        ({"id": ""}, "the field 'id' is ''; expected a string"),
        ({"trait": 3}, "the field 'trait' is 3"),
        ({"how": None}, "the field 'how' is None"),
        ({"begin": 3}, "unknown field 'begin'; known are id, config, trait, start, end, score, how"),
        ("config", "the field 'config' is missing"),
        ([1], "line 2: expected an object, got a list"),
        ("{", "line 2: not valid JSON"),
    ],
)
def test_a_faulty_file_is_named_with_line_and_field(tmp_path: Path, change: Any, says: str) -> None:
    good = {"id": "a", "config": "run", "trait": "t", "start": 0, "end": 3}
    if change == "config":
        line = json.dumps({k: v for k, v in good.items() if k != "config"})
    else:
        line = (
            change
            if isinstance(change, str)
            else json.dumps({**good, **change} if isinstance(change, dict) else change)
        )
    path = tmp_path / "marks.jsonl"
    path.write_text(json.dumps(good) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(CorruptFile) as raised:
        load_annotations(path)
    assert str(path) in str(raised.value) and says in str(raised.value)


# ---- the command ----


def test_the_demo_judge_annotates_the_shipped_replies_token_by_token_as_the_grammar_does(results: Path) -> None:
    assert mark.main(["--results", str(results), "--traits", str(TRAITS), "--judge", DEMO_JUDGE]) == 0
    marks, world = load_annotations(results / "analysis" / "marks.jsonl"), load_world()
    n_shown = 0
    for config in ("baseline", "contaminated"):
        for row in load_results(results, config):
            trace = Trace.from_row(row)
            own, truth = reply_truth(trace, world)
            for trait in trace.traits:
                shown = [t for t, s in zip(own, truth, strict=True) if s and (s.kind, s.trait) == ("trait", trait)]
                mine = annotations_of(marks, row["id"], config, trait)
                assert annotated_positions(trace, mine) == shown
                n_shown += len(shown)
    assert n_shown > 4000 and {m.score for m in marks} == {100.0} and {m.how for m in marks} == {"truth"}


def test_annotations_of_other_runs_and_traits_are_kept_and_the_same_command_changes_nothing(results: Path) -> None:
    path = results / "analysis" / "marks.jsonl"
    mine = Annotation("pilot-01", "baseline", "sycophancy", 0, 5, None, "me")
    other = Annotation("pilot-01", "contaminated", "verbosity", 0, 5, None, "me")
    stale = Annotation("pilot-01", "contaminated", "sycophancy", 0, 5, 70.0, "text")
    by_hand = Annotation("pilot-01", "contaminated", "sycophancy", 0, 7, None, "me")
    save_annotations([mine, other, stale, by_hand], path)
    command = ["--results", str(results), "--traits", str(TRAITS / "sycophancy.json"), "--judge", DEMO_JUDGE]
    assert mark.main([*command, "--config", "contaminated"]) == 0
    found = load_annotations(path)
    assert {mine, other, by_hand} <= set(found) and stale not in found and len(found) > 200
    assert load_judged_traits(path.with_name("judged.json")) == {"contaminated": ["sycophancy"]}
    before = path.read_bytes()
    assert mark.main([*command, "--config", "contaminated"]) == 0 and path.read_bytes() == before
    assert mark.main([*command, "--estimate"]) == 0 and path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--judge", "gpt"], "--judge 'gpt'; expected"),
        (["--config", "other"], "holds the configs baseline, contaminated, replay"),
        (["--config", "replay"], "occurs twice"),
        (["--results", "nowhere"], "holds the configs none"),
        (["--traits", "overconfidence"], "Unknown trait 'overconfidence'"),
    ],
)
def test_a_mistake_is_a_sentence_and_writes_nothing(
    results: Path, change: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--results", str(results), "--traits", str(TRAITS), "--judge", DEMO_JUDGE, *change]
    assert mark.main(command) == 1
    assert says in capsys.readouterr().err and not (results / "analysis" / "marks.jsonl").exists()


def test_an_unfinished_judge_ends_non_zero_with_what_is_missing_and_is_not_paid_twice(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    broken = True

    def answer(body: dict[str, Any], number: int) -> Answer:
        text = body["messages"][0]["content"]
        if "May I say something about you?" in text and broken:
            return error(400, "content filter")
        return completion("80" if "clever" in text or "genius" in text else "5")

    with serving(answer) as server:
        command = [
            "--results",
            str(results),
            "--traits",
            "sycophancy",
            "--judge",
            "openai:m",
            "--judge-url",
            server.url,
        ]
        command += ["--config", "contaminated"]
        assert mark.main(command) == 1
        first, said = len(server.requests), capsys.readouterr()
        assert "contaminated/pilot-01, sycophancy, characters 0 to 30: " in said.err and "content filter" in said.err
        n_missing = sum(line.startswith("missing: ") for line in said.err.splitlines())
        assert n_missing > 5 and f"{n_missing} could not be done" in said.err
        kept = load_annotations(results / "analysis" / "marks.jsonl")
        assert kept and all(m.score == 80.0 for m in kept)
        assert load_judged_traits(results / "analysis" / "judged.json") == {
            "contaminated": []
        }  # not all of it was looked at
        broken = False
        assert mark.main(command) == 0
        assert len(server.requests) == first + n_missing  # only what had no answer
        assert load_annotations(results / "analysis" / "marks.jsonl") == kept
    assert (results.parent / "results.work" / "marks" / "judge_cache.jsonl").is_file()
    assert sorted(p.name for p in results.iterdir()) == ["README.md", "analysis", "data"]


def test_the_truth_judge_knows_one_sentence_at_a_time() -> None:
    rows = load_results(SHIPPED, "contaminated")[:10]
    found = annotate_sentences(rows, load_traits([TRAITS]), TruthJudge(load_world()), "contaminated", progress=False)
    assert found.unscored == () and {m.score for m in found.annotations} == {100.0}


def test_an_old_mark_stays_where_the_judge_does_not_answer_now() -> None:
    missing = [UnscoredSentence("a", "run", "sycophancy", 0, 5, "refusal")]
    old = [
        Annotation("a", "run", "sycophancy", 0, 5, 90.0, "text"),
        Annotation("a", "run", "sycophancy", 6, 9, 90.0, "text"),
    ]
    assert mark._kept(old, {("run", "sycophancy")}, missing) == old[:1]


def test_a_mark_of_another_text_is_refused() -> None:
    row = load_results(SHIPPED, "contaminated")[0]
    trace = Trace.from_row(row)
    said = row["response"][:20].strip()
    annotated_positions(trace, [Annotation("a", "run", "sycophancy", 0, 20, text=said)])
    with pytest.raises(SettingError, match="Does it belong to another run"):
        annotated_positions(trace, [Annotation("a", "run", "sycophancy", 0, 20, text="something else")])


def test_two_commands_at_once_do_not_lose_each_others_marks(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (results / "analysis").mkdir()
    held = lock(results / "analysis")
    command = ["--results", str(results), "--traits", str(TRAITS / "sycophancy.json"), "--judge", DEMO_JUDGE]
    assert mark.main(command) == 1 and "Another process is using" in capsys.readouterr().err
    held.release()
    assert mark.main(command) == 0
