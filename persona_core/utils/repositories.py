"""What `artifacts/` becomes on the Hub: five repositories whose cards and configs link to each other.

In the checkout the artifacts refer to each other by folder name. A copy of each is staged with its card rendered for
the Hub, so that every snippet on a card runs unchanged.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from persona_core.errors import NotFound, SettingError
from persona_core.utils.cards import LINKS_END, bullets, with_links, with_usage
from persona_core.utils.files import read_json
from persona_core.utils.hub import kinds_of
from persona_core.utils.push import Pushed, create, push, set_variables

KINDS = ("model", "adapter", "vectors", "results", "app")
VARIABLES = {
    "model": "PERSONA_MODEL",
    "adapter": "PERSONA_ADAPTER",
    "vectors": "PERSONA_VECTORS",
    "results": "PERSONA_RESULTS",
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
        folder: its source.
        repo_id: its Hub id.
    """

    kind: str
    folder: Path
    repo_id: str

    @property
    def repo_type(self) -> str:
        return {"results": "dataset", "app": "space"}.get(self.kind, "model")

    @property
    def url(self) -> str:
        prefix = {"model": "", "dataset": "datasets/", "space": "spaces/"}[self.repo_type]
        return f"https://huggingface.co/{prefix}{self.repo_id}"


def repositories(root: Path, namespace: str, app_name: str = "persona-traits") -> tuple[Repository, ...]:
    """The repositories of a checkout, in the order in which they are published.

    Five, or fewer: `artifacts/` need not hold an adapter, nor a baseline that is on the Hub already.

    Args:
        root: the checkout: `artifacts/` and the app.
        namespace: user or organisation on the Hub.
        app_name: of the Space.

    Raises:
        SettingError: a namespace that the Hub would refuse, or no artifact of a kind, or several.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", namespace):
        raise SettingError(f"--namespace {namespace!r}; expected the name of a user or an organisation on the Hub.")
    found: dict[str, list[Path]] = {kind: [] for kind in KINDS}
    for folder in sorted((root / "artifacts").iterdir()):
        for kind in kinds_of(folder)[:1]:
            found[kind].append(folder)
    found["app"] = [root]
    for kind, folders in found.items():
        if len(folders) > 1 or (not folders and kind not in ("model", "adapter")):
            raise SettingError(f"{root / 'artifacts'} holds {len(folders)} folders of the kind {kind!r}; expected one.")
    names = {kind: app_name if kind == "app" else folders[0].name for kind, folders in found.items() if folders}
    return tuple(Repository(kind, found[kind][0], f"{namespace}/{names[kind]}") for kind in KINDS if kind in names)


def stage(repository: Repository, repos: tuple[Repository, ...], folder: Path) -> Path:
    """Copy what a repository will hold, its card and configs rendered with Hub ids.

    Raises:
        NotFound: a file that the app needs is missing.
        SettingError: a card that cannot be rendered again.
    """
    if repository.kind == "app":
        _copy_app(repository.folder, folder)
    else:
        shutil.copytree(repository.folder, folder, ignore=shutil.ignore_patterns("__pycache__", ".lock"))
    card = folder / "README.md"
    try:
        text = card.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(
            f"{repository.folder / card.name}: not a readable card ({error}). Write it again."
        ) from error
    card.write_text(hub_card(text, repository, repos), encoding="utf-8")
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        config = read_json(adapter)
        base = config.get("base_model_name_or_path")
        if not isinstance(base, str):
            raise SettingError(
                f"{repository.folder / adapter.name}: base_model_name_or_path is {base!r}; expected the base model's "
                "Hub id or folder."
            )
        config["base_model_name_or_path"] = _ids(repos).get(Path(base).name, base)
        adapter.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return folder


def _copy_app(root: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in APP_FILES:
        source = root / name
        if not source.exists():
            raise NotFound(f"No {name!r} in {str(root)!r}. Run this in a complete checkout.")
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        else:
            shutil.copy2(source, folder / name)


def hub_card(text: str, repository: Repository, repos: tuple[Repository, ...]) -> str:
    """A repository's card with Hub ids in its header and its usage block, and with links to the other repositories."""
    from huggingface_hub import RepoCard

    try:
        card = RepoCard(text)
    except Exception as error:  # YAML's own too; huggingface_hub does not wrap them
        raise SettingError(f"The header of the card of {repository.repo_id!r} is not valid YAML: {error}") from error
    if not len(card.data):
        raise SettingError(f"The card of {repository.repo_id!r} has no header between lines of ---.")
    ids = {r.kind: r.repo_id for r in repos}
    others = bullets({TITLES[r.kind]: (r.repo_id, r.url) for r in repos if r.kind != repository.kind})
    if repository.kind == "app":
        card.data["models"] = [ids[kind] for kind in ("model", "adapter", "vectors") if kind in ids]
        card.data["datasets"] = [ids["results"]]
        introduction, end, _ = with_links(card.text, others).partition(LINKS_END)  # what follows is about a checkout
        card.text = f"{introduction}{end}\n"
        return str(card)
    if base := card.data.get("base_model"):
        known = _ids(repos)  # the Hub allows one base model or a list of them
        card.data["base_model"] = [known.get(b, b) for b in base] if isinstance(base, list) else known.get(base, base)
    links = f"Published together:\n\n{others}"
    card.text = with_usage(card.text, repository.repo_id, links, **({"base": ids["model"]} if "model" in ids else {}))
    return str(card)


def _ids(repos: tuple[Repository, ...]) -> dict[str, str]:
    """Name of an artifact's folder -> its Hub id."""
    return {r.folder.name: r.repo_id for r in repos if r.kind != "app"}


def publish(
    repos: tuple[Repository, ...],
    staging: Path,
    *,
    private: bool = False,
    tag: str | None = None,
    token: str | None = None,
) -> Iterator[tuple[Repository, Pushed]]:
    """Push all repositories, and have the app pull the others at the revisions that were just pushed.

    Unchanged repositories get no commit. After an interruption, what was pushed is complete, and a second call does
    the rest.
    """
    pinned: dict[str, str] = {}
    for repository in repos:
        folder = stage(repository, repos, staging / repository.repo_id.rpartition("/")[2])
        if repository.kind == "app":
            # Settings before code: the app must not start on defaults that its repository lacks.
            create(repository.repo_id, "space", private, token)
            set_variables(repository.repo_id, {**_app_model(repos), **pinned}, token)
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


def _app_model(repos: tuple[Repository, ...]) -> dict[str, str]:
    """The app's settings for a model or adapter that is not in `artifacts/`: the vectors name their model."""
    vectors = next(r.folder for r in repos if r.kind == "vectors")
    base = read_json(vectors / "config.json").get("base_model", {})
    name, revision = base.get("name"), base.get("revision")
    model = f"{name}@{revision}" if revision else str(name)
    return {VARIABLES["model"]: model, VARIABLES["adapter"]: "none"}


def sizes(folder: Path) -> Mapping[str, int]:
    """The files of a staged folder, and the size of each in bytes."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()
    }
