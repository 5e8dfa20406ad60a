"""Push vectors with their card to the Hub."""

from __future__ import annotations

import tempfile

from persona_core.utils.push import push
from persona_core.vectors.card import write_card
from persona_core.vectors.vectors import PersonaVectors


def push_vectors(
    vectors: PersonaVectors, repo_id: str, *, private: bool = False, tag: str | None = None, token: str | None = None
) -> str:
    """Push vectors and card to a Hub repository; arguments, result and errors as `PersonaVectors.push_to_hub`."""
    with tempfile.TemporaryDirectory() as folder:
        vectors.save_pretrained(folder)
        write_card(vectors, folder, source=repo_id)
        return push(folder, repo_id, private=private, tag=tag, token=token, message="Push vectors").revision
