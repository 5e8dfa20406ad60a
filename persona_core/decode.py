"""The decode loop: token ids in, token ids and readings out. Knows nothing about text, chats or traits.

A generator, so that streaming, stopping and steering are plain Python: the batch path is its thin consumer and cannot
drift from it. Prompts of mixed length are padded on the left, with positions counted from each prompt's first token,
so that all rows write their next token into the same column.

Each sampled token is fed back before it is handed out, the last one too, so its state has been read when the caller
sees it. The only host synchronisation in a step is the copy of the sampled ids.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from persona_core.errors import ContextOverflow, NumericalError, SettingError
from persona_core.steering import PAD_INDEX

if TYPE_CHECKING:
    from persona_core.hooks import Reading, ResidualTap
    from persona_core.models import LanguageModel

# A uniform draw of exactly 1 would select past the last token once the cumulative sum is rounded to float32.
LARGEST_DRAW = 1.0 - 2.0**-20


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. `temperature=0` is greedy; `top_k=0` and `top_p=1` keep every token."""

    max_new_tokens: int = 128
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        checks = {
            "max_new_tokens": (_whole(self.max_new_tokens) and self.max_new_tokens >= 1, "a whole number from 1"),
            "temperature": (
                _finite(self.temperature) and (self.temperature == 0 or 1e-6 <= self.temperature <= 1e6),
                "0 (greedy) or 1e-6 to 1e6",  # beyond that the scaled scores leave float32
            ),
            "top_p": (_finite(self.top_p) and 0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (_whole(self.top_k) and self.top_k >= 0, "a whole number from 0"),
            "repetition_penalty": (
                _finite(self.repetition_penalty) and 1e-3 <= self.repetition_penalty <= 1e3,
                "0.001 to 1000",
            ),
        }
        for name, (good, expected) in checks.items():
            if not good:
                raise SettingError(f"{name}={getattr(self, name)!r}; expected {expected}.")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def processors(self) -> LogitsProcessorList:
        """transformers' own processors, in the order in which `generate` applies them."""
        chain = LogitsProcessorList()
        if self.repetition_penalty != 1.0:
            chain.append(RepetitionPenaltyLogitsProcessor(float(self.repetition_penalty)))
        if self.temperature not in (0.0, 1.0):
            chain.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k and self.temperature:
            chain.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1.0 and self.temperature:
            chain.append(TopPLogitsWarper(float(self.top_p)))
        return chain


@dataclass(frozen=True)
class Forward:
    """One forward of the loop: the prefill first, then one for each new token.

    Attributes:
        token_ids: the new token of each row; None for a row that has ended, and for every row of the prefill.
        reading: what the tap read, or None without one. Left padding included in the prefill.
        finished: for each row, None, "eos", "length" or "context".
    """

    token_ids: tuple[int | None, ...]
    reading: Reading | None
    finished: tuple[str | None, ...]


def room(lm: LanguageModel, n_prompt: int, max_new_tokens: int) -> int:
    """How many of `max_new_tokens` fit behind the prompt; `ContextOverflow` if none does."""
    if lm.context_length is None:
        return max_new_tokens
    left = lm.context_length - n_prompt
    if left < 1:
        raise ContextOverflow(
            f"The prompt has {n_prompt} tokens; the model's context holds {lm.context_length}. Shorten the prompt."
        )
    return min(max_new_tokens, left)


def pad_left(prompts: Sequence[Sequence[int]], fill: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, both `[rows, longest]`; the mask is 0 on padding."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), fill)
    mask = torch.zeros((len(prompts), longest), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


@torch.inference_mode()
def decode(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int],
    tap: ResidualTap | None = None,
    kept: Sequence[int] | None = None,
) -> Iterator[Forward]:
    """Continue each prompt, one token a step, until every row has ended.

    Args:
        lm: the model.
        prompts: token ids of each row, any lengths.
        sampling: how tokens are chosen.
        seeds: one seed a row: a row's tokens do not depend on the rows beside it.
        tap: an open tap that reads, steers and pools, or None.
        kept: how many of each row's last ids are the beginning of its reply already; None: none of them. Positions in
            the reply, its longest length and its random draws are counted from its first token all the same.

    Yields:
        One `Forward` for the prefill, then one for each new token.

    Raises:
        ContextOverflow: a prompt that leaves no room for a reply.
        NumericalError: scores that are NaN, or all minus infinity.
    """
    # 1. What does not change during the loop.
    device, rows = lm.device, len(prompts)
    kept = kept or [0] * rows
    limits = [room(lm, len(p) - k, sampling.max_new_tokens) for p, k in zip(prompts, kept, strict=True)]
    longest = max(limit - k for limit, k in zip(limits, kept, strict=True))  # new tokens
    draws = torch.stack([_draws(seed, k + longest)[k:] for seed, k in zip(seeds, kept, strict=True)])
    draws = draws.to(device)  # [rows, new tokens]
    processors, greedy = sampling.processors(), sampling.temperature == 0
    ids, mask = pad_left(prompts, fill=0, device=device)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)  # [rows, longest]
    begun = torch.tensor(kept, device=device).unsqueeze(-1)  # [rows, 1]
    reply_index = torch.where(mask.bool(), positions - mask.sum(-1, keepdim=True) + begun, PAD_INDEX)
    # transformers tests an all-ones mask on the host at each step; without padding none is needed.
    attention: torch.Tensor | None = mask if len(set(map(len, prompts))) > 1 else None
    history = torch.where(mask.bool(), ids, ids[:, -1:])  # the repetition penalty must not see the padding
    cache = DynamicCache(config=lm.model.config)
    finished: list[str | None] = [None] * rows

    # 2. Prefill: the whole prompt, its last token too.
    # Positions of the reply alone leave the prefill as it is, those of the prompt alone the steps.
    pools = tap.pools if tap else ()
    pools_prompt, pools_reply = any(p.of_prompt for p in pools), any(not p.of_prompt for p in pools)
    own = torch.zeros_like(ids, dtype=torch.bool) if pools_prompt else None
    logits, reading = _forward(lm, ids, attention, positions, cache, tap, reply_index, own)
    yield Forward((None,) * rows, reading, tuple(finished))

    # 3. One token a step: choose it, feed it back, hand it out.
    positions = positions[:, -1:]
    for step in range(longest):
        scores = processors(history, logits)  # [rows, vocab]
        chosen = scores.argmax(-1) if greedy else _sample(scores, draws[:, step : step + 1])  # [rows]
        # Scores without a finite maximum are marked among the ids, so that no second copy to the host is needed.
        chosen = torch.where(scores.amax(-1).isfinite(), chosen, -1)
        host_ids = chosen.tolist()  # the step's one synchronisation
        alive = [f is None for f in finished]
        broken = [row for row in range(rows) if alive[row] and host_ids[row] < 0]
        if broken:
            raise NumericalError(
                f"The model's scores hold NaN or no finite number at reply token {kept[broken[0]] + step} of row "
                f"{broken[0]}. float16 overflows on some models: load it with dtype='bfloat16' or 'float32'."
            )
        chosen = chosen.clamp_min(0)  # rows that have ended may be broken unnoticed
        own = None
        if pools_reply:
            said = [[a and i not in lm.eos_ids] for a, i in zip(alive, host_ids, strict=True)]
            own = torch.tensor(said, device=device)  # [rows, 1]
        # A row that has ended stays where it is: a learned position table has no row beyond the context.
        moved = 1 if all(alive) else torch.tensor(alive, device=device).unsqueeze(-1).long()  # [rows, 1]
        positions = positions + moved
        reply_index = begun + step
        if attention is not None:
            attention = torch.cat([attention, attention.new_ones(rows, 1)], dim=-1)
        logits, reading = _forward(lm, chosen[:, None], attention, positions, cache, tap, reply_index, own)
        if sampling.repetition_penalty != 1.0:
            history = torch.cat([history, chosen[:, None]], dim=-1)
        for row in range(rows):
            if alive[row]:
                finished[row] = _ending(host_ids[row], kept[row] + step, limits[row], sampling, lm)
        tokens = tuple(i if a else None for i, a in zip(host_ids, alive, strict=True))
        yield Forward(tokens, reading, tuple(finished))
        if all(finished):
            return


def _forward(
    lm: LanguageModel,
    ids: torch.Tensor,
    attention: torch.Tensor | None,
    positions: torch.Tensor,
    cache: DynamicCache,
    tap: ResidualTap | None,
    reply_index: torch.Tensor,
    own: torch.Tensor | None,
) -> tuple[torch.Tensor, Reading | None]:
    """One forward with the key-value cache; float32 logits of the last column `[rows, vocab]`, and the reading."""
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": attention, "past_key_values": cache}
    if "position_ids" in lm.forward_arguments:
        inputs["position_ids"] = positions
    if "logits_to_keep" in lm.forward_arguments:
        inputs["logits_to_keep"] = 1
    with tap.forward(reply_index, own) if tap else nullcontext():
        out = lm.model(**inputs, use_cache=True)
    reading = tap.reading() if tap and tap.read_blocks else None
    return out.logits[:, -1].float().to(lm.device), reading


def _sample(scores: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
    """Invert the cumulative distribution at each row's own uniform draw: no state shared between rows.

    Args:
        scores: `[rows, vocab]` logits; -inf where a token is excluded.
        draw: `[rows, 1]` in [0, 1).
    """
    cumulative = scores.softmax(-1).cumsum(-1)  # [rows, vocab]
    # The first token whose cumulative probability exceeds the draw; one of probability 0 can never be it.
    chosen = torch.searchsorted(cumulative, draw * cumulative[:, -1:], right=True).squeeze(-1)
    return chosen.clamp_max(scores.shape[-1] - 1)  # past the end only where the scores are NaN


def _draws(seed: int, n: int) -> torch.Tensor:
    draws = np.random.default_rng(seed).random(n) * LARGEST_DRAW
    return torch.from_numpy(draws.astype(np.float32))


def _ending(token_id: int, step: int, limit: int, sampling: Sampling, lm: LanguageModel) -> str | None:
    if token_id in lm.eos_ids:
        return "eos"
    if step + 1 < limit:
        return None
    return "length" if limit == sampling.max_new_tokens else "context"


def _whole(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _finite(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
