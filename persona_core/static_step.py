"""A step of the decode loop in fixed memory: the same tensors at the same addresses each time, so that a GPU can replay
it as one graph instead of being handed a thousand kernels one by one.

Keys and values lie in buffers of so many columns; a mask says which of them there are. The hooks run while the graph
is recorded, and what they launch is part of it: reading costs its products and nothing else. On a CPU, and where a
graph cannot be recorded, the same step runs eagerly.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from persona_core.kv_cache import joinable, new_cache, windows

if TYPE_CHECKING:
    from transformers import DynamicCache

    from persona_core.hooks import Reading
    from persona_core.models import LanguageModel

logger = logging.getLogger(__name__)

Output = tuple[torch.Tensor, "Reading | None"]
Forward = Callable[..., Output]
ROUNDED = 64  # columns: replies of about the same length share a recorded graph
# Attention that takes a mask for each row and column as it is; flash attention and ALiBi make their own.
MASKED = ("sdpa", "eager")


def supports(lm: LanguageModel, columns: int) -> bool:
    """Whether a step can be one of fixed memory: plain attention over all columns, masks as they are given."""
    config = lm.model.config.get_text_config(decoder=True)
    cache = new_cache(lm.model.config)
    return (
        joinable(cache)
        and bool(cache.layers)
        and columns < min(windows(cache), default=columns + 1)  # else a window's mask is another one
        and getattr(config, "_attn_implementation", None) in MASKED
        and not getattr(config, "alibi", False)
        and bool(getattr(lm.model, "_can_compile_fullgraph", False))  # no step of it asks the host for anything
        and "position_ids" in lm.forward_arguments
        and not lm.dispatched
    )


class _FixedLayer(CacheLayerMixin):
    """Keys and values of one block, `[rows, heads, columns, d_head]`; the newest go into the column that is said."""

    is_sliding = False
    is_compileable = True

    def __init__(self, like: Any, columns: int, column: torch.Tensor) -> None:
        super().__init__()
        self._column = column
        rows, heads = like.keys.shape[:2]
        self.keys = like.keys.new_zeros(rows, heads, columns, like.keys.shape[-1])
        self.values = like.values.new_zeros(rows, heads, columns, like.values.shape[-1])
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None: ...

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        self.keys.index_copy_(2, self._column, key_states)
        self.values.index_copy_(2, self._column, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002
        return self.keys.shape[2], 0

    def get_seq_length(self) -> int:
        return 0  # what is asked for is where a token stands, and that is said to the model

    def get_max_length(self) -> int:
        return self.keys.shape[2]


class StaticStep:
    """One step for some rows, in fixed memory.

    Args:
        lm: the model.
        cache: of the rows so far; its layers say which blocks have keys and values of their own.
        columns: room for the tokens before and the new ones.
        forward: one forward: ids, mask, positions, cache, reply index, own, rows -> logits and reading.
        pooled: whether the step says which tokens are the reply's own, and their states are added up.
    """

    def __init__(
        self, lm: LanguageModel, cache: DynamicCache, columns: int, forward: Forward, pooled: bool = False
    ) -> None:
        device = lm.device
        rows = next(layer.keys.shape[0] for layer in cache.layers if layer.is_initialized)
        self.rows, self.columns = rows, columns
        self._config, self._forward = lm.model.config, forward
        self._column = torch.zeros(1, dtype=torch.long, device=device)
        self._ids = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._positions, self._index = torch.zeros_like(self._ids), torch.zeros_like(self._ids)
        self._own = torch.zeros(rows, 1, dtype=torch.bool, device=device) if pooled else None
        self._which = torch.zeros(rows, dtype=torch.long, device=device)
        # Added to the scores of attention: 0 where there is a token, else the lowest number.
        self._hidden = torch.finfo(lm.dtype).min
        self._mask = torch.full((rows, 1, 1, columns), self._hidden, dtype=lm.dtype, device=device)
        self._layers = [_FixedLayer(layer, columns, self._column) if layer.is_initialized else layer
                        for layer in cache.layers]  # fmt: skip
        self._cache = Cache(layers=self._layers)
        self._record = device.type == "cuda"
        self._graph: Any = None
        self._output: Any = None
        self._at = 0

    @property
    def full(self) -> bool:
        """No column is left."""
        return self._at >= self.columns

    def load(self, cache: DynamicCache, own_columns: list[int], which: torch.Tensor) -> None:
        """Take over the keys and values of a cache whose rows end in its last column."""
        self._at = max(own_columns)
        for layer, other in zip(self._layers, cache.layers, strict=True):
            if other.is_initialized:
                layer.keys[:, :, : self._at] = other.keys
                layer.values[:, :, : self._at] = other.values
        self._which.copy_(which)
        place = torch.arange(self.columns)
        first = torch.tensor([[self._at - n] for n in own_columns])  # [rows, 1]
        there = ((place >= first) & (place < self._at)).view_as(self._mask).to(self._mask.device)
        self._mask.fill_(self._hidden).masked_fill_(there, 0)
        self._column.fill_(self._at)

    def unload(self) -> DynamicCache:
        """The keys and values so far, as a cache that grows."""
        cache = new_cache(self._config)
        for number, layer in enumerate(self._layers):
            if layer.is_initialized:
                held = slice(None, self._at)
                cache.update(layer.keys[:, :, held], layer.values[:, :, held], number)  # copies them
        return cache

    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor, index: torch.Tensor, own: torch.Tensor | None = None
    ) -> Output:
        """Logits and reading of the next token of each row; valid until the next call.

        Args:
            ids, positions, index, own: each `[rows, 1]`: the token, its position, its place in the reply, and whether
                the assistant said it, asked for where states are pooled.
        """
        self._ids.copy_(ids)
        self._positions.copy_(positions)
        self._index.copy_(index)
        if self._own is not None and own is not None:
            self._own.copy_(own)
        self._at += 1
        if not self._record:
            return self._step()
        if self._graph is None:
            try:
                self._graph, self._output = self._recorded()
            except RuntimeError as error:  # a step that asks the host for something; nothing of it has run yet
                logger.warning("The step cannot be recorded as a graph, and runs without one: %s", error)
                self._record = False
                return self._step()
        self._graph.replay()
        return self._output

    def _step(self) -> Output:
        self._mask.index_fill_(-1, self._column, 0)
        output = self._forward(self._ids, self._mask, self._positions, self._cache, self._index, self._own, self._which)
        self._column.add_(1)
        return output

    def _recorded(self) -> tuple[Any, Output]:
        """The graph, and where it leaves its output.

        Kernels are set up in a first run, on a stream of its own; the column that it wrote is written again, and it
        pools nothing but makes the sums that the graph adds to.
        """
        own = None if self._own is None else self._own.clone()
        if self._own is not None:
            self._own.zero_()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                self._step()
            torch.cuda.current_stream().wait_stream(stream)
        finally:
            if self._own is not None and own is not None:
                self._own.copy_(own)
        self._column.sub_(1)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self._step()
        return graph, output
