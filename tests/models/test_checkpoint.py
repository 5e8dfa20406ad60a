"""A checkpoint is loaded whole, or refused in words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

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


def set_config(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | fields), encoding="utf-8")


def rename_weights(folder: Path, change: Callable[[str], str], **more: torch.Tensor) -> None:
    weights = dict(more)
    for part in folder.glob("*.safetensors"):
        weights |= {change(name): weight for name, weight in load_file(part).items()}
        part.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("prefix", ["model.", ""], ids=["named by the whole model", "named by the decoder"])
def test_a_config_with_fewer_blocks_than_the_files_is_refused(folder: Path, prefix: str) -> None:
    """transformers would build the first three and drop the others."""
    rename_weights(folder, lambda name: prefix + name.removeprefix("model."))
    set_config(folder, num_hidden_layers=3)
    with pytest.raises(CorruptFile, match=r"beyond the 3 layers .* e\.g\. '(model\.)?layers\.3\."):
        load_model(folder)


def test_blocks_of_gpt2_beyond_its_config_are_refused(folder: Path) -> None:
    from tests.support.families import build

    build("gpt2", 0).save_pretrained(folder)
    set_config(folder, n_layer=1)
    with pytest.raises(CorruptFile, match=r"beyond the 1 layers .* e\.g\. '(transformer\.)?h\.1\."):
        load_model(folder)


def test_weights_that_no_block_of_the_text_lacks_are_passed_over(folder: Path) -> None:
    """Rotary buffers of old checkpoints, a vision tower, a layer that predicts the token after the next."""
    extra = (
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "vision_tower.blocks.9.mlp.weight",
        "mtp.layers.0.mlp.weight",
        "model.layers.6.eh_proj.weight",
    )
    rename_weights(folder, str, **{name: torch.ones(2, 2) for name in extra})
    set_config(folder, num_nextn_predict_layers=1)
    assert len(load_model(folder).blocks) == 6


@pytest.mark.parametrize("name", ["nofile.gguf", "./nofile.gguf", "tests/nofile.gguf", "~/no/such/folder/nofile.gguf"])
def test_a_gguf_file_that_is_not_there_never_becomes_a_request(name: str) -> None:
    with pytest.raises(NotFound, match=r"No file '.*nofile\.gguf' here\. `make weights`"):
        load_model(name)


def test_an_adapter_of_another_model_is_refused_in_a_line(tmp_path: Path) -> None:
    from tests.support.families import build

    build("llama", 0).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(BASE / name, tmp_path / name)
    with pytest.raises(CorruptFile) as refused:
        load_model(tmp_path, adapter=BASE.parent / "persona-tiny-contaminated")
    assert len(str(refused.value)) < 600 and "size mismatch" in str(refused.value)
