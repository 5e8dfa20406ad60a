"""ZeroGPU: work that needs the GPU runs in a process that is forked for it, where the Space lends one.

What that asks of the code, and is so everywhere for the sake of one way: the functions are plain functions or
generators, not methods with state; what they take and yield can be pickled (a `ModelDesk` goes by its name and is found
again in the fork, which has the models of its parent); models are loaded when the app starts, before any fork; and
whatever the visitor's press on Stop sets stays in the parent, which closes the generator.

Without the package `spaces`, or outside ZeroGPU, `on_gpu` changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])

LONGEST = 120
"""Seconds for which one call may hold the GPU."""


def zero_gpu() -> bool:
    """Whether this is a Space on ZeroGPU."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def on_gpu(function: F) -> F:
    """The function, run with a GPU where the Space lends one. Import this module before torch is used."""
    try:
        import spaces
    except ImportError:
        return function
    wrapped: F = spaces.GPU(duration=LONGEST)(function)
    return wrapped
