"""A batch that replies join and leave at any time, as a server needs it: each with its own sampling and interventions.

One forward pass a step serves all of them. A `GenerationRun` for each keeps what it writes and reads, exactly as one
that runs alone: its tokens depend on its prompt, settings and seed, not on the replies beside it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from persona_core.errors import SettingError
from persona_core.inference.batch import BrokenReply, DecodeStep, QueuedPrompt, ReplyBatch
from persona_core.inference.decode import new_token_limit
from persona_core.inference.hooks import Reading, ResidualTap
from persona_core.inference.steering import Intervention

if TYPE_CHECKING:
    from collections.abc import Sequence

    from persona_core.inference.generation import GenerationRun
    from persona_core.models.language_model import LanguageModel


@dataclass(frozen=True)
class _OfOneReply(Intervention):
    """An intervention that was prepared for a run of one reply, and acts on that reply only.

    Attributes:
        row: of the reply.
    """

    row: int = 0

    def apply(self, states: torch.Tensor, reply_index: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        if rows is None:
            raise RuntimeError("A forward of several replies that does not say which they are.")
        changed = super().apply(states, reply_index, torch.zeros_like(rows))
        return torch.where((rows == self.row).to(states.device)[:, None, None], changed, states)


class _Followers:
    """The followers of several runs, each of one reply, as one."""

    def __init__(self, runs: Mapping[int, GenerationRun]) -> None:
        self._runs = runs

    def begin(self, row: int, kept: Sequence[int]) -> None:
        self._runs[row].follower_begins(kept)

    def push(self, row: int, token_id: int) -> tuple[int, str | None]:
        return self._runs[row].follower_push(token_id)


class OpenBatch:
    """Replies that are written together, each begun and ended at a time of its own. For one thread.

    Args:
        lm: the model.
        directions: block -> unit directions, float32 `[d_model, n_traits]`; those of all runs.
        size: replies written at once; further ones wait.
        max_reply: tokens of the longest reply.

    Use as a context manager: on leaving it the model is as it was.
    """

    def __init__(self, lm: LanguageModel, directions: dict[int, torch.Tensor], size: int, max_reply: int) -> None:
        lm.refuse_training()
        self._lm, self._directions, self._max_reply = lm, directions, max_reply
        self._queue: deque[QueuedPrompt] = deque()
        self._runs: dict[int, GenerationRun] = {}
        self._n_added = 0
        follower = None if lm.chat.reply_is_plain else _Followers(self._runs)
        self._batch = ReplyBatch(lm, None, max_reply, size, None, follower)  # type: ignore[arg-type]  # the same methods
        self._steered: tuple[int, ...] | None = None  # replies with interventions that the open tap knows
        self._open = ExitStack()

    def __enter__(self) -> OpenBatch:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        self._steered = None

    @property
    def n_waiting(self) -> int:
        return len(self._queue)

    @property
    def is_idle(self) -> bool:
        return not self._runs

    def add(self, run: GenerationRun, n_top: int | None = None) -> int:
        """Have the one reply of a run written, after those that wait already.

        Args:
            run: not begun.
            n_top: how many of the likeliest tokens to list beside each token's log probability; None: neither.

        Returns:
            The reply's row in the steps of this batch.

        Raises:
            SettingError: it may become longer than `max_reply`.
        """
        limit = new_token_limit(self._lm, len(run.prompts[0].token_ids), run.sampling)
        if limit > self._max_reply:
            raise SettingError(f"A reply of up to {limit} tokens in a batch of max_reply={self._max_reply}; raise it.")
        row, self._n_added = self._n_added, self._n_added + 1
        prefix = (*run.prompts[0].token_ids, *run.replies[0])
        self._runs[row] = run
        self._queue.append(QueuedPrompt(row, prefix, run.seeds[0], run.n_kept[0], limit, run.sampling, n_top))
        return row

    def end(self, row: int) -> None:
        """End a reply before its time, or one that waits."""
        self._runs.pop(row, None)
        self._queue = deque(one for one in self._queue if one.row != row)
        self._batch.end(row)
        if not self._batch.is_active:
            self._batch.drop_finished(refill=False)

    @torch.inference_mode()
    def step(self) -> DecodeStep | None:
        """Read the prompts for which there is room, then write one token of each reply; None if there are none.

        The reading is on the host. Replies that finish leave the batch.

        Raises:
            BrokenReply: that reply has been ended, the others have not moved; call again.
        """
        self._read_with_the_right_tap()
        while self._queue and (n := self._batch.n_admissible(self._queue)):
            self._keep(self._batch.prefill([self._queue.popleft() for _ in range(n)]))
        if not self._batch.is_active:
            return None
        try:
            step = self._keep(self._batch.step())
        except BrokenReply as error:
            self.end(error.row)
            raise
        self._batch.drop_finished(refill=bool(self._queue))
        for row, reason in zip(step.rows, step.finished, strict=True):
            if reason is not None:
                del self._runs[row]
        return step

    def _keep(self, step: DecodeStep) -> DecodeStep:
        """Give each run its part of a step."""
        if step.reading is None:
            raise RuntimeError("An open batch reads what it writes.")
        # One copy for all: a server shows every token's scores anyway, and the runs then hold nothing on the device.
        step = replace(step, reading=Reading(step.reading.raw.cpu(), step.reading.norms.cpu()))
        for i, row in enumerate(step.rows):
            assert step.reading is not None
            reading = Reading(step.reading.raw[i : i + 1], step.reading.norms[i : i + 1])
            ids = None if step.token_ids is None else (step.token_ids[i],)
            self._runs[row].keep(DecodeStep((0,), ids, reading, (step.finished[i],)))
        return step

    def _read_with_the_right_tap(self) -> None:
        """Open a tap with the interventions of all replies, if they are others than at the last step."""
        steered = tuple(row for row, run in self._runs.items() if run.interventions)
        if steered == self._steered:
            return
        self._open.close()
        changes = [_OfOneReply(**vars(change), row=row) for row in steered for change in self._runs[row].interventions]
        self._batch.read_with(self._open.enter_context(ResidualTap(self._lm.blocks, self._directions, changes)))
        self._steered = steered
