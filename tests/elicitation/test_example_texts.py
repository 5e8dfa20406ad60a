"""The labelled texts that the guide begins with: alike but for the trait, and enough for a vector."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from persona_core.elicitation.labelled_texts import LabelledText, load_texts
from persona_core.elicitation.prompts import load_prompts
from persona_core.elicitation.texts import texts_plan

DATASETS = Path(__file__).parent.parent.parent / "datasets"
EXAMPLES = sorted((DATASETS / "texts" / "examples").glob("*.jsonl"))


@pytest.fixture(params=EXAMPLES, ids=lambda path: path.stem)
def texts(request: pytest.FixtureRequest) -> tuple[LabelledText, ...]:
    return load_texts(request.param)


def sentences(reply: str) -> list[str]:
    return re.findall(r"\S.*?[.!?](?= |$)", reply)


def reply(text: LabelledText) -> str:
    return text.messages[-1]["content"]


def test_each_question_has_a_reply_of_each_side(texts: tuple[LabelledText, ...]) -> None:
    sides = Counter((text.prompt, text.label) for text in texts)
    prompts = {text.prompt for text in texts}
    assert len(prompts) == 24
    assert sides == Counter((p, side) for p in prompts for side in ("positive", "negative", "neutral"))


def test_they_make_a_plan_that_knows_which_tokens_show_the_trait(texts: tuple[LabelledText, ...]) -> None:
    plan = texts_plan(texts)
    (trait,) = plan.traits
    assert (len(trait.extraction_questions), len(trait.evaluation_questions)) == (12, 12)
    assert plan.labels_parts and plan.enough_neutral


def test_what_shows_the_trait_is_whole_sentences_of_the_reply_here_and_there(texts: tuple[LabelledText, ...]) -> None:
    first = Counter[int]()
    for text in texts:
        said = sentences(reply(text))
        assert " ".join(said) == reply(text) and 2 <= len(said) <= 4
        if text.label == "positive":
            assert text.shows and len(text.shows) < len(said) and set(text.shows) <= set(said)
            first[said.index(text.shows[0])] += 1
    assert len(first) >= 3 and max(first.values()) <= 12


def test_replies_to_a_question_are_alike_in_length_and_no_sentence_occurs_twice(
    texts: tuple[LabelledText, ...],
) -> None:
    for prompt in {text.prompt for text in texts}:
        found = [reply(text) for text in texts if text.prompt == prompt]
        words = [len(text.split()) for text in found]
        assert max(words) <= 1.4 * min(words), prompt
        assert len({len(sentences(text)) for text in found}) == 1, prompt
    said = Counter(sentence.lower() for text in texts for sentence in sentences(reply(text)))
    assert max(said.values()) == 1, said.most_common(1)


def test_no_question_is_among_the_prompts_or_the_other_texts(texts: tuple[LabelledText, ...]) -> None:
    known = {p.prompt for p in load_prompts(["all", "neutral"])}
    for path in (DATASETS / "texts").glob("*.jsonl"):
        for record in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            known.add(record["question"] if "question" in record else record["messages"][0]["content"])
    assert len(known) > 1000
    assert not known & {text.prompt for text in texts}
