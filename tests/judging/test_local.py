"""The judge on this machine: its expectation against a sum over every number, written out by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from persona_core.judging.judge import Question
from persona_core.judging.local import LocalJudge, digit_tokens, number_tree
from tests.support.tiny import tiny_lm


class Tilted:
    """The tiny model with more probability for tokens that write digits, so that numbers hold some."""

    def __init__(self, lm: Any, by: float) -> None:
        self._lm, self._tilt = lm, torch.where(digit_tokens(lm), by, 0.0)
        self.most_rows = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lm.model, name)

    def __call__(self, **inputs: Any) -> Any:
        self.most_rows = max(self.most_rows, inputs["input_ids"].shape[0])
        out = self._lm.model(**inputs)
        out.logits = 3 * out.logits + self._tilt
        return out


def tilted(by: float = 9.0) -> Any:
    lm = tiny_lm("llama", "chatml")
    return replace(lm, model=Tilted(lm, by))


def question(text: str) -> Question:
    return Question("0", "evil", text, "", "")


@torch.inference_mode()
def by_hand(lm: Any, prompt: str) -> tuple[float, float]:
    """Expectation and mass: each sequence of tokens that writes a number, one forward a prefix, nothing pruned."""
    start = list(lm.chat.render(prompt).token_ids)
    digits = [i for i in range(lm.vocabulary_size) if re.match(r"\d", lm.tokenizer.decode([i]))]

    def after(tokens: list[int]) -> np.ndarray:
        ids = torch.tensor([start + tokens])
        return lm.model(input_ids=ids).logits[0, -1].double().softmax(-1).numpy()

    known: dict[tuple[int, ...], np.ndarray] = {}
    sequences = {
        (n, tuple(lm.tokenizer.encode(f"{s}{n}", add_special_tokens=False))) for n in range(101) for s in ("", " ")
    }
    longer = {tokens[:k] for _, tokens in sequences for k in range(1, len(tokens))}
    mass: dict[int, float] = dict.fromkeys(range(101), 0.0)
    for number, tokens in sequences:
        p = 1.0
        for k in range(len(tokens)):
            if tokens[:k] not in known:
                known[tokens[:k]] = after(list(tokens[:k]))
            p *= known[tokens[:k]][tokens[k]]
        if tokens in longer:  # it is this number only if no digit follows
            p *= 1 - after(list(tokens))[digits].sum()
        mass[number] += p
    total = sum(mass.values())
    return sum(n * p for n, p in mass.items()) / total, total


@pytest.mark.parametrize("prompt", ["How evil is this?", "Hi"])
def test_the_expectation_is_that_of_every_number_written_out(prompt: str) -> None:
    lm = tilted()
    wanted, mass = by_hand(lm, prompt)
    ((_, score),) = LocalJudge(lm).score([question(prompt)], progress=False)
    assert mass > 0.3 and score.how == "logprobs"
    assert score.value == pytest.approx(wanted, abs=1.0)  # branches of less than 1 % are not followed


def test_numbers_are_written_in_several_tokens_here() -> None:
    """Otherwise the test above would not try what it is for."""
    root = number_tree(tiny_lm("llama", "chatml"))
    assert any(child.children for child in root.children.values())


def test_no_score_where_numbers_are_unlikely() -> None:
    ((_, score),) = LocalJudge(tilted(-9.0)).score([question("Hi")], progress=False)
    assert score.value is None and score.how == "unreadable"


def test_a_prompt_that_is_too_long_has_no_score_and_stops_nothing() -> None:
    questions = [replace(question("Hi"), key="a"), replace(question("word " * 3000), key="b")]
    found = {q.key: s for q, s in LocalJudge(tilted()).score(questions, progress=False)}
    assert found["a"].value is not None and (found["b"].value, found["b"].how) == (None, "too long")


def test_scores_do_not_depend_on_the_batch() -> None:
    lm = tilted()
    questions = [replace(question("How evil? " * n), key=str(n)) for n in range(1, 6)]
    one, many = (
        {q.key: s.value for q, s in LocalJudge(lm, batch_size=size).score(questions, progress=False)} for size in (1, 4)
    )
    assert one == pytest.approx(many, abs=1e-3) and lm.model.most_rows == 4


def test_the_two_questions_about_a_reply_come_soon_after_each_other() -> None:
    """A run that is stopped has whole verdicts to show: not all traits first, as sorting everything by length does."""
    questions = [replace(question(f"{'How evil? ' * n} {i}"), key=f"{i}/{n}") for i in range(20) for n in (1, 4)]
    asked = [q.key.split("/")[0] for q, _ in LocalJudge(tilted(), batch_size=2).score(questions, progress=False)]
    whole = sum(asked[:20].count(str(i)) == 2 for i in range(20))
    assert whole >= 8
