"""A real model, SmolLM2-135M-Instruct: what holds of tiny random ones holds of it."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from typing import Any

import pytest
import torch

from persona_core.inference import hooks
from persona_core.inference.steering import Steer
from persona_core.models.loading import wrap_model
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.traces.trace import Trace
from persona_core.vectors.vectors import PersonaVectors
from tests.support import oracle

TOLERANCE = 1e-4  # relative, float32
TRAITS = ("candour", "malice")
PROMPT = "Name three fruits."


@pytest.fixture(scope="module")
def monitor(real_model: Any) -> PersonaMonitor:
    """Reads all blocks along two random directions."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(real_model.blocks), real_model.blocks.d_model)
    drawn = {trait: torch.randn(shape, generator=generator) for trait in TRAITS}
    return PersonaMonitor(real_model, PersonaVectors.from_tensors(drawn, dict.fromkeys(TRAITS, 20)), blocks="all")


@pytest.fixture(scope="module")
def trace(monitor: PersonaMonitor) -> Trace:
    """A short greedy reply."""
    return monitor.generate(PROMPT, max_new_tokens=12, temperature=0)


def agree(found: Trace, wanted: Trace) -> None:
    """The same ids, and the same numbers at every block."""
    assert found.token_ids == wanted.token_ids
    for block in range(len(wanted.blocks)):
        for trait in range(len(TRAITS)):
            assert oracle.relative_error(found.raw[trait, block], wanted.raw[trait, block]) < TOLERANCE, block
        assert oracle.relative_error(found.norms[block], wanted.norms[block]) < TOLERANCE, block


def test_it_is_loaded_whole_and_says_from_what(real_model: Any) -> None:
    assert (len(real_model.blocks), real_model.blocks.d_model, real_model.dtype) == (30, 576, torch.float32)
    assert real_model.record["quantization"] == "Q4_1"
    assert real_model.record["gguf"]["file"] == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert real_model.eos_ids == {real_model.tokenizer.convert_tokens_to_ids("<|im_end|>")}


def test_its_reply_answers_the_prompt(trace: Trace) -> None:
    """Mangled weights, a wrong template or a wrong tokenizer write no such list."""
    assert any(fruit in trace.reply_text.lower() for fruit in ("apple", "banana", "orange"))


def test_every_turn_begins_with_one_bos(real_model: Any) -> None:
    """Its template opens each turn with the BOS, <|im_start|>, and adds a system turn where none is given."""
    rendered = real_model.chat.render([{"role": "user", "content": PROMPT}])
    tokens = real_model.tokenizer.convert_ids_to_tokens(list(rendered.token_ids))
    assert real_model.tokenizer.bos_token == tokens[0] == "<|im_start|>"
    assert tokens.count("<|im_start|>") == 3
    assert [tokens[i + 1] for i, token in enumerate(tokens) if token == "<|im_start|>"] == ["system", "user", "ass"]


def test_block_b_is_row_b_plus_1_of_the_hidden_states(real_model: Any, monitor: PersonaMonitor, trace: Trace) -> None:
    before_norm: list[torch.Tensor] = []
    hook = real_model.model.model.norm.register_forward_pre_hook(lambda _, inputs: before_norm.append(inputs[0]))
    try:
        with torch.no_grad():
            out = real_model.model(torch.tensor([trace.token_ids]), output_hidden_states=True, use_cache=False)
    finally:
        hook.remove()
    # transformers gives the embeddings, blocks 0 to 28, and block 29 after the final norm
    states = [*out.hidden_states[1:-1], before_norm[0]]
    assert len(states) == len(trace.blocks) == 30
    for block, state in enumerate(states):
        wanted = state[0].double()  # [n_tokens, d_model]
        assert oracle.relative_error(trace.norms[block], wanted.norm(dim=1).numpy()) < TOLERANCE, block
        for i, trait in enumerate(TRAITS):
            vector = monitor.vectors.tensor(trait)[block].double()
            projected = (wanted @ vector / vector.norm()).numpy()
            assert oracle.relative_error(trace.raw[i, block], projected) < TOLERANCE, (block, trait)


def test_live_equals_replay(monitor: PersonaMonitor, trace: Trace) -> None:
    agree(monitor.read(trace), trace)


def test_a_long_text_is_read_as_a_short_one(
    monitor: PersonaMonitor, trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States of up to 242 tokens are gathered first and projected together; of longer texts each block by itself."""
    monkeypatch.setattr(hooks, "GATHERED", 0)
    agree(monitor.read(trace), trace)


def test_alone_equals_beside_a_longer_prompt(monitor: PersonaMonitor, trace: Trace) -> None:
    prompts = ["What is the capital of France, and what is it known for? " * 3, PROMPT]
    agree(monitor.generate_batch(prompts, max_new_tokens=12, temperature=0)[1], trace)


def test_generate_of_transformers_is_watched_and_steered_as_the_monitors_own(
    real_model: Any, monitor: PersonaMonitor
) -> None:
    prompt = torch.tensor([real_model.chat.render(PROMPT).token_ids])
    settings: dict[str, Any] = dict(max_new_tokens=8, do_sample=False)
    steer = Steer("malice", 20, strength=60.0, start=None)
    wanted = monitor.generate(PROMPT, max_new_tokens=8, temperature=0, steer=steer)
    with monitor.vectors.watch(real_model, blocks="all") as seen, monitor.vectors.steer(real_model, steer):
        written = real_model.model.generate(prompt, **settings)
    assert written[0].tolist() == list(wanted.token_ids)
    shorter = dataclasses.replace(  # the last token is not read by generate
        wanted,
        **{k: getattr(wanted, k)[:-1] for k in ("token_ids", "tokens", "roles", "special")},
        **{k: getattr(wanted, k)[..., :-1] for k in ("raw", "norms")},
    )
    agree(seen.trace, shorter)
    plain = real_model.model.generate(prompt, **settings)
    assert plain.tolist() != written.tolist()


def test_as_a_base_model_it_stops_where_it_would_write_the_next_turn(real_model: Any) -> None:
    """The same weights without the template: the plain format, with names as stop strings."""
    tokenizer = copy.deepcopy(real_model.tokenizer)
    tokenizer.chat_template = None
    lm = wrap_model(real_model.model, tokenizer, name="smollm2-base")
    turns = ("Name a fruit.", "Apple", "Name a colour.", "Red", "Name an animal.", "Dog", "Name a drink.")
    roles = itertools.cycle(("user", "assistant"))
    conversation = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
    vectors = PersonaVectors.from_tensors({"candour": torch.randn(30, 576)}, {"candour": 20})
    trace = PersonaMonitor(lm, vectors).generate(conversation, max_new_tokens=40, temperature=0)
    assert (trace.reply_text, trace.finish) == (" Water", "eos")
    assert "".join(trace.tokens[trace.n_prompt :]) == " Water\n\nUser:"
    assert trace.roles[trace.n_prompt :] == ("assistant", *["template"] * 4)
