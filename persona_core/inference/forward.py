"""One forward pass over a batch of replies: its inputs and its outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from persona_core.inference.hooks import Reading


@dataclass(frozen=True)
class ForwardInputs:
    """Tokens of a batch of replies, or of their prompts.

    Attributes:
        ids: `[rows, tokens]`.
        positions: `[rows, tokens]`, in the text.
        reply_index: `[rows, tokens]`, position in the reply; negative in the prompt.
        replies: `[rows]`, which of the run's replies each row is.
        answer_index: long `[rows, tokens]`, position in the answer, `THOUGHT` or `NEITHER`; None: nothing is pooled.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    reply_index: torch.Tensor
    replies: torch.Tensor
    answer_index: torch.Tensor | None


ForwardOutput = tuple[torch.Tensor, "Reading | None"]
"""Float32 logits of the last column `[rows, vocab]`, and the tap's reading."""

ForwardFn = Callable[[torch.Tensor | None, Any, ForwardInputs], ForwardOutput]
"""One forward pass: attention mask (None: nothing is masked), cache, inputs."""
