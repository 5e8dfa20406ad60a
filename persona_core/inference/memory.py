"""Batches that may not fit in memory, or that one bad item would fail for all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from persona_core.errors import NumericalError, PromptError, VectorsMismatch

logger = logging.getLogger(__name__)

BATCHES_PER_PART = 4
"""Long work is saved in parts of this many batches: within a part, the next prompts take the slots of finished replies.
A killed run loses at most one part; an interrupted elicitation (Ctrl-C) keeps the replies that have ended."""

_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "cuda error: out of memory",
    "backend out of memory",
    "cublas_status_alloc_failed",
)

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_halves(
    items: Sequence[Item], work: Callable[[Sequence[Item]], Result], name: str
) -> tuple[list[Result], list[tuple[Item, str]]]:
    """Work on all items at once; where that fails, on halves, down to the single items that fail.

    A batch that does not fit in memory is retried in halves, and so is one that a single item fails (a prompt too long
    for the context, scores that are not finite): that item fails, the others do not.

    Args:
        items: at least one.
        work: called with some of them, in order.
        name: of the batch, for the log.

    Returns:
        The results of the parts, in order, and the items that failed with the reason.

    Raises:
        RuntimeError: unless memory ran out; bugs are not hidden.
    """
    try:
        return [work(items)], []
    except (PromptError, NumericalError, VectorsMismatch, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    if len(items) == 1:
        logger.warning("%s: one item failed: %s", name, reason)
        return [], [(items[0], reason)]
    logger.warning("%s: %s. Retrying in halves.", name, reason)
    free_memory()
    half = len(items) // 2
    parts = [in_halves(part, work, name) for part in (items[:half], items[half:])]
    return [r for results, _ in parts for r in results], [f for _, failed in parts for f in failed]


def out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out, on a GPU or on the host.

    Only CUDA's caching allocator raises a class for it; the messages are those of the host allocator on Linux and
    Windows, of the CUDA libraries, and of MPS.
    """
    message = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(words in message for words in _OUT_OF_MEMORY)


def free_memory() -> None:
    """Release the GPU memory that torch keeps cached."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, both `[rows, longest]`; the mask is 0 on padding."""
    longest = max(map(len, prompts))
    ids = torch.zeros((len(prompts), longest), dtype=torch.long)
    mask = torch.zeros((len(prompts), longest), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)
