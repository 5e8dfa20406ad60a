"""States of the blocks, averaged over the tokens of a position and sampled token by token, while a model runs.

Sink tokens, whose state has a norm far outside the block's own range, are left out of means and samples: one of them
outweighs a hundred plain tokens. A reply that holds nothing else at a block keeps them there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from persona_core.inference.pooling import Pool

MAX_REPLY_TOKENS = 2**17  # reply tokens for which the sampling table is made; longer replies are sampled up to here
MAX_FLOAT16 = 65504.0


class PooledStates:
    """Sums over positions, and a sample of single tokens, of each text of a run at every block.

    Args:
        pools: positions; see `persona_core.inference.pooling`.
        n_blocks: blocks of the model.
        n_rows: texts of the run, if each forward names its rows; None: one forward, rows in order.
        max_norm: float32 `[n_blocks]`, norm above which a token is a sink; None: there are none.
        n_sampled: states kept of each answer, spread evenly over its tokens.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        n_blocks: int,
        n_rows: int | None = None,
        max_norm: np.ndarray | None = None,
        n_sampled: int = 0,
    ) -> None:
        self._pools, self._n_blocks, self._n_rows, self._n_sampled = tuple(pools), n_blocks, n_rows, n_sampled
        self._max_norm = None if max_norm is None else [float(limit) for limit in max_norm]
        self._leaves_out: torch.Tensor | None = None  # bool [n_pools], which positions leave sink tokens out
        # Of the positions and, with limits, then of their sink tokens alone: [rows, 2 * n_pools, d_model].
        self._sums: list[torch.Tensor | None] = [None] * n_blocks
        self._counts: list[torch.Tensor | None] = [None] * n_blocks
        self._samples: list[torch.Tensor | None] = [None] * n_blocks
        self._mask: torch.Tensor | None = None
        self._rows: torch.Tensor | None = None
        self._sampled: tuple[torch.Tensor, torch.Tensor] | None = None

    def begin(self, reply_index: torch.Tensor, answer_index: torch.Tensor | None, rows: torch.Tensor | None) -> None:
        """Say which tokens the next forward holds; arguments as for `ResidualTap.forward`."""
        self._mask = self._sampled = None
        self._rows = rows
        if answer_index is None:
            return
        if self._pools:
            masks = [pool.mask(reply_index, answer_index) for pool in self._pools]
            self._mask = torch.stack(masks, dim=-1).float()  # [rows, tokens, n_pools]
            if self._leaves_out is None:  # once: a copy from the host waits for what the device is doing
                chosen = [not pool.keeps_sinks for pool in self._pools]
                self._leaves_out = torch.tensor(chosen, device=reply_index.device)
        if self._n_sampled:
            self._sampled = self._slots(answer_index)

    def _slots(self, answer_index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Which tokens are kept, `[rows, k]`, and in which slot; slot `n_sampled` is thrown away."""
        table = _table(self._n_sampled).to(answer_index.device)
        slots = table[answer_index.clamp(0, MAX_REPLY_TOKENS - 1)]  # [rows, tokens]
        slots = torch.where((answer_index >= 0) & (answer_index < MAX_REPLY_TOKENS), slots, self._n_sampled)
        if answer_index.shape[1] == 1:
            return torch.zeros_like(slots), slots
        # Several tokens of a reply at once: of those with the same slot the last one stays, as it would one by one.
        wanted = torch.arange(self._n_sampled, device=slots.device)
        found = slots[:, None, :] == wanted[:, None]  # [rows, n_sampled, tokens]
        position = torch.arange(slots.shape[1], device=slots.device)
        last = torch.where(found, position, -1).amax(-1)  # [rows, n_sampled]
        return last.clamp_min(0), torch.where(last >= 0, wanted, self._n_sampled)

    @property
    def of_prompt(self) -> bool:
        """Whether a position averages over prompt tokens."""
        return any(pool.of_prompt for pool in self._pools)

    @property
    def of_reply(self) -> bool:
        """Whether a position averages over reply tokens, or these are sampled."""
        return bool(self._n_sampled) or not all(pool.of_prompt for pool in self._pools)

    @property
    def adds_in_place(self) -> bool:
        """Whether every forward after the first adds to the same memory."""
        return self._n_rows is not None

    @property
    def active(self) -> bool:
        """Whether the running forward is pooled."""
        return self._mask is not None or self._sampled is not None

    def add(self, block: int, hidden: torch.Tensor) -> None:
        """Take one block's output, float32 `[rows, tokens, d_model]`."""
        sink = None
        if self._max_norm is not None:
            sink = torch.linalg.vector_norm(hidden, dim=-1) > self._max_norm[block]  # [rows, tokens]
        if self._mask is not None:
            mask = self._mask.to(hidden.device)
            if sink is not None and self._leaves_out is not None:
                out = sink[..., None] & self._leaves_out.to(hidden.device)  # [rows, tokens, n_pools]
                mask = torch.cat([mask * ~out, mask * out], dim=-1)  # [rows, tokens, 2 * n_pools]
            self._sums[block] = self._added(self._sums[block], torch.bmm(mask.transpose(1, 2), hidden))
            self._counts[block] = self._added(self._counts[block], mask.sum(1))
        if self._sampled is not None:
            self._keep_samples(block, hidden, sink, *self._sampled)

    def _keep_samples(
        self, block: int, hidden: torch.Tensor, sink: torch.Tensor | None, tokens: torch.Tensor, slots: torch.Tensor
    ) -> None:
        tokens, slots = tokens.to(hidden.device), slots.to(hidden.device)  # [rows, k] each
        row = torch.arange(len(hidden), device=hidden.device)[:, None]
        states = hidden[row, tokens].clamp(-MAX_FLOAT16, MAX_FLOAT16)  # [rows, k, d_model]
        if sink is not None:
            states = states.masked_fill(sink[row, tokens][..., None], torch.nan)
        kept = self._samples[block]
        if kept is None:
            n = len(hidden) if self._n_rows is None else self._n_rows
            kept = states.new_full((n, self._n_sampled + 1, hidden.shape[-1]), torch.nan, dtype=torch.float16)
            self._samples[block] = kept
        texts = row if self._rows is None else self._rows.to(hidden.device)[:, None]
        kept[texts, slots] = states.half()

    def _added(self, before: torch.Tensor | None, new: torch.Tensor) -> torch.Tensor:
        """Sums `[texts, ...]` with those of this forward's rows `[rows, ...]` added."""
        if self._rows is None or self._n_rows is None:
            return new if before is None else before + new
        if before is None:
            before = new.new_zeros(self._n_rows, *new.shape[1:])
        return before.index_add_(0, self._rows.to(new.device), new)

    @torch.inference_mode()  # the sums were made in it
    def forget(self, rows: Sequence[int]) -> None:
        """Reset these texts: they will be read again."""
        for tensor in (*self._sums, *self._counts):
            if tensor is not None:
                tensor[list(rows)] = 0
        for tensor in self._samples:
            if tensor is not None:
                tensor[list(rows)] = torch.nan

    def sums(self) -> torch.Tensor:
        """Sums over each position's tokens so far, float32 `[rows, n_pools, n_blocks, d_model]`."""
        return self._without_sinks()[0]

    def counts(self) -> torch.Tensor:
        """How many tokens each sum is over, `[rows, n_pools, n_blocks]`."""
        return self._without_sinks()[1]

    def means(self) -> np.ndarray:
        """Mean states, float32 `[rows, n_pools, n_blocks, d_model]` on the host; NaN where there is no token."""
        sums, counts = (found.cpu().numpy() for found in self._without_sinks())
        with np.errstate(invalid="ignore", divide="ignore"):
            return (sums / np.where(counts == 0, np.nan, counts)[..., None]).astype(np.float32)

    def _without_sinks(self) -> tuple[torch.Tensor, torch.Tensor]:
        sums, counts = self._stacked(self._sums), self._stacked(self._counts)
        if self._max_norm is None:
            return sums, counts
        n = len(self._pools)
        only = counts[:, :n] == 0  # nothing but sink tokens, or nothing at all
        return (
            torch.where(only[..., None], sums[:, n:], sums[:, :n]),
            torch.where(only, counts[:, n:], counts[:, :n]),
        )

    def samples(self) -> np.ndarray:
        """Sampled states, float16 `[rows, n_sampled, n_blocks, d_model]` on the host; NaN where there is none."""
        if not self._n_sampled:
            return np.empty((0, 0, self._n_blocks, 0), np.float16)
        return self._stacked([None if s is None else s[:, : self._n_sampled] for s in self._samples]).cpu().numpy()

    def _stacked(self, of_blocks: Sequence[torch.Tensor | None]) -> torch.Tensor:
        found = [tensor for tensor in of_blocks if tensor is not None]
        if len(found) != self._n_blocks:
            raise RuntimeError("No forward was pooled; pass an answer_index to each forward.")
        return torch.stack([tensor.to(found[0].device) for tensor in found], dim=2)


@lru_cache(maxsize=8)
def _table(n_sampled: int) -> torch.Tensor:
    """The slot of each reply token in a sample of `n_sampled`, long `[MAX_REPLY_TOKENS]`; `n_sampled` is no slot.

    The first tokens fill the slots. Then every second one is given up for later tokens, twice as far apart, and so on:
    a reply of any length ends with tokens spread evenly over it, without its length being known.
    """
    slots = np.full(MAX_REPLY_TOKENS, n_sampled)
    slots[:n_sampled] = np.arange(n_sampled)
    stride = 1
    while n_sampled * stride < MAX_REPLY_TOKENS:
        given_up = range(stride, n_sampled * stride, 2 * stride)
        first = -(-n_sampled // 2) * 2 * stride  # the first multiple of 2 * stride from n_sampled * stride on
        for old, new in zip(
            given_up, range(first, min(MAX_REPLY_TOKENS, 2 * n_sampled * stride), 2 * stride), strict=False
        ):
            slots[new] = slots[old]
        stride *= 2
    return torch.from_numpy(slots)
