"""A static key-value cache: every step finds the same tensors at the same addresses, so that a GPU can replay it as
one CUDA graph instead of launching a thousand kernels one by one.

A token's column is its position, in each row separately: no row ever moves, and a finished one leaves its slot to the
next prompt. The hooks run while the graph is captured, and the kernels they launch are part of it: reading costs its
products and nothing else. On a CPU, and where a graph cannot be captured, the same step runs eagerly.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from persona_core.inference.dynamic_cache import has_only_attention, new_cache, sliding_windows
from persona_core.inference.forward import ForwardFn, ForwardInputs, ForwardOutput
from persona_core.inference.hooks import Reading
from persona_core.inference.memory import out_of_memory
from persona_core.inference.sections import NEITHER

if TYPE_CHECKING:
    from transformers import DynamicCache

    from persona_core.models.language_model import LanguageModel

logger = logging.getLogger(__name__)

# Attention that uses the mask as given; flash attention and ALiBi build their own.
MASKED_ATTENTION = ("sdpa", "eager")


def supports(lm: LanguageModel, columns: int) -> bool:
    """Whether the model can step with a static cache: plain attention over all columns, with the mask as given."""
    config = lm.model.config.get_text_config(decoder=True)
    cache = new_cache(lm.model.config)
    return (
        has_only_attention(cache)
        and bool(cache.layers)
        and columns < min(sliding_windows(cache), default=columns + 1)  # a narrower window needs another mask
        and getattr(config, "_attn_implementation", None) in MASKED_ATTENTION
        and not getattr(config, "alibi", False)
        and bool(getattr(lm.model, "_can_compile_fullgraph", False))  # a step never waits for the host
        and "position_ids" in lm.forward_arguments
        and not lm.dispatched
    )


class StaticKVCache:
    """Keys and values of a batch of replies, and the step over them.

    Args:
        lm: the model.
        rows: replies at once; unused rows are computed and left out.
        columns: tokens of the longest reply, prompt included.
        pooled: whether a step sums the states of reply tokens.
    """

    shrinks = False  # a step costs the same with fewer rows

    def __init__(self, lm: LanguageModel, rows: int, columns: int, pooled: bool) -> None:
        self._rows, self._columns, self._dtype = rows, columns, lm.dtype
        self._ids, self._positions, self._index = torch.zeros(3, rows, 1, dtype=torch.long, device=lm.device)
        self._answer_index = torch.full((rows, 1), NEITHER, device=lm.device) if pooled else None
        self._replies = torch.zeros(rows, dtype=torch.long, device=lm.device)
        self._cache: Cache | None = None
        self._n = 0  # rows in use
        self._use_graph = lm.device.type == "cuda"
        self._captured: tuple[Any, ForwardOutput] | None = None  # the graph, and the tensors that it writes to

    def clear(self) -> None:
        """Remove all rows."""
        self._n = 0

    def add(self, cache: DynamicCache, lengths: Sequence[int]) -> None:
        """Append the rows of a left-padded prefill; `lengths` without the padding."""
        if self._cache is None:
            layers = [
                _StaticLayer(layer, self._rows, self._columns, self._positions) if layer.is_initialized else layer
                for layer in cache.layers
            ]
            self._cache = Cache(layers=layers)
        for layer, other in zip(self._cache.layers, cache.layers, strict=True):
            if not other.is_initialized:  # a block that shares another block's keys
                continue
            for row, n in enumerate(lengths):
                for held, new in ((layer.keys, other.keys), (layer.values, other.values)):
                    held[self._n + row].zero_()  # an earlier row may have left NaN, which no mask hides
                    held[self._n + row, :, :n] = new[row, :, -n:]
        self._n += len(lengths)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows."""
        self._n, kept = len(rows), torch.tensor(rows, device=self._ids.device)
        for layer in self._cache.layers if self._cache is not None else ():
            if layer.is_initialized:
                layer.keys[: self._n], layer.values[: self._n] = layer.keys[kept], layer.values[kept]

    def step(self, forward: ForwardFn, inputs: ForwardInputs) -> ForwardOutput:
        """Logits and reading of one more token in each row; valid until the next step.

        Args:
            forward: one forward pass.
            inputs: a token for each row.
        """
        for held, new in (
            (self._ids, inputs.ids),
            (self._positions, inputs.positions),
            (self._index, inputs.reply_index),
            (self._replies, inputs.replies),
        ):
            held[: self._n] = new
        self._copy_answer_index(inputs)
        logits, reading = self._run_graph(forward, inputs) if self._use_graph else self._run(forward)
        if reading is not None:
            reading = Reading(reading.raw[: self._n], reading.norms[: self._n])
        return logits[: self._n], reading

    def _copy_answer_index(self, inputs: ForwardInputs) -> None:
        if self._answer_index is not None:
            self._answer_index.fill_(NEITHER)
            if inputs.answer_index is not None:
                self._answer_index[: self._n] = inputs.answer_index

    def _run(self, forward: ForwardFn) -> ForwardOutput:
        visible = torch.arange(self._columns, device=self._ids.device) <= self._positions  # [rows, columns]
        # Added to the attention scores: 0 where there is a token, else the lowest number.
        mask = torch.zeros_like(visible, dtype=self._dtype).masked_fill_(~visible, torch.finfo(self._dtype).min)
        inputs = ForwardInputs(self._ids, self._positions, self._index, self._replies, self._answer_index)
        return forward(mask[:, None, None], self._cache, inputs)  # mask [rows, 1, 1, columns]

    def _run_graph(self, forward: ForwardFn, inputs: ForwardInputs) -> ForwardOutput:
        if self._captured is None:
            try:
                self._captured = self._capture(forward, inputs)
            except RuntimeError as error:  # a step that waits for the host cannot be captured
                if out_of_memory(error):
                    raise
                logger.warning("The step cannot be captured as a CUDA graph and runs eagerly: %s", error)
                self._use_graph = False
                self._copy_answer_index(inputs)
                return self._run(forward)  # overwrites whatever the failed capture has written
        graph, output = self._captured
        graph.replay()
        return output

    def _capture(self, forward: ForwardFn, inputs: ForwardInputs) -> tuple[Any, ForwardOutput]:
        """The graph, and the tensors that it writes to.

        A warm-up on a side stream sets the kernels up. It writes the columns that the graph overwrites, and with an
        answer index of no token it pools nothing, but allocates the sums that the graph adds to.
        """
        if self._answer_index is not None:
            self._answer_index.fill_(NEITHER)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._run(forward)
        torch.cuda.current_stream().wait_stream(stream)
        self._copy_answer_index(inputs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self._run(forward)
        return graph, output


class _StaticLayer(CacheLayerMixin):
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
        return 0  # used for default positions only, and positions are always given

    def get_max_length(self) -> int:
        return self.keys.shape[2]
