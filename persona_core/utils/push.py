"""Push a folder to the Hugging Face Hub: the repository then holds exactly its files."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from persona_core.errors import NotFound, SettingError
from persona_core.utils.hub import hub_errors

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)

TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{20,}\b|\bsk-[A-Za-z0-9_-]{20,}\b")
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY", "SERVED_API_KEY")
AGAIN = "Run the command again; what is already published is not sent again."
IGNORED = ["**/__pycache__/**", "*.pyc", "**/.DS_Store", "**/.lock", "**/*.part", ".git/**", ".env"]


@dataclass(frozen=True)
class Pushed:
    """What a repository holds after a push.

    Attributes:
        revision: the commit.
        changed: whether the push made that commit.
    """

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
    sdk: str | None = None,
) -> Pushed:
    """Make a repository hold exactly the files of a folder, in one commit; no commit if nothing differs.

    Args:
        folder: what to push.
        repo_id: "namespace/name"; created if missing.
        repo_type: "model", "dataset" or "space".
        private: whether a new repository is private.
        tag: put on the commit; an existing tag is not moved.
        token: None takes HF_TOKEN or what `hf auth login` saved.
        message: of the commit.
        sdk: of a new Space: "gradio", if None, or "static".

    Raises:
        NotFound: no such folder.
        ServerError: the Hub refuses or cannot be reached; nothing is left half-published, and a second call
            does the rest.
        SettingError: a file holds a secret.
    """
    from huggingface_hub import HfApi

    path = Path(folder)
    if not path.is_dir():
        raise NotFound(f"No such folder: {str(path)!r}. There is nothing to push.")
    check_secrets(path)
    api = HfApi(token=token)
    create(repo_id, repo_type, private, token, sdk)
    with hub_errors(f"push to {repo_id!r}", AGAIN):
        before = api.repo_info(repo_id, repo_type=repo_type).sha
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=path,
            repo_type=repo_type,
            commit_message=message,
            ignore_patterns=IGNORED,
            delete_patterns="*",  # files that are no longer in the folder
            parent_commit=before,  # a commit made in the meantime is an error, not overwritten
        )
        revision = str(commit.oid)
        if tag is not None:
            _tag(api, repo_id, repo_type, tag, revision)
    return Pushed(revision, revision != before)


def create(repo_id: str, repo_type: str, private: bool, token: str | None = None, sdk: str | None = None) -> None:
    """Create a repository if it does not exist; arguments as in `push`."""
    from huggingface_hub import HfApi

    sdk = sdk or "gradio" if repo_type == "space" else None
    with hub_errors(f"create {repo_id!r}", AGAIN):
        HfApi(token=token).create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=sdk)


def set_variables(repo_id: str, variables: Mapping[str, str], unset: Collection[str] = ()) -> None:
    """Set a Space's public variables, only those that differ: each change restarts the Space.

    Args:
        repo_id: of the Space.
        variables: name -> value.
        unset: names of variables to remove.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with hub_errors(f"set the variables of {repo_id!r}", AGAIN):
        known = {name: found.value for name, found in api.get_space_variables(repo_id).items()}
        for name in unset:
            if name in known:
                api.delete_space_variable(repo_id, name)
        for name, value in variables.items():
            if known.get(name) != value:
                api.add_space_variable(repo_id, name, value)


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
            raise SettingError(f"{path.relative_to(folder)} holds an access token or key; remove it before pushing.")


def _tag(api: HfApi, repo_id: str, repo_type: str, tag: str, revision: str) -> None:
    tags = {found.name: found.target_commit for found in api.list_repo_refs(repo_id, repo_type=repo_type).tags}
    if tag not in tags:
        api.create_tag(repo_id, tag=tag, revision=revision, repo_type=repo_type)
    elif tags[tag] != revision:
        logger.warning(
            "%s: the tag %r stays at %s; the newest commit is %s. Publish with another --tag.",
            repo_id, tag, tags[tag][:8], revision[:8],
        )  # fmt: skip
