"""The card of a static site: its README.md, with the front matter of a static Space."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from persona_core.errors import PersonaError
from persona_core.utils.cards import make_card
from persona_core.utils.hub import fetch, split_revision
from persona_core.utils.markdown import escape

if TYPE_CHECKING:
    from persona_core.vectors.vectors import PersonaVectors

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


def site_card(
    title: str,
    results: str,
    vectors: str | None = None,
    known: PersonaVectors | None = None,
    models: Sequence[str] = (),
    datasets: Sequence[str] = (),
    licence: str | None = None,
) -> str:
    """The card's text.

    Args:
        title: heading of the site.
        results, vectors: folders or Hub ids that the site was made from; the header links the Hub ids.
        known: the vectors, which name their model.
        models, datasets: further Hub ids for the header.
        licence: as the Hub writes it; None: the header names none.
    """
    from huggingface_hub import SpaceCardData

    base = {} if known is None else known.config.get("base_model", {})
    named = [*models, *_hub_ids(vectors), *_hub_ids(base.get("name"))]
    rows = [*datasets, *_hub_ids(results)]
    header = SpaceCardData(
        title=title,
        sdk="static",
        app_file="index.html",
        license=licence,
        models=list(dict.fromkeys(named)) or None,
        datasets=list(dict.fromkeys(rows)) or None,
        tags=["persona-vectors", "interpretability"],
        emoji="🔎",
        colorFrom="blue",
        colorTo="yellow",
    )
    return make_card(
        header,
        f"# {escape(title)}",
        "Published replies, read token by token along persona vectors, as a static site: one folder that any web host "
        "serves, without Python or code on the server. To view it on your own machine:",
        "```bash\npython -m http.server\n```",
        "`persona export-site` made this folder, and replaces what is in it.",
    )


def _hub_ids(source: str | None) -> list[str]:
    """The repository that a source names; none where it is a folder."""
    name = "" if source is None else split_revision(source)[0]
    return [name] if _HUB_ID.fullmatch(name) and not Path(name).exists() else []


def licence_of(results: str) -> str | None:
    """The licence that the results' card names, if there is one."""
    from huggingface_hub import RepoCard

    try:
        name, revision = split_revision(results)
        path = fetch(name, "README.md", revision, repo_type="dataset")
        licence = RepoCard(path.read_text(encoding="utf-8")).data.get("license")
    except (PersonaError, OSError, ValueError):
        return None
    return licence if isinstance(licence, str) else None
