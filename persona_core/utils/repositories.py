"""What `artifacts/` becomes on the Hub: up to four repositories for each set of artifacts, and two Spaces.

One Space is the app; the other, static, shows the first set's runs without a server.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from persona_core.errors import SettingError
from persona_core.utils.artifact_sets import artifact_sets

SDKS = {"site": "static", "app": "gradio"}
TITLES = {
    "model": "baseline model",
    "adapter": "contaminated model (adapter)",
    "vectors": "persona vectors",
    "results": "per-token results",
    "site": "the runs as a static site",
    "app": "app",
}
"""Kind of a repository -> what it is called."""


@dataclass(frozen=True)
class Repository:
    """A repository to publish.

    Attributes:
        kind: one of `TITLES`.
        folder: its source.
        repo_id: its Hub id.
        set: name of the set of artifacts that it belongs to; empty for the app, which belongs to all.
    """

    kind: str
    folder: Path
    repo_id: str
    set: str = ""

    @property
    def repo_type(self) -> str:
        return {"results": "dataset", "site": "space", "app": "space"}.get(self.kind, "model")

    @property
    def sdk(self) -> str | None:
        """Of a Space."""
        return SDKS.get(self.kind)

    @property
    def url(self) -> str:
        prefix = {"model": "", "dataset": "datasets/", "space": "spaces/"}[self.repo_type]
        return f"https://huggingface.co/{prefix}{self.repo_id}"

    @property
    def title(self) -> str:
        """What it is, told apart from the same kind of another set."""
        return f"{self.set}, {TITLES[self.kind]}" if self.set else TITLES[self.kind]


def repositories(
    root: Path,
    namespace: str,
    app_name: str = "persona-traits",
    weights: Mapping[str, Path] | None = None,
    site: Path | None = None,
) -> tuple[Repository, ...]:
    """The repositories of a checkout, in the order in which they are published: set by set, then the Spaces.

    A set need not hold an adapter, nor a baseline that is on the Hub already.

    Args:
        root: the checkout: `artifacts/` and the app.
        namespace: user or organisation on the Hub.
        app_name: of the Space.
        weights: name of a set -> a folder with its model, where `artifacts/` does not hold one.
        site: folder of the static site; None: none is published.

    Raises:
        SettingError: a namespace that the Hub would refuse, half a set of artifacts, or none.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", namespace):
        raise SettingError(f"--namespace {namespace!r}; expected the name of a user or an organisation on the Hub.")
    sets = artifact_sets(root / "artifacts")
    if not sets:
        raise SettingError(f"{root / 'artifacts'} holds no persona vectors (persona-vectors-NAME) to publish.")
    found = []
    for one in sets:
        if one.results is None:
            raise SettingError(
                f"The set {one.name!r} has no results: expected {root / 'artifacts' / f'persona-monitoring-{one.name}'}"
                " beside its vectors. `persona monitor` makes them."
            )
        made = (weights or {}).get(one.name)
        folders = {"model": one.model or made, "adapter": one.adapter, "vectors": one.vectors, "results": one.results}
        found += [
            Repository(kind, folder, f"{namespace}/{one.name if kind == 'model' else folder.name}", one.name)
            for kind, folder in folders.items()
            if folder is not None
        ]
    if site is not None:
        found.append(Repository("site", site, f"{namespace}/{app_name}-runs", sets[0].name))
    return (*found, Repository("app", root, f"{namespace}/{app_name}"))
