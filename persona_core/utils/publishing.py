"""Push a folder to the Hugging Face Hub and pull it back: what is pushed is what another loads."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_core.errors import NotFound, ServerError, SettingError

logger = logging.getLogger(__name__)

TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{20,}\b|\bsk-[A-Za-z0-9_-]{20,}\b")
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY", "SERVED_API_KEY")
AGAIN = "Run the command again; what was published stays and is not sent twice."
LEFT_OUT = ["**/__pycache__/**", "*.pyc", "**/.DS_Store", "**/.lock", "**/*.part", ".git/**", ".env"]


@dataclass(frozen=True)
class Pushed:
    """What a repository holds after a push.

    Attributes:
        repo_id, repo_type: which one.
        revision: the commit.
        changed: whether the push made it.
    """

    repo_id: str
    repo_type: str
    revision: str
    changed: bool


def push(
    folder: str | Path,
    repo_id: str,
    repo_type: str = "model",
    *,
    private: bool = False,
    tag: str | None = None,
    token: str | None = None,
    message: str = "Update",
) -> Pushed:
    """Make a repository hold exactly the files of a folder, in one commit; none where nothing differs.

    Args:
        folder: what to push.
        repo_id: "namespace/name"; created if it is not there.
        repo_type: "model", "dataset" or "space".
        private: of a repository that is created.
        tag: put on the commit; a tag that is there already stays where it is.
        token: None takes HF_TOKEN or what `hf auth login` saved.
        message: of the commit.

    Raises:
        ServerError: the Hub refuses or cannot be reached; nothing is half-published, and a second call goes on.
        SettingError: a file holds a secret.
    """
    from huggingface_hub import HfApi

    path = Path(folder)
    if not path.is_dir():
        raise NotFound(f"No folder {str(path)!r} to push.")
    check_secrets(path)
    api = HfApi(token=token)
    create(repo_id, repo_type, private, token)
    with explained(f"push to {repo_id!r}"):
        before = api.repo_info(repo_id, repo_type=repo_type).sha
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=path,
            repo_type=repo_type,
            commit_message=message,
            ignore_patterns=LEFT_OUT,
            delete_patterns="*",  # what is no longer in the folder goes
            parent_commit=before,  # somebody else's commit meanwhile is an error, not overwritten
        )
        revision = str(commit.oid)
        if tag is not None:
            _tag(api, repo_id, repo_type, tag, revision)
    return Pushed(repo_id, repo_type, revision, revision != before)


def create(repo_id: str, repo_type: str, private: bool, token: str | None = None) -> None:
    """Create a repository if it is not there."""
    from huggingface_hub import HfApi

    sdk = "gradio" if repo_type == "space" else None
    with explained(f"create {repo_id!r}"):
        HfApi(token=token).create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=sdk)


def pull(
    repo_id: str, folder: str | Path, repo_type: str = "model", revision: str | None = None, token: str | None = None
) -> Path:
    """Copy a repository into a folder.

    Raises:
        NotFound: no such repository or revision, or no access to it.
        ServerError: the Hub refuses or cannot be reached.
    """
    from huggingface_hub import snapshot_download

    with explained(f"pull {repo_id!r}" + (f" at revision {revision!r}" if revision else "")):
        return Path(
            snapshot_download(repo_id, repo_type=repo_type, revision=revision, local_dir=str(folder), token=token)
        )


def set_variables(repo_id: str, variables: Mapping[str, str], token: str | None = None) -> bool:
    """Set a Space's public variables, those that differ only: each change restarts the Space.

    Returns:
        Whether anything changed.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with explained(f"set the variables of {repo_id!r}"):
        known = {name: found.value for name, found in api.get_space_variables(repo_id).items()}
        changed = {name: value for name, value in variables.items() if known.get(name) != value}
        for name, value in changed.items():
            api.add_space_variable(repo_id, name, value)
    return bool(changed)


def check_secrets(folder: Path) -> None:
    """Refuse a folder in which a text file holds an access token.

    Raises:
        SettingError: naming the file, never the secret.
    """
    known = [value.encode() for name in SECRETS if len(value := os.environ.get(name, "")) >= 8]
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.suffix in (".safetensors", ".parquet", ".png"):
            continue
        content = path.read_bytes()
        if TOKEN.search(content) or any(secret in content for secret in known):
            raise SettingError(f"{path.relative_to(folder)} holds an access token or key; take it out before pushing.")


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn the Hub's errors into one sentence with the remedy. Messages of the Hub hold no token."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        yield
    except LocalTokenNotFoundError as error:
        raise ServerError(f"Could not {what}: no access token. Run `hf auth login`, or set HF_TOKEN.") from error
    except HFValidationError as error:
        raise SettingError(f"Could not {what}: {error}") from error
    except RuntimeError as error:  # so the client wraps what went wrong with a large file
        if not isinstance(error.__cause__, (HTTPError, OSError)):
            raise
        raise ServerError(f"Could not {what}: {_first_line(error)} {AGAIN}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        remedy = {
            401: "The access token is missing or wrong: run `hf auth login`, or set HF_TOKEN.",
            403: "The access token may not do this: it needs write access to the namespace.",
            404: "No such repository or revision, or the token may not see it.",
            409: "Somebody else changed the repository meanwhile. Run the command again.",
            412: "Somebody else changed the repository meanwhile. Run the command again.",
            429: "The Hub asks to wait. Run the command again later.",
        }.get(status or 0, AGAIN)
        kind = NotFound if status == 404 else ServerError
        raise kind(f"Could not {what}: {_first_line(error)} {remedy}") from error
    except (HTTPError, OfflineModeIsEnabled, ConnectionError, TimeoutError) as error:
        raise ServerError(f"Could not {what}: the Hub cannot be reached ({type(error).__name__}). {AGAIN}") from error


def _tag(api: Any, repo_id: str, repo_type: str, tag: str, revision: str) -> None:
    tags = {found.name: found.target_commit for found in api.list_repo_refs(repo_id, repo_type=repo_type).tags}
    if tag not in tags:
        api.create_tag(repo_id, tag=tag, revision=revision, repo_type=repo_type)
    elif tags[tag] != revision:
        logger.warning(
            "%s: the tag %r stays at %s; the newest commit is %s. Publish with another --tag.",
            repo_id, tag, tags[tag][:8], revision[:8],
        )  # fmt: skip


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") + "." if lines else f"{type(error).__name__}."
