"""Find a file in a local folder or in a repository of the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from persona_core.errors import NotFound, ServerError


def resolve_source(source: str | Path) -> str:
    """A folder that exists, with `~` expanded, or a Hub id; a path that does not exist never becomes a request.

    >>> resolve_source("org/name")
    'org/name'
    """
    name = str(source)
    if name and Path(name).expanduser().is_dir():
        return str(Path(name).expanduser())
    if not name or isinstance(source, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise NotFound(f"No folder {name!r}. Pass an existing folder or a Hub id such as 'org/name'.")
    return name


def commit_of(source: str | Path, filename: str, revision: str | None = None) -> str | None:
    """The commit that a file of a Hub repository is from, whatever branch or tag was named; None for a folder."""
    path = fetch(source, filename, revision)
    # .../models--org--name/snapshots/<commit>/<filename>
    place = path.parents[len(Path(filename).parts) - 1]
    return place.name if place.parent.name == "snapshots" else None


def split_revision(source: str) -> tuple[str, str | None]:
    """A source and the revision after its "@"; a folder whose name holds one is a folder.

    >>> split_revision("org/name@v1"), split_revision("org/name")
    (('org/name', 'v1'), ('org/name', None))
    """
    name, at, revision = source.rpartition("@")
    if not at or Path(source).expanduser().exists():
        return source, None
    if not name or not revision:
        raise NotFound(f"{source!r}: expected a Hub id, '@' and a revision, such as 'org/name@v1'.")
    return name, revision


def public_name(source: str | Path) -> str:
    """What others may know a source by: a Hub id, or a folder's own name without the path to it."""
    name = str(source)
    return Path(name).expanduser().resolve().name if Path(name).expanduser().is_dir() else name


def fetch(source: str | Path, filename: str, revision: str | None = None, repo_type: str = "model") -> Path:
    """The local path of one file of a folder or of a Hub repository.

    Args:
        source: an existing folder, else a Hub id.
        filename: the file's name in it.
        revision: commit, tag or branch on the Hub; a folder has none.
        repo_type: "model", "dataset" or "space".

    Raises:
        NotFound: with what was looked for and where.
        ServerError: the connection breaks again and again.
    """
    name = resolve_source(source)
    if Path(name).is_dir():
        path = Path(name) / filename
        if not path.is_file():
            raise NotFound(f"No file {filename!r} in the folder {name!r}.")
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalEntryNotFoundError

    where = f"{name!r}" + (f" at revision {revision!r}" if revision else "")
    try:
        return Path(hf_hub_download(name, filename, revision=revision, repo_type=repo_type))
    except LocalEntryNotFoundError as error:
        raise NotFound(f"{filename!r} of {where} is not in the local cache and the Hub cannot be reached.") from error
    except HFValidationError as error:
        raise NotFound(f"{name!r} is neither a folder nor a Hub id: {error}") from error
    except HfHubHTTPError as error:
        raise NotFound(f"Could not fetch {filename!r} from {where}: {error}") from error
    except HTTPError as error:  # cut again and again, in the middle of the file: the client passes it on as it is
        raise ServerError(
            f"Could not fetch {filename!r} from {where}: the connection broke ({type(error).__name__}). Nothing broken "
            "is kept; try again."
        ) from error
