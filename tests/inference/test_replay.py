"""Reading texts that are there: batches by length, no more blocks than needed, less at once where memory is short."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from persona_core.errors import SettingError
from persona_core.inference.pooling import parse_positions
from persona_core.inference.prefill import each_batch, read_pooled
from persona_core.inference.steering import Steer
from persona_core.monitor.monitor import PersonaMonitor
from tests.support import oracle
from tests.support.tiny import hooks_on, random_vectors, tiny_lm

TEXTS = [
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ("Well, " * n).strip()}]
    for n in (3, 40, 1, 7, 90, 2, 5)
]


def test_a_batch_holds_so_many_tokens_and_texts_of_like_length() -> None:
    lm, seen = tiny_lm(), []
    rows = [[5] * n for n in (10, 300, 20, 30, 9, 25, 11)]
    each_batch(lm, rows, [1] * len(rows), lambda batch, ids, _: seen.append((batch, tuple(ids.shape))), 64)
    assert [batch for batch, _ in seen] == [[1], [3, 5], [2, 6, 0], [4]]
    assert [shape for _, shape in seen] == [(1, 300), (2, 30), (3, 20), (1, 9)]
    with pytest.raises(SettingError, match="batch_tokens=0"):
        each_batch(lm, rows, [1] * len(rows), lambda *_: None, 0)


@pytest.mark.parametrize("family", ["llama", "llama-lora", "gptj", "gemma3", "qwen3.5"])
@pytest.mark.parametrize("block", [0, 1])
def test_a_forward_ends_with_the_last_block_that_is_needed(family: str, block: int) -> None:
    lm = tiny_lm(family, "chatml")
    vectors = random_vectors(len(lm.blocks))
    ran: list[int] = []
    handles = [
        module.register_forward_hook(lambda *_, b=b: ran.append(b)) for b, module in enumerate(lm.blocks.modules)
    ]
    before = hooks_on(lm.model)
    try:
        traces = PersonaMonitor(lm, vectors, [block]).read_batch(TEXTS)
    finally:
        for handle in handles:
            handle.remove()
    assert set(ran) == set(range(block + 1))
    assert hooks_on(lm.model) == before - len(handles)
    for trace in traces:
        states = oracle.states(lm.model, list(lm.blocks.modules), list(trace.token_ids))[block]
        for t, trait in enumerate(trace.traits):
            wanted = oracle.project(states, np.asarray(vectors.tensor(trait)[block], float))
            assert oracle.relative_error(trace.raw[t, 0], wanted) < 1e-4
    # What was left early leaves nothing behind.
    again = lm.model(input_ids=torch.tensor([[1, 2, 3]])).logits
    assert again.shape[:2] == (1, 3)


def test_what_steers_a_later_block_is_not_needed_for_an_earlier_one() -> None:
    lm = tiny_lm()
    monitor = PersonaMonitor(lm, random_vectors(len(lm.blocks)), [0])
    (plain,), (steered,) = (
        monitor.read_batch(TEXTS[:1], steer=steer) for steer in (None, Steer("malice", block=2, strength=9.0))
    )
    np.testing.assert_array_equal(plain.raw, steered.raw)


def test_when_memory_runs_out_batches_are_halved(caplog: pytest.LogCaptureFixture) -> None:
    lm = tiny_lm()
    rows = [[5 + i] * 20 for i in range(12)]
    seen: list[int] = []

    def work(batch: list[int], ids: torch.Tensor, _: torch.Tensor) -> None:
        seen.append(len(batch))
        if ids.numel() > 70:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    with caplog.at_level(logging.WARNING):
        each_batch(lm, rows, [1] * 12, work, 12 * 20)
    assert seen == [12, 6, 3, 3, 3, 3] and "60 tokens per forward" in caplog.text

    def never(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        each_batch(lm, rows, [1] * 12, never)


def test_no_budget_changes_a_number() -> None:
    lm = tiny_lm("mistral", "chatml")
    monitor = PersonaMonitor(lm, random_vectors(len(lm.blocks)), "all")
    rows = [list(monitor.read(text).token_ids) for text in TEXTS]
    pools = parse_positions(["reply_mean"])
    wanted = [monitor.read(text) for text in TEXTS]
    means, _ = read_pooled(lm, rows, [t.n_prompt for t in wanted], pools, 1)
    for budget in (1, 100, 10_000):
        for one, other in zip(monitor.read_batch(TEXTS, batch_tokens=budget), wanted, strict=True):
            assert oracle.relative_error(one.raw, other.raw) < 1e-4
        found, _ = read_pooled(lm, rows, [t.n_prompt for t in wanted], pools, budget)
        assert oracle.relative_error(found, means) < 1e-4


def test_an_error_of_the_code_ends_the_reading() -> None:
    lm = replace(tiny_lm(), model=tiny_lm().model)
    with pytest.raises(RuntimeError, match="shapes"):
        each_batch(lm, [[1, 2]], [1], lambda *_: (_ for _ in ()).throw(RuntimeError("shapes do not fit")))


@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_a_large_forward_is_read_block_by_block_with_the_same_numbers(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_lm(family, "chatml")
    monitor = PersonaMonitor(lm, random_vectors(len(lm.blocks)), "all")
    together = monitor.read_batch(TEXTS)
    monkeypatch.setattr("persona_core.inference.hooks.GATHERED", 0)
    for one, other in zip(monitor.read_batch(TEXTS), together, strict=True):
        assert oracle.relative_error(one.raw, other.raw) < 1e-5
        assert oracle.relative_error(one.norms, other.norms) < 1e-5
        states = oracle.states(lm.model, list(lm.blocks.modules), list(one.token_ids))
        assert oracle.relative_error(one.norms, np.linalg.norm(states, axis=-1)) < 1e-4
