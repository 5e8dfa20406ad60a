"""Loops that are not ours: steered and watched around a model, as our own monitor steers and reads."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from persona_core import PersonaMonitor, Steer
from persona_core.errors import (
    NotCalibrated,
    PromptError,
    SettingError,
    UnknownTrait,
    UnsupportedModel,
    VectorsMismatch,
)
from tests.support import oracle
from tests.support.tiny import hooks_on, random_vectors, specific_vectors, tiny_lm

FAMILIES = ("llama", "gpt2", "qwen2")
N_NEW = 7
PUSH = Steer("malice", block=1, strength=25.0)


def endless(family: str) -> Any:
    """Random weights write anything: no token of theirs ends a reply."""
    return dataclasses.replace(tiny_lm(family, "chatml"), eos_ids=frozenset())


@pytest.fixture(params=FAMILIES)
def lm(request: pytest.FixtureRequest) -> Any:
    return endless(request.param)


@pytest.fixture
def vectors(lm: Any) -> Any:
    return random_vectors(len(lm.blocks))


def inputs(lm: Any, *prompts: str) -> dict[str, torch.Tensor]:
    """Prompts of the chat template, padded on the left."""
    rows = [list(lm.chat.render(prompt).token_ids) for prompt in prompts]
    longest = max(map(len, rows))
    pad = lm.tokenizer.pad_token_id or 0
    return {
        "input_ids": torch.tensor([[pad] * (longest - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
    }


def written(lm: Any, *prompts: str, **settings: Any) -> list[list[int]]:
    """Greedy tokens of a generate of transformers' own."""
    given = inputs(lm, *prompts)
    found = lm.model.generate(
        **given, **{"max_new_tokens": N_NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, **settings}
    )
    return [row.tolist() for row in found[:, given["input_ids"].shape[1] :]]


def check_same(trace: Any, lm: Any, vectors: Any, tolerance: float = 1e-4) -> None:
    """The readings are those of plain forwards without our code."""
    for k, trait in enumerate(trace.traits):
        for j, block in enumerate(trace.blocks):
            states = oracle.states(lm.model, list(lm.blocks.modules), list(trace.token_ids))[block]
            direction = vectors.reading_direction(trait, block).double().numpy()
            assert oracle.relative_error(trace.raw[k, j], states @ direction) < tolerance


# ---- watching ----


def test_what_is_watched_is_what_a_plain_forward_reads(lm: Any, vectors: Any) -> None:
    with vectors.watch(lm.model, lm.tokenizer) as seen:
        (new,) = written(lm, "Why ask?")
    trace = seen.trace
    prompt = lm.chat.render("Why ask?").token_ids
    assert trace.token_ids == (*prompt, *new[:-1]), "the last token is never read by the model"
    assert trace.n_prompt == len(prompt) and trace.reply_text == "".join(trace.tokens[trace.n_prompt :])
    check_same(trace, lm, vectors)
    read = PersonaMonitor(lm, vectors).read(trace)
    np.testing.assert_allclose(trace.raw, read.raw, rtol=1e-4, atol=1e-4)
    assert hooks_on(lm.model) == 0


def test_each_row_of_a_padded_batch_is_a_text_without_its_padding(lm: Any, vectors: Any) -> None:
    prompts = ("Why ask?", "Tell me much more about all of it, please.", "Hi")
    with vectors.watch(lm) as seen:
        new = written(lm, *prompts)
    for prompt, own, trace in zip(prompts, new, seen.traces, strict=True):
        assert trace.token_ids == (*lm.chat.render(prompt).token_ids, *own[:-1])
        check_same(trace, lm, vectors)
    with pytest.raises(PromptError, match="3 texts"):
        _ = seen.trace


def test_a_row_that_ended_takes_none_of_the_batchs_padding(vectors: Any, lm: Any) -> None:
    """Each row ends at its own third token: the batch goes on with padding for it."""
    free = written(lm, "Why ask?", "Hi")
    end = free[0][2]
    model_eos, lm_eos = lm.model.generation_config.eos_token_id, lm.eos_ids
    ending = dataclasses.replace(lm, eos_ids=frozenset({end}))
    with vectors.watch(ending) as seen:
        new = written(lm, "Why ask?", "Hi", eos_token_id=end)
    first = seen.traces[0]
    stop = new[0].index(end) + 1
    reply = list(first.token_ids[first.n_prompt :])
    assert reply in (new[0][:stop], new[0][: stop - 1])
    assert (lm.model.generation_config.eos_token_id, lm.eos_ids) == (model_eos, lm_eos)


@pytest.mark.parametrize("how", [{"use_cache": False}, {"prefill_chunk_size": 4}, {"cache_implementation": "static"}])
def test_the_way_of_caching_changes_nothing(how: dict[str, Any]) -> None:
    lm = endless("llama")
    vectors = random_vectors(len(lm.blocks))
    with vectors.watch(lm) as plain:
        wanted = written(lm, "Tell me more, please.")
    with vectors.watch(lm) as seen:
        assert written(lm, "Tell me more, please.", **how) == wanted
    assert seen.trace.token_ids == plain.trace.token_ids and seen.trace.n_prompt == plain.trace.n_prompt
    np.testing.assert_allclose(seen.trace.raw, plain.trace.raw, rtol=1e-4, atol=1e-4)


def test_several_generates_and_a_forward_of_ones_own_are_texts_one_after_the_other(lm: Any, vectors: Any) -> None:
    ids = torch.tensor([lm.chat.render("And now?").token_ids])
    with vectors.watch(lm) as seen:
        written(lm, "Why ask?")
        with torch.no_grad():
            lm.model(input_ids=ids)
        written(lm, "Hi")
    assert [trace.n_tokens - trace.n_prompt for trace in seen.traces] == [N_NEW - 1, 0, N_NEW - 1]
    for trace in seen.traces:
        check_same(trace, lm, vectors)


def test_a_loop_of_ones_own_is_read_token_by_token(lm: Any, vectors: Any) -> None:
    ids = torch.tensor([lm.chat.render("Why ask?").token_ids])
    with vectors.watch(lm) as seen, torch.no_grad():
        out = lm.model(input_ids=ids, use_cache=True)
        for token in (5, 9, 11):
            out = lm.model(input_ids=torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)
            assert seen.trace.token_ids[-1] == token, "what was read so far, inside the block"
    assert seen.trace.token_ids[-3:] == (5, 9, 11)
    check_same(seen.trace, lm, vectors)


def test_a_pipeline_and_a_generate_in_another_thread_are_seen() -> None:
    lm = endless("llama")
    vectors = random_vectors(len(lm.blocks))
    pipe = transformers.pipeline("text-generation", model=lm.model, tokenizer=lm.tokenizer)
    with vectors.watch(lm) as seen:
        pipe("Why ask?", max_new_tokens=3, do_sample=False)
        thread = threading.Thread(target=written, args=(lm, "Hi"))
        thread.start()
        thread.join()
    assert len(seen.traces) == 2 and seen.traces[1].n_tokens - seen.traces[1].n_prompt == N_NEW - 1
    for trace in seen.traces:
        check_same(trace, lm, vectors)


def test_two_threads_at_once_are_two_texts() -> None:
    lm = endless("llama")
    vectors = random_vectors(len(lm.blocks))
    with vectors.watch(lm) as seen:
        threads = [threading.Thread(target=written, args=(lm, prompt)) for prompt in ("Why ask?", "Hi") * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(seen.traces) == 4
    for trace in seen.traces:
        check_same(trace, lm, vectors)


def test_what_cannot_be_followed_is_refused_by_name(lm: Any, vectors: Any) -> None:
    for settings, says in (
        ({"num_beams": 2}, "Beam search"),
        ({"prompt_lookup_num_tokens": 3}, "Assisted decoding"),
    ):
        with pytest.raises(UnsupportedModel, match=says), vectors.watch(lm):
            written(lm, "Why ask why ask why ask?", **settings)
    with torch.no_grad():
        ids = torch.tensor([[5, 6, 7]])
        cache = lm.model(input_ids=ids, use_cache=True).past_key_values
        with pytest.raises(UnsupportedModel, match="3 tokens that were read before"), vectors.watch(lm):
            lm.model(input_ids=ids, past_key_values=cache, use_cache=True)
        embeds = lm.model.get_input_embeddings()(ids)
        with pytest.raises(UnsupportedModel, match="inputs_embeds"), vectors.watch(lm):
            lm.model(inputs_embeds=embeds)
    assert hooks_on(lm.model) == 0
    with pytest.raises(SettingError, match="tokenizer"), vectors.watch(lm.model):
        pass
    with pytest.raises(VectorsMismatch), random_vectors(len(lm.blocks) + 1).watch(lm):
        pass


# ---- steering ----


def test_a_steered_generate_writes_what_the_monitor_writes(lm: Any, vectors: Any) -> None:
    monitor = PersonaMonitor(lm, vectors)
    for steer in (PUSH, Steer.ablate("malice", 1), Steer("malice", 1, strength=25.0, start=3)):
        wanted = monitor.generate("Why ask?", steer=steer, max_new_tokens=N_NEW, temperature=0.0)
        with vectors.steer(lm.model, steer):
            (own,) = written(lm, "Why ask?")
        reply = list(wanted.token_ids[wanted.n_prompt :])
        assert own[: len(reply)] == reply, steer
    assert hooks_on(lm.model) == 0


def test_a_trait_by_its_name_is_steered_in_standard_deviations_at_its_best_block() -> None:
    lm = endless("llama")
    vectors = specific_vectors(len(lm.blocks))
    block = vectors.best_block["malice"]
    for named, steer in (
        ({"strength": 40}, Steer("malice", block, strength=40, unit="sd", start=None)),
        ({"strength": -1, "mode": "cap"}, Steer.cap("malice", block, -1, unit="sd", start=None)),
        ({"mode": "ablate"}, Steer.ablate("malice", block, start=None)),
    ):
        with vectors.steer(lm, "malice", **named), vectors.watch(lm) as seen:
            written(lm, "Why ask?")
        wanted = PersonaMonitor(lm, vectors).read(seen.trace, steer=steer)
        np.testing.assert_allclose(seen.trace.raw, wanted.raw, rtol=1e-4, atol=1e-4)
        plain = PersonaMonitor(lm, vectors).read(seen.trace)
        assert not np.allclose(seen.trace.raw, plain.raw, atol=1e-3), "it is the steered state that is seen"


@pytest.mark.parametrize("outer", ["steer", "watch"])
def test_what_is_seen_is_the_steered_state_whichever_block_is_outside(outer: str) -> None:
    lm = endless("llama")
    vectors = random_vectors(len(lm.blocks))
    steer = Steer("malice", 1, strength=30.0, start=None)
    if outer == "steer":
        with vectors.steer(lm, steer), vectors.watch(lm, blocks="all") as seen:
            written(lm, "Why ask?")
    else:
        with vectors.watch(lm, blocks="all") as seen, vectors.steer(lm, steer):
            written(lm, "Why ask?")
    wanted = PersonaMonitor(lm, vectors, "all").read(seen.trace, steer=steer)
    np.testing.assert_allclose(seen.trace.raw, wanted.raw, rtol=1e-4, atol=1e-3)


def test_two_steers_add_up_and_an_error_inside_leaves_no_hook(lm: Any, vectors: Any) -> None:
    ids = torch.tensor([[5, 6, 7]])
    half = Steer("malice", 1, strength=10.0, start=None)
    with torch.no_grad(), vectors.steer(lm, half), vectors.steer(lm, half):
        twice = lm.model(input_ids=ids).logits
    with torch.no_grad(), vectors.steer(lm, Steer("malice", 1, strength=20.0, start=None)):
        torch.testing.assert_close(lm.model(input_ids=ids).logits, twice, rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError, match="mine"), vectors.steer(lm, half):
        raise RuntimeError("mine")
    with pytest.raises(IndexError), vectors.steer(lm, half):
        lm.model(input_ids=torch.tensor([[10**6]]))
    assert hooks_on(lm.model) == 0
    with torch.no_grad():
        lm.model(input_ids=ids)


def test_gradients_flow_as_without_it(lm: Any, vectors: Any) -> None:
    ids = torch.tensor([[5, 6, 7]])
    with vectors.steer(lm, Steer("malice", 1, strength=10.0, start=None)):
        loss = lm.model(input_ids=ids, labels=ids).loss
    (gradient,) = torch.autograd.grad(loss, [lm.model.get_input_embeddings().weight])
    assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0


def test_what_cannot_be_steered_is_refused_with_the_remedy(lm: Any, vectors: Any) -> None:
    with pytest.raises(UnsupportedModel, match="Assisted decoding"), vectors.steer(lm, PUSH):
        written(lm, "Why ask why ask why ask?", prompt_lookup_num_tokens=3)
    for wrong, error, says in (
        ((), SettingError, "Nothing to steer"),
        (("kindness",), UnknownTrait, "kindness"),
        (("malice",), SettingError, "How far"),
        ((Steer("malice", 1, strength=1.0, when="alarm"),), SettingError, "detectors"),
    ):
        with pytest.raises(error, match=says), vectors.steer(lm, *wrong):
            pass
    with pytest.raises(NotCalibrated, match="unit='residual'"), vectors.steer(lm, "malice", strength=2):
        pass
    with pytest.raises(VectorsMismatch), random_vectors(len(lm.blocks) + 1).steer(lm.model, PUSH):
        pass
    assert hooks_on(lm.model) == 0
