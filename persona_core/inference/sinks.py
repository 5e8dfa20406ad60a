"""Sink tokens: their state's norm is far outside the block's own range ("massive activations", arXiv 2402.17762).

The first token of a text is one in most models, template tokens often are, and here and there a plain word: SmolLM2
turns some of the words "the" into one at blocks 2 to 9. Such a state says nothing about the text and outweighs a
hundred others in a mean, so it is neither pooled nor scored as if it did. The rule is measured for each block:

    limit = median of the norms × max(3, exp(6 × spread)),   spread = 1.4826 × median |log(norm / median)|

In SmolLM2 plain tokens reach 2.6 times the median (block 0, where the spread is 0.27) and sinks begin at 3 times.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from persona_core.errors import NumericalError
from persona_core.inference.hooks import ResidualTap
from persona_core.inference.prefill import each_batch
from persona_core.models.blocks import unwrap
from persona_core.models.language_model import LanguageModel

MIN_FACTOR = 3.0
SPREADS = 6.0
MAD_TO_SD = 1.4826  # of a normal distribution
MEASURED_TOKENS = 2048  # of one text: a document as long as the context says no more of a norm that is usual


def norm_limits(norms: np.ndarray) -> np.ndarray:
    """The norm above which a token is a sink token, float32 `[n_blocks]`.

    Args:
        norms: ‖h‖ of plain tokens, sinks among them, `[n_blocks, n_tokens]`; up to half of them may be sinks.

    Raises:
        NumericalError: no token, or a norm that is not finite.

    >>> norms = np.array([[1.0, 1.1, 0.9, 1.0, 60.0]])
    >>> norm_limits(norms).tolist()
    [3.0]
    """
    if not norms.shape[1]:
        raise NumericalError("No token to measure norms on.")
    wrong = (~np.isfinite(norms)).sum(axis=1)  # [n_blocks]
    if wrong.any():
        block = int(np.argmax(wrong > 0))
        raise NumericalError(
            f"Block {block}: {wrong[block]} of {norms.shape[1]} norms are NaN or infinite; read the texts in float32 "
            "or bfloat16."
        )
    middle = np.maximum(np.median(norms, axis=1), np.finfo(np.float32).tiny)  # [n_blocks]
    away = np.abs(np.log(np.maximum(norms, np.finfo(np.float32).tiny) / middle[:, None]))  # [n_blocks, n_tokens]
    spread = MAD_TO_SD * np.median(away, axis=1)
    return (middle * np.maximum(MIN_FACTOR, np.exp(SPREADS * spread))).astype(np.float32)


@torch.inference_mode()
def norm_limits_of(lm: LanguageModel, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """The limits of a model, measured on the tokens of some texts without their first one, float32 `[n_blocks]`.

    Args:
        lm: the reader.
        rows: token ids of each text; of longer ones the first `MEASURED_TOKENS` are read, within the context.
    """
    most = min(MEASURED_TOKENS, lm.context_length or MEASURED_TOKENS)
    rows = [row[:most] for row in rows]
    decoder = unwrap(lm.model).get_decoder()
    found: list[np.ndarray] = []
    nothing = {b: torch.zeros(lm.blocks.d_model, 1) for b in range(len(lm.blocks))}
    with ResidualTap(lm.blocks, nothing) as tap:

        def read(batch: list[int], ids: torch.Tensor, reply_index: torch.Tensor) -> None:
            with tap.forward(reply_index):
                decoder(input_ids=ids, use_cache=False)
            norms = tap.reading().norms.cpu().numpy()  # [rows, tokens, n_blocks]
            found.extend(norms[i, 1 : len(rows[row])].T for i, row in enumerate(batch))

        each_batch(lm, rows, [0] * len(rows), read)
    return norm_limits(np.concatenate(found, axis=1))
