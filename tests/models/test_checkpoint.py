"""A checkpoint is loaded whole, or refused in words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from persona_core.errors import CorruptFile
from persona_core.models.loading import load_model

BASE = Path(__file__).parents[2] / "artifacts" / "persona-tiny"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BASE, tmp_path / "model"))


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_a_truncated_config_is_refused(folder: Path, name: str) -> None:
    """transformers takes defaults for a generation config that it cannot read: replies would end elsewhere."""
    text = (folder / name).read_text(encoding="utf-8")
    (folder / name).write_text(text[: len(text) // 2], encoding="utf-8")
    with pytest.raises(CorruptFile, match=name):
        load_model(folder)


def test_a_checkpoint_without_a_generation_config_is_loaded(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    assert load_model(folder).eos_ids


def test_a_tokenizer_that_its_library_refuses_is_a_corrupt_file(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"] = {}
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(CorruptFile, match="Could not load the model"):
        load_model(folder)
