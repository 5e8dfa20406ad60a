"""One generation run: drives the decode loop for a batch of prompts and keeps what it read."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from persona_core.branching import Start
from persona_core.decode import Forward, Sampling, decode, room
from persona_core.detokenize import TextSplitter, split_text, text_of
from persona_core.hooks import ResidualTap
from persona_core.models import LanguageModel
from persona_core.pooling import Pool
from persona_core.steering import Intervention


class Watcher(Protocol):
    """Sees each token of each reply as soon as it has been read."""

    def push(self, row: int, token: int, raw: np.ndarray) -> None:
        """Readings of one reply's newest token, float32 `[n_blocks, n_traits]`; end-of-turn tokens are left out."""
        ...


class Run:
    """A batch of replies being written and read. Rows keep to themselves; readings stay on the device until asked for.

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
    ) -> None:
        self.lm, self.sampling, self.seeds = lm, sampling, tuple(seeds)
        self.prompts = tuple(start.prompt for start in starts)
        self.kept = tuple(len(start.kept) for start in starts)
        self.replies: list[list[int]] = [list(start.kept) for start in starts]
        self.finished: tuple[str | None, ...] = (None,) * len(starts)
        self.interventions = tuple(interventions)
        self.origins = tuple(origins or [None] * len(starts))
        self._watcher = watcher
        self._tap = ResidualTap(lm.blocks, directions, interventions, pools)
        self._openings = [start.ids for start in starts]
        self._longest = max(map(len, self._openings))  # columns of the prefill
        self._written = 0  # columns of the buffers that hold readings
        self._raw = self._norms = torch.empty(0)
        self._splitters = [TextSplitter(lm.tokenizer) for _ in starts]
        self._pieces: list[list[str]] = [[] for _ in starts]

    def forwards(self) -> Generator[Forward]:
        """Run to the end, or until the iterator is closed. The prefill comes first."""
        with self._tap as tap:
            for forward in decode(self.lm, self._openings, self.sampling, self.seeds, tap, self.kept):
                self._keep(forward)
                yield forward

    def finish(self) -> None:
        """Run to the end."""
        for _ in self.forwards():
            pass

    def _keep(self, forward: Forward) -> None:
        self.finished = forward.finished
        for reply, token_id in zip(self.replies, forward.token_ids, strict=True):
            if token_id is not None:
                reply.append(token_id)
        columns = self._longest if self._written == 0 else 1
        if forward.reading is not None:
            raw, norms = forward.reading.raw, forward.reading.norms
            if self._written == 0:  # one buffer for the whole run: nothing grows, nothing is copied twice
                total = self._longest + max(
                    room(self.lm, len(p.token_ids), self.sampling.max_new_tokens) - kept
                    for p, kept in zip(self.prompts, self.kept, strict=True)
                )
                self._raw = raw.new_empty(raw.shape[0], total, *raw.shape[2:])
                self._norms = norms.new_empty(norms.shape[0], total, norms.shape[2])
            self._raw[:, self._written : self._written + columns] = raw
            self._norms[:, self._written : self._written + columns] = norms
            if self._watcher is not None and self._written:
                self._show(self._watcher, forward.token_ids, raw[:, -1])
        self._written += columns

    def _show(self, watcher: Watcher, token_ids: Sequence[int | None], raw: torch.Tensor) -> None:
        host = raw.cpu().numpy()  # [rows, n_blocks, n_traits]
        for row, token_id in enumerate(token_ids):
            if token_id is not None and token_id not in self.lm.eos_ids:
                watcher.push(row, len(self.replies[row]) - 1, host[row])

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

    def readings(self, row: int, n: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Raw `[n_traits, n_blocks, n_tokens]` and norms `[n_blocks, n_tokens]`, float32 on the host."""
        start = self._longest - len(self._openings[row])  # left padding
        end = self._longest + len(self.replies[row][:n]) - self.kept[row]
        raw, norms = self._raw[row, start:end], self._norms[row, start:end]
        return raw.permute(2, 1, 0).cpu().contiguous().numpy(), norms.T.cpu().contiguous().numpy()

    def raw_at(self, row: int, index: int) -> np.ndarray:
        """Raw projections at one reply token, `[n_traits, n_blocks]`, on the host."""
        return self._raw[row, self._longest + index - self.kept[row]].T.cpu().contiguous().numpy()

    def reply_text(self, row: int) -> str:
        """The reply without end-of-turn tokens."""
        own = list(zip(self.pieces(row), self.roles(row), strict=True))[len(self.prompts[row].token_ids) :]
        return "".join(piece for piece, role in own if role == "assistant")

    def n_own(self, row: int) -> int:
        """Tokens of the reply itself, end-of-turn tokens left out."""
        return sum(i not in self.lm.eos_ids for i in self.replies[row])

    def pooled_means(self) -> np.ndarray:
        """Mean states, float32 `[rows, n_pools, n_blocks, d_model]`; NaN where a position has no token."""
        return means(self._tap)


def means(tap: ResidualTap) -> np.ndarray:
    """What a tap has pooled, as means: float32 `[rows, n_pools, n_blocks, d_model]`; NaN over no token."""
    counts = tap.pooled_counts().cpu().numpy()  # [rows, n_pools]
    with np.errstate(invalid="ignore", divide="ignore"):
        pooled = tap.pooled_sums().cpu().numpy() / np.where(counts == 0, np.nan, counts)[..., None, None]
    return pooled.astype(np.float32)
