"""Replies being written together: one forward pass at a time, with their cache, positions and random draws."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from persona_core.errors import NumericalError
from persona_core.inference.dynamic_cache import DynamicKVCache, has_only_attention, new_cache
from persona_core.inference.forward import ForwardInputs, ForwardOutput
from persona_core.inference.hooks import Reading
from persona_core.inference.memory import pad_left
from persona_core.inference.sampling import Sampling, choose, draws
from persona_core.inference.sections import NEITHER
from persona_core.inference.static_cache import StaticKVCache
from persona_core.inference.steering import PAD_INDEX

if TYPE_CHECKING:
    from transformers import LogitsProcessorList

    from persona_core.inference.hooks import ResidualTap
    from persona_core.inference.sections import ReplyFollower
    from persona_core.models.language_model import LanguageModel

# Free slots are filled together once they are an eighth of the batch: a prefill costs at least as much as a step.
REFILLED_SHARE = 8
# Padded tokens in one prefill, so that a long queue of long prompts does not need memory for all of them at once.
PREFILL_TOKENS = 8192
# With an empty queue, finished rows are dropped once they are a quarter of the batch: dropping copies the cache.
DROPPED_SHARE = 4


class BrokenReply(NumericalError):
    """One reply's scores are not finite; the replies beside it can go on.

    Attributes:
        row: of that reply, as an index into the prompts.
    """

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


@dataclass(frozen=True)
class TokenLogProb:
    """How likely the model found a token, at temperature 1 and before anything was cut off.

    Attributes:
        log_prob: of the token that was chosen.
        top: the likeliest tokens with theirs, likeliest first.
    """

    log_prob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class DecodeStep:
    """One step of the decode loop: a prefill, or a new token for every unfinished reply.

    Attributes:
        rows: its replies, as indices into the prompts.
        token_ids: the new token of each; None for a prefill.
        reading: what the tap read, or None without one. That of a prefill includes the left padding.
        finished: for each, None, "eos", "length", "context" or "thought" (too long, so there is no answer).
        log_probs: for each, how likely its token was; None where that was not requested.
    """

    rows: tuple[int, ...]
    token_ids: tuple[int, ...] | None
    reading: Reading | None
    finished: tuple[str | None, ...]
    log_probs: tuple[TokenLogProb | None, ...] = ()


@dataclass(frozen=True)
class QueuedPrompt:
    """A prompt that waits for a slot.

    Attributes:
        row: its index among the prompts.
        ids: its token ids, followed by the kept tokens of the reply.
        seed: of the reply's random draws.
        n_kept: how many of the ids belong to the reply.
        limit: longest reply in tokens, kept ones included.
        sampling: how its tokens are chosen.
        n_top: how many of the likeliest tokens to list beside each token's log probability; None: neither.
    """

    row: int
    ids: Sequence[int]
    seed: int
    n_kept: int
    limit: int
    sampling: Sampling
    n_top: int | None = None


class ReplyBatch:
    """Replies being written together.

    The tensors of a step have one row for each reply, finished ones included until they are dropped: dropping copies
    the cache.
    """

    def __init__(
        self,
        lm: LanguageModel,
        tap: ResidualTap | None,
        max_reply: int,
        size: int,
        static_columns: int | None,
        follower: ReplyFollower | None = None,
    ) -> None:
        """Start an empty batch of up to `size` replies of up to `max_reply` tokens; None: with a dynamic cache."""
        self._lm, self._tap, self._max_reply, self._size = lm, tap, max_reply, size
        self._follower = follower
        self._can_refill = has_only_attention(new_cache(lm.model.config))
        pooled = tap.pooled if tap else None
        self._pools_prompt = pooled is not None and pooled.of_prompt
        self._pools_reply = pooled is not None and pooled.of_reply
        self._cache: DynamicKVCache | StaticKVCache = (
            DynamicKVCache(lm.device)
            if static_columns is None
            else StaticKVCache(lm, size, static_columns, self._pools_reply)
        )
        self._prompts: list[QueuedPrompt] = []
        self._n_reply: list[int] = []  # reply tokens so far, kept ones included
        self._is_finished: list[bool] = []
        self._alike: list[tuple[Sampling, LogitsProcessorList, Any]] = []  # rows that are sampled in the same way
        self._rows: _RowState

    @property
    def is_active(self) -> bool:
        return not all(self._is_finished)

    def n_admissible(self, queue: Sequence[QueuedPrompt]) -> int:
        """How many prompts of the queue to prefill before the next step."""
        free = self._size - self._is_finished.count(False)
        if self.is_active:
            enough = min(len(queue), max(1, self._size // REFILLED_SHARE))
            if not self._can_refill or free < enough:
                return 0
        most = min(free, len(queue))
        longest = 0
        for n in range(most if self._can_refill else 0):
            longest = max(longest, len(queue[n].ids))
            if n and (n + 1) * longest > PREFILL_TOKENS:
                return n
        return most

    def prefill(self, prompts: Sequence[QueuedPrompt]) -> DecodeStep:
        """Read prompts, their last tokens too, and add them to the batch."""
        self._drop()
        device = self._lm.device
        cache = new_cache(self._lm.model.config)
        ids, mask = pad_left([p.ids for p in prompts], device)
        lengths = [len(p.ids) for p in prompts]
        positions = (mask.cumsum(-1) - 1).clamp_min(0)  # [rows, longest]
        index = torch.tensor([[p.n_kept] for p in prompts], device=device)  # [rows, 1], of the next reply token
        reply_index = torch.where(mask.bool(), positions - mask.sum(-1, keepdim=True) + index, PAD_INDEX)
        replies = torch.tensor([p.row for p in prompts], device=device)
        # A prefill pools for prompt positions only, a step for reply positions only.
        answer_index = torch.full_like(ids, NEITHER) if self._pools_prompt else None
        attention_mask = mask if len(set(lengths)) > 1 else None
        inputs = ForwardInputs(ids, positions, reply_index, replies, answer_index)
        logits, reading = self._forward(attention_mask, cache, inputs)
        uniform = torch.zeros(len(prompts), self._max_reply + 1)  # one more, for finished rows
        for row, prompt in enumerate(prompts):
            uniform[row, : prompt.limit] = draws(prompt.seed, prompt.limit)
        # The repetition penalty must not see padding: repeating a token of the prompt changes nothing.
        history = torch.where(mask.bool(), ids, ids[:, -1:])
        new = _RowState(replies, logits, positions[:, -1:], index, uniform.to(device), history)
        self._rows = self._rows.concat(new) if self._prompts else new
        self._cache.add(cache, lengths)
        self._prompts += prompts
        self._n_reply += [p.n_kept for p in prompts]
        self._is_finished += [False] * len(prompts)
        self._group()
        if self._follower is not None:
            for prompt in prompts:
                self._follower.begin(prompt.row, prompt.ids[len(prompt.ids) - prompt.n_kept :])
        return DecodeStep(tuple(p.row for p in prompts), None, reading, (None,) * len(prompts))

    def step(self) -> DecodeStep:
        """Choose a token for each reply, feed it back, and return it."""
        lm, rows = self._lm, self._rows
        chosen, host_ids = self._choose()
        log_probs = self._log_probs(host_ids)
        active = [i for i, finished in enumerate(self._is_finished) if not finished]
        answered = [self._follow(i, host_ids[i]) for i in range(len(host_ids))]
        answer_index = None
        if self._pools_reply:
            answer_index = torch.tensor([[position] for position, _ in answered], device=lm.device)  # [rows, 1]
        # A finished row keeps its position: a learned position table has no row beyond the context.
        advance: Any = 1
        if len(active) < len(self._is_finished):
            advance = torch.tensor([[int(not f)] for f in self._is_finished], device=lm.device)  # [rows, 1]
            selected = torch.tensor(active, device=lm.device)  # before the forward: a copy waits for what was launched
        positions = rows.positions + advance
        inputs = ForwardInputs(chosen[:, None], positions, rows.index, rows.replies, answer_index)
        logits, reading = self._cache.step(self._forward, inputs)
        history = rows.history
        if any(sampling.repetition_penalty != 1.0 for sampling, *_ in self._alike):
            history = torch.cat([history, chosen[:, None]], dim=-1)
        self._rows = _RowState(rows.replies, logits, positions, rows.index + advance, rows.uniform, history)
        if reading is not None and len(active) < len(self._is_finished):
            selected = selected.to(reading.raw.device)
            reading = Reading(reading.raw[selected], reading.norms[selected])
        reasons = []
        for i in active:
            self._n_reply[i] += 1
            reasons.append(answered[i][1] or self._out_of_room(i))
            self._is_finished[i] = reasons[-1] is not None
        replies = tuple(self._prompts[i].row for i in active)
        ids = tuple(host_ids[i] for i in active)
        return DecodeStep(replies, ids, reading, tuple(reasons), tuple(log_probs.get(i) for i in active))

    def end(self, row: int) -> None:
        """End a reply before its time; it takes no part in further steps."""
        for i, prompt in enumerate(self._prompts):
            if prompt.row == row:
                self._is_finished[i] = True

    def read_with(self, tap: ResidualTap) -> None:
        """Go on with another tap, which must be open and read the same blocks."""
        self._tap = tap

    def _follow(self, i: int, token_id: int) -> tuple[int, str | None]:
        """The new token's position in its answer, and why the reply ends with it, if it does."""
        if self._is_finished[i]:
            return NEITHER, None
        if self._follower is not None:
            return self._follower.push(self._prompts[i].row, token_id)
        return (NEITHER, "eos") if token_id in self._lm.eos_ids else (self._n_reply[i], None)

    def _out_of_room(self, i: int) -> str | None:
        """Why a reply ends that its model would continue; None if there is room."""
        limit = self._prompts[i].limit
        if self._n_reply[i] < limit:
            return None
        longest = self._prompts[i].sampling.longest_reply(self._lm.chat.thought_marks is not None)
        return "length" if limit == longest else "context"

    def _choose(self) -> tuple[torch.Tensor, list[int]]:
        """The next token of each row, on the device `[rows]` and on the host: the step's one synchronisation."""
        state = self._rows
        draw = state.uniform.gather(1, state.index)  # [rows, 1]
        parts = []
        for sampling, processors, rows in self._alike:
            scores = processors(state.history[rows], state.logits[rows])  # [rows that are alike, vocab]
            chosen = scores.argmax(-1) if sampling.temperature == 0 else choose(scores, draw[rows])
            parts.append((rows, chosen, scores.amax(-1).isfinite()))
        if len(parts) == 1:
            (_, chosen, finite) = parts[0]
        else:
            chosen = torch.empty(len(self._prompts), dtype=torch.long, device=state.logits.device)
            finite = torch.empty_like(chosen, dtype=torch.bool)
            for rows, *found in parts:
                chosen[rows], finite[rows] = found
        # Rows without a finite maximum get the id -1, which saves a second copy to the host.
        host_ids = torch.where(finite, chosen, -1).tolist()
        for prompt, n, finished, token_id in zip(
            self._prompts, self._n_reply, self._is_finished, host_ids, strict=True
        ):
            if token_id < 0 and not finished:  # finished rows may be broken: nothing of them is used
                raise BrokenReply(
                    prompt.row,
                    f"The model's scores hold NaN or no finite number at reply token {n} of prompt {prompt.row}. "
                    + self._lm.why_not_finite,
                )
        return chosen, host_ids

    def _group(self) -> None:
        """Rows whose tokens are chosen in the same way are handled together: most often they are all."""
        rows_of: dict[tuple[Any, ...], list[int]] = {}
        for i, prompt in enumerate(self._prompts):
            rows_of.setdefault(prompt.sampling.choice, []).append(i)
        self._alike = []
        for rows in rows_of.values():
            sampling = self._prompts[rows[0]].sampling
            index = slice(None) if len(rows_of) == 1 else torch.tensor(rows, device=self._lm.device)
            self._alike.append((sampling, sampling.processors(), index))

    def _log_probs(self, host_ids: Sequence[int]) -> dict[int, TokenLogProb]:
        """Of the chosen tokens of the rows that want them."""
        wanted = [
            (i, prompt.n_top)
            for i, (prompt, finished) in enumerate(zip(self._prompts, self._is_finished, strict=True))
            if prompt.n_top is not None and not finished
        ]
        if not wanted:
            return {}
        logs = self._rows.logits[[i for i, _ in wanted]].log_softmax(-1)  # [wanted, vocab]
        own = logs.gather(-1, torch.tensor([[host_ids[i]] for i, _ in wanted], device=logs.device))[:, 0].tolist()
        top = logs.topk(max(n for _, n in wanted))  # of none for most
        likeliest = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return {
            i: TokenLogProb(log_prob, tuple(zip(ids[:n], logs_of[:n], strict=True)))
            for (i, n), log_prob, (ids, logs_of) in zip(wanted, own, likeliest, strict=True)
        }

    def drop_finished(self, refill: bool) -> None:
        """Drop finished rows where that saves more than it costs.

        Args:
            refill: whether prompts wait; their prefill then drops the rows.
        """
        if not self.is_active:
            self._prompts, self._n_reply, self._is_finished = [], [], []
            self._cache.clear()
            return
        many = DROPPED_SHARE * self._is_finished.count(True) >= len(self._is_finished)
        if many and not refill and self._can_refill and self._cache.shrinks:
            self._drop()

    def _drop(self) -> None:
        """Drop the finished rows."""
        active = [i for i, finished in enumerate(self._is_finished) if not finished]
        if len(active) == len(self._prompts):
            return
        self._prompts = [self._prompts[i] for i in active]
        self._n_reply = [self._n_reply[i] for i in active]
        self._is_finished = [False] * len(active)
        self._group()
        self._cache.keep(active)
        longest = max(len(p.ids) - p.n_kept + n for p, n in zip(self._prompts, self._n_reply, strict=True))
        self._rows = self._rows.select(torch.tensor(active, device=self._lm.device), longest)

    def _forward(self, mask: torch.Tensor | None, cache: Any, inputs: ForwardInputs) -> ForwardOutput:
        """One forward pass with the cache."""
        lm, tap = self._lm, self._tap
        arguments: dict[str, Any] = {"input_ids": inputs.ids, "attention_mask": mask, "past_key_values": cache}
        if "position_ids" in lm.forward_arguments:
            arguments["position_ids"] = inputs.positions
        with tap.forward(inputs.reply_index, inputs.answer_index, inputs.replies) if tap else nullcontext():
            out = lm.model(**arguments, **lm.last_logits(1), use_cache=True)
        reading = tap.reading() if tap and tap.read_blocks else None
        return out.logits[:, -1].float().to(lm.device), reading


@dataclass(frozen=True)
class _RowState:
    """What a step needs of each row.

    Attributes:
        replies: `[rows]`, which of the run's replies each is.
        logits: float32 `[rows, vocab]`, of the next token.
        positions: `[rows, 1]`, of the newest token.
        index: `[rows, 1]`, position of the next token in its reply.
        uniform: float32 `[rows, max_reply + 1]`, a draw for each token of the reply.
        history: `[rows, columns]`, all ids so far; extended only where there is a repetition penalty.
    """

    replies: torch.Tensor
    logits: torch.Tensor
    positions: torch.Tensor
    index: torch.Tensor
    uniform: torch.Tensor
    history: torch.Tensor

    def select(self, rows: torch.Tensor, columns: int) -> _RowState:
        """These rows, with the newest columns of the history."""
        fields = (self.replies, self.logits, self.positions, self.index, self.uniform, self.history[:, -columns:])
        return _RowState(*(field[rows] for field in fields))

    def concat(self, other: _RowState) -> _RowState:
        """Both; the shorter history is padded with an id that it already holds."""
        columns = max(self.history.shape[1], other.history.shape[1])
        histories = [
            torch.cat([h[:, -1:].expand(-1, columns - h.shape[1]), h], dim=1) for h in (self.history, other.history)
        ]
        fields = ("replies", "logits", "positions", "index", "uniform")
        joined = {name: torch.cat([getattr(self, name), getattr(other, name)]) for name in fields}
        return _RowState(**joined, history=torch.cat(histories))
