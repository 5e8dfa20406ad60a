"""Weights that were converted from a GGUF file say so, as long as they are those of the conversion."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from persona_core.errors import NotFound
from persona_core.models.bfloat16_copy import write_bfloat16
from persona_core.models.gguf import cache_folder
from persona_core.models.language_model import LanguageModel
from persona_core.models.loading import load_model
from persona_core.models.origin import weights_digest
from tests.support.chat_templates import tokenizer_for
from tests.support.families import build
from tests.support.gguf_files import write_gguf


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A quantized Llama of random weights, read from its file."""
    file = tmp_path_factory.mktemp("models") / "tiny.Q8_0.gguf"
    write_gguf(file, build("llama"), tokenizer_for("llama3"), quantized=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_ASSETS_CACHE", str(file.parent / "assets"))
        return load_model(file, device="cpu")


@pytest.fixture
def folder(read: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as a folder to publish."""
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(Path(read.name).parent / "assets"))
    return write_bfloat16(read.record["gguf"], tmp_path / "published")


def test_a_copy_holds_the_files_weights_rounded_and_is_read_in_float32(read: LanguageModel, folder: Path) -> None:
    lm = load_model(folder, device="cpu")
    assert lm.dtype == torch.float32
    found = dict(lm.model.named_parameters())
    for name, weight in read.model.named_parameters():
        assert torch.equal(found.pop(name), weight.bfloat16().float()), name
    assert not found
    assert lm.eos_ids == read.eos_ids and lm.chat.fingerprint == read.chat.fingerprint
    text = "Should I quit my job? 1. It depends on 23  things."
    assert lm.tokenizer(text)["input_ids"] == read.tokenizer(text)["input_ids"]
    assert (folder / "model.safetensors").stat().st_mode & 0o044 == 0o044, "others may read it"


def test_a_copy_knows_its_file_and_so_do_its_records(read: LanguageModel, folder: Path) -> None:
    lm = load_model(folder, device="cpu")
    assert lm.converted_from == read.record["gguf"] == lm.record["converted_from"]
    assert lm.writer_names == ("published", "tiny.Q8_0.gguf")
    assert read.converted_from is None and read.writer_names == ("tiny.Q8_0.gguf",)
    assert load_model(folder, device="cpu", dtype="bfloat16").converted_from == lm.converted_from


def test_a_fine_tuned_copy_that_keeps_the_config_is_not_taken_for_the_file(folder: Path, tmp_path: Path) -> None:
    lm = load_model(folder, device="cpu")
    with torch.no_grad():
        lm.model.get_parameter("model.layers.1.mlp.up_proj.weight").add_(0.01)
    lm.model.save_pretrained(tmp_path / "tuned")
    lm.tokenizer.save_pretrained(tmp_path / "tuned")
    assert "converted_from" in json.loads((tmp_path / "tuned" / "config.json").read_text())
    tuned = load_model(tmp_path / "tuned", device="cpu")
    assert tuned.converted_from is None and tuned.writer_names == ("tuned",)


@pytest.mark.parametrize("claim", ["x", {}, {"file": 1, "sha256": "a"}, {"file": "a", "sha256": None}, None])
def test_a_claim_of_another_form_is_no_claim(folder: Path, claim: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "converted_from": claim}))
    assert load_model(folder, device="cpu").converted_from is None


def test_a_digest_depends_on_every_weight_but_not_on_their_order() -> None:
    weights = [torch.arange(float(n)).reshape(-1, 2) for n in (4, 6, 40)]
    assert weights_digest(weights) == weights_digest(weights[::-1]) == weights_digest(w.bfloat16() for w in weights)
    for i in range(3):
        for at in (0, -1):
            changed = [w.clone() for w in weights]
            changed[i][at] += 1
            assert weights_digest(changed) != weights_digest(weights)
    assert weights_digest([w.T for w in weights]) != weights_digest(weights)


def test_a_model_in_parts_is_copied_in_parts(
    read: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    source = cache_folder(read.record["gguf"]["sha256"])
    shutil.copytree(Path(read.name).parent / "assets", tmp_path / "assets")
    (source / "model.safetensors").unlink()
    read.model.save_pretrained(source, max_shard_size="20KB")
    folder = write_bfloat16(read.record["gguf"], tmp_path / "published")
    assert len(list(folder.glob("*.safetensors"))) > 1
    lm = load_model(folder, device="cpu")
    assert lm.converted_from == read.record["gguf"]
    for name, weight in read.model.named_parameters():
        assert torch.equal(lm.model.get_parameter(name), weight.bfloat16().float()), name


def test_weights_that_were_never_read_here_are_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "none"))
    with pytest.raises(NotFound, match=r"other\.gguf \(SHA-256 0000000000000000….*make weights.*run load_model on it"):
        write_bfloat16({"file": "other.gguf", "sha256": "0" * 64}, tmp_path / "published")
    assert not (tmp_path / "published").exists()
