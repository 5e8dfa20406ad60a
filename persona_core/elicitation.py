"""Have a model write replies, and pool its states while it writes: no second pass over the text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from persona_core.chat import Messages
from persona_core.decode import Sampling
from persona_core.errors import SettingError
from persona_core.generation import Run
from persona_core.models import LanguageModel


@dataclass(frozen=True, eq=False)
class PooledReply:
    """A reply and the mean of the states at its tokens.

    Attributes:
        index: its prompt's place in the list of prompts.
        token_ids: the reply, its end-of-turn token included.
        text: the reply without end-of-turn tokens.
        n_tokens: tokens that the mean is over, end-of-turn tokens left out.
        mean_state: float32 `[n_blocks, d_model]`; NaN for a reply of no token.
    """

    index: int
    token_ids: tuple[int, ...]
    text: str
    n_tokens: int
    mean_state: np.ndarray


def write_replies(
    lm: LanguageModel,
    prompts: Sequence[str | Messages],
    sampling: Sampling,
    seed: int,
    batch_size: int = 32,
    progress: str | None = None,
) -> Iterator[PooledReply]:
    """One reply for each prompt, in order. Reply i uses `seed + i`.

    Args:
        lm: the model that writes.
        prompts: user messages or conversations.
        sampling: how tokens are chosen.
        seed: of the first reply.
        batch_size: replies written at once; prompts are rendered batch by batch.
        progress: what to call the progress bar; None shows none.
    """
    if batch_size < 1:
        raise SettingError(f"batch_size={batch_size!r}; expected a whole number from 1.")
    with tqdm(total=len(prompts), desc=progress, unit="reply", disable=progress is None) as bar:
        for start in range(0, len(prompts), batch_size):
            rendered = [lm.chat.render(p) for p in prompts[start : start + batch_size]]
            run = Run(lm, {}, rendered, sampling, [seed + start + row for row in range(len(rendered))], pool=True)
            for _ in run.forwards():
                pass
            means, counts = run.pooled_means()
            for row in range(len(rendered)):
                own = zip(run.pieces(row), run.roles(row), strict=True)
                text = "".join(p for p, role in list(own)[len(rendered[row].token_ids) :] if role == "assistant")
                yield PooledReply(start + row, tuple(run.replies[row]), text, int(counts[row]), means[row])
            bar.update(len(rendered))
