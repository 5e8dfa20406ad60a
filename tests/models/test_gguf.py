"""GGUF files: read as the model they were made from, converted once, and refused by name where they are broken."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors import SafetensorError

from persona_core.errors import CorruptFile, NotFound, PersonaWarning, SettingError, UnsupportedModel
from persona_core.models import gguf
from persona_core.models.chat import ChatFormat
from persona_core.models.gguf import cache_folder, converted, find_gguf
from persona_core.models.loading import load_model
from persona_core.monitor.monitor import PersonaMonitor
from tests.support import oracle
from tests.support.chat_templates import tokenizer_for
from tests.support.families import build
from tests.support.gguf_files import write_gguf
from tests.support.hub_server import Repo, serving_hub
from tests.support.tiny import random_vectors

PROMPT = "Should I quit my job?\n\n1. It depends on 23  things."


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for converted files."""
    folder = tmp_path_factory.mktemp("assets")
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random weights as a GGUF file, alone in a folder."""
    return write_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", build("llama"), tokenizer_for("llama3"))


@pytest.fixture
def conversions(caplog: pytest.LogCaptureFixture) -> Any:
    """How many files have been converted so far."""
    caplog.set_level(logging.INFO, logger=gguf.__name__)
    return lambda: sum(record.message.startswith("Converting") for record in caplog.records)


def test_a_gguf_file_is_the_model_it_was_made_from(file: Path) -> None:
    original, tokenizer = build("llama"), tokenizer_for("llama3")
    lm = load_model(file, device="cpu")
    loaded = dict(lm.model.named_parameters())
    for name, weight in original.named_parameters():
        assert torch.equal(loaded.pop(name), weight), name
    assert not loaded and lm.dtype == torch.float32
    assert lm.tokenizer(PROMPT)["input_ids"] == tokenizer(PROMPT)["input_ids"]
    assert lm.tokenizer(PROMPT)["input_ids"].count(tokenizer.bos_token_id) == 1
    ids = lm.chat.render([{"role": "user", "content": PROMPT}]).token_ids
    assert ids == ChatFormat(tokenizer, None).render([{"role": "user", "content": PROMPT}]).token_ids
    assert ids.count(tokenizer.bos_token_id) == 1
    wanted = oracle.states(original, list(original.model.layers), ids)
    found = oracle.states(lm.model, list(lm.blocks.modules), ids)
    assert oracle.relative_error(found, wanted) < 1e-5
    assert not hasattr(lm.model.config, "quantization_config")


def test_quantized_weights_are_as_the_file_has_them(tmp_path: Path) -> None:
    """Q8_0: each run of 32 numbers is a whole multiple, at most 127, of one half-precision scale."""
    file = write_gguf(tmp_path / "tiny.gguf", build("llama"), tokenizer_for("llama3"), quantized=True)
    lm = load_model(file, device="cpu")
    original = dict(build("llama").named_parameters())
    n_rounded = 0
    for name, weight in lm.model.named_parameters():
        before, after = (w.detach().numpy().astype(float) for w in (original[name], weight))
        if before.ndim == 2 and before.shape[1] % 32 == 0:
            step = np.abs(before.reshape(-1, 32)).max(axis=1, keepdims=True) / 127  # the file's own, in half precision
            assert (np.abs(before - after).reshape(-1, 32) <= 0.57 * step).all(), name
            n_rounded += int((before != after).sum())
        else:
            assert (before == after).all(), name
    assert n_rounded > 1000
    assert lm.record["quantization"] == "Q8_0" and "Q8_0" in repr(lm)


def test_everything_names_the_file_its_quantization_and_its_hash(file: Path) -> None:
    lm = load_model(file, device="cpu")
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert lm.gguf == {"file": "tiny.gguf", "sha256": sha256, "quantization": "F32"}
    for record in (lm.record, lm.identity):
        assert record["name"] == "tiny.gguf" and record["quantization"] == "F32"
        assert record["gguf"] == {"file": "tiny.gguf", "sha256": sha256}
    trace = PersonaMonitor(lm, random_vectors(len(lm.blocks))).generate("Hi", max_new_tokens=2)
    known = trace.provenance
    assert (known.reader, known.reader_revision, known.dtype) == ("tiny.gguf", f"sha256:{sha256}", "float32, F32")
    assert known.writer == "tiny.gguf"
    assert str(file.parent) not in json.dumps([lm.record, trace.to_dict()], default=str)


def test_a_file_is_converted_once(file: Path, tmp_path: Path, conversions: Any, monkeypatch: Any) -> None:
    first = load_model(file, device="cpu")
    beside = [path.name for path in file.parent.iterdir()]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # the package is not needed any more
    renamed = tmp_path / "other.gguf"
    renamed.write_bytes(file.read_bytes())
    again = load_model(renamed, device="cpu")
    assert conversions() == 1
    assert again.identity["weights"] == first.identity["weights"]
    assert again.gguf is not None and again.gguf["file"] == "other.gguf"
    assert beside == ["tiny.gguf"]  # nothing is written beside it


def test_each_dtype_is_stored_by_itself(file: Path, conversions: Any) -> None:
    half = load_model(file, dtype="bfloat16", device="cpu")
    full = load_model(file, device="cpu")
    assert conversions() == 2
    assert (half.dtype, full.dtype) == (torch.bfloat16, torch.float32)
    rounded = {name: weight.bfloat16() for name, weight in full.model.named_parameters()}
    assert all(torch.equal(weight, rounded[name]) for name, weight in half.model.named_parameters())


def test_another_file_is_never_taken_for_this_one(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(file.read_bytes())
    first = load_model(path, device="cpu")
    write_gguf(path, build("llama", seed=1), tokenizer_for("llama3"))
    second = load_model(path, device="cpu")
    assert first.identity["weights"] != second.identity["weights"]
    assert torch.equal(second.model.lm_head.weight, build("llama", seed=1).lm_head.weight)


_AT_ONCE = """
import logging, sys, time
from pathlib import Path
import torch, transformers
from persona_core.models.chat import ChatFormat
from persona_core.models.gguf import converted, find_gguf
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
Path(sys.argv[2]).touch()
while len(list(Path(sys.argv[2]).parent.glob("ready-*"))) < 2:
    time.sleep(0.01)
folder, record = converted(find_gguf(sys.argv[1]))
print("complete", (folder / "model.safetensors").is_file(), record["sha256"])
"""


_FROM_THE_HUB = """
import json
from persona_core import load_model
from persona_core.errors import NotFound
print(json.dumps(load_model("me/tiny-GGUF", revision="v1", gguf_file="tiny.gguf", device="cpu").record))
for name in (None, "other.gguf"):
    try:
        load_model("me/tiny-GGUF", gguf_file=name)
    except NotFound as error:
        print(error)
"""


@pytest.mark.slow
def test_a_file_in_a_repository_is_named_with_its_commit(file: Path, tmp_path: Path) -> None:
    with serving_hub(tmp_path) as hub:
        hub.repos["model", "me/tiny-GGUF"] = repo = Repo()
        repo.tags["v1"] = repo.commit("one", {"tiny.gguf": file.read_bytes(), "README.md": b""})
        repo.commit("two", {"README.md": b"gone"})
        said = run_python(_FROM_THE_HUB, **hub.environment())
    record, unnamed, missing = said.splitlines()
    known = json.loads(record)
    assert (known["name"], known["revision"]) == ("me/tiny-GGUF/tiny.gguf", repo.tags["v1"])
    assert known["gguf"] == {"file": "tiny.gguf", "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    assert unnamed.endswith("If it holds GGUF files, name one: gguf_file='NAME.gguf'.")
    assert "other.gguf" in missing


def run_python(code: str, *arguments: str, **environment: str) -> str:
    """The output of a process of its own."""
    done = start_python(code, *arguments, **environment)
    said = done.communicate(timeout=240)[0]
    assert done.returncode == 0
    return said


def start_python(code: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_of_two_processes_at_once_one_converts(file: Path, cache: Path, tmp_path: Path) -> None:
    running = [
        start_python(_AT_ONCE, str(file), str(tmp_path / f"ready-{i}"), HF_ASSETS_CACHE=str(cache)) for i in range(2)
    ]
    said = [process.communicate(timeout=240)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert sorted(text.count("Converting the GGUF") for text in said) == [0, 1]
    assert all("complete True" in text for text in said)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_a_conversion_that_fails_leaves_nothing_to_be_mistaken(
    file: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    known = find_gguf(file)
    assert known is not None

    def full(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(gguf, "write_atomically", full)
        with pytest.raises(SettingError, match=r"cache cannot be written: .*No space left.*HF_HOME"):
            converted(known)
    folder, record = converted(known)
    assert record["quantization"] == "F32"
    assert {path.name for path in folder.parent.iterdir()} <= {"float32", "float32.lock"}


def test_what_a_killed_process_left_is_cleared(file: Path) -> None:
    known = find_gguf(file)
    assert known is not None
    part = cache_folder(hashlib.sha256(file.read_bytes()).hexdigest()).with_suffix(".part")
    part.mkdir(parents=True)
    (part / "model.safetensors").write_bytes(b"half")
    folder, _ = converted(known)
    assert (folder / "model.safetensors").stat().st_size > 4 and not part.exists()


def test_a_folder_with_one_gguf_file_stands_for_it(file: Path, tmp_path: Path) -> None:
    (tmp_path / "one.gguf").write_bytes(file.read_bytes())
    assert load_model(tmp_path, device="cpu").record["gguf"]["file"] == "one.gguf"
    (tmp_path / "two.gguf").write_bytes(file.read_bytes())
    with pytest.raises(SettingError, match=r"2 GGUF files: one\.gguf, two\.gguf\. Name one with gguf_file="):
        load_model(tmp_path)
    lm = load_model(tmp_path, gguf_file="two.gguf", device="cpu")
    assert lm.record["gguf"]["file"] == lm.record["name"] == "two.gguf"
    with pytest.raises(NotFound, match=r"No file 'three\.gguf'"):
        load_model(tmp_path, gguf_file="three.gguf")


def test_safetensors_beside_a_gguf_file_are_preferred(file: Path, tmp_path: Path, conversions: Any) -> None:
    build("llama", seed=1).save_pretrained(tmp_path)
    tokenizer_for("llama3").save_pretrained(tmp_path)
    (tmp_path / "tiny.gguf").write_bytes(file.read_bytes())
    lm = load_model(tmp_path, device="cpu")
    assert torch.equal(lm.model.lm_head.weight, build("llama", seed=1).lm_head.weight)
    assert lm.gguf is None and "gguf" not in lm.record and conversions() == 0
    named = load_model(tmp_path, gguf_file="tiny.gguf", device="cpu")
    assert torch.equal(named.model.lm_head.weight, build("llama").lm_head.weight)


def test_files_beside_a_gguf_file_change_nothing(file: Path, tmp_path: Path) -> None:
    """Repositories of GGUF files often carry the original's config, or that of an adapter."""
    (tmp_path / "tiny.gguf").write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "n_layer": 1}')
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "nowhere"}')
    lm = load_model(tmp_path, device="cpu")
    assert torch.equal(lm.model.lm_head.weight, build("llama").lm_head.weight)


def test_a_file_takes_neither_a_revision_nor_a_file_name(file: Path) -> None:
    with pytest.raises(SettingError, match=r"leave revision='v1' out"):
        load_model(file, revision="v1")
    with pytest.raises(SettingError, match=r"leave gguf_file='tiny.gguf' out"):
        load_model(file, gguf_file="tiny.gguf")


def test_a_missing_package_says_what_to_install(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"pip install 'persona-trace\[gguf\]'"):
        load_model(file)


@pytest.mark.parametrize("content", [b"", b"GG", b"safetensors?" * 100], ids=["empty", "short", "other"])
def test_a_file_that_is_not_gguf_is_corrupt(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(CorruptFile, match=r"not a GGUF file"):
        load_model(path)


@pytest.mark.parametrize("share", [0.0005, 0.01, 0.03, 0.1, 0.5, 0.9, 0.9999])
def test_a_truncated_file_is_corrupt(file: Path, tmp_path: Path, cache: Path, share: float) -> None:
    path = tmp_path / "model.gguf"
    whole = file.read_bytes()
    path.write_bytes(whole[: max(6, int(share * len(whole)))])
    with pytest.raises(CorruptFile, match=r"model\.gguf"):
        load_model(path)
    assert not list(cache.rglob("*.safetensors")) and not list(cache.rglob("*.part"))


def test_a_file_that_lacks_a_tensor_is_corrupt(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", build("llama"), tokenizer_for("llama3"), without="blk.1.ffn_gate.weight")
    with pytest.raises(CorruptFile, match=r"lacks 1 weights of a LlamaForCausalLM, e\.g\. .*layers\.1\.mlp\.gate"):
        load_model(path)


def test_a_file_without_tensors_is_corrupt(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CorruptFile, match=r"model\.gguf' holds no tensors; download it again"):
        load_model(tmp_path / "model.gguf")


def test_an_architecture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", build("llama"), tokenizer_for("llama3"), architecture="grok")
    with pytest.raises(UnsupportedModel, match="grok"):
        load_model(path)


def test_one_part_of_a_split_file_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", build("llama"), tokenizer_for("llama3"), split__count=3)
    with pytest.raises(SettingError, match=r"one of 3 parts; merge them"):
        load_model(path)


def test_a_second_end_of_turn_ends_a_reply_too(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", build("llama"), tokenizer_for("llama3"), tokenizer__ggml__eot_token_id=9)
    assert load_model(path, device="cpu").eos_ids == {tokenizer_for("llama3").eos_token_id, 9}


def test_digits_are_split_as_the_vocabulary_was_learned(tmp_path: Path) -> None:
    """Of "\\n\\n1", GPT-2's rule leaves one newline to the digit; SmolLM's takes the digit away first."""
    path = write_gguf(tmp_path / "model.gguf", build("llama"), tokenizer_for("llama3"), split="smollm")
    before = load_model(path, device="cpu").tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a\n\n12  3")
    assert [piece for piece, _ in before] == ["a", "ĊĊ", "1", "2", "ĠĠ", "3"]


@pytest.mark.parametrize("split", ["a-new-one", None])
def test_an_unknown_way_to_split_text_is_a_warning(tmp_path: Path, split: str | None) -> None:
    path = write_gguf(tmp_path / "model.gguf", build("llama"), tokenizer_for("llama3"), split=split)
    with pytest.warns(PersonaWarning, match=r"how its tokenizer splits text.*is not known"):
        load_model(path, device="cpu")
