"""Keys and values in fixed memory: every step finds the same tensors at the same addresses, so that a GPU can replay it
as one graph instead of being handed a thousand kernels one by one.

A token's column is its position, each row by itself: no row ever moves, and one that ends leaves its place to the next
prompt. The hooks run while the graph is recorded, and what they launch is part of it: reading costs its products and
nothing else. On a CPU, and where a graph cannot be recorded, the same step runs eagerly.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from persona_core.inference.hooks import Reading
from persona_core.inference.kv_cache import joinable, new_cache, windows
from persona_core.inference.memory import out_of_memory
from persona_core.inference.step import Model, Output, Step

if TYPE_CHECKING:
    from transformers import DynamicCache

    from persona_core.models.loading import LanguageModel

logger = logging.getLogger(__name__)

# Attention that takes a mask for each row and column as it is; flash attention and ALiBi make their own.
MASKED = ("sdpa", "eager")


def supports(lm: LanguageModel, columns: int) -> bool:
    """Whether a step can be one in fixed memory: plain attention over all columns, masks as they are given."""
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


class FixedMemory:
    """Keys and values of some replies, and the step over them.

    Args:
        lm: the model.
        rows: replies at once; the lines of those that are not there are computed and left out.
        columns: room for the tokens of the longest of them, prompt and reply.
        pooled: whether the states of the replies' own tokens are added up by a step.
    """

    shrinks = False  # a step costs the same with fewer rows

    def __init__(self, lm: LanguageModel, rows: int, columns: int, pooled: bool) -> None:
        self._rows, self._columns, self._dtype = rows, columns, lm.dtype
        self._ids, self._positions, self._index = torch.zeros(3, rows, 1, dtype=torch.long, device=lm.device)
        self._own = torch.zeros(rows, 1, dtype=torch.bool, device=lm.device) if pooled else None
        self._replies = torch.zeros(rows, dtype=torch.long, device=lm.device)
        self._cache: Cache | None = None
        self._n = 0
        self._record = lm.device.type == "cuda"
        self._recording: tuple[Any, Output] | None = None  # the graph, and where it leaves its output

    def clear(self) -> None:
        """Forget all rows."""
        self._n = 0

    def add(self, cache: DynamicCache, lengths: Sequence[int]) -> None:
        """Take over the rows of a prefill that was padded on the left; `lengths` without the padding."""
        if self._cache is None:
            layers = [
                _FixedLayer(layer, self._rows, self._columns, self._positions) if layer.is_initialized else layer
                for layer in cache.layers
            ]
            self._cache = Cache(layers=layers)
        for layer, other in zip(self._cache.layers, cache.layers, strict=True):
            if not other.is_initialized:  # a block that shares another's keys has none of its own
                continue
            for row, n in enumerate(lengths):
                for held, new in ((layer.keys, other.keys), (layer.values, other.values)):
                    held[self._n + row].zero_()  # a row that was here before may have ended in NaN, which no mask hides
                    held[self._n + row, :, :n] = new[row, :, -n:]
        self._n += len(lengths)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows."""
        self._n, places = len(rows), torch.tensor(rows, device=self._ids.device)
        for layer in self._cache.layers if self._cache is not None else ():
            if layer.is_initialized:
                layer.keys[: self._n], layer.values[: self._n] = layer.keys[places], layer.values[places]

    def step(self, model: Model, step: Step) -> Output:
        """Logits and reading of the tokens of a step; valid until the next one.

        Args:
            model: one forward.
            step: a token for each row.
        """
        for held, new in (
            (self._ids, step.ids),
            (self._positions, step.positions),
            (self._index, step.index),
            (self._replies, step.replies),
        ):
            held[: self._n] = new
        self._copy_own(step)
        logits, reading = self._run(model, step) if self._record else self._step(model)
        if reading is not None:
            reading = Reading(reading.raw[: self._n], reading.norms[: self._n])
        return logits[: self._n], reading

    def _copy_own(self, step: Step) -> None:
        if self._own is not None:
            self._own.zero_()
            if step.own is not None:
                self._own[: self._n] = step.own

    def _run(self, model: Model, step: Step) -> Output:
        if self._recording is None:
            try:
                self._recording = self._recorded(model, step)
            except RuntimeError as error:  # a step that asks the host for something
                if out_of_memory(error):
                    raise
                logger.warning("The step cannot be recorded as a graph, and runs without one: %s", error)
                self._record = False
                self._copy_own(step)
                return self._step(model)  # what has run of it was written where this is written again
        graph, output = self._recording
        graph.replay()
        return output

    def _step(self, model: Model) -> Output:
        there = torch.arange(self._columns, device=self._ids.device) <= self._positions  # [rows, columns]
        # Added to the scores of attention: 0 where there is a token, else the lowest number.
        hidden = torch.zeros_like(there, dtype=self._dtype).masked_fill_(~there, torch.finfo(self._dtype).min)
        step = Step(self._ids, self._positions, self._index, self._replies, self._own)
        return model(hidden[:, None, None], self._cache, step)  # mask [rows, 1, 1, columns]

    def _recorded(self, model: Model, step: Step) -> tuple[Any, Output]:
        """The graph, and where it leaves its output.

        Kernels are set up in a first run, on a stream of its own. It writes the columns that the graph writes again,
        and pools nothing but makes the sums that the graph adds to.
        """
        if self._own is not None:
            self._own.zero_()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step(model)
        torch.cuda.current_stream().wait_stream(stream)
        self._copy_own(step)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self._step(model)
        return graph, output


class _FixedLayer(CacheLayerMixin):
    """Keys and values of one block, `[rows, heads, columns, d_head]`; a step writes at each row's position."""

    is_sliding = False
    is_compileable = True
    keys: Any
    values: Any

    def __init__(self, like: Any, rows: int, columns: int, positions: torch.Tensor) -> None:
        super().__init__()
        self._row, self._positions = torch.arange(rows, device=like.keys.device), positions
        heads = like.keys.shape[1]
        self.keys = like.keys.new_zeros(rows, heads, columns, like.keys.shape[-1])
        self.values = like.values.new_zeros(rows, heads, columns, like.values.shape[-1])
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None: ...

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        self.keys[self._row, :, self._positions[:, 0]] = key_states[:, :, 0]
        self.values[self._row, :, self._positions[:, 0]] = value_states[:, :, 0]
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002
        return self.keys.shape[2], 0

    def get_seq_length(self) -> int:
        return 0  # asked for default positions alone, and positions are always given

    def get_max_length(self) -> int:
        return self.keys.shape[2]
