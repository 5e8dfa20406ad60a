"""Pooled states of many replies, read one reply or one block at a time, never all at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from persona_core.errors import SettingError


class States(Protocol):
    """One pooled state per reply and block. Iterating gives one reply's float32 `[n_blocks, d_model]` at a time."""

    @property
    def n_blocks(self) -> int: ...

    @property
    def d_model(self) -> int: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[np.ndarray]: ...

    def block(self, block: int) -> np.ndarray:
        """One block's states of all replies, float32 `[n_replies, d_model]`."""
        ...

    def take(self, indices: Sequence[int] | np.ndarray) -> States:
        """The replies at these indices, in this order; an index may repeat."""
        ...


class ArrayStates:
    """States in memory.

    Args:
        array: `[n_replies, n_blocks, d_model]`.

    >>> states = ArrayStates(np.zeros((5, 2, 3)))
    >>> len(states), states.block(1).shape, len(states.take([0, 4]))
    (5, (5, 3), 2)
    """

    def __init__(self, array: np.ndarray) -> None:
        if array.ndim != 3:
            raise SettingError(f"States of shape {array.shape}; expected [n_replies, n_blocks, d_model].")
        self._array = array.astype(np.float32, copy=False)

    @property
    def n_blocks(self) -> int:
        return int(self._array.shape[1])

    @property
    def d_model(self) -> int:
        return int(self._array.shape[2])

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self._array)

    def block(self, block: int) -> np.ndarray:
        return self._array[:, block]

    def take(self, indices: Sequence[int] | np.ndarray) -> ArrayStates:
        return ArrayStates(self._array[np.asarray(indices, int)])
