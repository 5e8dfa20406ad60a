"""Checks of what a user passes to a monitor: seeds, and lists of prompts or texts."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from persona_core.errors import PromptError, SettingError
from persona_core.utils.checks import check_integer

T = TypeVar("T")


def as_seeds(seed: int | Sequence[int] | None, n: int) -> list[int]:
    """A seed for each of n replies: seed, seed + 1, … or the given ones; None draws the first."""
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        if len(seed) != n:
            raise SettingError(f"{len(seed)} seeds for {n} prompts; pass one seed per prompt.")
        return [_checked(one) for one in seed]
    first = _checked(seed)
    return [first + i for i in range(n)]


def _checked(seed: int | None) -> int:
    if seed is None:
        return secrets.randbits(31)
    check_integer("seed", seed, 0, otherwise="None to draw one")
    return int(seed)


def as_list(items: Iterable[T]) -> list[T]:
    """Prompts or texts as a list; a single prompt or conversation is refused."""
    if isinstance(items, (str, bytes, Mapping)) or not isinstance(items, Iterable):
        raise PromptError(f"Expected a list of prompts or texts; got one {type(items).__name__}. Wrap it in a list.")
    several = list(items)
    if any(isinstance(one, Mapping) for one in several):
        raise PromptError("Expected a list of conversations; got one as a list of messages. Wrap it in a list.")
    return several


@contextmanager
def naming(index: int, count: int) -> Iterator[None]:
    """Name the prompt that an error is about, where there are several."""
    try:
        yield
    except PromptError as error:
        raise type(error)(f"Prompt {index}: {error}" if count > 1 else str(error)) from error
