"""Rows of a key-value cache: take some out, add others, while the rest goes on being written.

All rows end in the same column, the newest; a row that has read less begins further right, behind columns that its
attention mask hides. Keys hold their positions already, so a row may be moved to other columns as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


def joinable(cache: DynamicCache) -> bool:
    """Whether rows can be taken out and added: keys and values of full or sliding attention and nothing else.

    A recurrent state or a compressed one is a layer of another class.
    """
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)


def keep_rows(cache: DynamicCache, rows: torch.Tensor, columns: int) -> None:
    """Keep these rows, and of the columns the newest `columns`: those before must belong to none of the rows."""
    for layer in _used(cache):
        held = min(columns, layer.keys.shape[-2])
        _put(layer, layer.keys[rows, :, -held:], layer.values[rows, :, -held:], columns)


def add_rows(cache: DynamicCache, others: DynamicCache) -> None:
    """Put the rows of `others` below those of `cache`. Both end in the newest column; the shorter is padded before."""
    columns = max(cache.get_seq_length(), others.get_seq_length())
    for layer, other in zip(_used(cache), _used(others), strict=True):
        # A sliding layer holds its window only, and each of the two holds what it has read up to that.
        held = max(layer.keys.shape[-2], other.keys.shape[-2])
        both = [(_widened(one.keys, held), _widened(one.values, held)) for one in (layer, other)]
        _put(layer, torch.cat([k for k, _ in both]), torch.cat([v for _, v in both]), columns)


def _used(cache: DynamicCache) -> list[Any]:
    """Layers that hold something: a block that shares another's keys has none of its own."""
    return [layer for layer in cache.layers if layer.is_initialized]


def _put(layer: Any, keys: torch.Tensor, values: torch.Tensor, columns: int) -> None:
    layer.keys, layer.values = keys, values
    if isinstance(layer, DynamicSlidingWindowLayer):
        layer.cumulative_length = columns


def _widened(states: torch.Tensor, columns: int) -> torch.Tensor:
    """`[rows, heads, columns, d_head]`, zeros before."""
    return pad(states, (0, 0, columns - states.shape[-2], 0))
