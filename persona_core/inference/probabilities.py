"""What a model, unsteered, thinks of the next token: in a given text, and after its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from persona_core.models.language_model import LanguageModel


def log_probabilities(lm: LanguageModel, ids: Sequence[int], start: int) -> np.ndarray:
    """The log probability of each token given all before it, at temperature 1; one forward over the text.

    Args:
        lm: the model.
        ids: of the text.
        start: the first token whose probability is wanted, from 1.

    Returns:
        Float64 `[n_tokens - start]`.

    >>> from persona_core import load_model
    >>> lm = load_model("artifacts/persona-tiny")
    >>> found = log_probabilities(lm, lm.tokenizer("Should I quit my job?").input_ids, 2)
    >>> bool((found <= 0).all())
    True
    """
    if start >= len(ids):
        return np.empty(0)
    logs = _next_token_logs(lm, ids[:-1], len(ids) - start)  # [n_wanted, vocab]
    own = torch.tensor(ids[start:], device=logs.device).unsqueeze(-1)
    return logs.gather(-1, own).squeeze(-1).double().cpu().numpy()


def likeliest(lm: LanguageModel, ids: Sequence[int], k: int) -> list[tuple[int, float]]:
    """The ids that are most likely to come next, at temperature 1, with their probabilities; likeliest first.

    Args:
        lm: the model.
        ids: of the text so far.
        k: how many.
    """
    found = _next_token_logs(lm, ids, 1)[0].topk(k)
    return list(zip(found.indices.tolist(), found.values.exp().tolist(), strict=True))


@torch.inference_mode()
def _next_token_logs(lm: LanguageModel, ids: Sequence[int], n: int) -> torch.Tensor:
    """Log probabilities of what follows each of the last `n` tokens, float32 `[n, vocab]`."""
    lm.refuse_training()
    logits = lm.model(
        input_ids=torch.tensor([list(ids)], device=lm.device), use_cache=False, **lm.last_logits(n)
    ).logits
    return logits[0, -n:].float().log_softmax(-1)
