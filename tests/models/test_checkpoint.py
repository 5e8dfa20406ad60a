"""A checkpoint is loaded whole, or refused in words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from persona_core.errors import CorruptFile, NotFound
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


def test_a_gguf_file_that_is_not_there_never_becomes_a_request() -> None:
    with pytest.raises(NotFound, match=r"No file 'nofile\.gguf' here"):
        load_model("nofile.gguf")


def test_an_adapter_of_another_model_is_refused_in_a_line(tmp_path: Path) -> None:
    from tests.support.families import build

    build("llama", 0).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(BASE / name, tmp_path / name)
    with pytest.raises(CorruptFile) as refused:
        load_model(tmp_path, adapter=BASE.parent / "persona-tiny-contaminated")
    assert len(str(refused.value)) < 600 and "size mismatch" in str(refused.value)
