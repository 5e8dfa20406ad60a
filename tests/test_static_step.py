"""Steps in fixed memory give the tokens and the numbers of the plain loop. A GPU records them as a graph; here the same
step runs eagerly, so that all but the recording is tested."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from persona_core import decode as decode_module
from persona_core import reply_batch
from persona_core.branching import Start
from persona_core.generation import Run
from persona_core.monitor import PersonaMonitor
from persona_core.pooling import parse_position
from persona_core.static_step import StaticStep, supports
from persona_core.steering import Steer
from tests import oracle
from tests.conftest import random_vectors, tiny_lm
from tests.families import BY_NAME
from tests.test_refilling import EVERY_TWELFTH, PROMPTS, SAMPLING, alone, monitor_of, same

# Families whose steps ask the host for nothing, by what transformers says of them.
REPEATING = [name for name in sorted(BY_NAME) if supports(tiny_lm(name, "chatml"), 8)]


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every run takes fixed memory where it can; the list holds the rows of each such step."""
    steps: list[int] = []
    plain, call = decode_module.decode, StaticStep.__call__

    def counted(self: StaticStep, *args: Any) -> Any:
        steps.append(self.rows)
        return call(self, *args)

    monkeypatch.setattr(StaticStep, "__call__", counted)
    monkeypatch.setattr(
        "persona_core.generation.decode", lambda *args, **more: plain(*args, **(more | {"fixed": True}))
    )
    return steps


def ending(family: str, **more: Any) -> Any:
    return replace(tiny_lm(family, "chatml"), eos_ids=EVERY_TWELFTH, **more)


def roomy(family: str) -> Any:
    """The same with room for a window: a sliding one is plain attention as long as all fits into it."""
    lm = ending(family)
    return monitor_of(lm)


def test_the_families_that_most_people_use_are_among_those_that_can_be_repeated() -> None:
    assert {"llama", "llama-sdpa", "qwen2", "qwen3", "olmo2", "phi3"} <= set(REPEATING)
    assert "qwen3.5" not in REPEATING and "bloom" not in REPEATING and "falcon-alibi" not in REPEATING


@pytest.mark.parametrize("family", REPEATING)
def test_tokens_and_numbers_are_those_of_the_plain_loop(family: str, fixed: list[int]) -> None:
    from persona_core.generation import decode

    monitor = roomy(family)
    prompts = [p for p in PROMPTS if len(p) < 60]
    settings = SAMPLING.to_dict() | {"max_new_tokens": 12}
    found = monitor.generate_batch(prompts, batch_size=3, seed=7, **settings)
    n_columns = max(len(t.token_ids) for t in found)
    if supports(monitor.lm, n_columns + -n_columns % 64):
        assert len(fixed) > 12, "it was the fixed step that ran"
    with pytest.MonkeyPatch.context() as undone:
        undone.setattr("persona_core.generation.decode", decode_module.decode)
        assert decode is not decode_module.decode
        wanted = [monitor.generate(p, seed=7 + i, **settings) for i, p in enumerate(prompts)]
    same(found, wanted)


@pytest.mark.parametrize("width", [1, 2, 3, 8])
def test_replies_change_places_and_columns_are_used_again(fixed: list[int], width: int) -> None:
    """Long prompts and short ones, and a room that is just as wide as the longest needs: rows must move."""
    monitor = roomy("llama-sdpa")
    found = monitor.generate_batch(PROMPTS, batch_size=width, seed=7, **SAMPLING.to_dict())
    assert fixed
    with pytest.MonkeyPatch.context() as undone:
        undone.setattr("persona_core.generation.decode", decode_module.decode)
        wanted = alone(monitor)
    same(found, wanted)


def test_no_row_moves_past_the_last_column(fixed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_module, "ROUNDED", 1)
    monkeypatch.setattr(reply_batch, "REFILLED_SHARE", 1)  # places stay empty until all are: ended rows linger
    monitor = roomy("llama")
    found = monitor.generate_batch(PROMPTS, batch_size=4, seed=7, **SAMPLING.to_dict())
    with pytest.MonkeyPatch.context() as undone:
        undone.setattr("persona_core.generation.decode", decode_module.decode)
        same(found, alone(monitor))


def test_steering_is_part_of_the_step(fixed: list[int]) -> None:
    monitor = roomy("qwen3")
    steer = [Steer("malice", block=1, strength=-30.0, start=3), Steer.cap("candour", block=2, threshold=0.1, start=1)]
    found = monitor.generate_batch(PROMPTS, batch_size=3, seed=7, steer=steer, **SAMPLING.to_dict())
    assert fixed
    with pytest.MonkeyPatch.context() as undone:
        undone.setattr("persona_core.generation.decode", decode_module.decode)
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
        undone.setattr("persona_core.generation.decode", decode_module.decode)
        assert np.allclose(found, means(), atol=1e-5, equal_nan=True)


def test_streaming_shows_each_step_as_it_is(fixed: list[int]) -> None:
    monitor = roomy("llama")
    steps = []
    for step in monitor.stream(PROMPTS[1], seed=3, max_new_tokens=9, temperature=1.0):
        steps.append((step.token_id, step.raw.copy()))
    assert len(fixed) == len(steps)
    trace = monitor.read(step.trace())
    assert list(trace.token_ids[trace.n_prompt :]) == [token for token, _ in steps]
    for at, (_, raw) in enumerate(steps, trace.n_prompt):
        assert oracle.relative_error(raw, trace.raw[..., at]) < 1e-4


def test_what_cannot_be_repeated_takes_the_plain_loop(fixed: list[int]) -> None:
    """A window that is too small has another mask; a hybrid has another state."""
    for family in ("qwen3.5", "bloom", "mistral"):
        lm = ending(family)
        monitor_of(lm).generate_batch(PROMPTS, batch_size=3, seed=7, **SAMPLING.to_dict())
        assert fixed == [], family
    assert not supports(tiny_lm("mistral"), 4096)


def test_bfloat16_is_near_float32(fixed: list[int]) -> None:
    torch.manual_seed(0)
    lm = tiny_lm("llama-sdpa", "chatml")
    half = replace(lm, model=type(lm.model)(lm.model.config))
    half.model.load_state_dict(lm.model.state_dict())
    half = replace(half, model=half.model.to(torch.bfloat16).eval())
    from persona_core.models import wrap_model

    narrow = wrap_model(half.model, lm.tokenizer)
    monitor = PersonaMonitor(narrow, random_vectors(len(narrow.blocks)), "all")
    trace = monitor.generate(PROMPTS[1], seed=3, max_new_tokens=20, temperature=1.0)
    assert fixed
    again = monitor.read(trace)
    assert oracle.relative_error(trace.raw, again.raw) < 3e-2
