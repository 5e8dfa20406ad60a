"""Checks of what visitors and programs send: prompts, sampling settings, branches. None of it can be trusted."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from persona_core.analysis.branch_figures import change_name
from persona_core.errors import PromptError, SettingError
from persona_core.inference.steering import Steer, When
from persona_core.models.chat import ROLES
from persona_core.models.detokenize import is_well_formed
from persona_core.models.messages import THOUGHT_FIELDS
from persona_core.utils.checks import is_number

Messages = list[dict[str, str]]

ACTIONS = ("add", "remove", "cap", "cap from its alarm on")
"""What a branch can do to a trait."""
MAX_AMOUNT = 20.0
"""Standard deviations: the most by which a trait is moved, or at which it is capped."""
MAX_TEMPERATURE = 1.5
MAX_MESSAGES = 40
"""Of a conversation; the context usually ends it earlier."""


def text_of(name: str, text: Any, max_chars: int) -> str:
    """A text that a visitor typed.

    Raises:
        PromptError: not a string, or too long.
    """
    if not isinstance(text, str):
        raise PromptError(f"The {name} must be text.")
    if not is_well_formed(text):  # it could not even be sent back
        raise PromptError(f"The {name} contains half of a surrogate pair, which is not a character; remove it.")
    if len(text) > max_chars:
        raise PromptError(f"The {name} has {len(text)} characters; at most {max_chars} are allowed here. Shorten it.")
    return text


def chat_messages(earlier: Sequence[Mapping[str, str]], prompt: Any, system: Any, max_chars: int) -> Messages:
    """A conversation before its next reply: the current system prompt, the earlier messages, and the new prompt.

    Raises:
        PromptError: an empty or too long prompt, or too many messages.
    """
    prompt, system = text_of("prompt", prompt, max_chars), text_of("system prompt", system, max_chars)
    if not prompt.strip():
        raise PromptError("The prompt is empty. Type something, or pick an example.")
    said = [dict(m) for m in earlier if m["role"] != "system"]
    if len(said) >= MAX_MESSAGES:
        raise PromptError(f"The conversation has {len(said)} messages; start a new chat.")
    head = [{"role": "system", "content": system}] if system.strip() else []
    return [*head, *said, {"role": "user", "content": prompt}]


def messages_of(messages: Any, max_chars: int) -> Messages:
    """A conversation that a program sends, with the thoughts beside its replies.

    Raises:
        PromptError: not a list of messages, an unknown role, or too much text.
    """
    if not isinstance(messages, list) or not messages:
        raise PromptError('messages: expected a list of {"role": ..., "content": ...}.')
    if len(messages) > 10 * MAX_MESSAGES:
        raise PromptError(f"messages: got {len(messages)}; at most {10 * MAX_MESSAGES} are allowed here.")
    found = []
    for index, message in enumerate(messages):
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role not in ROLES or not isinstance(content, str):
            raise PromptError(f"messages[{index}]: expected a role of {', '.join(ROLES)}, and a text as content.")
        thoughts = {name: message[name] for name in THOUGHT_FIELDS if message.get(name) is not None}
        for name, thought in thoughts.items():
            text_of(f"messages[{index}].{name}", thought, max_chars)
        found.append({"role": role, "content": content, **thoughts})
    text_of("conversation", "".join(text for m in found for name, text in m.items() if name != "role"), max_chars)
    return found


def seed_of(seed: Any) -> int | None:
    """A seed; None draws one at random, and the trace records it.

    Raises:
        SettingError.
    """
    if seed is None:
        return None
    if not _is_whole(seed, 0, 2**53):
        raise SettingError("The seed must be a non-negative integer, or empty to draw one at random.")
    return int(seed)


def seed_or_random(seed: Any) -> int:
    """The same, but drawn here, so that a link to the reply can include it."""
    known = seed_of(seed)
    return secrets.randbits(31) if known is None else known


def length_of(length: Any, most: int) -> int:
    """The maximum length of a reply in tokens, cut to the app's limit.

    Raises:
        SettingError.
    """
    if not _is_whole(length, 1):
        raise SettingError("The maximum length must be a whole number of tokens from 1.")
    return min(int(length), most)


def start_of(start: Any) -> int:
    """The token of the reply from which an intervention acts.

    Raises:
        SettingError.
    """
    if not _is_whole(start, 0):
        raise SettingError("The start must be a token of the reply: a non-negative integer.")
    return int(start)


def steer_of(trait: Any, action: Any, amount: Any, at: int, best_block: Mapping[str, int]) -> Steer:
    """The intervention of a branch from token `at` of the reply on, at the trait's best block.

    Args:
        trait, action: one of `best_block` and of `ACTIONS`.
        amount: standard deviations by which the trait is moved, or at which it is capped. "remove" ignores it.
        at: the first token of the reply whose choice can change.
        best_block: of the vectors.

    Raises:
        SettingError: anything else.
    """
    if not isinstance(trait, str) or trait not in best_block:
        raise SettingError(f"Unknown trait {str(trait)[:80]!r}; choose one of {', '.join(best_block)}.")
    if action not in ACTIONS:
        raise SettingError(f"Unknown action {str(action)[:80]!r}; choose one of {', '.join(ACTIONS)}.")
    if not _is_amount(amount):
        raise SettingError(f"The amount must be in standard deviations, from -{MAX_AMOUNT:g} to {MAX_AMOUNT:g}.")
    block = best_block[trait]
    if action == "add":
        return Steer(trait, block, strength=float(amount), unit="sd", start=at)
    if action == "remove":
        return Steer.ablate(trait, block, start=at)
    when: When = "alarm" if action == ACTIONS[3] else "start"
    return Steer.cap(trait, block, threshold=float(amount), unit="sd", start=at, when=when)


def fits_fields(trait: Any, action: Any, amount: Any) -> bool:
    """Whether the fields of a branch can hold the values."""
    return isinstance(trait, str) and action in ACTIONS and _is_amount(amount)


def steer_name(steer: Steer) -> str:
    """A short name of an intervention."""
    return change_name(steer.trait, steer.mode, steer.amount) + (
        ", from its alarm on" if steer.mode == "cap" and steer.when == "alarm" else ""
    )


def _is_amount(value: Any) -> bool:
    return is_number(value) and abs(value) <= MAX_AMOUNT


def _is_whole(value: Any, minimum: int, limit: int = 2**31) -> bool:
    """Whether a JSON number is whole (3.0 is) and in `[minimum, limit)`."""
    return is_number(value) and minimum <= value < limit and value == int(value)
