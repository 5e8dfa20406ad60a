"""Conversations as lists of messages, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from persona_core.errors import PromptError
from persona_core.models.detokenize import is_well_formed

Messages = Sequence[Mapping[str, str]]
ROLES = ("system", "user", "assistant")
THOUGHT_FIELDS = ("reasoning_content", "thinking", "reasoning")  # the names that transformers accepts, in its order


def as_messages(prompt: str | Messages) -> list[dict[str, str]]:
    """A string becomes one user message; a list of messages is checked and copied.

    What an assistant thought before it answered may stand beside its content, as "reasoning_content".

    >>> as_messages("Hello")
    [{'role': 'user', 'content': 'Hello'}]
    """
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        raise PromptError(
            f"A conversation is a string or a list of {{'role', 'content'}} messages, not {type(prompt).__name__}."
        )
    if not prompt:
        raise PromptError("The conversation is empty; pass a string or a list of {'role', 'content'} messages.")
    return [_message(index, message) for index, message in enumerate(prompt)]


def _message(index: int, message: object) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise PromptError(f"Message {index} is {message!r}; expected a mapping with 'role' and 'content'.")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise PromptError(f"Message {index} has the role {role!r}; expected one of {', '.join(ROLES)}.")
    checked = {"role": str(role), "content": _text(index, "content", content)}
    if role == "user" and not checked["content"].strip():
        raise PromptError(f"Message {index} (user) is empty; write something to reply to.")
    thought = next((message[name] for name in THOUGHT_FIELDS if message.get(name) is not None), None)
    if thought is not None and role == "assistant" and _text(index, "reasoning_content", thought).strip():
        checked["reasoning_content"] = thought
    return checked


def _text(index: int, name: str, value: object) -> str:
    if not isinstance(value, str):
        raise PromptError(f"Message {index} has {name} of type {type(value).__name__}; expected a string.")
    if not is_well_formed(value):
        raise PromptError(f"Message {index} contains an unpaired surrogate, which is not a character; remove it.")
    return value


def conversation(user: str, system: str | None = None) -> list[dict[str, str]]:
    """A user message as a conversation, with a system prompt if there is one.

    >>> conversation("Hi")
    [{'role': 'user', 'content': 'Hi'}]
    """
    message = {"role": "user", "content": user}
    return [{"role": "system", "content": system}, message] if system else [message]
