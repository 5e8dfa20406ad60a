"""What `artifacts/` becomes on the Hub: five repositories whose cards and configs name each other.

In the checkout the artifacts know each other by their folders' names. A copy is staged for each, in which those names
are Hub ids, so that every snippet on a card runs as it stands there.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from persona_core.errors import NotFound, SettingError
from persona_core.utils.push import Pushed, create, push, set_variables

KINDS = ("model", "adapter", "vectors", "results", "app")
VARIABLES = {
    "model": "PERSONA_MODEL",
    "adapter": "PERSONA_ADAPTER",
    "vectors": "PERSONA_VECTORS",
    "results": "PERSONA_RESULTS",
}
# How a card's snippet names a repository: its own, or the base model of an adapter.
SNIPPETS = {
    ("model", "model"): r'(from_pretrained\()"[^"\n]*"',
    ("vectors", "vectors"): r'(from_pretrained\()"[^"\n]*"',
    ("results", "results"): r'(load_dataset\()"[^"\n]*"',
    ("adapter", "adapter"): r'(adapter=)"[^"\n]*"',
    ("model", "adapter"): r'(load_model\()"[^"\n]*"',
}
APP_FILES = ("app.py", "requirements.txt", "LICENSE", "README.md", "persona_core")
TITLES = {
    "model": "baseline model",
    "adapter": "contaminated model (adapter)",
    "vectors": "persona vectors",
    "results": "per-token results",
    "app": "app",
}


@dataclass(frozen=True)
class Repository:
    """One of the five.

    Attributes:
        kind: one of `KINDS`.
        folder: what it is made of.
        repo_id: where it goes.
    """

    kind: str
    folder: Path
    repo_id: str

    @property
    def repo_type(self) -> str:
        return {"results": "dataset", "app": "space"}.get(self.kind, "model")

    @property
    def url(self) -> str:
        place = {"model": "", "dataset": "datasets/", "space": "spaces/"}[self.repo_type]
        return f"https://huggingface.co/{place}{self.repo_id}"


def repositories(root: Path, namespace: str, app_name: str = "persona-traits") -> tuple[Repository, ...]:
    """The repositories of a checkout, in the order in which they are published.

    Five, or fewer: a baseline that is on the Hub already need not be in `artifacts/`, nor must there be an adapter.

    Args:
        root: the checkout: `artifacts/` and the app.
        namespace: user or organisation on the Hub.
        app_name: of the Space.

    Raises:
        SettingError: a namespace that the Hub would refuse, or an artifact of which there is none or several.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", namespace):
        raise SettingError(f"--namespace {namespace!r}; expected a user or an organisation of the Hub.")
    found: dict[str, list[Path]] = {kind: [] for kind in KINDS}
    for folder in sorted((root / "artifacts").iterdir()):
        if folder.is_dir() and (kind := _kind(folder)) is not None:
            found[kind].append(folder)
    found["app"] = [root]
    for kind, folders in found.items():
        if len(folders) > 1 or (not folders and kind not in ("model", "adapter")):
            raise SettingError(f"artifacts/ holds {len(folders)} folders of the kind {kind!r}; expected one.")
    names = {kind: app_name if kind == "app" else folders[0].name for kind, folders in found.items() if folders}
    return tuple(Repository(kind, found[kind][0], f"{namespace}/{names[kind]}") for kind in KINDS if kind in names)


def _kind(folder: Path) -> str | None:
    """What a folder holds, by its files."""
    if (folder / "adapter_config.json").is_file():
        return "adapter"
    if (folder / "vectors.safetensors").is_file():
        return "vectors"
    if (folder / "data").is_dir():
        return "results"
    return "model" if (folder / "config.json").is_file() else None


def stage(repository: Repository, among: tuple[Repository, ...], folder: Path) -> Path:
    """Copy what a repository will hold, with Hub ids in place of folders' names.

    Raises:
        NotFound: a file that the app needs is not there.
    """
    if repository.kind == "app":
        for name in APP_FILES:
            source = repository.folder / name
            if not source.exists():
                raise NotFound(f"No {name!r} in {str(repository.folder)!r}.")
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
            else:
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, folder / name)
    else:
        shutil.copytree(repository.folder, folder, ignore=shutil.ignore_patterns("__pycache__", ".lock"))
    ids = {r.folder.name: r.repo_id for r in among if r.kind != "app"}
    card = folder / "README.md"
    card.write_text(readdressed(card.read_text(encoding="utf-8"), repository, among), encoding="utf-8")
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        config = json.loads(adapter.read_text(encoding="utf-8"))
        base = config["base_model_name_or_path"]
        config["base_model_name_or_path"] = ids.get(Path(base).name, base)
        adapter.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return folder


def readdressed(card: str, repository: Repository, among: tuple[Repository, ...]) -> str:
    """A card with Hub ids for folders in its header and snippets, and with links to the other repositories."""
    for other in among:
        if other.kind == "app":
            continue
        name = other.folder.name
        card = card.replace(f'"artifacts/{name}"', f'"{other.repo_id}"')
        if (other.kind, repository.kind) in SNIPPETS:  # wherever the folder was when its card was written
            card = re.sub(SNIPPETS[other.kind, repository.kind], rf'\g<1>"{other.repo_id}"', card)
        card = re.sub(rf"^(base_model: |- ){re.escape(name)}$", rf"\g<1>{other.repo_id}", card, flags=re.MULTILINE)
    header, end, body = card.partition("\n---\n")
    if not header.startswith("---") or not end:
        raise SettingError(f"The card of {repository.repo_id!r} has no header between lines of ---.")
    if repository.kind == "app":
        by = {r.kind: r.repo_id for r in among}
        models = [f"- {by[kind]}" for kind in ("model", "adapter", "vectors") if kind in by]
        header += "\n" + "\n".join(["models:", *models, "datasets:", f"- {by['results']}"])
        body = body.partition("```")[0]  # the rest is about a checkout
    others = [f"- {TITLES[r.kind]}: [{r.repo_id}]({r.url})" for r in among if r.kind != repository.kind]
    links = "\n".join(["## Belongs together", "", *others])
    return f"{header}{end}{body.rstrip()}\n\n{links}\n"


def publish(
    among: tuple[Repository, ...],
    staging: Path,
    *,
    private: bool = False,
    tag: str | None = None,
    token: str | None = None,
) -> Iterator[tuple[Repository, Pushed]]:
    """Push all repositories, and have the app pull the others at the revisions that were just pushed.

    Unchanged repositories get no commit. Where it stops half-way, what was pushed is whole, and a second call does the
    rest.
    """
    pinned: dict[str, str] = {}
    for repository in among:
        folder = stage(repository, among, staging / repository.repo_id.rpartition("/")[2])
        if repository.kind == "app":
            # First the settings, then the code: the app never starts on defaults that are not in its repository.
            create(repository.repo_id, "space", private, token)
            set_variables(repository.repo_id, {**_elsewhere(among), **pinned}, token)
        pushed = push(
            folder,
            repository.repo_id,
            repository.repo_type,
            private=private,
            tag=tag,
            token=token,
            message=f"Publish {TITLES[repository.kind]}",
        )
        if repository.kind in VARIABLES:
            pinned[VARIABLES[repository.kind]] = f"{repository.repo_id}@{pushed.revision}"
        yield repository, pushed


def _elsewhere(among: tuple[Repository, ...]) -> dict[str, str]:
    """What the app is told where there is no model or no adapter in `artifacts/`: the vectors name their model."""
    vectors = next(r.folder for r in among if r.kind == "vectors")
    base = json.loads((vectors / "config.json").read_text(encoding="utf-8")).get("base_model", {})
    name, revision = base.get("name"), base.get("revision")
    model = f"{name}@{revision}" if revision else str(name)
    return {VARIABLES["model"]: model, VARIABLES["adapter"]: "none"}


def sizes(folder: Path) -> Mapping[str, int]:
    """The files of a staged folder and their bytes."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()
    }
