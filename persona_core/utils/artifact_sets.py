"""Which folders of `artifacts/` belong together, by name: persona vectors, runs, an adapter and a model.

persona-vectors-NAME      the vectors: every set has them
persona-monitoring-NAME   the runs
NAME-contaminated         the adapter
NAME                      the model, where its weights are here
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from persona_core.errors import NotFound, SettingError
from persona_core.utils.hub import KINDS, kinds_of

DEMO = "persona-tiny"
SET_KEYS = ("name", "model", "adapter", "vectors", "results")
"""Of a set in the app's setting PERSONA_SETS, a JSON list."""
VECTORS, RESULTS, ADAPTER = "persona-vectors-", "persona-monitoring-", "-contaminated"


@dataclass(frozen=True)
class ArtifactSet:
    """The folders of one model.

    Attributes:
        name: what the folders' names have in common.
        vectors: its persona vectors.
        results: its runs, if there are any.
        adapter: what makes it the contaminated model, if there is one.
        model: its weights; None where they lie elsewhere: the vectors' config names them.
    """

    name: str
    vectors: Path
    results: Path | None = None
    adapter: Path | None = None
    model: Path | None = None


def artifact_sets(folder: str | Path) -> tuple[ArtifactSet, ...]:
    """The sets in a folder: real models by name, the demo model last.

    Folders that hold none of the four kinds are passed over.

    Raises:
        NotFound: no such folder.
        SettingError: a folder that belongs to no set; so does a second one of its kind.

    >>> artifact_sets("artifacts")[-1].adapter.name
    'persona-tiny-contaminated'
    """
    root = Path(folder)
    if not root.is_dir():
        raise NotFound(f"No such folder: {str(root)!r}.")
    found: dict[str, list[Path]] = {kind: [] for kind in KINDS}
    for path in sorted(root.iterdir()):
        for kind in kinds_of(path)[:1]:
            found[kind].append(path)
    names = sorted(
        (p.name.removeprefix(VECTORS) for p in found["vectors"] if p.name.startswith(VECTORS)),
        key=lambda name: (name == DEMO, name),
    )
    sets = tuple(_set(root, name) for name in names)
    known = {path for one in sets for path in (one.vectors, one.results, one.adapter, one.model)}
    for kind, paths in found.items():
        for path in paths:
            if path not in known:
                raise SettingError(_stray(path, kind, names))
    return sets


def _set(root: Path, name: str) -> ArtifactSet:
    def there(folder: str, kind: str) -> Path | None:
        return root / folder if kinds_of(root / folder)[:1] == (kind,) else None

    return ArtifactSet(
        name,
        vectors=root / f"{VECTORS}{name}",
        results=there(f"{RESULTS}{name}", "results"),
        adapter=there(f"{name}{ADAPTER}", "adapter"),
        model=there(name, "model"),
    )


def _stray(path: Path, kind: str, names: Sequence[str]) -> str:
    """What is wrong with a folder that belongs to no set."""
    form = {"vectors": f"{VECTORS}NAME", "results": f"{RESULTS}NAME", "adapter": f"NAME{ADAPTER}", "model": "NAME"}[
        kind
    ]
    sets = f"the sets here are {', '.join(names)}" if names else f"there is no {VECTORS}NAME beside it"
    return (
        f"{str(path)!r} holds {KINDS[kind]}, but belongs to no set: it should be called {form}, and {sets}. A set has "
        "vectors, and at most one folder of each other kind."
    )
