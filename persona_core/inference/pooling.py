"""Positions: which tokens' states are averaged into one state of a reply.

| position | tokens |
|---|---|
| `reply_mean` | all tokens of the answer: no thought, no end-of-turn tokens |
| `reply_first_N` | the first N of them |
| `reply_mean_with_sinks` | as `reply_mean`, sink tokens too: what they do to a mean |
| `thinking_mean` | all tokens of the thought before the answer; NaN for a reply without one |
| `prompt_last` | the last token of the prompt: the state that chooses the first reply token |
| `prompt_mean` | every token of the prompt, chat template included |

Sink tokens, whose state has a norm far outside the block's own range, are left out, except of `prompt_last`, which is
one token by its name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from persona_core.errors import SettingError
from persona_core.inference.sections import THOUGHT
from persona_core.inference.steering import PAD_INDEX


@dataclass(frozen=True)
class Pool:
    """One position.

    Attributes:
        name: as in the table.
        of_prompt: whether it averages over prompt tokens.
        first: only this many reply tokens; None: all.
        keeps_sinks: whether sink tokens count like others.
    """

    name: str
    of_prompt: bool = False
    first: int | None = None
    keeps_sinks: bool = False

    def mask(self, reply_index: torch.Tensor, answer_index: torch.Tensor) -> torch.Tensor:
        """Which tokens of a forward are averaged, bool `[rows, tokens]`.

        Args:
            reply_index: `[rows, tokens]`, position of each token in its reply; negative in the prompt.
            answer_index: long `[rows, tokens]`, position of each token in its answer, `THOUGHT` or `NEITHER`.
        """
        if self.name == "prompt_last":
            return reply_index == -1
        if self.of_prompt:
            return (reply_index < 0) & (reply_index > PAD_INDEX)
        if self.name == "thinking_mean":
            return answer_index == THOUGHT
        in_answer = answer_index >= 0
        return in_answer if self.first is None else in_answer & (answer_index < self.first)


def parse_position(name: str) -> Pool:
    """The position with this name.

    >>> parse_position("reply_first_8").first
    8
    """
    if name in ("reply_mean", "reply_mean_with_sinks", "thinking_mean"):
        return Pool(name, keeps_sinks=name == "reply_mean_with_sinks")
    if name in ("prompt_last", "prompt_mean"):
        return Pool(name, of_prompt=True, keeps_sinks=name == "prompt_last")
    found = re.fullmatch(r"reply_first_([1-9]\d{0,5})", name) if isinstance(name, str) else None
    if not found:
        raise SettingError(
            f"position={name!r}; expected reply_mean, reply_mean_with_sinks, reply_first_N (such as "
            "reply_first_8), thinking_mean, prompt_last or prompt_mean."
        )
    return Pool(name, first=int(found[1]))


def parse_positions(names: Sequence[str]) -> tuple[Pool, ...]:
    """Several positions, each at most once.

    Raises:
        SettingError: an unknown position, or a repeated one.
    """
    if isinstance(names, str):
        raise SettingError(f"positions={names!r}; expected a list of positions, such as [{names!r}].")
    if len(set(names)) < len(names):
        raise SettingError(f"positions={list(names)}: one is repeated.")
    return tuple(parse_position(name) for name in names)
