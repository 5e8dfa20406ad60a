"""Replies of any engine that join and leave at any time: each is a run of its own, and they advance in turn.

For engines that put the runs of several callers together by themselves, as vLLM does. On transformers each run has
forwards of its own, so there `OpenBatch` is several times as fast.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from typing import TYPE_CHECKING

import torch

from persona_core.errors import PersonaError, SettingError
from persona_core.inference.batch import BrokenReply, DecodeStep
from persona_core.inference.hooks import Reading

if TYPE_CHECKING:
    from persona_core.inference.generation import GenerationRun


class TurnBatch:
    """As `OpenBatch`, for one thread, on whichever engine the runs' model has.

    Args:
        size: replies written at once; further ones wait.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._waiting: deque[tuple[int, GenerationRun]] = deque()
        self._open: dict[int, Generator[DecodeStep]] = {}
        self._written: list[tuple[int, DecodeStep]] = []  # in this step so far
        self._n_added = 0

    def __enter__(self) -> TurnBatch:
        return self

    def __exit__(self, *_: object) -> None:
        for row in list(self._open):
            self.end(row)

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    @property
    def is_idle(self) -> bool:
        return not (self._waiting or self._open or self._written)

    def add(self, run: GenerationRun, n_top: int | None = None) -> int:
        """As `OpenBatch.add`.

        Raises:
            SettingError: log probabilities, which engines do not give.
        """
        if n_top is not None:
            raise SettingError("Log probabilities of tokens need engine='transformers'.")
        row, self._n_added = self._n_added, self._n_added + 1
        self._waiting.append((row, run))
        return row

    def end(self, row: int) -> None:
        """End a reply before its time, or one that waits."""
        self._waiting = deque(one for one in self._waiting if one[0] != row)
        self._written = [one for one in self._written if one[0] != row]
        if (steps := self._open.pop(row, None)) is not None:
            steps.close()

    def step(self) -> DecodeStep | None:
        """As `OpenBatch.step`: one more token of each reply for which there is room; None if there are none.

        Raises:
            BrokenReply: that reply has been ended; call again.
        """
        while self._waiting and len(self._open) < self._size:
            row, run = self._waiting.popleft()
            self._open[row] = run.steps()
        written = {row for row, _ in self._written}
        for row in [row for row in self._open if row not in written]:
            try:
                step = next(step for step in self._open[row] if step.token_ids is not None)
            except PersonaError as error:
                self.end(row)  # what the others have written in this step is kept for the next call
                raise BrokenReply(row, str(error)) from error
            self._written.append((row, step))
            if step.finished[0] is not None:
                self._open.pop(row).close()
        found, self._written = self._written, []
        return _joined(found) if found else None


def _joined(found: list[tuple[int, DecodeStep]]) -> DecodeStep:
    readings = [step.reading for _, step in found if step.reading is not None]
    raw = torch.cat([one.raw[:, -1:].cpu() for one in readings])
    norms = torch.cat([one.norms[:, -1:].cpu() for one in readings])
    ids = tuple(token_id for _, step in found for token_id in step.token_ids or ())
    finished = tuple(reason for _, step in found for reason in step.finished)
    return DecodeStep(tuple(row for row, _ in found), ids, Reading(raw, norms), finished, (None,) * len(found))
