"""Where a reply begins: its prompt, and what is there of it already."""

from __future__ import annotations

from dataclasses import dataclass

from persona_core.models.chat import Rendered


@dataclass(frozen=True)
class Start:
    """Where a reply begins.

    Attributes:
        prompt: ids and roles before the reply.
        kept: ids of the reply that are there already.
    """

    prompt: Rendered
    kept: tuple[int, ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        """All that is read before the first new token."""
        return (*self.prompt.token_ids, *self.kept)
