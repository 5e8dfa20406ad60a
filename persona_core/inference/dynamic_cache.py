"""A key-value cache that grows with the replies: finished rows are dropped, and a step costs what its rows cost.

The layers are transformers' own, with spare columns allocated ahead. All rows end in the newest column; a shorter row
starts further right, behind columns that its attention mask hides. Keys already hold their positions, so a row can be
moved to other columns as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

if TYPE_CHECKING:
    from persona_core.inference.forward import ForwardFn, ForwardInputs, ForwardOutput

# Columns allocated at a time. transformers' own layers copy all keys and values at every step: with 16 rows and
# 12 blocks x 512 on two cores that is 2 % of a step after 100 tokens, 22 % after 400. Here one step in 64 copies.
SPARE_COLUMNS = 64


class DynamicKVCache:
    """Keys and values of a batch of replies, and the step over them. All rows end in the newest column."""

    shrinks = True  # a step costs less with fewer rows

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.clear()

    def clear(self) -> None:
        """Remove all rows."""
        self._cache: DynamicCache | None = None
        self._lengths: list[int] = []  # columns of each row, padding excluded
        self._mask: torch.Tensor | None = None

    def add(self, cache: DynamicCache, lengths: Sequence[int]) -> None:
        """Append the rows of a left-padded prefill; `lengths` without the padding."""
        if self._cache is None:
            self._cache = cache
        else:
            add_rows(self._cache, cache)
        self._lengths += lengths
        self._update_mask()

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows."""
        if self._cache is None:
            return
        self._lengths = [self._lengths[i] for i in rows]
        keep_rows(self._cache, torch.tensor(rows, device=self._device), max(self._lengths))
        self._update_mask()

    def step(self, forward: ForwardFn, inputs: ForwardInputs) -> ForwardOutput:
        """Logits and reading of one more token in each row."""
        if self._mask is not None:
            self._mask = pad(self._mask, (0, 1), value=1)
        self._lengths = [n + 1 for n in self._lengths]
        return forward(self._mask, self._cache, inputs)

    def _update_mask(self) -> None:
        """Mask the columns before each row's first. None where there are none: transformers would check a mask of all
        ones on the host at every step."""
        longest = max(self._lengths)
        self._mask = None
        if min(self._lengths) < longest:
            first = torch.tensor([[longest - n] for n in self._lengths])  # [rows, 1]
            self._mask = (torch.arange(longest) >= first).long().to(self._device)  # [rows, columns]


def new_cache(config: Any) -> DynamicCache:
    """An empty cache for a model; layers of full and sliding attention allocate columns ahead."""
    cache = DynamicCache(config=config)
    cache.layers = [_buffered(layer) for layer in cache.layers]
    return cache


def has_only_attention(cache: DynamicCache) -> bool:
    """Whether rows can be added and removed: keys and values of full or sliding attention and nothing else.

    A recurrent or compressed state is a layer of another class.
    """
    return all(isinstance(layer, _FullLayer | _SlidingLayer) for layer in cache.layers)


def sliding_windows(cache: DynamicCache) -> list[int]:
    """The window of each sliding-attention layer, in columns."""
    return [layer.sliding_window for layer in cache.layers if isinstance(layer, _SlidingLayer)]


def keep_rows(cache: DynamicCache, rows: torch.Tensor, columns: int) -> None:
    """Keep these rows, and the newest `columns` columns: earlier ones must be padding in all of the rows."""
    for layer in _initialized(cache):
        held = min(columns, layer.keys.shape[-2])
        _replace(layer, layer.keys[rows, :, -held:], layer.values[rows, :, -held:], columns)


def add_rows(cache: DynamicCache, others: DynamicCache) -> None:
    """Append the rows of `others`. Both end in the newest column; the shorter is padded on the left."""
    columns = max(cache.get_seq_length(), others.get_seq_length())
    for layer, other in zip(_initialized(cache), _initialized(others), strict=True):
        # A sliding layer holds at most its window, so the two may differ in columns.
        held = max(layer.keys.shape[-2], other.keys.shape[-2])
        both = [(_padded(one.keys, held), _padded(one.values, held)) for one in (layer, other)]
        _replace(layer, torch.cat([k for k, _ in both]), torch.cat([v for _, v in both]), columns)


def _buffered(layer: Any) -> Any:
    if type(layer) is DynamicLayer:
        return _FullLayer()
    return _SlidingLayer(layer.sliding_window) if type(layer) is DynamicSlidingWindowLayer else layer


class _Buffer:
    """States `[rows, heads, columns, d_head]` that grow at the end, with spare columns behind them."""

    def __init__(self) -> None:
        self._all = self._held = torch.empty(0)
        self._begin = self._end = 0

    def append(
        self, held: torch.Tensor, new: torch.Tensor, max_columns: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`held` followed by `new`, and its last `max_columns` columns, which the layer keeps. Both are views.

        Args:
            held: what the previous call returned for the layer to keep; other states are copied.
        """
        n = new.shape[-2]
        if held is not self._held or self._end + n > self._all.shape[-2]:
            self._begin, self._end = 0, held.shape[-2]
            self._all = held.new_empty(*held.shape[:2], self._end + n + SPARE_COLUMNS, held.shape[3])
            self._all[:, :, : self._end] = held
        self._all[:, :, self._end : self._end + n] = new
        whole = self._all[:, :, self._begin : self._end + n]
        self._end += n
        if max_columns is not None:
            self._begin = max(self._begin, self._end - max_columns)
        self._held = self._all[:, :, self._begin : self._end]
        return whole, self._held


class _FullLayer(DynamicLayer):
    """Full attention."""

    keys: Any
    values: Any

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self._buffers = (_Buffer(), _Buffer())

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        if self.get_seq_length() == 0:  # a prefill is often added to another cache next: no spare columns yet
            return super().update(key_states, value_states)
        self.keys = self._buffers[0].append(self.keys, key_states, None)[1]
        self.values = self._buffers[1].append(self.values, value_states, None)[1]
        return self.keys, self.values


class _SlidingLayer(DynamicSlidingWindowLayer):
    """Sliding-window attention."""

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


def _initialized(cache: DynamicCache) -> list[Any]:
    """The layers that hold states: a block that shares another block's keys has none."""
    return [layer for layer in cache.layers if layer.is_initialized]


def _replace(layer: Any, keys: torch.Tensor, values: torch.Tensor, columns: int) -> None:
    layer.keys, layer.values = keys, values
    layer._buffers = (_Buffer(), _Buffer())  # frees the old ones at once: this is where memory runs short
    if isinstance(layer, DynamicSlidingWindowLayer):
        layer.cumulative_length = columns


def _padded(states: torch.Tensor, columns: int) -> torch.Tensor:
    """`[rows, heads, columns, d_head]`, zeros on the left."""
    return pad(states, (0, 0, columns - states.shape[-2], 0))
