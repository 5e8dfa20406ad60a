"""A second, slow opinion on every number: one sequence at a time, no cache, no batch, plain hooks, float64.

Nothing here imports `persona_core`. What the library reads must equal what this file computes from the
definition: the state of block b at token t is the output of block b after the model has read token t, and the
projection is (h . v) / |v|.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Floats = NDArray[np.float64]
# Changes a block's output: takes (block, states [tokens, d_model]) and returns states of the same shape.
Change = Callable[[int, torch.Tensor], torch.Tensor]


def states(model: Any, blocks: Sequence[nn.Module], ids: Sequence[int], change: Change | None = None) -> Floats:
    """States of every block at every token of one sequence, float64 `[n_blocks, n_tokens, d_model]`."""
    return _forward(model, blocks, ids, change)[0]


def logits(model: Any, blocks: Sequence[nn.Module], ids: Sequence[int], change: Change | None = None) -> Floats:
    """Logits at every token of one sequence, float64 `[n_tokens, vocab]`."""
    return _forward(model, blocks, ids, change)[1]


def _forward(
    model: Any, blocks: Sequence[nn.Module], ids: Sequence[int], change: Change | None
) -> tuple[Floats, Floats]:
    seen: dict[int, list[list[float]]] = {}

    def hook_for(index: int) -> Callable[..., Any]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, tuple) else output
            if change is not None:
                first = change(index, first[0])[None]
            seen[index] = first[0].detach().double().tolist()
            return (first, *output[1:]) if isinstance(output, tuple) else first

        return hook

    handles = [block.register_forward_hook(hook_for(index)) for index, block in enumerate(blocks)]
    try:
        with torch.no_grad():
            out = model(input_ids=torch.tensor([list(ids)]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    stacked = np.array([seen[index] for index in range(len(blocks))], dtype=np.float64)
    return stacked, out.logits[0].double().numpy()


def project(h: Floats, vector: Any) -> Floats:
    """(h . v) / |v| in float64; `h` is `[..., d_model]`, `vector` `[d_model]`."""
    v = np.asarray(vector, dtype=np.float64)
    return np.asarray((h * v).sum(-1) / np.sqrt((v * v).sum()))


def raw(
    model: Any, blocks: Sequence[nn.Module], ids: Sequence[int], vectors: dict[str, Any], change: Change | None = None
) -> Floats:
    """Projections of every block at every token, float64 `[n_traits, n_blocks, n_tokens]`.

    `vectors[trait]` is `[n_blocks, d_model]`; row b belongs to block b.
    """
    h = states(model, blocks, ids, change)
    return np.array([[project(h[b], vector[b]) for b in range(len(blocks))] for vector in vectors.values()])


def norms(model: Any, blocks: Sequence[nn.Module], ids: Sequence[int]) -> Floats:
    """|h| of every block at every token, float64 `[n_blocks, n_tokens]`."""
    h = states(model, blocks, ids)
    return np.asarray(np.sqrt((h * h).sum(-1)))


def greedy(
    model: Any,
    blocks: Sequence[nn.Module],
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    eos_ids: Sequence[int] = (),
    change: Change | None = None,
) -> list[int]:
    """The reply's ids by greedy decoding, rereading the whole sequence for every token. A final EOS is kept."""
    ids, reply = list(prompt_ids), []
    for _ in range(max_new_tokens):
        token = int(np.argmax(logits(model, blocks, ids, change)[-1]))
        reply.append(token)
        ids.append(token)
        if token in eos_ids:
            break
    return reply


def relative_error(found: Any, wanted: Any) -> float:
    """The largest error as a share of the wanted values' typical size (their root mean square)."""
    a, b = np.asarray(found, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    if a.shape != b.shape:
        raise AssertionError(f"shapes differ: {a.shape} found, {b.shape} wanted")
    scale = float(np.sqrt(np.mean(b * b)))
    return float(np.max(np.abs(a - b)) / scale)
