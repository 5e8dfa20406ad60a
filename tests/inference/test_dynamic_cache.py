"""A cache that allocates ahead holds what transformers' cache holds."""

from __future__ import annotations

import random
import weakref
from typing import Any

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from persona_core.inference import dynamic_cache
from persona_core.inference.dynamic_cache import add_rows, keep_rows, new_cache
from tests.support.tiny import tiny_lm


def states(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, 2, columns, 4)


def layers(window: int | None) -> tuple[DynamicCache, DynamicCache]:
    """The same layer twice: ours, and transformers'."""
    ours, theirs = DynamicCache(), DynamicCache()
    theirs.layers = [DynamicLayer() if window is None else DynamicSlidingWindowLayer(window)]
    ours.layers = [dynamic_cache._buffered(layer) for layer in theirs.layers]
    return ours, theirs


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("window", [None, 2, 9, 40])
def test_every_update_gives_what_transformers_gives(
    window: int | None, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamic_cache, "SPARE_COLUMNS", 1 + seed % 5)
    torch.manual_seed(seed)
    choices = random.Random(seed)
    both = layers(window)
    rows = 3
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    for _ in range(60):
        if choices.random() < 0.1 and both[0].get_seq_length():
            columns = both[0].get_seq_length()
            kept = torch.tensor(sorted(choices.sample(range(rows), max(1, rows - 1))))
            for cache in both:
                keep_rows(cache, kept, columns)
            rows, others = len(kept) + 2, [new for new in layers(window)]
            new = states(2, choices.randint(1, columns))
            for cache, other in zip(both, others, strict=True):
                other.update(new, new + 1, 0)
                add_rows(cache, other)
        new = states(rows, choices.choice([1, 1, 1, 1, 5]))
        found, wanted = (cache.update(new, new + 1, 0) for cache in both)
        for one, other in zip(found, wanted, strict=True):
            assert torch.equal(one, other)
            seen.append((one, other))
        assert both[0].get_seq_length() == both[1].get_seq_length()
        assert both[0].layers[0].get_mask_sizes(1) == both[1].layers[0].get_mask_sizes(1)
    assert all(torch.equal(one, other) for one, other in seen), "what was returned is never overwritten"


@pytest.mark.parametrize("family", ["llama-sdpa", "mistral", "gemma2", "gemma3"])
@pytest.mark.parametrize("length", [2, 30])
@torch.inference_mode()
def test_long_replies_cross_the_windows_edge(family: str, length: int) -> None:
    """More tokens than are allocated at once, several times over, and more than a window holds."""
    model = tiny_lm(family).model
    ids = torch.randint(5, 200, (2, length))
    logits = []
    for cache in (new_cache(model.config), DynamicCache(config=model.config)):
        out, last = model(ids, past_key_values=cache, use_cache=True).logits, []
        for step in range(3 * dynamic_cache.SPARE_COLUMNS):
            next_ids = torch.full((2, 1), 5 + step % 50)
            last.append(out[:, -1])
            out = model(next_ids, past_key_values=cache, use_cache=True).logits
        logits.append(torch.stack(last))
    torch.testing.assert_close(logits[0], logits[1], atol=1e-5, rtol=0)


def test_dropped_rows_free_their_memory_at_once() -> None:
    ours, _ = layers(None)
    for _ in range(3):
        ours.update(states(8, 1), states(8, 1), 0)
    layer: Any = ours.layers[0]
    held = weakref.ref(layer._buffers[0]._all)
    keep_rows(ours, torch.tensor([0]), 3)
    assert held() is None
