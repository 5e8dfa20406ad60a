"""Work on batches that may be too large, or hold one thing that spoils it for the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from persona_core.errors import NumericalError, PromptError, VectorsMismatch

logger = logging.getLogger(__name__)

BATCHES_IN_PART = 4
"""Long work is kept in parts of so many batches: within one, replies that have ended make room for the next prompts. A
kill costs a part at the most."""

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
    """Work on all items at once; where that fails on halves, until what fails stands alone.

    A batch that does not fit into memory is tried again in parts, and one that a single item breaks (a prompt too long
    for the context, scores that are not finite) likewise: that item fails, the others do not.

    Args:
        items: at least one.
        work: done on some of them, in order.
        name: of the batch, for the log.

    Returns:
        The results of the parts, in order, and the items that failed with the reason.

    Raises:
        RuntimeError: any but one of a full memory: an error of the code is not hidden.
    """
    try:
        return [work(items)], []
    except (PromptError, NumericalError, VectorsMismatch, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    if len(items) == 1:
        logger.warning("%s: one could not be done: %s", name, reason)
        return [], [(items[0], reason)]
    logger.warning("%s: %s. Tried again in halves.", name, reason)
    free_memory()
    half = len(items) // 2
    parts = [in_halves(part, work, name) for part in (items[:half], items[half:])]
    return [r for results, _ in parts for r in results], [f for _, failed in parts for f in failed]


def out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out, on a GPU or on the host.

    Only a GPU's own allocator raises an error of its own class; the words are those of the host's allocator on Linux
    and on Windows, of CUDA's libraries and of Apple's.
    """
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(words in said for words in _OUT_OF_MEMORY)


def free_memory() -> None:
    """Give back what torch keeps of a GPU's memory for later."""
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
