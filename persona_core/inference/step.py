"""One forward over some replies: what goes into the model, and what comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from persona_core.inference.hooks import Reading

Output = tuple[torch.Tensor, "Reading | None"]
"""Float32 logits of the last column `[rows, vocab]`, and what the tap read."""


@dataclass(frozen=True)
class Step:
    """Tokens of some replies, or of their prompts.

    Attributes:
        ids: `[rows, tokens]`.
        positions: `[rows, tokens]`, in the text.
        index: `[rows, tokens]`, in the reply; negative in the prompt.
        replies: `[rows]`, which of the run's replies each row is.
        own: bool `[rows, tokens]`, tokens that the assistant said; None where nothing is pooled.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    index: torch.Tensor
    replies: torch.Tensor
    own: torch.Tensor | None


Model = Callable[[torch.Tensor | None, Any, Step], Output]
"""One forward: attention mask (None: nothing is hidden), cache, step."""
