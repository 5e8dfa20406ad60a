"""A model that thinks, from its replies to the view: elicited, judged, extracted, monitored and shown."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from persona_core.elicitation.elicit import elicit
from persona_core.elicitation.store import ReplyStore
from persona_core.inference.batch import ReplyBatch
from persona_core.inference.sampling import Sampling
from persona_core.judging.openai import OpenAIJudge
from persona_core.judging.replies import judge_replies
from persona_core.models.detokenize import split_text
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.pipeline import make_vectors
from persona_core.traces.trace import Trace
from persona_core.traces.view.payload import trace_payload
from tests.elicitation.test_elicit import plan, trait
from tests.support import oracle
from tests.support.openai_server import Answer, completion, serving
from tests.support.tiny import random_vectors, tiny_lm

THOUGHT = "Hm, let me see.\n"
YES, NO = "Yes, it is great, you should.", "No, not for you."


@dataclass(frozen=True)
class Kind:
    """How a template has its model think.

    Attributes:
        shape: in tests/support/chat_templates.py.
        before, after: what the model writes around its thought.
        switch: what in the system text turns thinking off.
    """

    shape: str
    before: str
    after: str
    switch: str = ""

    def writes(self, prompt: str, row: int) -> str:
        """A thought and an answer that follows the instruction."""
        answer = YES if "frank" in prompt or "plainly" in prompt else NO
        if self.switch and "<think>" in prompt:
            return answer  # the prompt has closed an empty thought
        return f"{self.before}{THOUGHT if row % 2 else THOUGHT * 2}{self.after}{answer}"


KINDS = (
    Kind("opens-thought", "", "</think>\n\n"),
    Kind("empty-thought", "<think>\n", "</think>\n\n"),
    Kind("channels", "<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    Kind("brackets", "[THINK]", "[/THINK]"),
    Kind("switched", "<think>\n", "</think>\n", switch=" /no_think"),
)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.shape)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture
def lm(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Random weights; in place of sampling, it writes what a model of this kind would."""
    lm = tiny_lm("llama", kind.shape)
    encode = lm.tokenizer

    def choose(self: ReplyBatch) -> tuple[torch.Tensor, list[int]]:
        chosen = []
        for prompt, n in zip(self._prompts, self._n_reply, strict=True):
            text = kind.writes(encode.decode(list(prompt.ids)), prompt.row)
            ids = [*encode(text, add_special_tokens=False).input_ids, *sorted(lm.eos_ids)[:1]]
            chosen.append(ids[min(n, len(ids) - 1)])
        return torch.tensor(chosen), chosen

    monkeypatch.setattr(ReplyBatch, "_choose", choose)
    return lm


def test_a_thinking_model_from_replies_to_the_view(kind: Kind, lm: Any, tmp_path: Path) -> None:
    candour = trait("candour", n=4)
    switched: dict[str, Any] = {
        side: tuple(text + kind.switch for text in getattr(candour, side)) for side in ("positive", "negative")
    }
    asked = plan(
        traits=(replace(candour, **switched),),
        sampling=Sampling(max_new_tokens=40),
        tokens_per_reply=4,
        neutral_rollouts=2,
    )

    def by_answer(body: dict[str, Any], _number: int) -> Answer:
        shown = body["messages"][-1]["content"]
        return completion("90" if YES in shown or "coheren" in shown else "5")

    with serving(by_answer) as server, ReplyStore(tmp_path) as store:
        assert elicit(lm, asked, store, progress=False) == []
        judge_replies(OpenAIJudge("m", base_url=server.url, api_key="k"), store, asked.traits, progress=False)
        shown = [request["messages"][-1]["content"] for request in server.requests]
        replies = store.replies()
        vectors = make_vectors(lm, asked, store, progress=False)
    assert not any("let me see" in text for text in shown) and any(YES in text for text in shown)
    assert {reply.text for reply in replies} == {YES, NO}
    assert {lm.tokenizer.decode(list(r.answer_ids)) for r in replies} == {YES, NO}
    thought = [r for r in replies if THOUGHT in lm.tokenizer.decode(list(r.token_ids))]
    assert len(thought) == (len(replies) if not kind.switch else sum(r.request.system is None for r in replies))

    monitor = PersonaMonitor(lm, vectors)
    trace = monitor.generate("Be frank: is 3 a good number?", seed=0, max_new_tokens=40)
    assert trace.thinking_text == THOUGHT * 2 and trace.reply_text == YES
    again = monitor.read(trace)
    assert again.roles == trace.roles and oracle.relative_error(again.raw, trace.raw) < 1e-4
    # The null is of answers: put back together from the neutral replies, one by one.
    raw, (block,) = [], trace.blocks
    for reply in (r for r in replies if r.request.split == "neutral"):
        prompt = lm.chat.render(reply.request.messages).token_ids
        h = oracle.states(lm.model, list(lm.blocks.modules), [*prompt, *reply.token_ids])[vectors.best_block["candour"]]
        start = len(prompt) + reply.answer_start
        raw.append(oracle.project(h[start : start + reply.n_tokens], vectors.reading("candour").numpy()[block]))
    answers = np.concatenate(raw)
    assert abs(answers.mean() - trace.null_mean[0, 0]) < 0.05 * answers.std() + 1e-3

    side = trace_payload(trace)["sides"][0]
    assert side["roles"].count("thinking") == len(trace.thinking_positions) > 5
    row = trace.to_row(id="x", messages=[{"role": "user", "content": "Hi"}])
    assert Trace.from_row(row).thinking_text == trace.thinking_text
    assert row["n_reply"] == len(trace.reply_positions)


def test_a_later_turn_shows_the_earlier_thought_as_one_or_not_at_all(kind: Kind) -> None:
    """Whatever the template does with it: never as words of the answer."""
    lm = tiny_lm("llama", kind.shape)
    earlier = {"role": "assistant", "content": YES, "reasoning_content": "Is it great? Yes."}
    rendered = lm.chat.render([{"role": "user", "content": "Is it great?"}, earlier, {"role": "user", "content": YES}])
    pieces = split_text(lm.tokenizer, list(rendered.token_ids))
    said = {
        role: "".join(p for p, own in zip(pieces, rendered.roles, strict=True) if own == role)
        for role in ("user", "thinking", "assistant")
    }
    assert (said["user"], said["assistant"]) == ("Is it great?" + YES, YES)
    assert said["thinking"] in ("", "Is it great? Yes.")


def test_replies_of_a_live_batch_say_what_their_traces_say(kind: Kind, lm: Any) -> None:
    """Token by token, though a mark is known only once it is complete."""
    monitor = PersonaMonitor(lm, random_vectors(len(lm.blocks)))
    said: dict[int, str] = {}
    thought: dict[int, str] = {}
    ends = {}
    with monitor.live_batch(2, 2000) as batch:
        for seed in range(3):
            batch.start(monitor.live_reply("Be frank.", seed=seed, max_new_tokens=60))
        while not batch.is_idle:
            for token in batch.step():
                row = token.reply.seed
                said[row] = said.get(row, "") + token.says
                thought[row] = thought.get(row, "") + token.step.text * (token.role == "thinking")
                ends[row] = token.step
    for row, last in ends.items():
        trace = last.trace()
        assert trace.finish == "eos"
        assert said[row] == trace.reply_text != ""
        assert thought[row].strip() == trace.thinking_text.strip()
    assert len(ends) == 3
