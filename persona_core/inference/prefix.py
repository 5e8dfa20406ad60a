"""Where a reply starts: its prompt, and the tokens of the reply that exist already."""

from __future__ import annotations

from dataclasses import dataclass

from persona_core.models.chat import Rendered


@dataclass(frozen=True)
class ReplyPrefix:
    """The prompt of a reply, and the first tokens of the reply where it continues an earlier one.

    Attributes:
        prompt: ids and roles before the reply.
        kept_ids: ids of the reply's first tokens, kept from an earlier reply.
        kept_roles: their roles.
    """

    prompt: Rendered
    kept_ids: tuple[int, ...] = ()
    kept_roles: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        """Everything that is read before the first new token."""
        return (*self.prompt.token_ids, *self.kept_ids)
