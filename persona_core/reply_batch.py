"""Replies being written together: one forward at a time, with their cache, positions and draws."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad

from persona_core.batching import pad_left
from persona_core.errors import NumericalError
from persona_core.hooks import Reading
from persona_core.kv_cache import add_rows, joinable, keep_rows, new_cache
from persona_core.sampling import Sampling, choose, draws
from persona_core.static_step import StaticStep
from persona_core.steering import PAD_INDEX

if TYPE_CHECKING:
    from transformers import DynamicCache

    from persona_core.hooks import ResidualTap
    from persona_core.models import LanguageModel

# Places that have come free are filled together once they are an eighth of the batch: a prefill costs at least a step.
REFILLED_SHARE = 8
# Padded tokens in one prefill, so that a long queue of long prompts does not need the memory of all at once.
PREFILL_TOKENS = 8192


@dataclass(frozen=True)
class Forward:
    """One forward of the loop: a prefill, or a new token for every reply that goes on.

    Attributes:
        rows: the replies it is about, by their place among the prompts.
        token_ids: the new token of each; None for a prefill.
        reading: what the tap read of them, or None without one. Left padding included in a prefill.
        finished: for each, None, "eos", "length" or "context".
    """

    rows: tuple[int, ...]
    token_ids: tuple[int, ...] | None
    reading: Reading | None
    finished: tuple[str | None, ...]


@dataclass(frozen=True)
class Request:
    """A prompt in the queue; `limit` is the longest that its reply may be, kept tokens included."""

    row: int
    ids: Sequence[int]
    seed: int
    kept: int
    limit: int


class ReplyBatch:
    """Replies being written together.

    The tensors of a step have a row for each, those that have ended among them until they are dropped: dropping copies
    the cache.
    """

    def __init__(
        self, lm: LanguageModel, sampling: Sampling, tap: ResidualTap | None, longest: int, columns: int | None
    ) -> None:
        self._lm, self._sampling, self._tap, self._longest = lm, sampling, tap, longest
        self._room, self._loaded = columns, False
        self._static: StaticStep | None = None
        self._processors = sampling.processors()
        pools = tap.pools if tap else ()
        self._pools_prompt, self._pools_reply = any(p.of_prompt for p in pools), any(not p.of_prompt for p in pools)
        self._attention: torch.Tensor | None = None
        self._rows: _Rows
        self._clear()

    def _clear(self) -> None:
        self._requests: list[Request] = []
        self._said: list[int] = []  # reply tokens so far, kept ones included
        self._ended: list[bool] = []
        self._columns: list[int] = []  # of the cache, each row's own
        self._cache = new_cache(self._lm.model.config)
        self._loaded = False

    @property
    def alive(self) -> bool:
        return not all(self._ended)

    def takes(self, queue: Sequence[Request], width: int) -> int:
        """How many of the queue are to be taken up before the next step."""
        free = width - self._ended.count(False)
        if self.alive:
            enough = min(len(queue), max(1, width // REFILLED_SHARE))
            if not joinable(self._cache) or free < enough:
                return 0
        most = min(free, len(queue))
        longest = 0
        for n in range(most if joinable(self._cache) else 0):
            longest = max(longest, len(queue[n].ids))
            if n and (n + 1) * longest > PREFILL_TOKENS:
                return n
        return most

    def take(self, requests: Sequence[Request]) -> Forward:
        """Read prompts, their last tokens too, and add them to the batch."""
        if self._requests:
            self._keep_going()
        if not self._requests:
            self._clear()
        device = self._lm.device
        cache = new_cache(self._lm.model.config)
        ids, mask = pad_left([r.ids for r in requests], fill=0, device=device)
        own_columns = [len(r.ids) for r in requests]
        positions = (mask.cumsum(-1) - 1).clamp_min(0)  # [rows, longest]
        index = torch.tensor([[r.kept] for r in requests], device=device)  # [rows, 1], of the next reply token
        reply_index = torch.where(mask.bool(), positions - mask.sum(-1, keepdim=True) + index, PAD_INDEX)
        rows = torch.tensor([r.row for r in requests], device=device)
        # Positions of the reply alone leave the prefill as it is, those of the prompt alone the steps.
        own = torch.zeros_like(ids, dtype=torch.bool) if self._pools_prompt else None
        attention = mask if len(set(own_columns)) > 1 else None
        logits, reading = self._forward(ids, attention, positions, cache, reply_index, own, rows)
        uniform = torch.zeros(len(requests), self._longest + 1)  # one more: rows that have ended
        for row, request in enumerate(requests):
            uniform[row, : request.limit] = draws(request.seed, request.limit)
        # The repetition penalty must not see the padding: a repeated token changes nothing.
        history = torch.where(mask.bool(), ids, ids[:, -1:])
        new = _Rows(rows, logits, positions[:, -1:], index, uniform.to(device), history)
        if self._requests:
            self._grow()
            add_rows(self._cache, cache)
            self._rows = self._rows.joined(new)
        else:
            self._cache, self._rows = cache, new
        self._requests += requests
        self._said += [r.kept for r in requests]
        self._ended += [False] * len(requests)
        self._columns += own_columns
        self._mask()
        return Forward(tuple(r.row for r in requests), None, reading, (None,) * len(requests))

    def step(self) -> Forward:
        """Choose a token for each reply, feed it back, hand it out."""
        lm, rows = self._lm, self._rows
        scores = self._processors(rows.history, rows.logits)  # [rows, vocab]
        if self._sampling.temperature == 0:
            chosen = scores.argmax(-1)  # [rows]
        else:
            chosen = choose(scores, rows.uniform.gather(1, rows.index))
        # Scores without a finite maximum are marked among the ids, so that no second copy to the host is needed.
        chosen = torch.where(scores.amax(-1).isfinite(), chosen, -1)
        host_ids = chosen.tolist()  # the step's one synchronisation
        going = [i for i, ended in enumerate(self._ended) if not ended]
        for i in going:
            if host_ids[i] < 0:
                raise NumericalError(
                    f"The model's scores hold NaN or no finite number at reply token {self._said[i]} of row "
                    f"{self._requests[i].row}. float16 overflows on some models: load it with dtype='bfloat16' or "
                    "'float32'."
                )
        chosen = chosen.clamp_min(0)  # rows that have ended may be broken unnoticed
        own = None
        if self._pools_reply:
            said = [[not e and t not in lm.eos_ids] for e, t in zip(self._ended, host_ids, strict=True)]
            own = torch.tensor(said, device=lm.device)  # [rows, 1]
        # A row that has ended stays where it is: a learned position table has no row beyond the context.
        all_go = len(going) == len(self._ended)
        moved = 1 if all_go else torch.tensor([[int(not e)] for e in self._ended], device=lm.device)  # [rows, 1]
        positions = rows.positions + moved
        if self._attention is not None:
            self._attention = pad(self._attention, (0, 1), value=1)
        if self._room is not None:
            logits, reading = self._in_fixed_memory(self._room)(chosen[:, None], positions, rows.index, own)
        else:
            logits, reading = self._forward(
                chosen[:, None], self._attention, positions, self._cache, rows.index, own, rows.rows
            )
        history = rows.history
        if self._sampling.repetition_penalty != 1.0:
            history = torch.cat([history, chosen[:, None]], dim=-1)
        self._rows = _Rows(rows.rows, logits, positions, rows.index + moved, rows.uniform, history)
        self._columns = [n + 1 for n in self._columns]
        finished = []
        for i in going:
            finished.append(_ending(host_ids[i], self._said[i], self._requests[i].limit, self._sampling, lm))
            self._said[i] += 1
            self._ended[i] = finished[-1] is not None
        if reading is not None and not all_go:
            place = torch.tensor(going, device=reading.raw.device)
            reading = Reading(reading.raw[place], reading.norms[place])
        places = tuple(self._requests[i].row for i in going)
        return Forward(places, tuple(host_ids[i] for i in going), reading, tuple(finished))

    def drop_ended(self, refill: bool) -> None:
        """Leave ended rows out of the next steps, where that saves more than it costs."""
        n_ended = self._ended.count(True)
        # No column is left: the rows that go on are shorter than that, and move to the left.
        full = self._loaded and self._static is not None and self._static.full
        # Where the queue waits, the next rows that are taken up bring this about.
        few = not refill and joinable(self._cache) and 4 * n_ended >= len(self._ended)
        if not self.alive:
            self._clear()
        elif full or few:
            self._keep_going()

    def _keep_going(self) -> None:
        """Drop the rows that have ended."""
        places = [i for i, ended in enumerate(self._ended) if not ended]
        if len(places) == len(self._requests):
            return
        self._requests = [self._requests[i] for i in places]
        self._said = [self._said[i] for i in places]
        self._columns = [self._columns[i] for i in places]
        self._ended = [False] * len(places)
        if not places:
            return
        self._grow()
        columns = max(self._columns)
        chosen = torch.tensor(places, device=self._lm.device)
        keep_rows(self._cache, chosen, columns)
        self._rows = self._rows.taken(chosen, columns)
        self._mask()

    def _in_fixed_memory(self, columns: int) -> StaticStep:
        """The step in fixed memory, with what has been read so far in it."""
        if self._static is None or self._static.rows != len(self._requests):
            self._static = StaticStep(self._lm, self._cache, columns, self._forward, self._pools_reply)
        if not self._loaded:
            self._static.load(self._cache, self._columns, self._rows.rows)
            self._cache, self._loaded = new_cache(self._lm.model.config), True  # not held twice
        return self._static

    def _grow(self) -> None:
        """Back to a cache that rows can be taken out of and added to."""
        if self._loaded and self._static is not None:
            self._cache, self._loaded = self._static.unload(), False

    def _mask(self) -> None:
        """Hide the columns before each row's first. transformers tests an all-ones mask on the host at each step;
        where there are no such columns none is needed."""
        longest = max(self._columns)
        self._attention = None
        if min(self._columns) < longest:
            first = torch.tensor([[longest - n] for n in self._columns])  # [rows, 1]
            self._attention = (torch.arange(longest) >= first).long().to(self._lm.device)  # [rows, columns]

    def _forward(
        self,
        ids: torch.Tensor,
        attention: torch.Tensor | None,
        positions: torch.Tensor,
        cache: DynamicCache,
        reply_index: torch.Tensor,
        own: torch.Tensor | None,
        rows: torch.Tensor,
    ) -> tuple[torch.Tensor, Reading | None]:
        """One forward with the cache; float32 logits of the last column `[rows, vocab]`, and the reading."""
        lm, tap = self._lm, self._tap
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": attention, "past_key_values": cache}
        if "position_ids" in lm.forward_arguments:
            inputs["position_ids"] = positions
        if "logits_to_keep" in lm.forward_arguments:
            inputs["logits_to_keep"] = 1
        with tap.forward(reply_index, own, rows) if tap else nullcontext():
            out = lm.model(**inputs, use_cache=True)
        reading = tap.reading() if tap and tap.read_blocks else None
        return out.logits[:, -1].float().to(lm.device), reading


@dataclass(frozen=True)
class _Rows:
    """What a step needs of each row.

    Attributes:
        rows: `[rows]`, the reply's place among the prompts.
        logits: float32 `[rows, vocab]`, of the next token.
        positions: `[rows, 1]`, of the newest token.
        index: `[rows, 1]`, place of the next token in its reply.
        uniform: float32 `[rows, longest + 1]`, a draw for each token of the reply.
        history: `[rows, columns]`, all ids so far; kept up only where the repetition penalty asks for it.
    """

    rows: torch.Tensor
    logits: torch.Tensor
    positions: torch.Tensor
    index: torch.Tensor
    uniform: torch.Tensor
    history: torch.Tensor

    def taken(self, places: torch.Tensor, columns: int) -> _Rows:
        """These rows, and of the history the newest columns."""
        fields = (self.rows, self.logits, self.positions, self.index, self.uniform, self.history[:, -columns:])
        return _Rows(*(field[places] for field in fields))

    def joined(self, other: _Rows) -> _Rows:
        """Both, the shorter history filled up with ids that are in it."""
        columns = max(self.history.shape[1], other.history.shape[1])
        histories = [
            torch.cat([h[:, -1:].expand(-1, columns - h.shape[1]), h], dim=1) for h in (self.history, other.history)
        ]
        fields = ("rows", "logits", "positions", "index", "uniform")
        joined = {name: torch.cat([getattr(self, name), getattr(other, name)]) for name in fields}
        return _Rows(**joined, history=torch.cat(histories))


def _ending(token_id: int, step: int, limit: int, sampling: Sampling, lm: LanguageModel) -> str | None:
    if token_id in lm.eos_ids:
        return "eos"
    if step + 1 < limit:
        return None
    return "length" if limit == sampling.max_new_tokens else "context"
