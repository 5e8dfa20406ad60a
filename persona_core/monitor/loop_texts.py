"""The texts of a loop that is not ours, told from the forwards that it makes.

A forward with an empty key-value cache begins new texts, one a row. What follows on that cache continues them: one
token of each reply, or, before the reply, the next part of a long prompt. Without a cache each forward has the whole
text again. Anything else is refused: no state is ever counted at a wrong token.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from persona_core.errors import UnsupportedModel
from persona_core.inference.steering import PAD_INDEX

GENERATION = "transformers.generation.utils"
DRAFTED = frozenset({"_assisted_decoding"})
REORDERED = frozenset({"_beam_search"})
PROMPT = frozenset({"_prefill"})
_ADVICE = "Use one token a step, or read the finished text with PersonaMonitor.read."


@dataclass
class LoopTexts:
    """The texts of one batch.

    Attributes:
        ids: of each row so far, without padding.
        n_prompt: tokens of each row before its reply.
        n_seen: columns of the cache, padding included.
        ended: rows whose reply has ended; a batch goes on with padding for them.
        mask: which columns of the first forward are tokens, bool `[rows, columns]`.
        padded: ids of all columns, padding included, `[rows, n_seen]`.
    """

    ids: list[list[int]]
    n_prompt: list[int]
    n_seen: int
    ended: list[bool]
    mask: torch.Tensor
    padded: torch.Tensor = field(repr=False)

    @property
    def n_rows(self) -> int:
        return len(self.ids)

    @property
    def has_reply(self) -> bool:
        return any(len(own) > n for own, n in zip(self.ids, self.n_prompt, strict=True))


@dataclass(frozen=True)
class NewTokens:
    """What a forward adds to the texts of a batch.

    Attributes:
        texts: of the batch, this forward included.
        first: column of the forward's output at which new tokens begin.
        kept: which of those are tokens of a text, bool `[rows, tokens]`.
        reply_index: of every column of the forward, as `Intervention.apply` takes it, `[rows, columns]`.
        is_start: whether the batch begins here.
        is_prompt: whether it is a part of the prompt.
    """

    texts: LoopTexts
    first: int
    kept: torch.Tensor
    reply_index: torch.Tensor
    is_start: bool
    is_prompt: bool


def callers() -> frozenset[str]:
    """Names of the functions of transformers' `generate` that this forward is made from."""
    found, frame = set(), sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == GENERATION:
            found.add(frame.f_code.co_name)
        frame = frame.f_back  # type: ignore[assignment]
    return frozenset(found)


def refuse_drafts(names: frozenset[str]) -> None:
    """Refuse assisted decoding.

    Raises:
        UnsupportedModel.
    """
    if names & DRAFTED:
        raise UnsupportedModel(
            "Assisted decoding (assistant_model, prompt_lookup_num_tokens) reads drafts, and drops some of them again. "
            + _ADVICE
        )


def follow(
    known: LoopTexts | None, args: tuple[Any, ...], kwargs: Mapping[str, Any], eos_ids: frozenset[int]
) -> NewTokens:
    """What a forward adds.

    Args:
        known: the batch before it in this thread.
        args, kwargs: of the model's forward.
        eos_ids: end a reply.

    Raises:
        UnsupportedModel: the forward does not continue the texts token by token, or has no ids.
    """
    names = callers()
    refuse_drafts(names)
    if names & REORDERED:
        raise UnsupportedModel(f"Beam search reorders its rows, so that no row is one text. {_ADVICE}")
    ids = kwargs.get("input_ids", args[0] if args else None)
    if not isinstance(ids, torch.Tensor):
        raise UnsupportedModel("The forward has no input_ids (inputs_embeds?): there are no tokens to name. Give ids.")
    ids = ids.detach().cpu()
    cache = kwargs.get("past_key_values")
    n_past = 0 if cache is None else int(cache.get_seq_length())
    if n_past == 0:
        if known is not None and _is_longer_by_one(known, ids):
            return _step(known, ids[:, -1:], ids.shape[1] - 1, ids.shape[1], eos_ids)
        return _start(ids, kwargs.get("attention_mask"))
    if known is None or n_past > known.n_seen:
        raise UnsupportedModel(
            f"The key-value cache holds {n_past} tokens that were read before: their states are not known. Begin "
            "inside the block, with an empty cache."
        )
    if n_past < known.n_seen or ids.shape[0] != known.n_rows:
        raise UnsupportedModel(
            f"The key-value cache was cut or its rows changed ({known.n_rows} rows of {known.n_seen} tokens, now "
            f"{ids.shape[0]} of {n_past}), as assisted, contrastive or beam search do. {_ADVICE}"
        )
    if names & PROMPT or (ids.shape[1] > 1 and not known.has_reply):
        return _more_prompt(known, ids, kwargs.get("attention_mask"))
    if ids.shape[1] > 1:
        raise UnsupportedModel(
            f"A forward of {ids.shape[1]} tokens after the reply has begun: a further turn on a kept cache, or drafts. "
            f"{_ADVICE}"
        )
    return _step(known, ids, 0, 1, eos_ids)


def _start(ids: torch.Tensor, mask: Any) -> NewTokens:
    kept = _mask_of(mask, ids, 0)
    texts = LoopTexts(
        [row[keep].tolist() for row, keep in zip(ids, kept, strict=True)],
        kept.sum(1).tolist(),
        ids.shape[1],
        [False] * ids.shape[0],
        kept,
        ids,
    )
    return NewTokens(texts, 0, kept, _prompt_index(kept), True, True)


def _more_prompt(known: LoopTexts, ids: torch.Tensor, mask: Any) -> NewTokens:
    """The next part of a prompt that is read in parts."""
    kept = _mask_of(mask, ids, known.n_seen)
    for own, row, keep in zip(known.ids, ids, kept, strict=True):
        own.extend(row[keep].tolist())
    known.n_prompt = [len(own) for own in known.ids]
    _add(known, ids)
    return NewTokens(known, 0, kept, _prompt_index(kept), False, True)


def _step(known: LoopTexts, new: torch.Tensor, first: int, n_columns: int, eos_ids: frozenset[int]) -> NewTokens:
    """One token of each reply."""
    kept = torch.tensor([[not ended] for ended in known.ended])
    index = torch.full((known.n_rows, n_columns), PAD_INDEX)
    if first:  # the whole text again: its prompt and the reply so far
        index[:, : known.mask.shape[1]] = _prompt_index(known.mask)
        done = torch.arange(first - known.mask.shape[1])
        index[:, known.mask.shape[1] : first] = done
    for row, (own, n_prompt) in enumerate(zip(known.ids, known.n_prompt, strict=True)):
        if known.ended[row]:
            continue
        index[row, first:] = len(own) - n_prompt
        own.append(int(new[row, 0]))
        known.ended[row] = own[-1] in eos_ids
    _add(known, new)
    return NewTokens(known, first, kept, index, False, False)


def _add(known: LoopTexts, ids: torch.Tensor) -> None:
    known.n_seen += ids.shape[1]
    known.padded = torch.cat([known.padded, ids], dim=1)


def _is_longer_by_one(known: LoopTexts, ids: torch.Tensor) -> bool:
    return ids.shape == (known.n_rows, known.n_seen + 1) and torch.equal(ids[:, :-1], known.padded)


def _mask_of(mask: Any, ids: torch.Tensor, n_past: int) -> torch.Tensor:
    """Which columns of a forward are tokens, bool `[rows, tokens]`; `n_past` columns were before it."""
    end = n_past + ids.shape[1]
    if isinstance(mask, torch.Tensor) and mask.dim() == 2 and mask.shape[1] >= end:
        return mask[:, n_past:end].detach().cpu().bool()
    return torch.ones_like(ids, dtype=torch.bool)


def _prompt_index(kept: torch.Tensor) -> torch.Tensor:
    """Positions of a prompt's tokens before its reply: -1 is the last of each row; padding has `PAD_INDEX`."""
    before_end = kept.flip(1).cumsum(1).flip(1)  # 1 at the last token
    return torch.where(kept, -before_end, PAD_INDEX)
