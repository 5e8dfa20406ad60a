"""What a repository will hold: a copy of its source whose card and configs name repositories, not folders.

In the checkout the artifacts refer to each other by folder name. In the copies they refer to each other by Hub id, so
that every snippet on a card runs unchanged, and vectors and alarms know the published model as theirs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from persona_core.errors import CorruptFile, NotFound, SettingError
from persona_core.utils.cards import LINKS_END, bullets, with_links, with_usage
from persona_core.utils.files import read_json
from persona_core.utils.repositories import TITLES, Repository

APP_FILES = ("app.py", "requirements.txt", "LICENSE", "README.md", "persona_core")
DETECTORS = ("onset.json", "analysis/onset.json")
Links = Mapping[str, tuple[str, str]]
"""What it is -> name and address."""


def stage(repository: Repository, repos: Sequence[Repository], folder: Path, links: Links | None = None) -> Path:
    """Copy what a repository will hold, its card and configs rendered with Hub ids.

    Args:
        repository: one of `repos`.
        repos: all that are published together.
        folder: where to; it must not exist yet.
        links: what else its card names.

    Raises:
        NotFound: a file that the app needs is missing.
        SettingError: a card or a config that cannot be rendered again.
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
    card.write_text(hub_card(text, repository, repos, links), encoding="utf-8")
    if (folder / "adapter_config.json").is_file():
        _name_base(folder / "adapter_config.json", repository, repos)
    model = _ids_of_set(repository, repos).get("model")
    if model is not None and repository.kind in ("vectors", "results"):
        _name_published_model(folder, model)
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


def _name_base(path: Path, repository: Repository, repos: Sequence[Repository]) -> None:
    """Have an adapter's config name the published base model."""
    config = read_json(path)
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str):
        raise SettingError(
            f"{repository.folder / path.name}: base_model_name_or_path is {base!r}; expected the base model's "
            "Hub id or folder."
        )
    published = _published(repository, repos).get(Path(base).name)
    if published is not None:
        config |= {"base_model_name_or_path": published, "revision": None}  # the revision was the other source's
        _write(path, config, sort_keys=True)


def _name_published_model(folder: Path, model: str) -> None:
    """Tell vectors and alarms under which id the model is published that they were made on.

    What they say of its origin stays: a GGUF file's name and SHA-256, say.
    """
    path = folder / "config.json"
    if path.is_file():
        config = read_json(path)
        config["base_model"] = {**config.get("base_model", {}), "published": model}
        _write(path, config)
    for name in DETECTORS:
        if (path := folder / name).is_file():
            record = read_json(path)
            for part in ("rests_on", "card"):
                if isinstance(record.get(part), dict):
                    record[part]["published_as"] = model
            path.write_text(json.dumps(record, separators=(",", ":")) + "\n", encoding="utf-8")


def _write(path: Path, config: Mapping[str, Any], sort_keys: bool = False) -> None:
    text = json.dumps(config, indent=2, sort_keys=sort_keys, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def hub_card(text: str, repository: Repository, repos: Sequence[Repository], links: Links | None = None) -> str:
    """A repository's card with Hub ids in its header and its usage block, and with links to what belongs with it.

    Args:
        text: the card in the checkout.
        repository, repos, links: as in `stage`.

    Raises:
        SettingError: a card that cannot be rendered again.
    """
    from huggingface_hub import RepoCard

    try:
        card = RepoCard(text)
    except Exception as error:  # YAML's own too; huggingface_hub does not wrap them
        raise SettingError(f"The header of the card of {repository.repo_id!r} is not valid YAML: {error}") from error
    if not len(card.data):
        raise SettingError(f"The card of {repository.repo_id!r} has no header between lines of ---.")
    others = [r for r in repos if r != repository and (repository.kind == "app" or r.set in ("", repository.set))]
    several = repository.kind == "app" and len({r.set for r in repos}) > 2
    named = {r.title if several else TITLES[r.kind]: (r.repo_id, r.url) for r in others}
    listed = bullets({**named, **(links or {})})
    if repository.kind == "app":
        for field, kinds in (("models", ("model", "adapter", "vectors")), ("datasets", ("results",))):
            card.data[field] = [r.repo_id for r in repos if r.kind in kinds]
        introduction, end, _ = with_links(card.text, listed).partition(LINKS_END)  # what follows is about a checkout
        card.text = f"{introduction}{end}\n"
        return str(card)
    if base := card.data.get("base_model"):
        known = _published(repository, repos)  # the Hub allows one base model or a list of them
        card.data["base_model"] = [known.get(b, b) for b in base] if isinstance(base, list) else known.get(base, base)
        if repository.kind == "adapter":
            card.data["base_model_relation"] = "adapter"
    if repository.kind == "site":
        card.text = f"{card.text.rstrip()}\n\nPublished together:\n\n{listed}\n"
        return str(card)
    ids = _ids_of_set(repository, repos)
    values = {"base": ids["model"], "vectors": ids["vectors"]} if "model" in ids else {}
    card.text = with_usage(card.text, repository.repo_id, f"Published together:\n\n{listed}", **values)
    return str(card)


def _ids_of_set(repository: Repository, repos: Sequence[Repository]) -> dict[str, str]:
    """Kind -> Hub id, of the repositories of the same set."""
    return {r.kind: r.repo_id for r in repos if r.set == repository.set}


def _published(repository: Repository, repos: Sequence[Repository]) -> dict[str, str]:
    """Names that the artifacts of a set have for each other -> Hub ids; that of a model's GGUF file too."""
    own = [r for r in repos if r.set == repository.set and r.kind != "app"]
    ids = {r.folder.name: r.repo_id for r in own if r.kind != "model"}
    if (model := _ids_of_set(repository, repos).get("model")) is not None:
        ids[repository.set] = model
        vectors = next((r.folder for r in own if r.kind == "vectors"), None)
        if vectors is not None and isinstance(name := base_model_of(vectors).get("name"), str):
            ids[name] = model
    return ids


def base_model_of(vectors: Path) -> dict[str, Any]:
    """What the config of a folder of vectors says of the model that they were made on.

    Raises:
        CorruptFile: something else than an object.
    """
    base = read_json(vectors / "config.json").get("base_model", {})
    if not isinstance(base, dict):
        raise CorruptFile(f"{vectors / 'config.json'}: base_model is a {type(base).__name__}, expected an object.")
    return base


def sizes(folder: Path) -> Mapping[str, int]:
    """The files of a staged folder, and the size of each in bytes."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()
    }
