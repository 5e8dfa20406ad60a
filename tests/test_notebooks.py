"""The notebooks run from top to bottom in a new kernel, on the real model, and on Colab they clone the source."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from scripts import weights

ROOT = Path(__file__).resolve().parent.parent
SHORTER = {"EVERY = 1 ": "EVERY = 5 ", "max_new_tokens=80": "max_new_tokens=8"}
"""A fifth of the texts, and shorter replies."""


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.timeout(1200)  # a hanging kernel, not a busy machine
@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_a_notebook_runs_and_shows_figures_and_coloured_text(path: Path, tmp_path: Path) -> None:
    if (found := weights.find())[0] is None:
        pytest.skip(found[1])
    for name in ("persona_core", "artifacts", "datasets", "demo_world", "real_model", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)  # so that what it writes stays here
    (tmp_path / "notebooks").mkdir()
    shutil.copy(path, tmp_path / "notebooks")
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear the outputs before committing"
    for long, short in SHORTER.items():
        assert any(long in cell.source for cell in notebook.cells)
        for cell in notebook.cells:
            cell.source = cell.source.replace(long, short)
    client = NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert kinds.count("application/vnd.plotly.v1+json") == 2
    assert kinds.count("text/html") == 2
    assert not any("Warning: " in o.text for o in outputs if o.output_type == "stream" and "tqdm" not in o.text.lower())
    assert (tmp_path / "outputs" / "notebook" / "sycophancy" / "vectors" / "README.md").is_file()
