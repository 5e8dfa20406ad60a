"""The decode loop: token ids in, token ids and readings out. Knows nothing about text, chats or traits.

A generator, so that streaming, stopping and steering are plain Python: the batch path is its thin consumer and cannot
drift from it. Prompts of mixed length are padded on the left, with positions counted from each prompt's first token,
so that all rows write their next token into the same column.

More prompts than rows wait in a queue, and take the places of replies that have ended. A reply's tokens depend on its
own prompt and seed, not on when it was taken up or beside which others.

Each sampled token is fed back before it is handed out, the last one too, so its state has been read when the caller
sees it. The only host synchronisation in a step is the copy of the sampled ids.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from persona_core.errors import ContextOverflow
from persona_core.inference.batch import Forward, ReplyBatch, Request
from persona_core.inference.static_cache import supports

if TYPE_CHECKING:
    from persona_core.inference.hooks import ResidualTap
    from persona_core.inference.sampling import Sampling
    from persona_core.models.loading import LanguageModel


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


@torch.inference_mode()
def decode(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int],
    tap: ResidualTap | None = None,
    kept: Sequence[int] | None = None,
    width: int | None = None,
    todo: Sequence[int] | None = None,
    fixed: bool | None = None,
) -> Iterator[Forward]:
    """Continue each prompt, one token a step, until every reply has ended.

    Args:
        lm: the model.
        prompts: token ids of each prompt, any lengths.
        sampling: how tokens are chosen.
        seeds: one for each prompt: a reply's tokens do not depend on the rows beside it.
        tap: an open tap that reads, steers and pools, or None.
        kept: how many of each prompt's last ids are the beginning of its reply already; None: none of them. Positions
            in the reply, its longest length and its random draws are counted from its first token all the same.
        width: replies written at once; None: all.
        todo: places of the prompts to be answered; None: all.
        fixed: steps in fixed memory (fixed_memory.py) where the model supports them; None: on a GPU.

    Yields:
        A `Forward` for each prefill, and one for each step. A reading is valid until the next one is asked for.

    Raises:
        ContextOverflow: a prompt that leaves no room for a reply.
        NumericalError: scores that are NaN, or all minus infinity.
        SettingError: a model in training mode.
    """
    lm.refuse_training()
    kept = kept or [0] * len(prompts)
    limits = [room(lm, len(p) - k, sampling.max_new_tokens) for p, k in zip(prompts, kept, strict=True)]
    requests = [Request(*one) for one in zip(range(len(prompts)), prompts, seeds, kept, limits, strict=True)]
    queue = deque(requests if todo is None else [requests[i] for i in todo])
    if not queue:
        return
    width, columns = min(width or len(queue), len(queue)), max(len(r.ids) + r.limit - r.kept for r in queue)
    if fixed is None:
        fixed = lm.device.type == "cuda"
    fixed = fixed and supports(lm, columns) and (tap is None or tap.repeats)
    batch = ReplyBatch(lm, sampling, tap, max(r.limit for r in queue), width, columns if fixed else None)
    while queue or batch.alive:
        while queue and (taken := batch.takes(queue)):
            yield batch.take([queue.popleft() for _ in range(taken)])
        yield batch.step()
        batch.drop_ended(refill=bool(queue))
