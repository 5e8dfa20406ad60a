"""Readings of replies that are being written: on the device until they are asked for, or their place is needed."""

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

    Two buffers for the whole run, a place in them for each reply that is being written: nothing grows, and a step
    writes one column. The place of a reply that has ended goes to another; its readings are then copied to the host.

    Args:
        width: replies written at once.
        longest: new tokens of the longest reply.
    """

    def __init__(self, width: int, longest: int) -> None:
        self._width, self._longest = width, longest
        self._raw = self._norms = torch.empty(0)
        self._free = list(range(width))[::-1]
        self._over: deque[int] = deque()  # replies that have ended and still have their place
        self._places: dict[int, int] = {}
        self._prompts: dict[int, Reading] = {}
        self._n_prompt: dict[int, int] = {}
        self._columns: dict[int, int] = {}  # new tokens read so far
        self._added: tuple[int, ...] = ()  # replies of the last step
        self._at = torch.empty(0)  # [2, rows], their places and next columns
        self._ended: dict[int, Arrays] = {}

    def begin(self, rows: Sequence[int], n_tokens: Sequence[int], reading: Reading) -> None:
        """Keep what a prefill read of some replies' prompts; `n_tokens` of each, padded on the left."""
        if not self._raw.numel():
            raw = reading.raw.new_empty(self._width, self._longest, *reading.raw.shape[2:])
            norms = reading.norms.new_empty(self._width, self._longest, reading.norms.shape[2])
            self._raw, self._norms = raw, norms  # both or, where memory runs out, none
        self._added = ()
        for i, (row, n) in enumerate(zip(rows, n_tokens, strict=True)):
            # A copy: a part of the padded whole would keep that in memory.
            self._prompts[row] = Reading(reading.raw[i, -n:].clone(), reading.norms[i, -n:].clone())
            self._places[row], self._columns[row], self._n_prompt[row] = self._free_place(), 0, n

    def add(self, rows: Sequence[int], reading: Reading) -> None:
        """Keep what a step read: one token of each of these replies."""
        if len(rows) == 1:  # no indices to be made
            (row,) = rows
            self._raw[self._places[row], self._columns[row]] = reading.raw[0, 0]
            self._norms[self._places[row], self._columns[row]] = reading.norms[0, 0]
            self._columns[row] += 1
            self._added = ()
            return
        if tuple(rows) != self._added:  # else each stands a column further than at the last step
            at = torch.tensor([[self._places[row] for row in rows], [self._columns[row] for row in rows]])
            self._added, self._at = tuple(rows), at.to(self._raw.device)
        place, column = self._at
        self._raw[place, column] = reading.raw[:, 0]
        self._norms[place, column] = reading.norms[:, 0]
        self._at[1] += 1
        for row in rows:
            self._columns[row] += 1

    def end(self, row: int) -> None:
        """A reply has ended: others may have its place."""
        self._over.append(row)

    def begin_anew(self, rows: Sequence[int], width: int) -> None:
        """Forget these replies, bring the others to the host, and go on with so many at once."""
        for row in rows:
            if row in self._places:
                self._drop(row)
        while self._over:
            self._to_host(self._over.popleft())
        self._width, self._free = width, list(range(width))[::-1]
        self._raw = self._norms = torch.empty(0)

    def _free_place(self) -> int:
        if not self._free:
            self._to_host(self._over.popleft())
        return self._free.pop()

    def _to_host(self, row: int) -> None:
        self._ended[row] = self.of(row)
        self._drop(row)

    def _drop(self, row: int) -> None:
        self._free.append(self._places.pop(row))
        del self._prompts[row], self._columns[row]

    def of(self, row: int, n_new: int | None = None) -> Arrays:
        """Prompt and the first `n_new` new tokens of a reply; None: all that there are."""
        if row in self._ended:
            whole = self._ended[row]
            n_tokens = None if n_new is None else self._n_prompt[row] + n_new
            return whole[0][..., :n_tokens], whole[1][:, :n_tokens]
        prompt, place = self._prompts[row], self._places[row]
        n_new = self._columns[row] if n_new is None else n_new
        raw = torch.cat([prompt.raw, self._raw[place, :n_new]])  # [n_tokens, n_blocks, n_traits]
        norms = torch.cat([prompt.norms, self._norms[place, :n_new]])  # [n_tokens, n_blocks]
        return raw.permute(2, 1, 0).cpu().contiguous().numpy(), norms.T.cpu().contiguous().numpy()

    def at(self, row: int, index: int) -> np.ndarray:
        """Raw projections at one new token, `[n_traits, n_blocks]`, on the host."""
        if row in self._ended:
            return self._ended[row][0][..., self._n_prompt[row] + index]
        return self._raw[self._places[row], index].T.cpu().contiguous().numpy()
