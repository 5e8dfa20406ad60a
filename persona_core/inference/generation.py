"""One generation run: drives the decode loop for some prompts and keeps what it reads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch

from persona_core.inference.batch import DecodeStep
from persona_core.inference.decode import new_token_limit
from persona_core.inference.engine import Readout, engine_of
from persona_core.inference.hooks import Reading
from persona_core.inference.memory import free_memory, out_of_memory
from persona_core.inference.pooled_states import PooledStates
from persona_core.inference.prefix import ReplyPrefix
from persona_core.inference.readings import Arrays, Readings
from persona_core.inference.sampling import Sampling
from persona_core.inference.sections import NEITHER, THOUGHT, ReplyFollower, opens_thought
from persona_core.inference.steering import Intervention
from persona_core.models.detokenize import TextSplitter, split_text, text_of
from persona_core.models.language_model import LanguageModel

logger = logging.getLogger(__name__)


class TokenObserver(Protocol):
    """Sees each token of each reply as soon as it has been read."""

    def push(self, row: int, token: int, raw: np.ndarray, norms: np.ndarray, in_thought: bool = False) -> str | None:
        """Why the reply is to end with this token; None: it goes on.

        Readings of one reply's newest token, float32 `[n_blocks, n_traits]`, and norms of its states, `[n_blocks]`.

        Only tokens of the answer and of the thought before it; marks and end-of-turn tokens are left out.
        """
        ...


class GenerationRun:
    """Replies being written and read. Rows are independent; readings stay on the device until requested.

    Args:
        lm: the model.
        directions: block -> unit directions, float32 `[d_model, n_traits]`; may be empty.
        prefixes: the prompt of each reply, and what is kept of an earlier one; one a row.
        sampling: how tokens are chosen.
        seeds: one a row.
        interventions: changes to the residual stream.
        pooled: also takes the states of all blocks; made for as many rows as there are prefixes.
        observer: gets every new token of the replies; what it changes acts from the next forward pass on.
        origins: where each row's kept tokens come from, for the record.
        batch_size: replies written at once; None: all. The others wait for a free slot.
    """

    def __init__(
        self,
        lm: LanguageModel,
        directions: dict[int, torch.Tensor],
        prefixes: Sequence[ReplyPrefix],
        sampling: Sampling,
        seeds: Sequence[int],
        interventions: Sequence[Intervention] = (),
        pooled: PooledStates | None = None,
        observer: TokenObserver | None = None,
        origins: Sequence[Mapping[str, Any] | None] | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.lm, self.sampling, self.seeds = lm, sampling, tuple(seeds)
        self.prompts = tuple(prefix.prompt for prefix in prefixes)
        self.n_kept = tuple(len(prefix.kept_ids) for prefix in prefixes)
        self.replies: list[list[int]] = [list(prefix.kept_ids) for prefix in prefixes]
        self.finished: list[str | None] = [None] * len(prefixes)
        self.interventions = tuple(interventions)
        self.origins = tuple(origins or [None] * len(prefixes))
        self._observer = observer
        self._readout = Readout(directions, self.interventions, pooled)
        self._ended: set[int] = set()  # by the observer
        self._prefix_ids = [prefix.ids for prefix in prefixes]
        self._batch_size = min(batch_size or len(prefixes), len(prefixes))
        self._readings: Readings | None = None
        if directions:
            limits = (new_token_limit(lm, len(p.token_ids), sampling) for p in self.prompts)
            max_new = max(limit - kept for limit, kept in zip(limits, self.n_kept, strict=True))
            self._readings = Readings(self._batch_size, max_new)
        self._in_thought = [opens_thought(lm, p.token_ids) for p in self.prompts]
        self._follower: ReplyFollower | None = None
        if not lm.chat.reply_is_plain:
            self._follower = ReplyFollower(lm, [p.token_ids for p in self.prompts], sampling)
        self._splitters = [TextSplitter(lm.tokenizer) for _ in prefixes]
        self._pieces: list[list[str]] = [[] for _ in prefixes]

    def steps(self) -> Generator[DecodeStep]:
        """Run to the end, or until the iterator is closed; unfinished replies start over. The prefill comes first."""
        unfinished = [row for row, reason in enumerate(self.finished) if reason is None]
        self._restart(unfinished)
        steps = engine_of(self.lm).write(
            self.lm,
            self._prefix_ids,
            self.sampling,
            self.seeds,
            self._readout,
            self.n_kept,
            self._batch_size,
            unfinished,
            self._follower,
            self._ended,
        )
        with closing(steps):
            for step in steps:
                yield self.keep(step)

    def finish(self, on_finished: Callable[[int], object] = lambda _: None) -> None:
        """Run to the end. When memory runs out, unfinished replies start over, half as many at once;
        with an observer, which has seen their first tokens, the error is raised.

        Args:
            on_finished: called after each step with the number of replies that finished in it.
        """
        while True:
            try:
                for step in self.steps():
                    on_finished(sum(reason is not None for reason in step.finished))
                return
            except RuntimeError as error:
                if not out_of_memory(error) or self._batch_size == 1 or self._observer is not None:
                    raise
            self._batch_size = (self._batch_size + 1) // 2
            logger.warning("Out of memory; continuing with a batch size of %d.", self._batch_size)
            free_memory()

    def _restart(self, rows: Sequence[int]) -> None:
        """Discard what exists of these replies."""
        if self._readout.pooled is not None:
            self._readout.pooled.forget(rows)
        for row in rows:
            self.replies[row] = self.replies[row][: self.n_kept[row]]
            self._pieces[row], self._splitters[row] = [], TextSplitter(self.lm.tokenizer)
        if self._readings is not None:
            self._readings.restart(rows, self._batch_size)

    def keep(self, step: DecodeStep) -> DecodeStep:
        """Keep a step's tokens and readings, and show them to the observer; the step, with what that ended."""
        if step.token_ids is None:
            if self._readings is not None and step.reading is not None:
                self._readings.begin(step.rows, [len(self._prefix_ids[row]) for row in step.rows], step.reading)
            return step
        for row, token_id, reason in zip(step.rows, step.token_ids, step.finished, strict=True):
            self.replies[row].append(token_id)
            self.finished[row] = reason
        if self._readings is not None and step.reading is not None:
            self._readings.add(step.rows, step.reading)
            if self._observer is not None:
                self._notify(self._observer, step, step.reading)
                step = replace(step, finished=tuple(self.finished[row] for row in step.rows))
            for row, reason in zip(step.rows, step.finished, strict=True):
                if reason is not None:
                    self._readings.end(row)
        return step

    def _notify(self, observer: TokenObserver, step: DecodeStep, reading: Reading) -> None:
        raw = reading.raw[:, -1].cpu().numpy()  # [rows, n_blocks, n_traits]
        norms = reading.norms[:, -1].cpu().numpy()  # [rows, n_blocks]
        for i, (row, token_id) in enumerate(zip(step.rows, step.token_ids or (), strict=True)):
            position = NEITHER if token_id in self.lm.eos_ids else 0
            if self._follower is not None:
                position = self._follower.newest(row)
            if position != NEITHER:
                token = len(self.replies[row]) - 1
                if reason := observer.push(row, token, raw[i], norms[i], position == THOUGHT):
                    self.finished[row] = reason
                    self._ended.add(row)

    def follower_begins(self, kept: Sequence[int]) -> None:
        """For a run of one reply whose forwards another batch runs: its reply begins, after these tokens."""
        if self._follower is not None:
            self._follower.begin(0, kept)

    def follower_push(self, token_id: int) -> tuple[int, str | None]:
        """As `ReplyFollower.push`, for the run's one reply."""
        if self._follower is None:
            raise RuntimeError("All of this reply is its answer: there is nothing to follow.")
        return self._follower.push(0, token_id)

    def newest_role(self, row: int) -> str:
        """The role of the newest token, as far as it is known: a mark of several tokens is known at its end."""
        if self.replies[row][-1] in self.lm.eos_ids:
            return "template"
        position = 0 if self._follower is None else self._follower.newest(row)
        return {NEITHER: "template", THOUGHT: "thinking"}.get(position, "assistant")

    # The methods below are about one row after `n` reply tokens, kept ones included; None means all so far.

    def token_ids(self, row: int, n: int | None = None) -> tuple[int, ...]:
        """Prompt and reply."""
        return (*self.prompts[row].token_ids, *self.replies[row][:n])

    def roles(self, row: int, n: int | None = None) -> tuple[str, ...]:
        """One role per token; the token that ends the turn is the template's, as are the marks of a thought."""
        ids = self.replies[row][:n]
        roles = ["assistant"] * len(ids)
        if self._follower is not None:
            pieces = self.pieces(row, n)[len(self.prompts[row].token_ids) :]
            roles = self.lm.chat.reply_roles(pieces, self._in_thought[row])
        reply = ("template" if i in self.lm.eos_ids else role for i, role in zip(ids, roles, strict=True))
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
        return self._read().of(row, None if n is None else n - self.n_kept[row])

    def raw_at(self, row: int, index: int) -> np.ndarray:
        """Raw projections at one reply token, `[n_traits, n_blocks]`, on the host."""
        return self._read().at(row, index - self.n_kept[row])

    def _read(self) -> Readings:
        if self._readings is None:
            raise RuntimeError("Nothing was read: the run has no directions.")
        return self._readings

    def reply_text(self, row: int) -> str:
        """The answer, without a thought and end-of-turn tokens."""
        reply = list(zip(self.pieces(row), self.roles(row), strict=True))[len(self.prompts[row].token_ids) :]
        return "".join(piece for piece, role in reply if role == "assistant")

    def answer_start(self, row: int) -> int:
        """Tokens of the reply before its answer: a thought and its marks."""
        roles = self.roles(row)[len(self.prompts[row].token_ids) :]
        return roles.index("assistant") if "assistant" in roles else 0

    def n_reply_tokens(self, row: int) -> int:
        """Tokens of the answer, without a thought and end-of-turn tokens."""
        return sum(role == "assistant" for role in self.roles(row)[len(self.prompts[row].token_ids) :])
