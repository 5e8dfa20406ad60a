"""Push all repositories that belong together, and tell the app which revisions of them to load."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from persona_core.utils.artifact_sets import SET_KEYS
from persona_core.utils.push import Pushed, create, push, set_variables
from persona_core.utils.repositories import TITLES, Repository
from persona_core.utils.staging import Links, base_model_of, stage

SETS = "PERSONA_SETS"
ONE_MODEL = ("PERSONA_MODEL", "PERSONA_ADAPTER", "PERSONA_VECTORS", "PERSONA_RESULTS")
"""Variables that earlier versions set. The app refuses them beside `SETS`."""


def publish(
    repos: Sequence[Repository],
    staging: Path,
    *,
    private: bool = False,
    tag: str | None = None,
    links: Links | None = None,
) -> Iterator[tuple[Repository, Pushed]]:
    """Push all repositories, and have the app load the others at the revisions that were just pushed.

    Logs in with HF_TOKEN or what `hf auth login` saved.

    Unchanged repositories get no commit. After an interruption, what was pushed is complete, and a second call does
    the rest.

    Args:
        repos: as `repositories` returns them.
        staging: an empty folder for the copies.
        private: whether new repositories are private.
        tag: put on the commits.
        links: what the cards name besides the repositories.
    """
    pinned: dict[Repository, str] = {}
    for repository in repos:
        folder = stage(repository, repos, staging / repository.repo_id.rpartition("/")[2], links)
        if repository.kind == "app":
            # Settings before code: the app must not start on defaults that its repository lacks.
            create(repository.repo_id, "space", private)
            set_variables(repository.repo_id, {SETS: sets_variable(pinned)}, unset=ONE_MODEL)
        pushed = push(
            folder,
            repository.repo_id,
            repository.repo_type,
            private=private,
            tag=tag,
            message=f"Publish {TITLES[repository.kind]}",
            sdk=repository.sdk,
        )
        pinned[repository] = f"{repository.repo_id}@{pushed.revision}"
        yield repository, pushed


def sets_variable(pinned: dict[Repository, str]) -> str:
    """The app's setting: a JSON list with the model, adapter, vectors and results of every set.

    Args:
        pinned: repository -> its id and revision, set by set.
    """
    found: dict[str, dict[str, str | None]] = {}
    for repository, pin in pinned.items():
        if repository.kind == "vectors":
            base = base_model_of(repository.folder)
            name, revision = base.get("name"), base.get("revision")
            elsewhere = f"{name}@{revision}" if revision else name
            own = found.setdefault(repository.set, {})
            own |= {"name": repository.set, "model": own.get("model", elsewhere), "vectors": pin}
        elif repository.set:
            found.setdefault(repository.set, {})[repository.kind] = pin
    return json.dumps([{key: one.get(key) for key in SET_KEYS} for one in found.values()])
