"""A key-value cache with room for the next tokens, and whose rows can be taken out and added while others are written.

All rows end in the same column, the newest; a row that has read less begins further right, behind columns that its
attention mask hides. Keys hold their positions already, so a row may be moved to other columns as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

# Columns that room is made for at once. transformers' own layers copy all keys and values at every step: of 16 rows at
# 12 blocks x 512 on two cores 2 % of a step after 100 tokens, 22 % after 400. Here one step in 64 does.
ROOM = 64


def new_cache(config: Any) -> DynamicCache:
    """An empty cache for a model; layers of full and sliding attention make room before it is needed."""
    cache = DynamicCache(config=config)
    cache.layers = [_growing(layer) for layer in cache.layers]
    return cache


def joinable(cache: DynamicCache) -> bool:
    """Whether rows can be taken out and added: keys and values of full or sliding attention and nothing else.

    A recurrent state or a compressed one is a layer of another class.
    """
    return all(isinstance(layer, _FullLayer | _SlidingLayer) for layer in cache.layers)


def windows(cache: DynamicCache) -> list[int]:
    """Columns that sliding layers see."""
    return [layer.sliding_window for layer in cache.layers if isinstance(layer, _SlidingLayer)]


def _growing(layer: Any) -> Any:
    if type(layer) is DynamicLayer:
        return _FullLayer()
    return _SlidingLayer(layer.sliding_window) if type(layer) is DynamicSlidingWindowLayer else layer


class _Buffer:
    """States `[rows, heads, columns, d_head]` that get columns at the end, with room behind them."""

    def __init__(self) -> None:
        self._all = self._held = torch.empty(0)
        self._begin = self._end = 0

    def append(self, held: torch.Tensor, new: torch.Tensor, most: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """`held` with `new` behind it, and what of that is to be held, its last `most` columns. Both are views.

        Args:
            held: what the last call said was to be held, or other states, which are copied.
        """
        n = new.shape[-2]
        if held is not self._held or self._end + n > self._all.shape[-2]:
            self._begin, self._end = 0, held.shape[-2]
            self._all = held.new_empty(*held.shape[:2], self._end + n + ROOM, held.shape[3])
            self._all[:, :, : self._end] = held
        self._all[:, :, self._end : self._end + n] = new
        whole = self._all[:, :, self._begin : self._end + n]
        self._end += n
        if most is not None:
            self._begin = max(self._begin, self._end - most)
        self._held = self._all[:, :, self._begin : self._end]
        return whole, self._held


class _FullLayer(DynamicLayer):
    """Of attention over all columns."""

    keys: Any
    values: Any

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self._buffers = (_Buffer(), _Buffer())

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        if self.get_seq_length() == 0:  # a prefill: often joined to another cache next, and room would be copied away
            return super().update(key_states, value_states)
        self.keys = self._buffers[0].append(self.keys, key_states, None)[1]
        self.values = self._buffers[1].append(self.values, value_states, None)[1]
        return self.keys, self.values


class _SlidingLayer(DynamicSlidingWindowLayer):
    """Of attention over the newest columns."""

    keys: Any
    values: Any

    def __init__(self, sliding_window: int, **more: Any) -> None:
        super().__init__(sliding_window, **more)
        self._buffers = (_Buffer(), _Buffer())

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        if self.get_seq_length() == 0:
            return super().update(key_states, value_states)
        self.cumulative_length += key_states.shape[-2]
        keys, self.keys = self._buffers[0].append(self.keys, key_states, self.sliding_window - 1)
        values, self.values = self._buffers[1].append(self.values, value_states, self.sliding_window - 1)
        return keys, values


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
    layer._buffers = (_Buffer(), _Buffer())  # lets go of the old ones at once: this is where memory runs short
    if isinstance(layer, DynamicSlidingWindowLayer):
        layer.cumulative_length = columns


def _widened(states: torch.Tensor, columns: int) -> torch.Tensor:
    """`[rows, heads, columns, d_head]`, zeros before."""
    return pad(states, (0, 0, columns - states.shape[-2], 0))
