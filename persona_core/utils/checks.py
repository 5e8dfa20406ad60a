"""Numbers that count: blocks, from 0 and never replaced by a neighbour; sizes, from 1."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Sequence

from persona_core.errors import SettingError, UnknownBlock


def from_one(name: str, value: object) -> None:
    """Refuse what is no whole number from 1.

    Raises:
        SettingError: with the name and the value.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise SettingError(f"{name}={value!r}; expected a whole number from 1.")


def known_block(block: object, known: Sequence[int], whose: str, absent: Sequence[int] = ()) -> int:
    """Return `block` as an int if it is one of `known`.

    Args:
        block: a number; numpy's integers count, booleans, floats and negative numbers do not.
        known: the blocks there are.
        whose: what holds them, for the message: "The model has".
        absent: blocks that lack a direction, for the message.

    Raises:
        UnknownBlock: with the blocks that there are.

    >>> known_block(2, range(6), "The model has")
    2
    """
    try:
        number = operator.index(block)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if isinstance(block, bool) or number not in known:
        missing = f" (absent: {list(absent)})" if absent else ""
        raise UnknownBlock(f"Unknown or absent block {block!r}. {whose} {_listed(known)}{missing}.")
    return number


def _listed(known: Sequence[int]) -> str:
    if len(known) > 2 and list(known) == list(range(known[0], known[-1] + 1)):
        return f"blocks {known[0]} to {known[-1]}"
    return f"blocks {list(known)}"
