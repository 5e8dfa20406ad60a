"""Keys and values that grow with the replies: rows that have ended are dropped, and a step costs what its rows cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

from persona_core.inference.kv_cache import add_rows, keep_rows

if TYPE_CHECKING:
    from transformers import DynamicCache

    from persona_core.inference.step import Model, Output, Step


class GrowingMemory:
    """Keys and values of some replies, and the step over them. All rows end in the newest column."""

    shrinks = True  # a step costs less with fewer rows

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.clear()

    def clear(self) -> None:
        """Forget all rows."""
        self._cache: DynamicCache | None = None
        self._columns: list[int] = []  # each row's own
        self._mask: torch.Tensor | None = None

    def add(self, cache: DynamicCache, lengths: Sequence[int]) -> None:
        """Take over the rows of a prefill that was padded on the left; `lengths` without the padding."""
        if self._cache is None:
            self._cache = cache
        else:
            add_rows(self._cache, cache)
        self._columns += lengths
        self._hide()

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows."""
        if self._cache is None:
            return
        self._columns = [self._columns[i] for i in rows]
        keep_rows(self._cache, torch.tensor(rows, device=self._device), max(self._columns))
        self._hide()

    def step(self, model: Model, step: Step) -> Output:
        """Logits and reading of one more token of each row."""
        if self._mask is not None:
            self._mask = pad(self._mask, (0, 1), value=1)
        self._columns = [n + 1 for n in self._columns]
        return model(self._mask, self._cache, step)

    def _hide(self) -> None:
        """Mask the columns before each row's first. transformers tests a mask of ones on the host at each step; where
        there are no such columns none is needed."""
        longest = max(self._columns)
        self._mask = None
        if min(self._columns) < longest:
            first = torch.tensor([[longest - n] for n in self._columns])  # [rows, 1]
            self._mask = (torch.arange(longest) >= first).long().to(self._device)  # [rows, columns]
