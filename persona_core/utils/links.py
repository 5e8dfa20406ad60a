"""The address of the source: git knows it, and the notebooks clone it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from persona_core.utils.files import read_json, write_atomically

_SOURCE = re.compile(r'^SOURCE = ".*?"', re.MULTILINE)


def source_of(root: Path) -> str | None:
    """The web address of git's remote `origin`, without credentials; None if there is none."""
    command = ["git", "-C", str(root), "remote", "get-url", "origin"]
    try:
        url = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    url = re.sub(r"^(?:ssh://)?git@([^:/]+)[:/]", r"https://\1/", url)
    found = re.fullmatch(r"https://(?:[^@/]*@)?(.+?)(?:\.git)?/?", url)
    return f"https://{found[1]}" if found else None


def colab_url(path: Path, root: Path, source: str) -> str | None:
    """The address that opens a notebook of the source in Colab; None where the source is not on GitHub.

    >>> colab_url(Path("notebooks/a.ipynb"), Path(), "https://github.com/me/repo")
    'https://colab.research.google.com/github/me/repo/blob/main/notebooks/a.ipynb'
    >>> colab_url(Path("notebooks/a.ipynb"), Path(), "https://example.org/me/repo") is None
    True
    """
    if not source.startswith("https://github.com/"):
        return None
    name = source.removeprefix("https://github.com/")
    return f"https://colab.research.google.com/github/{name}/blob/main/{path.relative_to(root).as_posix()}"


def fill_notebook(path: Path, root: Path, source: str) -> None:
    """Set the address that a notebook clones, and for GitHub the badge that opens it in Colab."""
    notebook = read_json(path)
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            text = _SOURCE.sub(lambda _: f'SOURCE = "{source}"', text)
        cell["source"] = text.splitlines(keepends=True)
    first = [line for line in notebook["cells"][0]["source"] if "Open in Colab" not in line]
    if (address := colab_url(path, root, source)) is not None:
        badge = "https://colab.research.google.com/assets/colab-badge.svg"
        first.insert(0, f"[![Open in Colab]({badge})]({address})\n")
        if first[1].strip():
            first.insert(1, "\n")
    notebook["cells"][0]["source"] = first
    write_atomically(path, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
