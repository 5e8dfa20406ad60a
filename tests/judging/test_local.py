"""The judge on this machine: its expectation against a sum over every number, written out by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from persona_core.judging.judge import Question
from persona_core.judging.local import UNLIKELY, LocalJudge
from persona_core.judging.number_tree import digit_tokens, number_tree
from persona_core.models.loading import wrap_model
from tests.support.chat_templates import tokenizer_for
from tests.support.families import BY_NAME, build
from tests.support.tiny import tiny_lm


class Tilted:
    """The tiny model with more probability for tokens that write digits, so that numbers hold some."""

    def __init__(self, lm: Any, by: float) -> None:
        self._lm, self._tilt = lm, torch.where(digit_tokens(lm), by, 0.0)
        self.shapes: list[tuple[int, int]] = []
        self.room = 100

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lm.model, name)

    def __call__(self, **inputs: Any) -> Any:
        rows, columns = inputs["input_ids"].shape
        if rows > self.room:
            raise torch.OutOfMemoryError("too many rows")
        self.shapes.append((rows, columns))
        self.last_ids = inputs["input_ids"][-1].tolist()
        out = self._lm.model(**inputs)
        out.logits = 3 * out.logits + self._tilt
        return out


def tilted(by: float = 9.0, family: str = "llama") -> Any:
    lm = tiny_lm(family, "chatml")
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
    assert number_tree(tiny_lm("llama", "chatml")).branches


RUBRIC = "Rate how evil this is. 0 is kind, 100 is evil."


def asked(n: int) -> list[Question]:
    """Questions of one rubric with answers of different lengths."""
    return [replace(question(f"{RUBRIC} {'word ' * k}{k} Number:"), key=str(k)) for k in range(1, n + 1)]


def scores(judge: LocalJudge, questions: list[Question]) -> dict[str, float | None]:
    return {q.key: s.value for q, s in judge.score(questions, progress=False)}


@pytest.mark.parametrize("family", BY_NAME)
def test_every_family_is_read_as_each_prompt_alone_is(family: str) -> None:
    """Where sharing would be wrong (sliding windows, recurrent states, distances in the mask), it is not done."""
    lm = tilted(200.0, family)
    shared, whole = (scores(LocalJudge(lm, 4, share), asked(5)) for share in (True, False))
    assert None not in whole.values() and shared == pytest.approx(whole, abs=0.05)


def test_a_sliding_window_counts_as_soon_as_a_prompt_exceeds_it() -> None:
    model = build("mistral")
    model.config.sliding_window = 60
    lm = wrap_model(model, tokenizer_for("chatml"), name="a model with a window")
    lm = replace(lm, model=Tilted(lm, 200.0))
    short, long = ([replace(question(f"{k} " * n), key=str(k)) for k in range(3)] for n in (5, 30))
    assert all(len(lm.chat.render(q.prompt).token_ids) < 50 for q in short)
    judge = LocalJudge(lm, 4)
    for asking in (short, long):
        assert scores(judge, asking) == pytest.approx(scores(LocalJudge(lm, 4, share_prefix=False), asking), abs=0.05)


def test_the_rubric_is_read_once_and_every_prompt_in_one_forward() -> None:
    lm = tilted()
    judge = LocalJudge(lm, batch_size=4)
    list(judge.score(asked(6), progress=False))
    lm.model.shapes.clear()
    list(judge.score(asked(6), progress=False))
    whole = max(len(lm.chat.render(q.prompt).token_ids) for q in asked(5))
    assert [rows for rows, _ in lm.model.shapes] == [4, 2]  # the rubric is known from the first call
    assert all(columns < whole + len(number_tree(lm).branches) - 20 for _, columns in lm.model.shapes)


@pytest.mark.parametrize(
    ("shape", "ends"),
    [
        ("opens-thought", "<think>\n\n</think>\n\n"),
        ("empty-thought", "<think>\n\n</think>\n\n"),
        ("channels", "<|channel|>final<|message|>"),
        ("response-marks", "<|START_RESPONSE|>"),
        ("chatml", "assistant\n"),
    ],
)
def test_a_judge_that_thinks_answers_after_an_empty_thought(shape: str, ends: str) -> None:
    lm = tiny_lm("llama", shape)
    lm = replace(lm, model=Tilted(lm, 9.0))
    scores(LocalJudge(lm, share_prefix=False), [question("How evil is this?")])
    # The last forward is behind a first digit, the one before it behind the prompt.
    read = lm.tokenizer.decode(lm.model.last_ids).rstrip("0123456789 ")
    assert read.endswith(ends)


def test_two_rubrics_share_nothing_with_each_other() -> None:
    lm = tilted()
    both = [q for one in asked(5) for q in (one, replace(one, trait="coherence", prompt="How clear? " + one.prompt))]
    found = {(q.key, q.trait): s.value for q, s in LocalJudge(lm, 4).score(both, progress=False)}
    for one in both:
        assert found[one.key, one.trait] == pytest.approx(by_hand(lm, one.prompt)[0], abs=1.0)


def test_a_batch_that_does_not_fit_into_memory_is_judged_in_halves() -> None:
    lm = tilted()
    wanted = scores(LocalJudge(lm, 4), asked(8))
    lm.model.room = 2
    assert scores(LocalJudge(lm, 4), asked(8)) == pytest.approx(wanted, abs=1e-3)


def test_no_score_where_numbers_are_unlikely() -> None:
    ((_, score),) = LocalJudge(tilted(-9.0)).score([question("Hi")], progress=False)
    assert score.value is None and score.how == "unreadable"


def test_an_expectation_over_unlikely_numbers_is_given_where_it_is_asked_for() -> None:
    lm = tilted(-9.0)
    judge = LocalJudge(lm, min_mass=0.0)
    ((_, score),) = judge.score([question("Hi")], progress=False)
    expected, mass = by_hand(lm, "Hi")
    assert mass < 0.01 and score.value == pytest.approx(expected, abs=1) and score.how == UNLIKELY
    ((_, score),) = LocalJudge(tilted(), min_mass=0.0).score([question("Hi")], progress=False)
    assert score.how == "logprobs"
    assert judge.name != LocalJudge(lm).name, "scores of the two must not be mixed"


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
    assert one == pytest.approx(many, abs=1e-3) and max(rows for rows, _ in lm.model.shapes) == 4


def test_the_two_questions_about_a_reply_come_soon_after_each_other() -> None:
    """A run that is stopped has whole verdicts to show: not all traits first, as sorting everything by length does."""
    questions = [replace(question(f"{'How evil? ' * n} {i}"), key=f"{i}/{n}") for i in range(20) for n in (1, 4)]
    asked = [q.key.split("/")[0] for q, _ in LocalJudge(tilted(), batch_size=2).score(questions, progress=False)]
    whole = sum(asked[:20].count(str(i)) == 2 for i in range(20))
    assert whole >= 8
