"""Whether the parts of persona vectors fit each other."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch

from persona_core.errors import VectorsMismatch
from persona_core.vectors.null import Null


def check_directions(
    tensors: Mapping[str, torch.Tensor], readings: Mapping[str, torch.Tensor], absent_blocks: Collection[int]
) -> None:
    """Refuse directions that are not `[n_blocks, d_model]` each, finite, and not zero at any present block.

    Raises:
        VectorsMismatch: with the trait and what is wrong.
    """
    if not tensors:
        raise VectorsMismatch("No vectors; pass at least one trait's [n_blocks, d_model] tensor.")
    shapes = {trait: tuple(tensor.shape) for trait, tensor in tensors.items()}
    if lacking := sorted(set(tensors) ^ set(readings)) if readings else []:
        raise VectorsMismatch(f"{lacking[0]!r} has only one of the two directions; every trait needs both or none.")
    if len(set(shapes.values())) > 1 or len(next(iter(shapes.values()))) != 2:
        raise VectorsMismatch(f"Every trait needs one [n_blocks, d_model] tensor of the same shape; got {shapes}.")
    present = [b for b in range(next(iter(shapes.values()))[0]) if b not in absent_blocks]
    for trait, tensor in [*tensors.items(), *readings.items()]:
        if tuple(tensor.shape) != shapes[trait]:
            raise VectorsMismatch(
                f"The reading direction of {trait!r} has shape {tuple(tensor.shape)}; expected {shapes[trait]}, as its "
                "steering direction."
            )
        if wrong := [b for b in present if not torch.isfinite(tensor[b]).all()]:
            raise VectorsMismatch(
                f"The vector of {trait!r} holds NaN or infinity at block {wrong[0]}; mark the block as absent, or make "
                "the vector again."
            )
        if (tensor[present].norm(dim=-1) == 0).any():
            raise VectorsMismatch(f"The vector of {trait!r} is zero at a block; mark that block as absent.")


def check_null(trait: str, null: Null, n_blocks: int) -> None:
    """Refuse a null of other blocks."""
    shape = (n_blocks, len(null.probabilities))
    if (null.mean.shape, null.std.shape, null.quantiles.shape) != (shape[:1], shape[:1], shape):
        raise VectorsMismatch(f"The null of {trait!r} does not cover {n_blocks} blocks.")


def check_shape(what: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    """Refuse an array of another shape.

    Args:
        what: for the message: "norm limits have".
    """
    if array.shape != shape:
        raise VectorsMismatch(
            f"The {what} shape {array.shape}; expected {shape}. The file belongs to other vectors; save or download it "
            "again."
        )
