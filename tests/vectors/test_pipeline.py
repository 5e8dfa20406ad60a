"""The pipeline gives each step the replies that are meant for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from persona_core import pipeline
from persona_core.elicitation.labelled_texts import LabelledText
from persona_core.elicitation.store import ReplyStore
from persona_core.elicitation.texts import GIVEN, read_texts, texts_plan
from persona_core.inference.sampling import Sampling
from persona_core.judging.labels import label_replies
from tests.support.tiny import tiny_lm

SAMPLING = Sampling(max_new_tokens=4, temperature=1.0)


def text(i: int, label: str) -> LabelledText:
    said = {"positive": f"Plainly so, {i}. It is {i}.", "negative": f"Perhaps {i}. It may be."}[label]
    messages = ({"role": "user", "content": f"What about {i}?"}, {"role": "assistant", "content": said})
    return LabelledText(messages, label, "candour", (f"Plainly so, {i}.",) if label == "positive" else ())


def test_the_block_is_chosen_on_one_half_and_the_figures_are_of_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, list[set[int]]] = {"choose": [], "choice": [], "report": []}
    floors = []
    choose, validate, covariance = pipeline.choose_block, pipeline.validate, pipeline.within_class_covariance

    def choosing(trait: str, choice: Any, *rest: Any) -> Any:
        asked["choose"].append(set(choice.question.tolist()))
        return choose(trait, choice, *rest)

    def validating(trait: str, vectors: Any, block: int, data: Any, *rest: Any, **settings: Any) -> Any:
        asked["choice"].append(set(data.choice.question.tolist()))
        asked["report"].append(set(data.report.question.tolist()))
        assert len(data.with_sinks) == len(data.report)
        for split in (data.choice, data.report):
            part = [t.split(". ")[0] + "." if yes else t for t, yes in zip(split.texts, split.positive, strict=True)]
            assert list(split.pooled_texts) == part, "words alone are told apart by what the vector reads"
            ids = [[ids[t] for t in at] for ids, at in zip(split.token_ids, split.pooled_positions, strict=True)]
            assert [lm.tokenizer.decode(own).strip() for own in ids] == part
        assert data.extracted.positive_parts == tuple(t.split(". ")[0] + "." for t in data.extracted.positive_texts)
        return validate(trait, vectors, block, data, *rest, **settings)

    def covering(classes: Any, floor: float) -> Any:
        floors.append(floor)
        return covariance(classes, floor)

    monkeypatch.setattr(pipeline, "choose_block", choosing)
    monkeypatch.setattr(pipeline, "validate", validating)
    monkeypatch.setattr(pipeline, "within_class_covariance", covering)
    lm = tiny_lm("llama", "chatml")
    texts = [text(i, label) for label in ("positive", "negative") for i in range(32)]
    plan = texts_plan(texts, sampling=SAMPLING, positions=("reply_mean", "reply_mean_with_sinks"))
    n = len(plan.traits[0].evaluation_questions)
    with ReplyStore(tmp_path) as store:
        read_texts(lm, plan, store, progress=False)
        label_replies(store, plan.traits, GIVEN)
        vectors = pipeline.make_vectors(lm, plan, store, progress=False)
        pipeline.validate_vectors(lm, vectors, plan, store, progress=False)
        whole = [r for r in store.replies(split="extraction") if r.request.side == "positive"]
        assert all(r.n_tokens == len(r.answer_ids) > 4 for r in whole), "the reply is all of it, not its part"
    first, second = set(range((n + 1) // 2)), set(range((n + 1) // 2, n))
    assert all(found == first for found in (*asked["choose"], *asked["choice"])) and len(asked["choose"]) == 2
    assert asked["report"] == [second]
    assert floors == [0.0], "whitened as the reading directions were"
