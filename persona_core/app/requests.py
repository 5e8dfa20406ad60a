"""What visitors ask for, checked: prompts, sampling settings, branches. Everything here may come from anywhere."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from persona_core.errors import PromptError, SettingError
from persona_core.inference.steering import Steer, When
from persona_core.models.chat import ROLES
from persona_core.models.detokenize import is_well_formed
from persona_core.utils.checks import is_number

Messages = list[dict[str, str]]

ACTIONS = ("add", "remove", "cap", "cap from its alarm on")
"""What a branch can do to a trait."""
STRONGEST = 20.0
"""Standard deviations: a trait is moved or held within this."""
LONGEST_CHAT = 40
"""Messages of a conversation; the context ends it earlier as a rule."""


def text_of(name: str, text: Any, longest: int) -> str:
    """A text that a visitor typed.

    Raises:
        PromptError: no text, or too long a one.
    """
    if not isinstance(text, str):
        raise PromptError(f"The {name} is not a text.")
    if not is_well_formed(text):  # it could not even be sent back
        raise PromptError(f"The {name} holds half of a surrogate pair, which is no character; remove it.")
    if len(text) > longest:
        raise PromptError(f"The {name} has {len(text)} characters; this app takes at most {longest}. Shorten it.")
    return text


def conversation(earlier: Sequence[Mapping[str, str]], prompt: Any, system: Any, longest: int) -> Messages:
    """A conversation up to the next reply: the system prompt as it is now, what was said, and what is asked.

    Raises:
        PromptError: an empty or too long prompt, or too many turns.
    """
    prompt, system = text_of("prompt", prompt, longest), text_of("system prompt", system, longest)
    if not prompt.strip():
        raise PromptError("The prompt is empty. Type something, or pick an example.")
    said = [dict(m) for m in earlier if m["role"] != "system"]
    if len(said) >= LONGEST_CHAT:
        raise PromptError(f"The conversation has {len(said)} messages; begin a new chat.")
    head = [{"role": "system", "content": system}] if system.strip() else []
    return [*head, *said, {"role": "user", "content": prompt}]


def messages_of(messages: Any, longest: int) -> Messages:
    """A conversation that a program sends.

    Raises:
        PromptError: no list of messages, an unknown role, or too much text.
    """
    if not isinstance(messages, list) or not messages:
        raise PromptError('messages: expected a list of {"role": ..., "content": ...}.')
    if len(messages) > 10 * LONGEST_CHAT:
        raise PromptError(f"messages: {len(messages)} of them; this app takes at most {10 * LONGEST_CHAT}.")
    found = []
    for place, one in enumerate(messages):
        if not isinstance(one, dict) or one.get("role") not in ROLES or not isinstance(one.get("content"), str):
            raise PromptError(f"messages[{place}]: expected a role of {', '.join(ROLES)}, and a text as content.")
        found.append({"role": one["role"], "content": one["content"]})
    text_of("conversation", "".join(m["content"] for m in found), longest)
    return found


def seed_of(seed: Any) -> int | None:
    """A seed; a cleared field draws one, and the trace then says which.

    Raises:
        SettingError.
    """
    if seed is None:
        return None
    if not is_number(seed) or not 0 <= seed < 2**53 or seed != int(seed):
        raise SettingError("The seed is a whole number from 0, or empty to draw one.")
    return int(seed)


def drawn(seed: Any) -> int:
    """The same, drawn where the field was cleared: what is shown can then be brought back by a link."""
    known = seed_of(seed)
    return secrets.randbits(31) if known is None else known


def length_of(length: Any, most: int) -> int:
    """The longest reply in tokens, no longer than the app allows.

    Raises:
        SettingError.
    """
    if not is_number(length) or not 1 <= length < 2**31 or length != int(length):
        raise SettingError("The longest reply is a whole number of tokens from 1.")
    return min(int(length), most)


def start_of(start: Any) -> int:
    """The token of the reply from which an intervention acts.

    Raises:
        SettingError.
    """
    if not is_number(start) or not 0 <= start < 2**31 or start != int(start):
        raise SettingError("The start is a token of the reply: a whole number from 0.")
    return int(start)


def steer_of(trait: Any, action: Any, amount: Any, at: int, best_block: Mapping[str, int]) -> Steer:
    """What a branch does from token `at` of the reply on, at the trait's best block.

    Args:
        trait, action: one of `best_block` and of `ACTIONS`.
        amount: standard deviations: by which the trait is moved, or at which it is held. "remove" has none.
        at: token of the reply whose choice is the first that can change.
        best_block: of the vectors.

    Raises:
        SettingError: anything else.
    """
    if not isinstance(trait, str) or trait not in best_block:
        raise SettingError(f"There is no trait {str(trait)[:80]!r}; choose one of {', '.join(best_block)}.")
    if action not in ACTIONS:
        raise SettingError(f"There is no action {str(action)[:80]!r}; choose one of {', '.join(ACTIONS)}.")
    if not is_number(amount) or abs(amount) > STRONGEST:
        raise SettingError(f"The amount is a number of standard deviations, at most {STRONGEST:g} to either side.")
    block = best_block[trait]
    if action == "add":
        return Steer(trait, block, strength=float(amount), unit="sd", start=at)
    if action == "remove":
        return Steer.ablate(trait, block, start=at)
    when: When = "alarm" if action == ACTIONS[3] else "start"
    return Steer.cap(trait, block, threshold=float(amount), unit="sd", start=at, when=when)


def fits(trait: Any, action: Any, amount: Any) -> bool:
    """Whether the fields of a branch can hold the values."""
    return isinstance(trait, str) and action in ACTIONS and is_number(amount) and abs(amount) <= STRONGEST


def steer_name(steer: Steer) -> str:
    """An intervention in few words."""
    if steer.mode == "ablate":
        return f"without {steer.trait}"
    if steer.mode == "cap":
        return f"{steer.trait} held at {steer.amount:+g} SD" + (", from its alarm on" if steer.when == "alarm" else "")
    return f"{steer.trait} {steer.amount:+g} SD"
