"""What a step of the decode loop may ask of the host: nothing but the sampled ids."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from persona_core.inference.generation import GenerationRun
from persona_core.inference.pooled_states import PooledStates
from persona_core.inference.pooling import parse_position
from persona_core.inference.prefix import ReplyPrefix
from persona_core.inference.sampling import Sampling
from tests.support.tiny import Maker

# Every one of these waits for the device; on a GPU each costs a stall.
WAITS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")
N_NEW = 12


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the waiting calls that were made on tensors."""
    seen: list[str] = []
    for name in WAITS:
        original = getattr(torch.Tensor, name)

        def counted(self: torch.Tensor, *args: Any, _name: str = name, _original: Any = original, **kw: Any) -> Any:
            seen.append(_name)
            return _original(self, *args, **kw)

        monkeypatch.setattr(torch.Tensor, name, counted)
    return seen


@pytest.mark.parametrize("pool", [False, True])
def test_a_step_waits_for_the_sampled_ids_and_for_nothing_else(
    make_monitor: Maker, waits: list[str], pool: bool
) -> None:
    monitor = make_monitor("llama")
    prompt = monitor.lm.chat.render("Should I quit my job?")
    sampling = Sampling(max_new_tokens=N_NEW, temperature=1.0, top_p=0.9, top_k=50, repetition_penalty=1.1)
    run = GenerationRun(
        monitor.lm,
        monitor._directions,
        [ReplyPrefix(prompt)],
        sampling,
        seeds=[0],
        pooled=PooledStates([parse_position("reply_mean")], len(monitor.lm.blocks), 1, n_sampled=8) if pool else None,
    )
    forwards = run.steps()
    next(forwards)  # the prefill builds its buffers and masks
    waits.clear()
    steps = sum(1 for _ in forwards)
    assert waits == ["tolist"] * steps


def test_all_traits_of_a_block_are_one_product(make_monitor: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = make_monitor("llama", traits=("a", "b", "c", "d", "e"))
    shapes: list[tuple[int, ...]] = []

    def counting(name: str) -> Any:
        original = getattr(torch, name)

        def counted(left: torch.Tensor, right: torch.Tensor, **kw: Any) -> torch.Tensor:
            shapes.append(tuple(right.shape))
            return original(left, right, **kw)

        return counted

    for name in ("mm", "bmm"):
        monkeypatch.setattr(torch, name, counting(name))
    d_model, n_blocks = monitor.lm.blocks.d_model, len(monitor.blocks)
    trace = monitor.generate("Hello", max_new_tokens=4, seed=0)
    ours = [shape for shape in shapes if shape[-1] == 5]
    assert ours == [(n_blocks, d_model, 5)] * (1 + trace.n_reply), "of all blocks, where a forward is small"
    shapes.clear()
    monkeypatch.setattr("persona_core.inference.hooks.GATHERED", 0)
    monitor.generate("Hello", max_new_tokens=4, seed=0)
    ours = [shape for shape in shapes if shape[-1] == 5]
    assert ours == [(d_model, 5)] * ((1 + trace.n_reply) * n_blocks), "of each block, where it is not"
