"""Which tokens' states are averaged into one state of a reply.

| position | tokens |
|---|---|
| `reply_mean` | the reply's own tokens, end-of-turn tokens left out |
| `reply_first_N` | the first N of them |
| `prompt_last` | the last token of the prompt: what the first token of the reply is chosen from |
| `prompt_mean` | every token of the prompt, those of the chat template too |
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from persona_core.errors import SettingError
from persona_core.inference.steering import PAD_INDEX


@dataclass(frozen=True)
class Pool:
    """One position.

    Attributes:
        name: as in the table.
        of_prompt: it averages over tokens of the prompt.
        first: only this many reply tokens; None: all.
    """

    name: str
    of_prompt: bool = False
    first: int | None = None

    def marks(self, reply_index: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Which tokens of a forward belong to it, bool `[rows, tokens]`.

        Args:
            reply_index: `[rows, tokens]`, position of each token in its reply; negative in the prompt.
            own: bool `[rows, tokens]`, a token that the assistant said: alive and no end of turn.
        """
        if self.name == "prompt_last":
            return reply_index == -1
        if self.of_prompt:
            return (reply_index < 0) & (reply_index > PAD_INDEX)
        marked = own & (reply_index >= 0)
        return marked if self.first is None else marked & (reply_index < self.first)


def parse_position(name: str) -> Pool:
    """The pool of a position's name.

    >>> parse_position("reply_first_8").first
    8
    """
    if name == "reply_mean":
        return Pool(name)
    if name in ("prompt_last", "prompt_mean"):
        return Pool(name, of_prompt=True)
    found = re.fullmatch(r"reply_first_([1-9]\d{0,5})", name) if isinstance(name, str) else None
    if not found:
        raise SettingError(
            f"position={name!r}; expected reply_mean, reply_first_N (such as reply_first_8), prompt_last or "
            "prompt_mean."
        )
    return Pool(name, first=int(found[1]))


def parse_positions(names: Sequence[str]) -> tuple[Pool, ...]:
    """The pools of several positions, each once.

    Raises:
        SettingError: an unknown position, or one that is named twice.
    """
    if isinstance(names, str):
        raise SettingError(f"positions={names!r}; expected a list of positions, such as [{names!r}].")
    if len(set(names)) < len(names):
        raise SettingError(f"positions={list(names)}: one of them comes twice.")
    return tuple(parse_position(name) for name in names)
