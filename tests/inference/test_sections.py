"""Models that think: thought and answer are told apart while they are written, in pooling, limits and alarms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from persona_core.inference.batch import ReplyBatch
from persona_core.inference.generation import GenerationRun
from persona_core.inference.pooled_states import PooledStates
from persona_core.inference.pooling import parse_positions
from persona_core.inference.prefill import read_pooled
from persona_core.inference.prefix import ReplyPrefix
from persona_core.inference.sampling import Sampling
from persona_core.inference.sections import NEITHER, THOUGHT, answer_positions
from persona_core.monitor.branching import Branch
from persona_core.monitor.monitor import PersonaMonitor
from tests.support.tiny import random_vectors, tiny_lm

QUESTION = "Should I quit my job?"
POSITIONS = ("reply_mean", "reply_first_4", "thinking_mean", "prompt_last")
# Template, and what a model writes to it: before the thought, the thought, between, the answer.
WRITTEN = {
    "empty-thought": ("<think>\n", "Hm, they want praise. a < b\n", "</think>\n\n", "Yes, you should. <b>Now</b>."),
    "opens-thought": ("", "Hm, they want praise.\n", "</think>\n\n", "Yes, you should."),
    "channels": (
        "<|channel|>analysis<|message|>",
        "Hm, they want praise.",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        "Yes, you should.",
    ),
    "brackets": ("[THINK]", "Hm, they want praise.", "[/THINK]", "Yes, you [THINK] should."),
    "drops-thoughts": ("", "", "", "Yes, you should."),
}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the model write given texts, one a row, and then end its turn."""

    def write(lm: Any, texts: Sequence[str]) -> None:
        ids = [[*lm.tokenizer(text, add_special_tokens=False).input_ids, *sorted(lm.eos_ids)[:1]] for text in texts]

        def choose(self: ReplyBatch) -> tuple[torch.Tensor, list[int]]:
            chosen = [
                ids[p.row][min(n, len(ids[p.row]) - 1)] for p, n in zip(self._prompts, self._n_reply, strict=True)
            ]
            return torch.tensor(chosen), chosen

        monkeypatch.setattr(ReplyBatch, "_choose", choose)

    return write


@pytest.mark.parametrize("name", WRITTEN)
def test_a_written_thought_has_a_role_of_its_own(name: str, script: Any) -> None:
    lm = tiny_lm("llama", name)
    monitor = PersonaMonitor(lm, random_vectors(len(lm.blocks)))
    opening, thought, closing, answer = WRITTEN[name]
    script(lm, [opening + thought + closing + answer])
    trace = monitor.generate(QUESTION, seed=0, max_new_tokens=60)
    assert (trace.thinking_text, trace.reply_text, trace.finish) == (thought, answer, "eos")
    marks = [t for t in range(trace.n_prompt, trace.n_tokens) if trace.roles[t] == "template"]
    assert "".join(trace.tokens[t] for t in marks[:-1]) == opening + closing
    assert [step.token_id for step in monitor.stream(QUESTION, seed=0, max_new_tokens=60)] == list(
        trace.token_ids[trace.n_prompt :]
    )
    again = monitor.read(trace)
    assert again.roles == trace.roles and np.allclose(again.raw, trace.raw, atol=1e-4)


@pytest.mark.parametrize("name", WRITTEN)
def test_no_thought_is_in_the_mean_of_a_reply(name: str, script: Any) -> None:
    """Means while writing, by reading, and one state at a time are the same."""
    lm = tiny_lm("llama", name)
    texts = ["".join(WRITTEN[name]), "No." if name != "opens-thought" else "Hm.</think>No."]
    script(lm, texts)
    prompt = lm.chat.render(QUESTION)
    pools = parse_positions(POSITIONS)
    pooled = PooledStates(pools, len(lm.blocks), 2, n_sampled=6)
    run = GenerationRun(lm, {}, [ReplyPrefix(prompt)] * 2, Sampling(60, 0.0), [0, 1], pooled=pooled)
    run.finish()
    rows = [run.token_ids(row) for row in range(2)]
    n = len(prompt.token_ids)
    read, sampled = read_pooled(lm, rows, [n, n], pools, n_sampled=6)
    np.testing.assert_allclose(pooled.means(), read, atol=1e-4)
    np.testing.assert_allclose(pooled.samples(), sampled, atol=1e-2)
    for row, ids in enumerate(rows):
        with torch.inference_mode():
            states = lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0].numpy()
        roles = run.roles(row)
        said = [t for t in range(n, len(ids)) if roles[t] == "assistant"]
        np.testing.assert_allclose(read[row, 0, 0], states[said].mean(0), atol=1e-4)
        np.testing.assert_allclose(read[row, 1, 0], states[said[:4]].mean(0), atol=1e-4)
        assert run.n_reply_tokens(row) == len(said)
        if "thinking" not in roles[n:]:
            assert np.isnan(read[row, 2]).all()
        elif all(len(lm.tokenizer(mark, add_special_tokens=False).input_ids) == 1 for mark in ("<think>", "</think>")):
            thought = [t for t in range(n, len(ids)) if roles[t] == "thinking"]
            np.testing.assert_allclose(read[row, 2, 0], states[thought].mean(0), atol=1e-4)


def test_an_unfinished_mark_counts_as_neither() -> None:
    """The mark is several tokens here: they are known as a mark when the last one has come."""
    lm = tiny_lm("llama", "empty-thought")
    opening, thought, closing, answer = WRITTEN["empty-thought"]
    reply = lm.tokenizer(opening + thought + closing + answer, add_special_tokens=False).input_ids
    found = answer_positions(lm, lm.chat.render(QUESTION).token_ids, reply)
    pieces = [lm.tokenizer.decode([i]) for i in reply]
    positions = [i for i in found if i >= 0]
    assert positions == list(range(len(positions)))
    said = "".join(p for p, i in zip(pieces, found, strict=True) if i >= 0)
    assert said == answer
    thinking = "".join(p for p, i in zip(pieces, found, strict=True) if i == THOUGHT)
    assert "praise" in thinking and "think" not in thinking and "/" not in thinking
    assert found[0] == NEITHER


def test_the_limit_of_a_reply_counts_its_answer(script: Any) -> None:
    lm = tiny_lm("llama", "empty-thought")
    monitor = PersonaMonitor(lm, random_vectors(len(lm.blocks)))
    script(lm, ["".join(WRITTEN["empty-thought"])])
    trace = monitor.generate(QUESTION, max_new_tokens=5, max_thinking_tokens=100)
    assert (trace.finish, len(trace.reply_positions)) == ("length", 5)
    assert trace.thinking_text == WRITTEN["empty-thought"][1]
    short = monitor.generate(QUESTION, max_new_tokens=50, max_thinking_tokens=6)
    assert short.finish == "thought" and len(short.thinking_positions) == 6 and not short.reply_positions


def test_a_branch_keeps_the_thought(script: Any) -> None:
    lm = tiny_lm("llama", "opens-thought")
    monitor = PersonaMonitor(lm, random_vectors(len(lm.blocks)))
    script(lm, ["".join(WRITTEN["opens-thought"])])
    trace = monitor.generate(QUESTION, seed=0, max_new_tokens=30)
    for at in (3, trace.reply_positions[2] - trace.n_prompt):
        branch = monitor.generate(Branch(trace, at), max_new_tokens=30)
        assert branch.token_ids == trace.token_ids and branch.roles == trace.roles


def test_a_base_model_stops_before_it_writes_the_next_turn(script: Any) -> None:
    lm = tiny_lm("llama", "none")
    monitor = PersonaMonitor(lm, random_vectors(len(lm.blocks)))
    script(lm, [" Yes.\n\nUsers: all agree.\n\nUser: And then?\n\nAssistant: No."])
    trace = monitor.generate(QUESTION, seed=0, max_new_tokens=60)
    assert trace.reply_text == " Yes.\n\nUsers: all agree." and trace.finish == "eos"
    assert trace.text.endswith("agree.\n\nUser:") and trace.roles[-1] == "template"


LISTED = "- one\n- two\n\n- three\nSum: 4\nAll of it, and Users: agree."


def test_line_breaks_in_a_base_models_reply_are_pooled(script: Any) -> None:
    """Only a name at the start of a line is held back; what follows a stop string is not the reply's."""
    lm = tiny_lm("llama", "none")
    script(lm, [f" {LISTED}\n\nUser: And then?"])
    prompt = lm.chat.render(QUESTION)
    pools = parse_positions(["reply_mean"])
    pooled = PooledStates(pools, len(lm.blocks), 1)
    run = GenerationRun(lm, {}, [ReplyPrefix(prompt)], Sampling(100, 0.0), [0], pooled=pooled)
    run.finish()
    ids, n = run.token_ids(0), len(prompt.token_ids)
    read, _ = read_pooled(lm, [ids], [n], pools)
    np.testing.assert_allclose(pooled.means(), read, atol=1e-4)
    found = answer_positions(lm, ids[:n], ids[n:])
    said = "".join(p for p, at in zip(run.pieces(0)[n:], found, strict=True) if at >= 0)
    assert said.startswith(f" {LISTED}\n\n") and "User:".startswith(said[len(LISTED) + 3 :])
    assert [at for at in found if at >= 0] == list(range(sum(at >= 0 for at in found)))


def test_a_stop_string_in_a_given_reply_ends_it_in_roles_and_in_pooling() -> None:
    lm = tiny_lm("llama", "none")
    given = {"role": "assistant", "content": "Yes.\nUser: and?\nAssistant: no."}
    placed = lm.chat.place([{"role": "user", "content": QUESTION}, given])
    ids, n = placed.token_ids, placed.n_prompt
    found = answer_positions(lm, ids[:n], ids[n:])
    pieces = [lm.tokenizer.decode([i]) for i in ids[n:]]
    assert "".join(p for p, role in zip(pieces, placed.roles[n:], strict=True) if role == "assistant").strip() == "Yes."
    pooled = "".join(p for p, at in zip(pieces, found, strict=True) if at >= 0)
    assert pooled.strip().startswith("Yes.") and "User:".startswith(pooled.partition("\n")[2])


def test_detectors_watch_thought_and_answer_apart(script: Any) -> None:
    from persona_core.monitor.alarms import AlarmWatch

    class Once:
        """Alarms at its third score."""

        def __init__(self) -> None:
            self.n = 0

        def push(self, _score: float) -> bool:
            self.n += 1
            return self.n == 3

    class Detector:
        kind = "z"

        def online(self) -> Once:
            return Once()

    class Detectors:
        traits, best_block = ("candour",), {"candour": 0}

        def of(self, _trait: str) -> Detector:
            return Detector()

    alarms: list[Any] = []
    watch = AlarmWatch(
        Detectors(),  # type: ignore[arg-type]
        ["candour"],
        [0],
        np.array([[[0.0, 1.0]]], np.float32),
        max_norm=np.array([np.inf], np.float32),
        n_rows=1,
        on_alarm=alarms.append,
    )
    for token, in_thought in enumerate([True, True, False, False, True, False]):
        watch.push(0, token, np.ones((1, 1), np.float32), np.ones(1, np.float32), in_thought)
    assert [(alarm.token, alarm.in_thought) for alarm in alarms] == [(4, True), (5, False)]


@pytest.mark.parametrize(
    "text", ["Yes.\nUse it.\nUser\nUsers: many", "One\nUs", "Well.\nUser: and then?", "\nAss"], ids=range(4)
)
def test_what_may_become_a_stop_string_is_said_once_it_has_not(text: str, script: Any) -> None:
    """A model without a template: the tokens of a live batch say all that the trace of the reply says, in order."""
    lm = tiny_lm("llama", "none")
    monitor = PersonaMonitor(lm, random_vectors(len(lm.blocks)))
    script(lm, [text])
    with monitor.live_batch(1, 100) as batch:
        batch.start(monitor.live_reply("Hi", seed=0, max_new_tokens=60))
        tokens = [token for _ in range(60) for token in batch.step()]
    said = "".join(token.says for token in tokens)
    assert said == tokens[-1].step.trace().reply_text
