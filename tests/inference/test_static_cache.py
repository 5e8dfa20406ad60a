"""Steps in fixed memory give the tokens and the numbers of the plain loop. A GPU records them as a graph; here the same
step runs eagerly, so that all but the recording is tested."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from persona_core.inference import batch as reply_batch
from persona_core.inference import decode as decode_module
from persona_core.inference.generation import Run
from persona_core.inference.pooling import parse_position
from persona_core.inference.start import Start
from persona_core.inference.static_cache import FixedMemory, supports
from persona_core.inference.steering import Intervention, Steer
from persona_core.monitor.monitor import PersonaMonitor
from tests.inference.test_refilling import EVERY_TWELFTH, PROMPTS, SAMPLING, alone, monitor_of, same
from tests.support import oracle
from tests.support.families import BY_NAME
from tests.support.tiny import random_vectors, tiny_lm

# Families whose steps ask the host for nothing, by what transformers says of them.
REPEATING = [name for name in sorted(BY_NAME) if supports(tiny_lm(name, "chatml"), 8)]


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every run takes fixed memory where it can; the list holds the rows of each such step."""
    steps: list[int] = []
    plain, step = decode_module.decode, FixedMemory.step

    def counted(self: FixedMemory, *args: Any) -> Any:
        steps.append(self._n)
        return step(self, *args)

    monkeypatch.setattr(FixedMemory, "step", counted)
    monkeypatch.setattr(
        "persona_core.inference.generation.decode", lambda *args, **more: plain(*args, **(more | {"fixed": True}))
    )
    return steps


def ending(family: str) -> Any:
    return replace(tiny_lm(family, "chatml"), eos_ids=EVERY_TWELFTH)


def test_the_families_that_most_people_use_are_among_those_that_can_be_repeated() -> None:
    assert {"llama", "llama-sdpa", "qwen2", "qwen3", "olmo2", "phi3"} <= set(REPEATING)
    assert "qwen3.5" not in REPEATING and "bloom" not in REPEATING and "falcon-alibi" not in REPEATING


@pytest.mark.parametrize("family", REPEATING)
def test_tokens_and_numbers_are_those_of_the_plain_loop(family: str, fixed: list[int]) -> None:
    from persona_core.inference.generation import decode

    monitor = monitor_of(ending(family))
    prompts = [p for p in PROMPTS if len(p) < 60]
    settings = SAMPLING.to_dict() | {"max_new_tokens": 12}
    found = monitor.generate_batch(prompts, batch_size=3, seed=7, **settings)
    assert len(fixed) > 12, "it was the fixed step that ran"
    with pytest.MonkeyPatch.context() as undone:
        undone.setattr("persona_core.inference.generation.decode", decode_module.decode)
        assert decode is not decode_module.decode
        wanted = [monitor.generate(p, seed=7 + i, **settings) for i, p in enumerate(prompts)]
    same(found, wanted)


@pytest.mark.parametrize("width", [1, 2, 3, 8])
def test_replies_change_places_and_columns_are_used_again(fixed: list[int], width: int) -> None:
    """Long prompts and short ones, and a room that is just as wide as the longest needs: rows must move."""
    monitor = monitor_of(ending("llama-sdpa"))
    found = monitor.generate_batch(PROMPTS, batch_size=width, seed=7, **SAMPLING.to_dict())
    assert fixed
    with pytest.MonkeyPatch.context() as undone:
        undone.setattr("persona_core.inference.generation.decode", decode_module.decode)
        wanted = alone(monitor)
    same(found, wanted)


def test_ended_rows_that_linger_hurt_nobody(fixed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply_batch, "REFILLED_SHARE", 1)  # places stay empty until all are
    monitor = monitor_of(ending("llama"))
    found = monitor.generate_batch(PROMPTS, batch_size=4, seed=7, **SAMPLING.to_dict())
    with pytest.MonkeyPatch.context() as undone:
        undone.setattr("persona_core.inference.generation.decode", decode_module.decode)
        same(found, alone(monitor))


def test_what_a_broken_row_leaves_behind_reaches_nobody(fixed: list[int]) -> None:
    """NaN in a column that is masked is still NaN in the sum of a row."""
    lm = ending("llama")
    memories: list[FixedMemory] = []
    with pytest.MonkeyPatch.context() as patched:
        add = FixedMemory.add

        def spoiled(self: FixedMemory, *args: Any) -> None:
            if self not in memories:
                memories.append(self)
            elif self._cache is not None:  # as rows that have ended may be
                for layer in self._cache.layers:
                    layer.keys[self._n :], layer.values[self._n :] = float("nan"), float("nan")
            add(self, *args)

        patched.setattr(FixedMemory, "add", spoiled)
        found = monitor_of(lm).generate_batch(PROMPTS, batch_size=3, seed=7, **SAMPLING.to_dict())
    assert fixed
    with pytest.MonkeyPatch.context() as undone:
        undone.setattr("persona_core.inference.generation.decode", decode_module.decode)
        same(found, alone(monitor_of(lm)))


def test_the_memory_is_let_go_with_the_run(fixed: list[int]) -> None:
    """A cycle would hold it until the next collection, and a run that is out of memory could not begin anew."""
    made: list[Any] = []
    step = FixedMemory.step

    def watched(self: FixedMemory, *args: Any) -> Any:
        made.append(weakref.ref(self))
        return step(self, *args)

    gc.disable()
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(FixedMemory, "step", watched)
            list(decode_module.decode(ending("llama"), [[5, 6, 7], [8, 9]], SAMPLING, [0, 1], fixed=True))
        assert fixed and made and not [one for one in made if one() is not None]
    finally:
        gc.enable()


def test_steering_is_part_of_the_step(fixed: list[int]) -> None:
    monitor = monitor_of(ending("qwen3"))
    steer = [Steer("malice", block=1, strength=-30.0, start=3), Steer.cap("candour", block=2, threshold=0.1, start=1)]
    found = monitor.generate_batch(PROMPTS, batch_size=3, seed=7, steer=steer, **SAMPLING.to_dict())
    assert fixed
    with pytest.MonkeyPatch.context() as undone:
        undone.setattr("persona_core.inference.generation.decode", decode_module.decode)
        same(found, alone(monitor, steer=steer))


@pytest.mark.parametrize("width", [1, 3])
def test_states_are_pooled_within_the_step(fixed: list[int], width: int) -> None:
    lm = ending("llama")
    pools = [parse_position(name) for name in ("prompt_mean", "reply_mean", "reply_first_4")]

    def means() -> Any:
        starts = [Start(lm.chat.render(prompt)) for prompt in PROMPTS]
        run = Run(lm, {}, starts, SAMPLING, range(len(starts)), pools=pools, width=width)
        run.finish()
        return run.pooled_means()

    found = means()
    assert fixed
    with pytest.MonkeyPatch.context() as undone:
        undone.setattr("persona_core.inference.generation.decode", decode_module.decode)
        assert np.allclose(found, means(), atol=1e-5, equal_nan=True)


def test_streaming_shows_each_step_as_it_is(fixed: list[int]) -> None:
    monitor = monitor_of(ending("llama"))
    steps = []
    for step in monitor.stream(PROMPTS[1], seed=3, max_new_tokens=9, temperature=1.0):
        steps.append((step.token_id, step.raw.copy()))
    assert len(fixed) == len(steps)
    trace = monitor.read(step.trace())
    assert list(trace.token_ids[trace.n_prompt :]) == [token for token, _ in steps]
    for at, (_, raw) in enumerate(steps, trace.n_prompt):
        assert oracle.relative_error(raw, trace.raw[..., at]) < 1e-4


def test_what_cannot_be_repeated_takes_the_plain_loop(fixed: list[int]) -> None:
    """A window that is too small has another mask; a hybrid has another state; an alarm is the host's word."""
    for family in ("qwen3.5", "bloom", "mistral"):
        monitor_of(ending(family)).generate_batch(PROMPTS, batch_size=3, seed=7, **SAMPLING.to_dict())
        assert fixed == [], family
    assert not supports(tiny_lm("mistral"), 4096)
    lm = ending("llama")
    starts = torch.full((1,), 4)
    change = Intervention(Steer("malice", block=1, strength=9.0), torch.ones(lm.blocks.d_model), 9.0, starts)
    Run(lm, {}, [Start(lm.chat.render("Hi"))], SAMPLING, [0], [change]).finish()
    assert fixed == []


def test_bfloat16_steps_are_those_of_one_forward(fixed: list[int]) -> None:
    torch.manual_seed(0)
    lm = tiny_lm("llama-sdpa", "chatml")
    half = replace(lm, model=type(lm.model)(lm.model.config))
    half.model.load_state_dict(lm.model.state_dict())
    half = replace(half, model=half.model.to(torch.bfloat16).eval())
    from persona_core.models.loading import wrap_model

    narrow = wrap_model(half.model, lm.tokenizer)
    monitor = PersonaMonitor(narrow, random_vectors(len(narrow.blocks)), "all")
    trace = monitor.generate(PROMPTS[1], seed=3, max_new_tokens=20, temperature=1.0)
    assert fixed
    again = monitor.read(trace)
    assert oracle.relative_error(trace.raw, again.raw) < 3e-2
