"""What the server serves, and its limits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from persona_core.errors import SettingError
from persona_core.utils.checks import check_integer

KEYS_VARIABLE = "PERSONA_API_KEYS"
MIN_KEY = 16
"""Characters: shorter keys can be guessed."""
CHARS_PER_TOKEN = 16
"""A prompt with more characters than this for each token that is allowed is refused before it is tokenized."""


@dataclass(frozen=True)
class ServeSettings:
    """The server's names, keys and limits.

    Attributes:
        names: that requests may give for the model; the first is the one that replies bear.
        keys: one of which a request must bear; none: any request is answered.
        batch_size: replies written at once.
        max_queue: requests that may wait for a place among them; further ones are told to come again (429).
        max_new_tokens: the longest reply that may be requested, and that of a request which names no limit.
        max_prompt_tokens: the longest prompt, template included.
        max_seconds: how long one reply may be written for; it then ends with what it has.
        unread_seconds: how long a client may leave what was sent to it unread; it is then dropped.

    >>> ServeSettings(("tiny",), batch_size=0)
    Traceback (most recent call last):
    persona_core.errors.SettingError: batch_size=0; expected an integer of at least 1.
    """

    names: tuple[str, ...]
    keys: tuple[str, ...] = field(default=(), repr=False)
    batch_size: int = 16
    max_queue: int = 64
    max_new_tokens: int = 1024
    max_prompt_tokens: int = 4096
    max_seconds: float = 300
    unread_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_new_tokens", "max_prompt_tokens"):
            check_integer(name, getattr(self, name))
        check_integer("max_queue", self.max_queue, 0)
        if not self.max_seconds > 0:
            raise SettingError(f"max_seconds={self.max_seconds!r}; expected a number of seconds above 0.")

    @property
    def max_prompt_chars(self) -> int:
        return CHARS_PER_TOKEN * self.max_prompt_tokens

    @property
    def max_body_bytes(self) -> int:
        """Room for a prompt of that length with every character escaped, and for all other fields."""
        return 12 * self.max_prompt_chars + 2**16


def keys_from_environment(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The keys of PERSONA_API_KEYS, separated by commas; none if it is unset or empty.

    Raises:
        SettingError: a key that is short, or that no header can hold. The message does not quote it.

    >>> keys_from_environment({"PERSONA_API_KEYS": "a-long-enough-key-1, a-long-enough-key-2"})
    ('a-long-enough-key-1', 'a-long-enough-key-2')
    """
    keys = tuple(key.strip() for key in environment.get(KEYS_VARIABLE, "").split(",") if key.strip())
    for number, key in enumerate(keys, 1):
        if len(key) < MIN_KEY or not key.isascii() or not key.isprintable() or " " in key:
            raise SettingError(
                f"{KEYS_VARIABLE}: key {number} must have at least {MIN_KEY} printable ASCII characters and no space; "
                'python -c "import secrets; print(secrets.token_urlsafe())" makes one.'
            )
    return keys
