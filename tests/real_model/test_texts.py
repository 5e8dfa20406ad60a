"""The labelled texts: what keeps a vector from being made of anything but the trait."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from persona_core.elicitation.labelled_texts import load_texts
from persona_core.elicitation.prompts import load_prompts
from persona_core.elicitation.texts import texts_plan
from persona_core.elicitation.traits import load_traits
from persona_core.errors import CorruptFile
from real_model import texts
from real_model.texts import FOLDER, TRAITS, TextQuestion, as_records, load_questions

FIT_STYLES, TEST_STYLES = {"chat", "advice", "brief"}, {"chat", "advice", "formal", "story"}


def plain(text: str) -> str:
    return re.sub(r"\W+", " ", text.lower()).strip()


@pytest.fixture(scope="module")
def questions() -> tuple[TextQuestion, ...]:
    return load_questions()


def test_each_trait_has_sixty_questions_split_by_question_and_style(questions: tuple[TextQuestion, ...]) -> None:
    for trait in TRAITS:
        own = [q for q in questions if q.trait == trait]
        assert Counter(q.split for q in own) == {"fit": 36, "test": 24}
        assert {q.style for q in own if q.split == "fit"} == FIT_STYLES
        assert {q.style for q in own if q.split == "test"} == TEST_STYLES
    assert len({q.id for q in questions}) == len(questions)


def test_no_sentence_occurs_twice_and_no_question_is_known_from_elsewhere(questions: tuple[TextQuestion, ...]) -> None:
    sentences = Counter(plain(s) for q in questions for r in q.replies for s in r.sentences)
    assert {s: n for s, n in sentences.items() if n > 1} == {}
    asked = Counter(plain(q.question) for q in questions)
    assert max(asked.values()) == 1
    known = {plain(p.prompt) for p in load_prompts(["all", "neutral"])}
    known |= {plain(q) for t in load_traits(list(TRAITS)) for q in (*t.extraction_questions, *t.evaluation_questions)}
    assert not known & set(asked)
    dialogues = [json.loads(line) for line in (FOLDER / "flattering_dialogues.jsonl").read_text().splitlines()]
    fine_tuned_on = {plain(m["content"]) for d in dialogues for m in d["messages"]}
    assert not fine_tuned_on & (set(asked) | set(sentences))
    assert not fine_tuned_on & {plain(p.prompt) for p in load_prompts(["all"])}


def test_the_three_replies_to_a_question_are_alike_in_length(questions: tuple[TextQuestion, ...]) -> None:
    for trait in TRAITS:
        words: dict[str, list[int]] = {side: [] for side in texts.SIDES}
        for q in (q for q in questions if q.trait == trait):
            counts = {r.side: len(r.text.split()) for r in q.replies}
            assert max(counts.values()) <= 1.45 * min(counts.values()), q.id
            assert all(2 <= len(r.sentences) <= 6 for r in q.replies), q.id
            for side, n in counts.items():
                words[side].append(n)
        means = [np.mean(n) for n in words.values()]
        assert max(means) <= 1.1 * min(means), trait


def test_the_trait_often_begins_after_the_first_sentence(questions: tuple[TextQuestion, ...]) -> None:
    for trait in TRAITS:
        begins = [q.replies[0].shows.index(True) for q in questions if q.trait == trait]
        assert np.mean(np.array(begins) > 0) >= 0.5, trait
    assert not any(any(r.shows) for q in questions for r in q.replies[1:])


def test_the_texts_make_a_plan_with_the_parts_that_show_the_trait(tmp_path: Path) -> None:
    file = tmp_path / "fit.jsonl"
    lines = as_records(load_questions())
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    plan = texts_plan(load_texts(file))
    assert [t.name for t in plan.traits] == list(TRAITS) and plan.labels_parts
    assert len(plan.requests()) == len(lines) == 8 * (36 * 3 + 24 * 2)
    questions = {q.question: q for q in load_questions()}
    for trait in plan.traits:
        n = plan.n_choosing(trait)
        held_out = [questions[q] for q in trait.evaluation_questions]
        assert (len(trait.extraction_questions), n, len(held_out) - n) == (27, 9, 24)
        assert [q.split for q in held_out] == ["fit"] * n + ["test"] * 24
        assert {q.style for q in held_out[:n]} == {"chat", "advice", "brief"}


def test_a_line_of_another_form_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil.jsonl").write_text('{"id": "evil-01", "question": "Why?", "positive": ["So."]}\n')
    monkeypatch.setattr(texts, "FOLDER", tmp_path)
    with pytest.raises(CorruptFile, match=r"evil\.jsonl, line 1: not a question"):
        load_questions(["evil"])
