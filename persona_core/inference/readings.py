"""Readings of replies being written: kept on the device until they are requested or their slot is needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch

from persona_core.inference.hooks import Reading

Arrays = tuple[np.ndarray, np.ndarray]
"""Raw `[n_traits, n_blocks, n_tokens]` and norms `[n_blocks, n_tokens]`, float32."""


class Readings:
    """What a run has read of each of its replies, prompt included.

    Two buffers serve the whole run, with a slot for each reply being written: nothing grows, and a step writes one
    column. When a new reply takes the slot of a finished one, the finished one's readings are copied to the host.

    Args:
        n_slots: replies written at once.
        max_new: new tokens of the longest reply.
    """

    def __init__(self, n_slots: int, max_new: int) -> None:
        self._n_slots, self._max_new = n_slots, max_new
        self._raw = self._norms = torch.empty(0)
        self._free = list(range(n_slots))[::-1]
        self._finished: deque[int] = deque()  # replies that have ended and still hold their slot
        self._slots: dict[int, int] = {}
        self._prompts: dict[int, Reading] = {}
        self._n_prompt: dict[int, int] = {}
        self._n_new: dict[int, int] = {}  # new tokens read so far
        self._last_rows: tuple[int, ...] = ()  # replies of the previous step
        self._targets = torch.empty(0)  # [2, rows], their slots and next columns
        self._on_host: dict[int, Arrays] = {}

    def begin(self, rows: Sequence[int], n_tokens: Sequence[int], reading: Reading) -> None:
        """Keep what a prefill read of some replies' prompts; `n_tokens` of each, padded on the left."""
        if not self._raw.numel():
            raw = reading.raw.new_empty(self._n_slots, self._max_new, *reading.raw.shape[2:])
            norms = reading.norms.new_empty(self._n_slots, self._max_new, reading.norms.shape[2])
            self._raw, self._norms = raw, norms  # both or, where memory runs out, neither
        self._last_rows = ()
        for i, (row, n) in enumerate(zip(rows, n_tokens, strict=True)):
            # A copy: a view would keep the whole padded tensor in memory.
            self._prompts[row] = Reading(reading.raw[i, -n:].clone(), reading.norms[i, -n:].clone())
            self._slots[row], self._n_new[row], self._n_prompt[row] = self._free_slot(), 0, n

    def add(self, rows: Sequence[int], reading: Reading) -> None:
        """Keep what a step read: one token of each of these replies."""
        if len(rows) == 1:  # no index tensor needed
            (row,) = rows
            self._raw[self._slots[row], self._n_new[row]] = reading.raw[0, 0]
            self._norms[self._slots[row], self._n_new[row]] = reading.norms[0, 0]
            self._n_new[row] += 1
            self._last_rows = ()
            return
        if tuple(rows) != self._last_rows:  # otherwise each is one column further than in the previous step
            targets = torch.tensor([[self._slots[row] for row in rows], [self._n_new[row] for row in rows]])
            self._last_rows, self._targets = tuple(rows), targets.to(self._raw.device)
        slot, column = self._targets
        self._raw[slot, column] = reading.raw[:, 0]
        self._norms[slot, column] = reading.norms[:, 0]
        self._targets[1] += 1
        for row in rows:
            self._n_new[row] += 1

    def end(self, row: int) -> None:
        """A reply has ended: its slot may be reused."""
        self._finished.append(row)

    def restart(self, rows: Sequence[int], n_slots: int) -> None:
        """Discard these replies, move the others to the host, and continue with `n_slots` slots."""
        for row in rows:
            if row in self._slots:
                self._release(row)
        while self._finished:
            self._move_to_host(self._finished.popleft())
        self._n_slots, self._free = n_slots, list(range(n_slots))[::-1]
        self._raw = self._norms = torch.empty(0)

    def _free_slot(self) -> int:
        if not self._free:
            self._move_to_host(self._finished.popleft())
        return self._free.pop()

    def _move_to_host(self, row: int) -> None:
        self._on_host[row] = self.of(row)
        self._release(row)

    def _release(self, row: int) -> None:
        self._free.append(self._slots.pop(row))
        del self._prompts[row], self._n_new[row]

    def of(self, row: int, n_new: int | None = None) -> Arrays:
        """Prompt and the first `n_new` new tokens of a reply; None: all so far."""
        if row in self._on_host:
            whole = self._on_host[row]
            n_tokens = None if n_new is None else self._n_prompt[row] + n_new
            return whole[0][..., :n_tokens], whole[1][:, :n_tokens]
        prompt, slot = self._prompts[row], self._slots[row]
        n_new = self._n_new[row] if n_new is None else n_new
        raw = torch.cat([prompt.raw, self._raw[slot, :n_new]])  # [n_tokens, n_blocks, n_traits]
        norms = torch.cat([prompt.norms, self._norms[slot, :n_new]])  # [n_tokens, n_blocks]
        return raw.permute(2, 1, 0).cpu().contiguous().numpy(), norms.T.cpu().contiguous().numpy()

    def at(self, row: int, index: int) -> np.ndarray:
        """Raw projections at one new token, `[n_traits, n_blocks]`, on the host."""
        if row in self._on_host:
            return self._on_host[row][0][..., self._n_prompt[row] + index]
        return self._raw[self._slots[row], index].T.cpu().contiguous().numpy()
