"""Names as numbers, for statistics over groups."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import numpy as np


def numbered(names: Iterable[Hashable]) -> np.ndarray:
    """Each name's number, in the order in which they first appear, `[n]`; equal names have the same one.

    >>> numbered(["b", "a", "b"]).tolist()
    [0, 1, 0]
    """
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], int)
