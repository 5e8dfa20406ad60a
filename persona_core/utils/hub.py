"""Files from a local folder or a Hugging Face Hub repository."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from persona_core.errors import CorruptFile, NotFound, ServerError, SettingError
from persona_core.utils.files import read_json

KINDS = {
    "model": "a model",
    "adapter": "an adapter",
    "vectors": "persona vectors",
    "results": "monitoring results",
}


def resolve_source(source: str | Path, revision: str | None = None) -> str:
    """An existing folder, with `~` expanded, or a Hub id. A path that does not exist never becomes a request.

    Args:
        source: folder or Hub id.
        revision: refused for a folder, which has none.

    Raises:
        NotFound: a path, but no such folder.
        SettingError: a folder with a revision.

    >>> resolve_source("org/name")
    'org/name'
    """
    name = str(source)
    path = Path(name).expanduser()
    if name and path.is_dir():
        if revision is not None:
            raise SettingError(f"{name!r} is a local folder; it has no revision {revision!r}. Leave the revision out.")
        return str(path)
    if name and path.is_file():
        raise NotFound(f"{name!r} is a file. Pass the folder that holds it, or a Hub id such as 'org/name'.")
    before, at, after = name.rpartition("@")
    if at and Path(before).expanduser().is_dir():
        raise SettingError(f"{before!r} is a local folder; it has no revision {after!r}. Leave the revision out.")
    if isinstance(source, Path) or _is_path(name):
        raise NotFound(f"No such folder: {name!r}. Pass an existing folder or a Hub id such as 'org/name'.")
    return name


def _is_path(name: str) -> bool:
    """Whether a name can only be a path: a Hub id is one or two plain words with a slash between."""
    parts = re.split(r"[/\\]", name)
    return (
        len(parts) > 2
        or any(part in ("", ".", "..") or part.startswith("~") for part in parts)
        or "\\" in name
        or (len(parts) == 2 and Path(parts[0]).is_dir())
    )


def split_revision(source: str) -> tuple[str, str | None]:
    """A source and the revision after its "@". An existing folder whose name contains one is a folder.

    Raises:
        NotFound: nothing before or after the "@".
        SettingError: a folder with a revision.

    >>> split_revision("org/name@v1"), split_revision("org/name")
    (('org/name', 'v1'), ('org/name', None))
    """
    name, at, revision = source.rpartition("@")
    if not at or Path(source).expanduser().exists():
        return source, None
    if not name or not revision:
        raise NotFound(f"{source!r}: expected a Hub id, '@' and a revision, such as 'org/name@v1'.")
    if Path(name).expanduser().is_dir():
        resolve_source(name, revision)  # refuses it
    return name, revision


def public_name(source: str | Path) -> str:
    """The name to publish for a source: a Hub id, or a folder's or file's name without its path."""
    name = str(source)
    return Path(name).expanduser().resolve().name if Path(name).expanduser().exists() else name


def fetch(source: str | Path, filename: str, revision: str | None = None, repo_type: str = "model") -> Path:
    """The local path of one file of a folder or of a Hub repository.

    Args:
        source: an existing folder, else a Hub id.
        filename: the file's name in it.
        revision: commit, tag or branch on the Hub; a folder has none.
        repo_type: "model", "dataset" or "space".

    Raises:
        NotFound: no such folder, repository, revision or file; or it is not cached and the Hub cannot be reached.
        SettingError: a folder with a revision.
        ServerError: the Hub refuses, or the connection breaks repeatedly.
    """
    name = resolve_source(source, revision)
    if Path(name).is_dir():
        path = Path(name) / filename
        if not path.is_file():
            holds = f", which holds {KINDS[kinds[0]]}" if (kinds := kinds_of(name)) else ""
            raise NotFound(f"No file {filename!r} in the folder {name!r}{holds}.")
        return path
    from huggingface_hub import hf_hub_download

    with hub_errors(f"fetch {filename!r} from {name!r}{at_revision(revision)}", "No partial file is kept; try again."):
        return Path(hf_hub_download(name, filename, revision=revision, repo_type=repo_type))


def pull(
    repo_id: str, folder: str | Path, repo_type: str = "model", revision: str | None = None, token: str | None = None
) -> Path:
    """Copy a repository into a folder.

    Raises:
        NotFound: no such repository or revision, or no access to it.
        ServerError: the Hub refuses or cannot be reached.
    """
    from huggingface_hub import snapshot_download

    with hub_errors(f"pull {repo_id!r}{at_revision(revision)}"):
        return Path(
            snapshot_download(repo_id, repo_type=repo_type, revision=revision, local_dir=str(folder), token=token)
        )


def commit_of(source: str | Path, filename: str, revision: str | None = None) -> str | None:
    """The commit that a file of a Hub repository is from, whatever branch or tag was named; None for a folder."""
    path = fetch(source, filename, revision)
    # .../models--org--name/snapshots/<commit>/<filename>
    snapshot = path.parents[len(Path(filename).parts) - 1]
    return snapshot.name if snapshot.parent.name == "snapshots" else None


def at_revision(revision: str | None) -> str:
    """For messages: " at revision 'v1'", or nothing."""
    return f" at revision {revision!r}" if revision else ""


# ---- what a folder or repository holds ----


def kinds_of(folder: str | Path) -> tuple[str, ...]:
    """What a local folder holds, by its files: some of `KINDS`, most specific first; empty if none of them."""
    path = Path(folder)
    found = {
        "adapter": (path / "adapter_config.json").is_file(),
        "vectors": (path / "vectors.safetensors").is_file(),
        "results": any((path / "data").glob("*.parquet")),
    }
    config = path / "config.json"
    if config.is_file() and (kind := _kind_of_config(config)):
        found[kind] = True
    return tuple(kind for kind, there in found.items() if there)


def check_kind(source: str | Path, expected: str, revision: str | None = None) -> None:
    """Refuse a folder or repository that holds something else.

    Of a repository only `config.json` is fetched, which tells a model from vectors.

    Args:
        source: folder or Hub id.
        expected: one of `KINDS`.
        revision: commit, tag or branch on the Hub.

    Raises:
        NotFound: what it holds, and what was expected. As `fetch`, if the expected kind has a config.json.
        SettingError: a folder with a revision.
    """
    name = resolve_source(source, revision)
    if Path(name).is_dir():
        found = kinds_of(name)
    elif expected in ("model", "vectors"):
        kind = _kind_of_config(fetch(name, "config.json", revision))
        found = (kind,) if kind else ()
    else:
        return
    if found and expected not in found:
        raise NotFound(f"{name!r} holds {KINDS[found[0]]}, not {KINDS[expected]}.")


def _kind_of_config(path: Path) -> str | None:
    """Which kind of `config.json` it is; None if unclear."""
    try:
        config = read_json(path)
    except CorruptFile:
        return None
    if "model_type" in config or "architectures" in config:
        return "model"
    return "vectors" if "format_version" in config and "best_block" in config else None


# ---- what the Hub's errors mean ----


@contextmanager
def hub_errors(what: str, again: str = "Run the command again.") -> Iterator[None]:
    """Turn the Hub's errors into one sentence with the remedy. Messages of the Hub hold no token.

    Args:
        what: what could not be done: "fetch 'config.json' from 'org/name'".
        again: the remedy where a retry may help.
    """
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    missing = (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError)
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise ServerError(f"Could not {what}: no access token. Run `hf auth login`, or set HF_TOKEN.") from error
    except LocalEntryNotFoundError as error:
        raise NotFound(f"Could not {what}: not in the local cache, and the Hub cannot be reached.") from error
    except HFValidationError as error:
        raise NotFound(f"Could not {what}: not a Hub id: {error}") from error
    except RuntimeError as error:  # the client wraps what went wrong with a large file
        if not isinstance(error.__cause__, (HTTPError, OSError)):
            raise
        raise ServerError(f"Could not {what}: {_first_line(error)} {again}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        remedy = {
            401: "The access token is missing or wrong: run `hf auth login`, or set HF_TOKEN.",
            403: "The access token has no write access to the namespace.",
            404: "No such repository, revision or file, or the token has no access to it.",
            409: "The repository was changed in the meantime. Run the command again.",
            412: "The repository was changed in the meantime. Run the command again.",
            429: "Too many requests. Run the command again later.",
        }.get(status, again)
        kind = NotFound if status == 404 or isinstance(error, missing) else ServerError
        raise kind(f"Could not {what}: {_first_line(error)} {remedy}") from error
    except (HTTPError, OfflineModeIsEnabled, ConnectionError, TimeoutError) as error:
        raise ServerError(f"Could not {what}: the connection failed ({type(error).__name__}). {again}") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") + "." if lines else f"{type(error).__name__}."
