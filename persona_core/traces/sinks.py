"""The rule for sink tokens: a state's norm above the limit of its block.

`persona_core.inference.sinks` measures the limits. Stored rows have None where no limit is known; in memory it is
infinity.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def is_sink(norms: np.ndarray, limits: np.ndarray | float) -> np.ndarray:
    """Whether each state is that of a sink token, bool; a norm that is NaN is not.

    Args:
        norms: ‖h‖, `[n_blocks, n_tokens]`, or `[n_tokens]` at one block.
        limits: of each block, `[n_blocks]`, or of that block.

    >>> is_sink(np.array([[1.0, 9.0], [1.0, 9.0]]), np.array([3.0, np.inf])).tolist()
    [[False, True], [False, False]]
    """
    with np.errstate(invalid="ignore"):
        return norms > np.asarray(limits, np.float32)[..., None]


def stored_limits(limits: np.ndarray) -> list[float | None]:
    """Limits as they are stored."""
    return [float(limit) if np.isfinite(limit) else None for limit in limits]


def read_limits(stored: Sequence[float | None] | None, n_blocks: int) -> np.ndarray:
    """Stored limits as they are used, float32 `[n_blocks]`; older records have none at all."""
    if stored is None:
        return np.full(n_blocks, np.inf, np.float32)
    return np.array([np.inf if limit is None else limit for limit in stored], np.float32)
