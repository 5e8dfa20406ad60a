"""How the next token is chosen: transformers' processors, and one draw for each reply and token."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from persona_core.errors import SettingError
from persona_core.utils.checks import is_integer, is_number

# A uniform draw of exactly 1 would select past the last token once the cumulative sum is rounded to float32.
LARGEST_DRAW = 1.0 - 2.0**-20

THOUGHT_LIMIT = 1024
MARK_TOKENS = 64  # room for the marks around a thought: gpt-oss' take 8 tokens where they are tokens, 30 as plain text


class SamplingOptions(TypedDict, total=False):
    """The fields of `Sampling` as keyword arguments; what they mean and their defaults are documented there."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    max_thinking_tokens: int | None


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, with the settings of transformers' `generate`.

    Attributes:
        max_new_tokens: longest reply, or of a model that thinks the longest answer; shortened where the context ends. A
            static cache reserves memory for it up front.
        temperature: 0 is greedy decoding.
        top_p: keep the most probable tokens that together have this probability; 1 keeps all.
        top_k: keep this many of the most probable tokens; 0 keeps all.
        repetition_penalty: above 1 makes tokens that occurred before, prompt included, less probable.
        max_thinking_tokens: longest thought before an answer; a reply whose thought is longer ends there, without an
            answer. None: 1,024.
    """

    max_new_tokens: int = 128
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    max_thinking_tokens: int | None = None

    def __post_init__(self) -> None:
        checks = {
            "max_new_tokens": (is_integer(self.max_new_tokens, minimum=1), "an integer of at least 1"),
            "temperature": (
                is_number(self.temperature) and (self.temperature == 0 or 1e-6 <= self.temperature <= 1e6),
                "0 (greedy) or 1e-6 to 1e6",  # beyond that the scaled scores leave float32
            ),
            "top_p": (is_number(self.top_p) and 0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (is_integer(self.top_k, minimum=0), "a non-negative integer"),
            "repetition_penalty": (
                is_number(self.repetition_penalty) and 1e-3 <= self.repetition_penalty <= 1e3,
                "0.001 to 1000",
            ),
            "max_thinking_tokens": (
                self.max_thinking_tokens is None or is_integer(self.max_thinking_tokens, minimum=1),
                "an integer of at least 1, or None",
            ),
        }
        for name, (good, expected) in checks.items():
            if not good:
                raise SettingError(f"{name}={getattr(self, name)!r}; expected {expected}.")

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values, without a limit of thoughts that was not set."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def thought_limit(self) -> int:
        return THOUGHT_LIMIT if self.max_thinking_tokens is None else self.max_thinking_tokens

    @property
    def choice(self) -> tuple[float, float, int, float]:
        """What decides between tokens: equal where two replies' tokens are chosen in the same way."""
        return self.temperature, self.top_p, self.top_k, self.repetition_penalty

    def longest_reply(self, thinks: bool) -> int:
        """Tokens of the longest reply, its thought and marks included."""
        return self.max_new_tokens + (self.thought_limit + MARK_TOKENS if thinks else 0)

    def processors(self) -> LogitsProcessorList:
        """transformers' own processors, in the order in which `generate` applies them."""
        chain = LogitsProcessorList()
        if self.repetition_penalty != 1.0:
            chain.append(RepetitionPenaltyLogitsProcessor(float(self.repetition_penalty)))
        if self.temperature not in (0.0, 1.0):
            chain.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k and self.temperature:
            chain.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1.0 and self.temperature:
            chain.append(TopPLogitsWarper(float(self.top_p)))
        return chain


def choose(scores: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
    """Invert the cumulative distribution at each row's uniform draw: rows share no state.

    Args:
        scores: `[rows, vocab]` logits; -inf where a token is excluded.
        draw: `[rows, 1]` in [0, 1).
    """
    cumulative = scores.softmax(-1).cumsum(-1)  # [rows, vocab]
    # The first token whose cumulative probability exceeds the draw; one of probability 0 is never chosen.
    chosen = torch.searchsorted(cumulative, draw * cumulative[:, -1:], right=True).squeeze(-1)
    return chosen.clamp_max(scores.shape[-1] - 1)  # past the end only where the scores are NaN


def draws(seed: int, n: int) -> torch.Tensor:
    """Uniform draws in [0, 1), one for each token of a reply, `[n]`; the first ones do not depend on `n`."""
    uniform = np.random.default_rng(seed).random(n) * LARGEST_DRAW
    return torch.from_numpy(uniform.astype(np.float32))
