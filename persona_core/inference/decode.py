"""The decode loop: token ids in, token ids and readings out. Knows nothing of text, chats or traits.

It is a generator, so that streaming, stopping and steering are plain Python; the batch path consumes the same
generator and cannot drift from it. Prompts of mixed length are padded on the left, with positions counted from each
prompt's first token, so that all rows write their next token into the same column.

Prompts beyond the batch size wait in a queue and take the slots of finished replies. A reply's tokens depend on its
prompt and seed, not on when it was started or on the replies beside it.

Each sampled token is fed back before it is yielded, the last one too, so its state has been read when the caller sees
it. The only host synchronisation in a step is the copy of the sampled ids.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from persona_core.errors import ContextOverflow
from persona_core.inference.batch import DecodeStep, QueuedPrompt, ReplyBatch
from persona_core.inference.static_cache import supports

if TYPE_CHECKING:
    from persona_core.inference.hooks import ResidualTap
    from persona_core.inference.sampling import Sampling
    from persona_core.inference.sections import ReplyFollower
    from persona_core.models.language_model import LanguageModel


def new_token_limit(lm: LanguageModel, n_prompt: int, sampling: Sampling) -> int:
    """How many tokens of the longest reply fit behind the prompt; `ContextOverflow` if none does."""
    longest = sampling.longest_reply(lm.chat.thought_marks is not None)
    if lm.context_length is None:
        return longest
    left = lm.context_length - n_prompt
    if left < 1:
        raise ContextOverflow(
            f"The prompt has {n_prompt} tokens; the model's context holds {lm.context_length}. Shorten the prompt."
        )
    return min(longest, left)


@torch.inference_mode()
def decode(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int],
    tap: ResidualTap | None = None,
    n_kept: Sequence[int] | None = None,
    batch_size: int | None = None,
    indices: Sequence[int] | None = None,
    follower: ReplyFollower | None = None,
    ended: Collection[int] = (),
) -> Iterator[DecodeStep]:
    """Continue each prompt, one token a step, until every reply has ended.

    Args:
        lm: the model. With `lm.static_cache` the steps use a static cache where model and tap allow it.
        prompts: token ids of each prompt, any lengths.
        sampling: how tokens are chosen.
        seeds: one for each prompt: a reply's tokens do not depend on the rows beside it.
        tap: an open tap that reads, steers and pools, or None.
        n_kept: how many ids at the end of each prompt belong to its reply already; None: none. Positions in the
            reply, its maximum length and its random draws are still counted from its first token.
        batch_size: replies written at once; None: all.
        indices: which of the prompts to answer; None: all.
        follower: tells thought from answer, for pooling and limits; None: all of a reply is its answer.
        ended: replies to end although the model would go on; the caller may add to it after any step.

    Yields:
        A `DecodeStep` for each prefill and for each step. A reading is valid until the next one is yielded.

    Raises:
        ContextOverflow: a prompt that leaves no room for a reply.
        NumericalError: scores that are NaN, or all minus infinity.
        SettingError: a model in training mode.
    """
    lm.refuse_training()
    n_kept = n_kept or [0] * len(prompts)
    limits = [new_token_limit(lm, len(p) - k, sampling) for p, k in zip(prompts, n_kept, strict=True)]
    given = zip(range(len(prompts)), prompts, seeds, n_kept, limits, strict=True)
    waiting = [QueuedPrompt(*one, sampling) for one in given]
    queue = deque(waiting if indices is None else [waiting[i] for i in indices])
    if not queue:
        return
    size = min(batch_size or len(queue), len(queue))
    columns = max(len(p.ids) + p.limit - p.n_kept for p in queue)
    static = lm.static_cache and supports(lm, columns) and (tap is None or tap.is_repeatable)
    batch = ReplyBatch(lm, tap, max(p.limit for p in queue), size, columns if static else None, follower)
    while queue or batch.is_active:
        while queue and (n := batch.n_admissible(queue)):
            yield batch.prefill([queue.popleft() for _ in range(n)])
        yield batch.step()
        for row in ended:
            batch.end(row)
        batch.drop_finished(refill=bool(queue))
