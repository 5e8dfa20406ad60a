"""Checks of numbers: integers, finite numbers, and blocks, which are never replaced by a neighbour."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import TypeGuard

from persona_core.errors import SettingError, UnknownBlock

MAX_INTEGER = 2**62
"""Larger settings do not fit into the 64 bits of a tensor's index, or of a stored seed."""


def is_integer(value: object, minimum: int | None = None) -> TypeGuard[int]:
    """Whether a value is an integer (NumPy's included, booleans not), and not below `minimum`.

    >>> is_integer(3), is_integer(True), is_integer(3.0), is_integer(-1, minimum=0)
    (True, False, False, False)
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        return False
    return minimum is None or int(value) >= minimum


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a finite real number (NumPy's included, booleans not).

    >>> is_number(0.5), is_number(3), is_number(False), is_number(float("nan")), is_number("3")
    (True, True, False, False, False)
    """
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int too large for a float
        return False


def check_integer(name: str, value: object, minimum: int = 1, otherwise: str = "") -> None:
    """Refuse anything but an integer from `minimum` on.

    Args:
        name: of the setting, for the message.
        value: what it was set to.
        minimum: the smallest one allowed; the largest is `MAX_INTEGER`.
        otherwise: what else the setting accepts, for the message: "None to draw one".

    Raises:
        SettingError: with the name and the value.
    """
    if not is_integer(value, minimum):
        also = f", or {otherwise}" if otherwise else ""
        raise SettingError(f"{name}={value!r}; expected an integer of at least {minimum}{also}.")
    if value > MAX_INTEGER:
        raise SettingError(f"{name}={value}; expected an integer of at most 2^62.")


def known_block(block: object, known: Sequence[int], whose: str, absent: Sequence[int] = ()) -> int:
    """Return `block` as an int if it is one of `known`.

    Args:
        block: a number; NumPy's integers count, booleans, floats and negative numbers do not.
        known: the blocks there are.
        whose: what holds them, for the message: "The model has".
        absent: blocks that lack a direction, for the message.

    Raises:
        UnknownBlock: with the blocks that there are.

    >>> known_block(2, range(6), "The model has")
    2
    """
    if not is_integer(block) or block not in known:
        missing = f" (absent: {list(absent)})" if absent else ""
        raise UnknownBlock(f"Unknown or absent block {block!r}. {whose} {_listed(known)}{missing}.")
    return int(block)


def _listed(known: Sequence[int]) -> str:
    if len(known) > 2 and list(known) == list(range(known[0], known[-1] + 1)):
        return f"blocks {known[0]} to {known[-1]}"
    return f"blocks {list(known)}"
