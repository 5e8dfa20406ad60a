"""Checks a user's `Steer` against the vectors and the model, and converts it to residual-stream units."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from persona_core.errors import NotCalibrated, SettingError
from persona_core.inference.steering import NEVER, Intervention, Steer
from persona_core.models.blocks import Blocks
from persona_core.vectors.vectors import PersonaVectors


def prepare(
    steer: Steer | Sequence[Steer] | None, vectors: PersonaVectors, blocks: Blocks, n_rows: int = 1
) -> list[Intervention]:
    """Check each `Steer` against the vectors and the model, and convert its amount to residual units.

    Args:
        n_rows: replies of the run; an intervention that waits for an alarm starts separately in each.

    Raises:
        UnknownTrait, UnknownBlock: the vectors or the model lack it.
        NotCalibrated: `unit="sd"` without a null.
    """
    steers = [] if steer is None else [steer] if isinstance(steer, (Steer, str)) else list(steer)
    ready = []
    for one in steers:
        if not isinstance(one, Steer):
            raise SettingError(f"steer={one!r}; expected a Steer, a list of them, or None.")
        direction = vectors.direction(one.trait, blocks.check(one.block))
        amount = one.amount
        if one.unit == "sd":
            null = vectors.null_of_steering(one.trait)
            if null is None:
                raise NotCalibrated(f"unit='sd' needs a null for {one.trait!r}; calibrate, or use unit='residual'.")
            mean, std = null.at(one.block)
            if not std > 0:
                raise NotCalibrated(
                    f"The null of {one.trait!r} has no spread at block {one.block}; use unit='residual'."
                )
            amount = amount * std if one.mode == "add" else mean + amount * std
        device = blocks.device(one.block)
        starts = torch.full((n_rows,), NEVER) if one.when == "alarm" else None
        ready.append(Intervention(one, direction.to(device), amount, starts))
    return ready
