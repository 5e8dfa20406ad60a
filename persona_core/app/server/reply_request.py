"""What a request amounts to, in whichever form it came, and the fields that all forms share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from persona_core.app.requests import ACTIONS, Messages, messages_of, start_of, steer_of
from persona_core.app.server.api_errors import ApiError
from persona_core.errors import SettingError, UnknownTrait
from persona_core.inference.steering import Steer
from persona_core.vectors.vectors import PersonaVectors

MAX_STEERS = 32
"""Interventions of one request."""
TEXT_PARTS = ("text", "input_text", "output_text")

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
OPEN = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)
"""Further fields are looked at by `check_others`."""


class TextPart(BaseModel):
    """A part of a message."""

    model_config = OPEN
    type: str
    text: str | None = None


class Message(BaseModel):
    """A message of the conversation."""

    model_config = OPEN
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None


class SteerFields(BaseModel):
    """An intervention: a trait moved, or taken out."""

    model_config = STRICT
    trait: str
    action: Literal["add", "remove"] = "add"
    amount: float = Field(default=0.0, description="Standard deviations of neutral text along the steering direction.")
    start: int = Field(default=0, description="First token of the reply whose choice can change.")


class PersonaFields(BaseModel):
    """What this server takes beyond OpenAI's fields; `extra_body={"persona": ...}` of the openai client."""

    model_config = STRICT
    traits: list[str] | None = Field(
        default=None, max_length=256, description="Those that are reported and watched; all by default."
    )
    steer: list[SteerFields] = Field(default=[], max_length=MAX_STEERS)
    cap: dict[str, float] = Field(default={}, description="Trait -> standard deviations above which it is held.")
    cap_on_alarm: dict[str, float] = Field(default={}, description="The same, from its alarm on.")

    def steers(self, best_block: Mapping[str, int]) -> list[Steer]:
        """The interventions, each at its trait's best block.

        Raises:
            SettingError: an unknown trait, or an amount out of range.
        """
        if len(self.steer) + len(self.cap) + len(self.cap_on_alarm) > MAX_STEERS:
            raise SettingError(f"persona: more than {MAX_STEERS} interventions.")
        found = [steer_of(s.trait, s.action, s.amount, start_of(s.start), best_block) for s in self.steer]
        for action, caps in ((ACTIONS[2], self.cap), (ACTIONS[3], self.cap_on_alarm)):
            found += [steer_of(trait, action, amount, 0, best_block) for trait, amount in caps.items()]
        return found


@dataclass(frozen=True)
class ReplyRequest:
    """A request for one reply.

    Attributes:
        messages: the conversation before it.
        stream: whether its tokens are sent as they are written.
        sampling: arguments of `Sampling` that the request names.
        seed: None draws one.
        n_top: how many of the likeliest tokens to list beside each token's log probability; None: neither.
        persona: what this server takes beyond OpenAI's fields.
        include_usage: whether a stream ends with the number of tokens.
    """

    messages: Messages
    stream: bool
    sampling: Mapping[str, Any]
    seed: int | None = None
    n_top: int | None = None
    persona: PersonaFields = field(default_factory=PersonaFields)
    include_usage: bool = False

    def traits(self, vectors: PersonaVectors) -> tuple[str, ...]:
        """The traits that are reported, in the order of the vectors.

        Raises:
            UnknownTrait.
        """
        known = tuple(t for t in vectors.traits if t in vectors.best_block)
        for trait in self.persona.traits or ():
            if trait not in known:
                raise UnknownTrait(trait[:80], known)
        return known if self.persona.traits is None else tuple(t for t in known if t in self.persona.traits)


def check_others(fields: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]], ignored: frozenset[str]) -> None:
    """Refuse further fields that would change the reply, unless they ask for what happens anyway.

    Args:
        fields: of the request.
        neutral: of each known field that this server lacks, the values that ask for nothing.
        ignored: fields that never change the reply.

    Raises:
        ApiError.
    """
    for name, value in fields.items():
        if name in ignored or value is None or any(value == one for one in neutral.get(name, ())):
            continue
        reason = "is not supported by this server" if name in neutral else "is no field that this server knows"
        raise ApiError(
            f"{name[:80]!r} {reason}, and would change the reply; leave it out.",
            param=name[:80],
            code="unsupported_parameter" if name in neutral else "unknown_parameter",
        )


def checked_messages(messages: Sequence[Message], max_chars: int) -> Messages:
    """A conversation as the library takes it.

    Raises:
        ApiError: content that is no text, or calls of tools.
        PromptError: too long, or not well-formed.
    """
    found = []
    for index, message in enumerate(messages):
        more = message.model_extra or {}
        if more.get("tool_calls") or more.get("function_call"):
            raise ApiError(f"messages[{index}]: this server has no tools.", param=f"messages.{index}")
        role = "system" if message.role == "developer" else message.role
        content = _text(message.content, f"messages.{index}.content")
        found.append({**more, "role": role, "content": content})
    return messages_of(found, max_chars)


def _text(content: str | list[TextPart] | None, param: str) -> str:
    """A message's text; parts are joined by line breaks."""
    if isinstance(content, str):
        return content
    texts = [part.text for part in content or () if part.type in TEXT_PARTS and part.text is not None]
    if content is None or len(texts) < len(content):
        raise ApiError(f"{param}: expected text; this server reads no images, audio or files.", param=param)
    return "\n".join(texts)
