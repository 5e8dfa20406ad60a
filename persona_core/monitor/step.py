"""One token of a reply, as it is streamed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from persona_core.inference.generation import GenerationRun
from persona_core.monitor.guard import GuardEvent
from persona_core.traces.trace import Trace


@dataclass(frozen=True, eq=False)
class Step:
    """One token of a reply, read.

    Attributes:
        index: position in the reply, from 0.
        token_id: its id.
        text: the text that it completes; "" in the middle of a character.
        finish: why the reply ended with this token; None while it continues.
        events: what the guard did with this token, if there is one. After a rewind the next step is that of the first
            token that was discarded: drop those from `event.start` on.
    """

    index: int
    token_id: int
    text: str
    finish: str | None
    _run: GenerationRun = field(repr=False)
    _trace_of: Callable[[GenerationRun, int, int], Trace] = field(repr=False)
    events: tuple[GuardEvent, ...] = ()

    @property
    def raw(self) -> np.ndarray:
        """Projections at this token, float32 `[n_traits, n_blocks]`; copied from the device on access."""
        return self._run.raw_at(0, self.index)

    def trace(self) -> Trace:
        """The conversation as read up to this token."""
        return self._trace_of(self._run, 0, self.index + 1)
