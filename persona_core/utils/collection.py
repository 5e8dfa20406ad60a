"""A Hub Collection: the one page that lists all repositories that belong together."""

from __future__ import annotations

from collections.abc import Sequence

from persona_core.utils.hub import hub_errors
from persona_core.utils.push import AGAIN
from persona_core.utils.repositories import Repository

TITLE = "Persona traits, token by token"
DESCRIPTION = "Persona vectors, models with and without a fine-tune, their runs scored token by token, and the app."


def open_collection(namespace: str, private: bool = False) -> str:
    """The slug of the namespace's collection, which is created if it does not exist.

    Raises:
        ServerError: the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    with hub_errors(f"create the collection {TITLE!r} of {namespace!r}", AGAIN):
        api = HfApi()
        return api.create_collection(
            TITLE, namespace=namespace, description=DESCRIPTION, private=private, exists_ok=True
        ).slug


def add_to_collection(slug: str, repos: Sequence[Repository]) -> bool:
    """Add the repositories that a collection lacks. What else it holds stays.

    Returns:
        Whether any were added.

    Raises:
        ServerError: the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with hub_errors(f"add to the collection {slug!r}", AGAIN):
        known = {(item.item_type, item.item_id) for item in api.get_collection(slug).items}
        missing = [r for r in repos if (r.repo_type, r.repo_id) not in known]
        for repository in missing:
            api.add_collection_item(slug, repository.repo_id, repository.repo_type, note=repository.title)  # type: ignore[arg-type]
    return bool(missing)


def collection_url(slug: str) -> str:
    """The address of a collection.

    >>> collection_url("me/persona-traits-token-by-token-1a2b")
    'https://huggingface.co/collections/me/persona-traits-token-by-token-1a2b'
    """
    return f"https://huggingface.co/collections/{slug}"
