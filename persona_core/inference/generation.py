"""One generation run: drives the decode loop for some prompts and keeps what it read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from persona_core.inference.decode import Forward, decode, room
from persona_core.inference.hooks import ResidualTap
from persona_core.inference.memory import free_memory, out_of_memory
from persona_core.inference.pooling import Pool
from persona_core.inference.readings import Arrays, Readings
from persona_core.inference.sampling import Sampling
from persona_core.inference.start import Start
from persona_core.inference.steering import Intervention
from persona_core.models.detokenize import TextSplitter, split_text, text_of
from persona_core.models.loading import LanguageModel

logger = logging.getLogger(__name__)


class Watcher(Protocol):
    """Sees each token of each reply as soon as it has been read."""

    def push(self, row: int, token: int, raw: np.ndarray) -> None:
        """Readings of one reply's newest token, float32 `[n_blocks, n_traits]`; end-of-turn tokens are left out."""
        ...


class Run:
    """Replies being written and read. Rows keep to themselves; readings stay on the device until asked for.

    Args:
        lm: the model.
        directions: block -> unit directions, float32 `[d_model, n_traits]`; may be empty.
        starts: prompts, and what is kept of replies that are gone on from; one a row.
        sampling: how tokens are chosen.
        seeds: one a row.
        interventions: changes to the residual stream.
        pools: positions at which the states of all blocks are averaged as well.
        watcher: is shown every new token of the replies; what it changes acts from the next forward on.
        origins: what is known of each row's kept tokens, for the record.
        width: replies written at once; None: all. The others wait, and take the places of those that have ended.
    """

    def __init__(
        self,
        lm: LanguageModel,
        directions: dict[int, torch.Tensor],
        starts: Sequence[Start],
        sampling: Sampling,
        seeds: Sequence[int],
        interventions: Sequence[Intervention] = (),
        pools: Sequence[Pool] = (),
        watcher: Watcher | None = None,
        origins: Sequence[Mapping[str, Any] | None] | None = None,
        width: int | None = None,
    ) -> None:
        self.lm, self.sampling, self.seeds = lm, sampling, tuple(seeds)
        self.prompts = tuple(start.prompt for start in starts)
        self.kept = tuple(len(start.kept) for start in starts)
        self.replies: list[list[int]] = [list(start.kept) for start in starts]
        self.finished: list[str | None] = [None] * len(starts)
        self.interventions = tuple(interventions)
        self.origins = tuple(origins or [None] * len(starts))
        self._watcher = watcher
        self._tap = ResidualTap(lm.blocks, directions, interventions, pools, len(starts))
        self._openings = [start.ids for start in starts]
        self._width = min(width or len(starts), len(starts))
        self._readings: Readings | None = None
        if directions:
            limits = (room(lm, len(p.token_ids), sampling.max_new_tokens) for p in self.prompts)
            longest = max(limit - kept for limit, kept in zip(limits, self.kept, strict=True))
            self._readings = Readings(self._width, longest)
        self._splitters = [TextSplitter(lm.tokenizer) for _ in starts]
        self._pieces: list[list[str]] = [[] for _ in starts]

    def forwards(self) -> Generator[Forward]:
        """Run to the end, or until the iterator is closed; replies that have not ended begin anew. The prefill comes
        first."""
        todo = [row for row, why in enumerate(self.finished) if why is None]
        self._begin_anew(todo)
        with self._tap as tap:
            for forward in decode(
                self.lm, self._openings, self.sampling, self.seeds, tap, self.kept, self._width, todo
            ):
                self._keep(forward)
                yield forward

    def finish(self, ended: Callable[[int], object] = lambda _: None) -> None:
        """Run to the end. Where memory runs out, replies that have not ended begin anew, half as many at once;
        not so under a watcher, which has seen their beginning.

        Args:
            ended: is told how many replies have ended since it was told last.
        """
        while True:
            try:
                for forward in self.forwards():
                    ended(sum(why is not None for why in forward.finished))
                return
            except RuntimeError as error:
                if not out_of_memory(error) or self._width == 1 or self._watcher is not None:
                    raise
            self._width = (self._width + 1) // 2
            logger.warning("Out of memory; going on, %d at once.", self._width)
            free_memory()

    def _begin_anew(self, rows: Sequence[int]) -> None:
        """Forget what there is of these replies."""
        self._tap.forget(rows)
        for row in rows:
            self.replies[row] = self.replies[row][: self.kept[row]]
            self._pieces[row], self._splitters[row] = [], TextSplitter(self.lm.tokenizer)
        if self._readings is not None:
            self._readings.begin_anew(rows, self._width)

    def _keep(self, forward: Forward) -> None:
        if forward.token_ids is None:
            if self._readings is not None and forward.reading is not None:
                self._readings.begin(forward.rows, [len(self._openings[row]) for row in forward.rows], forward.reading)
            return
        for row, token_id, why in zip(forward.rows, forward.token_ids, forward.finished, strict=True):
            self.replies[row].append(token_id)
            self.finished[row] = why
        if self._readings is not None and forward.reading is not None:
            self._readings.add(forward.rows, forward.reading)
            if self._watcher is not None:
                self._show(self._watcher, forward, forward.reading.raw[:, -1])
            for row, why in zip(forward.rows, forward.finished, strict=True):
                if why is not None:
                    self._readings.end(row)

    def _show(self, watcher: Watcher, forward: Forward, raw: torch.Tensor) -> None:
        host = raw.cpu().numpy()  # [rows, n_blocks, n_traits]
        for place, (row, token_id) in enumerate(zip(forward.rows, forward.token_ids or (), strict=True)):
            if token_id not in self.lm.eos_ids:
                watcher.push(row, len(self.replies[row]) - 1, host[place])

    # What follows is asked for one row after `n` reply tokens, the kept ones included; None means all that there are.

    def token_ids(self, row: int, n: int | None = None) -> tuple[int, ...]:
        """Prompt and reply."""
        return (*self.prompts[row].token_ids, *self.replies[row][:n])

    def roles(self, row: int, n: int | None = None) -> tuple[str, ...]:
        """One role per token; the token that ends the turn is the template's."""
        reply = ("template" if i in self.lm.eos_ids else "assistant" for i in self.replies[row][:n])
        return (*self.prompts[row].roles, *reply)

    def pieces(self, row: int, n: int | None = None) -> tuple[str, ...]:
        """Display pieces; they join to the exact decoded text."""
        ids, pieces = self.token_ids(row, n), self._split(row)
        if len(ids) == len(pieces):
            shown = (*pieces[:-1], pieces[-1] + self._splitters[row].pending())
            if "".join(shown) == text_of(self.lm.tokenizer, ids):
                return shown
        return tuple(split_text(self.lm.tokenizer, ids))

    def newest_piece(self, row: int) -> str:
        """The text that the newest token completed; with the reply's last token, all that is left."""
        return self._split(row)[-1] + (self._splitters[row].pending() if self.finished[row] else "")

    def _split(self, row: int) -> list[str]:
        """Pieces of all tokens so far, split as they arrive."""
        pieces = self._pieces[row]
        for token_id in self.token_ids(row)[len(pieces) :]:
            pieces.append(self._splitters[row].push(token_id))
        return pieces

    def readings(self, row: int, n: int | None = None) -> Arrays:
        """Raw `[n_traits, n_blocks, n_tokens]` and norms `[n_blocks, n_tokens]`, float32 on the host."""
        return self._read().of(row, None if n is None else n - self.kept[row])

    def raw_at(self, row: int, index: int) -> np.ndarray:
        """Raw projections at one reply token, `[n_traits, n_blocks]`, on the host."""
        return self._read().at(row, index - self.kept[row])

    def _read(self) -> Readings:
        if self._readings is None:
            raise RuntimeError("Nothing was read: the run has no directions.")
        return self._readings

    def reply_text(self, row: int) -> str:
        """The reply without end-of-turn tokens."""
        own = list(zip(self.pieces(row), self.roles(row), strict=True))[len(self.prompts[row].token_ids) :]
        return "".join(piece for piece, role in own if role == "assistant")

    def n_own(self, row: int) -> int:
        """Tokens of the reply itself, end-of-turn tokens left out."""
        return sum(i not in self.lm.eos_ids for i in self.replies[row])

    def pooled_means(self) -> np.ndarray:
        """Mean states, float32 `[rows, n_pools, n_blocks, d_model]`; NaN where a position has no token."""
        return self._tap.pooled_means()
