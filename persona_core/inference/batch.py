"""Replies being written together: one forward at a time, with their cache, positions and draws."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from persona_core.errors import NumericalError
from persona_core.inference.dynamic_cache import GrowingMemory
from persona_core.inference.hooks import Reading
from persona_core.inference.kv_cache import joinable, new_cache
from persona_core.inference.memory import pad_left
from persona_core.inference.sampling import Sampling, choose, draws
from persona_core.inference.static_cache import FixedMemory
from persona_core.inference.steering import PAD_INDEX
from persona_core.inference.step import Output, Step

if TYPE_CHECKING:
    from persona_core.inference.hooks import ResidualTap
    from persona_core.models.loading import LanguageModel

# Places that have come free are filled together once they are an eighth of the batch: a prefill costs at least a step.
REFILLED_SHARE = 8
# Padded tokens in one prefill, so that a long queue of long prompts does not need the memory of all at once.
PREFILL_TOKENS = 8192
# Once nobody waits, ended rows are dropped when they are a quarter: that copies the cache.
DROPPED_SHARE = 4


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
        self,
        lm: LanguageModel,
        sampling: Sampling,
        tap: ResidualTap | None,
        longest: int,
        width: int,
        columns: int | None,
    ) -> None:
        self._lm, self._sampling, self._tap, self._longest, self._width = lm, sampling, tap, longest, width
        self._joinable = joinable(new_cache(lm.model.config))
        self._processors = sampling.processors()
        pools = tap.pools if tap else ()
        self._pools_prompt, self._pools_reply = any(p.of_prompt for p in pools), any(not p.of_prompt for p in pools)
        self._memory: GrowingMemory | FixedMemory = (
            GrowingMemory(lm.device) if columns is None else FixedMemory(lm, width, columns, self._pools_reply)
        )
        self._requests: list[Request] = []
        self._said: list[int] = []  # reply tokens so far, kept ones included
        self._ended: list[bool] = []
        self._rows: _Rows

    @property
    def alive(self) -> bool:
        return not all(self._ended)

    def takes(self, queue: Sequence[Request]) -> int:
        """How many of the queue are to be taken up before the next step."""
        free = self._width - self._ended.count(False)
        if self.alive:
            enough = min(len(queue), max(1, self._width // REFILLED_SHARE))
            if not self._joinable or free < enough:
                return 0
        most = min(free, len(queue))
        longest = 0
        for n in range(most if self._joinable else 0):
            longest = max(longest, len(queue[n].ids))
            if n and (n + 1) * longest > PREFILL_TOKENS:
                return n
        return most

    def take(self, requests: Sequence[Request]) -> Forward:
        """Read prompts, their last tokens too, and add them to the batch."""
        self._drop()
        device = self._lm.device
        cache = new_cache(self._lm.model.config)
        ids, mask = pad_left([r.ids for r in requests], device)
        lengths = [len(r.ids) for r in requests]
        positions = (mask.cumsum(-1) - 1).clamp_min(0)  # [rows, longest]
        index = torch.tensor([[r.kept] for r in requests], device=device)  # [rows, 1], of the next reply token
        reply_index = torch.where(mask.bool(), positions - mask.sum(-1, keepdim=True) + index, PAD_INDEX)
        replies = torch.tensor([r.row for r in requests], device=device)
        # Positions of the reply alone leave the prefill as it is, those of the prompt alone the steps.
        own = torch.zeros_like(ids, dtype=torch.bool) if self._pools_prompt else None
        hidden = mask if len(set(lengths)) > 1 else None
        logits, reading = self._forward(hidden, cache, Step(ids, positions, reply_index, replies, own))
        uniform = torch.zeros(len(requests), self._longest + 1)  # one more: rows that have ended
        for row, request in enumerate(requests):
            uniform[row, : request.limit] = draws(request.seed, request.limit)
        # The repetition penalty must not see the padding: a repeated token changes nothing.
        history = torch.where(mask.bool(), ids, ids[:, -1:])
        new = _Rows(replies, logits, positions[:, -1:], index, uniform.to(device), history)
        self._rows = self._rows.joined(new) if self._requests else new
        self._memory.add(cache, lengths)
        self._requests += requests
        self._said += [r.kept for r in requests]
        self._ended += [False] * len(requests)
        return Forward(tuple(r.row for r in requests), None, reading, (None,) * len(requests))

    def step(self) -> Forward:
        """Choose a token for each reply, feed it back, hand it out."""
        lm, rows = self._lm, self._rows
        chosen, host_ids = self._choose()
        going = [i for i, ended in enumerate(self._ended) if not ended]
        own = None
        if self._pools_reply:
            said = [[not e and t not in lm.eos_ids] for e, t in zip(self._ended, host_ids, strict=True)]
            own = torch.tensor(said, device=lm.device)  # [rows, 1]
        # A row that has ended stays where it is: a learned position table has no row beyond the context.
        moved: Any = 1
        if len(going) < len(self._ended):
            moved = torch.tensor([[int(not e)] for e in self._ended], device=lm.device)  # [rows, 1]
            lines = torch.tensor(going, device=lm.device)  # before the forward: a copy waits for what was launched
        positions = rows.positions + moved
        step = Step(chosen[:, None], positions, rows.index, rows.replies, own)
        logits, reading = self._memory.step(self._forward, step)
        history = rows.history
        if self._sampling.repetition_penalty != 1.0:
            history = torch.cat([history, chosen[:, None]], dim=-1)
        self._rows = _Rows(rows.replies, logits, positions, rows.index + moved, rows.uniform, history)
        if reading is not None and len(going) < len(self._ended):
            lines = lines.to(reading.raw.device)
            reading = Reading(reading.raw[lines], reading.norms[lines])
        finished = []
        for i in going:
            finished.append(_ending(host_ids[i], self._said[i], self._requests[i].limit, self._sampling, lm))
            self._said[i] += 1
            self._ended[i] = finished[-1] is not None
        replies = tuple(self._requests[i].row for i in going)
        return Forward(replies, tuple(host_ids[i] for i in going), reading, tuple(finished))

    def _choose(self) -> tuple[torch.Tensor, list[int]]:
        """The next token of each row, on the device `[rows]` and on the host: the step's one synchronisation."""
        scores = self._processors(self._rows.history, self._rows.logits)  # [rows, vocab]
        if self._sampling.temperature == 0:
            chosen = scores.argmax(-1)  # [rows]
        else:
            chosen = choose(scores, self._rows.uniform.gather(1, self._rows.index))
        # Scores without a finite maximum are marked among the ids, so that no second copy to the host is needed.
        host_ids = torch.where(scores.amax(-1).isfinite(), chosen, -1).tolist()
        for request, said, ended, token_id in zip(self._requests, self._said, self._ended, host_ids, strict=True):
            if token_id < 0 and not ended:  # rows that have ended may be broken unnoticed
                raise NumericalError(
                    f"The model's scores hold NaN or no finite number at reply token {said} of prompt {request.row}. "
                    + self._lm.why_not_finite
                )
        return chosen, host_ids

    def drop_ended(self, refill: bool) -> None:
        """Leave ended rows out of the next steps, where that saves more than it costs.

        Args:
            refill: whether others wait; taking them up brings it about.
        """
        if not self.alive:
            self._requests, self._said, self._ended = [], [], []
            self._memory.clear()
            return
        many = DROPPED_SHARE * self._ended.count(True) >= len(self._ended)
        if many and not refill and self._joinable and self._memory.shrinks:
            self._drop()

    def _drop(self) -> None:
        """Leave out the rows that have ended."""
        going = [i for i, ended in enumerate(self._ended) if not ended]
        if len(going) == len(self._requests):
            return
        self._requests = [self._requests[i] for i in going]
        self._said = [self._said[i] for i in going]
        self._ended = [False] * len(going)
        self._memory.keep(going)
        longest = max(len(r.ids) - r.kept + said for r, said in zip(self._requests, self._said, strict=True))
        self._rows = self._rows.taken(torch.tensor(going, device=self._lm.device), longest)

    def _forward(self, mask: torch.Tensor | None, cache: Any, step: Step) -> Output:
        """One forward with the cache."""
        lm, tap = self._lm, self._tap
        inputs: dict[str, Any] = {"input_ids": step.ids, "attention_mask": mask, "past_key_values": cache}
        if "position_ids" in lm.forward_arguments:
            inputs["position_ids"] = step.positions
        if "logits_to_keep" in lm.forward_arguments:
            inputs["logits_to_keep"] = 1
        with tap.forward(step.index, step.own, step.replies) if tap else nullcontext():
            out = lm.model(**inputs, use_cache=True)
        reading = tap.reading() if tap and tap.read_blocks else None
        return out.logits[:, -1].float().to(lm.device), reading


@dataclass(frozen=True)
class _Rows:
    """What a step needs of each row.

    Attributes:
        replies: `[rows]`, which of the run's replies each is.
        logits: float32 `[rows, vocab]`, of the next token.
        positions: `[rows, 1]`, of the newest token.
        index: `[rows, 1]`, place of the next token in its reply.
        uniform: float32 `[rows, longest + 1]`, a draw for each token of the reply.
        history: `[rows, columns]`, all ids so far; kept up only where the repetition penalty asks for it.
    """

    replies: torch.Tensor
    logits: torch.Tensor
    positions: torch.Tensor
    index: torch.Tensor
    uniform: torch.Tensor
    history: torch.Tensor

    def taken(self, rows: torch.Tensor, columns: int) -> _Rows:
        """These rows, and of the history the newest columns."""
        fields = (self.replies, self.logits, self.positions, self.index, self.uniform, self.history[:, -columns:])
        return _Rows(*(field[rows] for field in fields))

    def joined(self, other: _Rows) -> _Rows:
        """Both, the shorter history filled up with ids that are in it."""
        columns = max(self.history.shape[1], other.history.shape[1])
        histories = [
            torch.cat([h[:, -1:].expand(-1, columns - h.shape[1]), h], dim=1) for h in (self.history, other.history)
        ]
        fields = ("replies", "logits", "positions", "index", "uniform")
        joined = {name: torch.cat([getattr(self, name), getattr(other, name)]) for name in fields}
        return _Rows(**joined, history=torch.cat(histories))


def _ending(token_id: int, step: int, limit: int, sampling: Sampling, lm: LanguageModel) -> str | None:
    if token_id in lm.eos_ids:
        return "eos"
    if step + 1 < limit:
        return None
    return "length" if limit == sampling.max_new_tokens else "context"
