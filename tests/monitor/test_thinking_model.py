"""A model that thinks, from its replies to the view: elicited, judged, extracted, monitored and shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from persona_core.elicitation.elicit import elicit
from persona_core.elicitation.store import ReplyStore
from persona_core.inference.batch import ReplyBatch
from persona_core.inference.sampling import Sampling
from persona_core.judging.judge import Question, Score
from persona_core.judging.replies import judge_replies
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.pipeline import make_vectors
from persona_core.traces.trace import Trace
from persona_core.traces.view.payload import trace_payload
from tests.elicitation.test_elicit import plan, trait
from tests.support.tiny import tiny_lm

THOUGHT = "Hm, let me see.\n"


class ByAnswer:
    """Scores what it is shown, and keeps it."""

    name = "by-answer"

    def __init__(self) -> None:
        self.shown: list[str] = []

    def score(self, questions: Sequence[Question], progress: bool = True) -> Iterator[tuple[Question, Score]]:
        for question in questions:
            self.shown.append(question.answer)
            high = question.trait == "coherence" or question.answer.startswith("Yes")
            yield question, Score(90.0 if high else 5.0, "text")


@pytest.fixture
def lm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a thought and then an answer that follows the instruction, and ends its turn."""
    lm = tiny_lm("llama", "opens-thought")
    encode = lm.tokenizer

    def choose(self: ReplyBatch) -> tuple[torch.Tensor, list[int]]:
        chosen = []
        for prompt, n in zip(self._prompts, self._n_reply, strict=True):
            asked = encode.decode(list(prompt.ids))
            answer = "Yes, it is great, you should." if "frank" in asked or "plainly" in asked else "No, not for you."
            thought = THOUGHT if prompt.row % 2 else THOUGHT * 2
            text = f"{thought}</think>\n\n{answer}"
            ids = [*encode(text, add_special_tokens=False).input_ids, *sorted(lm.eos_ids)[:1]]
            chosen.append(ids[min(n, len(ids) - 1)])
        return torch.tensor(chosen), chosen

    monkeypatch.setattr(ReplyBatch, "_choose", choose)
    return lm


def test_a_thinking_model_from_replies_to_the_view(lm: Any, tmp_path: Path) -> None:
    asked = plan(
        traits=(trait("candour", n=4),), sampling=Sampling(max_new_tokens=40), tokens_per_reply=4, neutral_rollouts=2
    )
    judge = ByAnswer()
    with ReplyStore(tmp_path) as store:
        assert elicit(lm, asked, store, progress=False) == []
        judge_replies(judge, store, asked.traits, progress=False)
        replies = store.replies()
        vectors = make_vectors(lm, asked, store, progress=False)
    assert set(judge.shown) == {"Yes, it is great, you should.", "No, not for you."}
    assert {lm.tokenizer.decode(list(r.answer_ids)) for r in replies} == set(judge.shown)

    monitor = PersonaMonitor(lm, vectors)
    trace = monitor.generate("Be frank: is 3 a good number?", seed=0, max_new_tokens=40)
    assert trace.thinking_text == THOUGHT * 2 and trace.reply_text.startswith("Yes")
    # The null is of answers: put back together from the neutral replies, one by one.
    neutral = [r for r in replies if r.request.split == "neutral"]
    read = [
        monitor.read([*r.request.messages, {"role": "assistant", "content": f"{THOUGHT}</think>\n\n{r.text}"}])
        for r in neutral
    ]
    raw = np.concatenate([t.raw[0, 0, t.reply_positions] for t in read])
    assert abs(raw.mean() - trace.null_mean[0, 0]) < 0.05 * raw.std() + 1e-3

    side = trace_payload(trace)["sides"][0]
    assert side["roles"].count("thinking") == len(trace.thinking_positions) > 5
    row = trace.to_row(id="x", messages=[{"role": "user", "content": "Hi"}])
    assert Trace.from_row(row).thinking_text == trace.thinking_text
    assert row["n_reply"] == len(trace.reply_positions)
