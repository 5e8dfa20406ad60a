"""The null of a direction: how projections on it are distributed over neutral replies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from persona_core.utils.checks import known_block


@dataclass(frozen=True)
class Null:
    """How one trait's raw projection is distributed over the tokens of neutral replies, for each block.

    Attributes:
        mean, std: float32 `[n_blocks]`, residual-stream units.
        quantiles: float32 `[n_blocks, n_probabilities]`.
        probabilities: the quantiles' probabilities, e.g. (0.01, 0.05, ..., 0.99).
    """

    mean: np.ndarray
    std: np.ndarray
    quantiles: np.ndarray
    probabilities: tuple[float, ...]

    def at(self, block: int) -> tuple[float, float]:
        """Mean and standard deviation at one block."""
        number = known_block(block, range(len(self.mean)), "The null holds")
        return float(self.mean[number]), float(self.std[number])
