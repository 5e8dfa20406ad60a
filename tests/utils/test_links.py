"""The address of the source: where it is from, and what a Colab session does with it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

from persona_core.utils.links import fill_notebook, source_of

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOURCE = "https://github.com/me/traits"
BADGE = "https://colab.research.google.com/github/me/traits/blob/main/notebooks/"


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("https://github.com/me/traits.git", SOURCE),
        ("https://user:secret@github.com/me/traits", SOURCE),
        ("git@github.com:me/traits.git", SOURCE),
        ("ssh://git@github.com/me/traits.git", SOURCE),
        ("/srv/git/traits", None),
    ],
)
def test_the_source_is_gits_origin_without_credentials(tmp_path: Path, remote: str, address: str | None) -> None:
    assert source_of(tmp_path / "no repository") is None
    for command in (["init", "-q"], ["remote", "add", "origin", remote]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    assert source_of(tmp_path) == address


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def filled(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "notebooks" / request.param.name
    path.parent.mkdir()
    shutil.copy(request.param, path)
    fill_notebook(path, tmp_path, SOURCE)
    return path


def test_a_notebook_gets_a_badge_once_and_is_otherwise_the_same(filled: Path, tmp_path: Path) -> None:
    notebook, before = nbformat.read(filled, as_version=4), nbformat.read(ROOT / filled.relative_to(tmp_path), 4)
    nbformat.validate(notebook)
    first = notebook.cells[0].source
    assert first.startswith("[![Open in Colab](") and f"({BADGE}{filled.name})\n\n# " in first
    assert first.endswith(before.cells[0].source)
    assert [c.source for c in notebook.cells[2:]] == [c.source for c in before.cells[2:]]
    again = filled.read_bytes()
    fill_notebook(filled, tmp_path, SOURCE)
    assert filled.read_bytes() == again


def test_on_colab_the_first_cell_clones_the_source_and_installs_it(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> None:
        commands.append(command)
        (tmp_path / "project" / "persona_core").mkdir(parents=True, exist_ok=True)

    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.chdir(tmp_path)
    cell = nbformat.read(filled, as_version=4).cells[1].source
    exec(cell, {})
    assert Path.cwd() == tmp_path / "project"
    assert commands[0] == ["git", "clone", "--depth", "1", SOURCE, "project"]
    assert commands[1][-2:] == ["-e", "project[extract]"]
    monkeypatch.chdir(tmp_path)
    exec(cell, {})
    assert len(commands) == 2, "running the cell again clones nothing"
