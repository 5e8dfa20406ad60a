"""Persona vectors and their files: what goes in comes out, and what is damaged, foreign or hostile is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from persona_core.errors import (
    CorruptFile,
    NotFound,
    PersonaError,
    PersonaWarning,
    UnknownBlock,
    UnknownTrait,
    VectorsMismatch,
)
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.vectors.null import Null
from persona_core.vectors.vectors import PersonaVectors
from tests.support.tiny import Maker, random_vectors

PROBABILITIES = (0.05, 0.5, 0.95)
anyone = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


def calibrated(n_blocks: int = 3, traits: tuple[str, ...] = ("candour", "malice"), seed: int = 0) -> PersonaVectors:
    """Vectors with a null of random numbers and a config that says something."""
    bare, rng = random_vectors(n_blocks, traits), np.random.default_rng(seed)

    def null() -> Null:
        mean, std = rng.normal(size=n_blocks), rng.uniform(0.1, 3.0, n_blocks)
        return Null(mean.astype("f4"), std.astype("f4"), rng.normal(size=(n_blocks, 3)).astype("f4"), PROBABILITIES)

    config = {"base_model": {"name": "tiny-llama"}, "note": "snail 🐌"}
    return PersonaVectors(bare.tensors, bare.best_block, {t: null() for t in traits}, config=config)


def same(a: PersonaVectors, b: PersonaVectors) -> bool:
    """Whether two sets of vectors hold the same numbers, bit for bit (NaN rows of absent blocks included)."""

    def numbers(vectors: PersonaVectors) -> Any:
        parts = [vectors.traits, dict(vectors.best_block), vectors.absent_blocks, vectors.fingerprint]
        for trait in vectors.traits:
            parts.append(vectors.tensor(trait).numpy().tobytes())
            if trait in vectors.null:
                null = vectors.null[trait]
                parts += [null.mean.tobytes(), null.std.tobytes(), null.quantiles.tobytes(), null.probabilities]
        return parts

    return bool(numbers(a) == numbers(b))


# Round trip.


def test_saving_and_loading_gives_back_the_very_numbers(tmp_path: Path) -> None:
    vectors = calibrated()
    again = PersonaVectors.from_pretrained(vectors.save_pretrained(tmp_path / "new" / "folder"))
    assert same(vectors, again)
    assert again.config["note"] == "snail 🐌" and again.config["base_model"] == {"name": "tiny-llama"}
    second = PersonaVectors.from_pretrained(again.save_pretrained(tmp_path / "second"))
    assert same(second, vectors) and dict(second.config) == dict(again.config)


@anyone
@given(
    values=st.lists(
        st.floats(width=32, min_value=-(2.0**50), max_value=2.0**50),
        min_size=6,
        max_size=6,
    )
)
def test_every_float32_survives_the_file(values: list[float], tmp_path: Path) -> None:
    tensor = torch.tensor(values).reshape(3, 2)
    if (tensor.norm(dim=-1) == 0).any():  # a zero direction is refused, which another test shows
        return
    vectors = PersonaVectors.from_tensors({"x": tensor}, {"x": 2})
    assert same(PersonaVectors.from_pretrained(vectors.save_pretrained(tmp_path)), vectors)


def test_trait_names_of_any_kind_survive_the_file(tmp_path: Path) -> None:
    names = ("a/b", "ärger", "über mut", "🐌", "null_mean/x")
    vectors = calibrated(traits=names)
    assert same(PersonaVectors.from_pretrained(vectors.save_pretrained(tmp_path)), vectors)


def test_uncalibrated_and_partly_absent_vectors_survive_the_file(tmp_path: Path) -> None:
    tensor = torch.randn(4, 8)
    tensor[3] = torch.nan
    vectors = PersonaVectors({"x": tensor}, {}, absent_blocks=(3,))
    again = PersonaVectors.from_pretrained(vectors.save_pretrained(tmp_path))
    assert same(vectors, again) and again.blocks == (0, 1, 2) and not again.null


def test_saving_over_older_vectors_leaves_the_newer_ones(tmp_path: Path) -> None:
    random_vectors(5, ("old",)).save_pretrained(tmp_path)
    newer = calibrated()
    assert same(PersonaVectors.from_pretrained(newer.save_pretrained(tmp_path)), newer)


def test_tensors_of_any_float_type_are_kept_as_float32() -> None:
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        source = torch.randn(3, 4).to(dtype).requires_grad_()
        vectors = PersonaVectors.from_tensors({"x": source}, {"x": 0})
        assert vectors.tensor("x").dtype == torch.float32 and not vectors.tensor("x").requires_grad
        assert torch.equal(vectors.tensor("x"), source.detach().float())


def test_a_best_block_that_comes_from_argmax_can_be_used_and_saved(tmp_path: Path) -> None:
    best: Any = {"x": np.argmax([0.1, 0.9, 0.3])}  # a numpy integer
    vectors = PersonaVectors.from_tensors({"x": torch.eye(3)}, best)
    assert PersonaVectors.from_pretrained(vectors.save_pretrained(tmp_path)).best_block["x"] == 1


def test_the_fingerprint_changes_with_every_number_that_a_score_depends_on() -> None:
    vectors = calibrated()
    assert vectors.fingerprint == calibrated().fingerprint and len(vectors.fingerprint) == 16
    shifted = {**vectors.tensors, "malice": vectors.tensor("malice") * (1 + 1e-6)}
    mean = vectors.null["candour"].mean.copy()
    mean[1] = np.nextafter(mean[1], np.float32(9))
    null = {**vectors.null, "candour": dataclasses.replace(vectors.null["candour"], mean=mean)}
    others = [
        dataclasses.replace(vectors, tensors=shifted),
        dataclasses.replace(vectors, null=null),
        dataclasses.replace(vectors, null={}),
        dataclasses.replace(vectors, best_block={**vectors.best_block, "malice": 2}),
        vectors.select(["malice", "candour"]),
        vectors.select(["candour"]),
    ]
    assert len({v.fingerprint for v in [vectors, *others]}) == len(others) + 1
    noted = dataclasses.replace(vectors, config={"note": "another"})
    assert noted.fingerprint == vectors.fingerprint


def test_a_selection_keeps_the_requested_order_and_the_numbers() -> None:
    vectors = calibrated()
    chosen = vectors.select(["malice"])
    assert chosen.traits == ("malice",) and torch.equal(chosen.tensor("malice"), vectors.tensor("malice"))
    assert dict(chosen.best_block) == {"malice": 1} and set(chosen.null) == {"malice"}
    with pytest.raises(UnknownTrait, match=r"charm.*candour, malice"):
        vectors.select(["malice", "charm"])


# What they refuse to hold or to give.


def test_an_unknown_trait_names_the_known_ones() -> None:
    vectors = calibrated()
    for ask in (vectors.tensor, lambda t: vectors.direction(t, 0)):
        with pytest.raises(UnknownTrait, match=r"'charm'.*candour, malice"):
            ask("charm")
    with pytest.raises(UnknownTrait):
        PersonaVectors.from_tensors({"x": torch.eye(3)}, {"y": 0})


@pytest.mark.parametrize("block", [-1, -3, 3, 99, True, 1.0, 0.5, "1", None], ids=repr)
def test_an_unknown_or_negative_block_is_an_error(block: Any) -> None:
    vectors = calibrated()
    with pytest.raises(UnknownBlock, match="0 to 2"):
        vectors.direction("malice", block)
    with pytest.raises(UnknownBlock):
        PersonaVectors.from_tensors({"x": torch.eye(3)}, {"x": block})


def test_the_null_of_a_negative_block_is_an_error() -> None:
    with pytest.raises(UnknownBlock):
        calibrated().null["malice"].at(-1)


def test_a_direction_has_length_one_and_points_along_its_row() -> None:
    vectors = calibrated()
    for block in range(3):
        direction, row = vectors.direction("malice", block), vectors.tensor("malice")[block]
        assert abs(float(direction.norm()) - 1) < 1e-6
        assert torch.allclose(direction * row.norm(), row, rtol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_in_a_vector_are_refused(value: float) -> None:
    tensor = torch.eye(3)
    tensor[1, 2] = value
    with pytest.raises(VectorsMismatch, match=r"'x' holds NaN or infinity at block 1"):
        PersonaVectors.from_tensors({"x": tensor}, {"x": 0})


def test_a_zero_direction_is_refused() -> None:
    with pytest.raises(VectorsMismatch, match="zero"):
        PersonaVectors.from_tensors({"x": torch.eye(3) * torch.tensor([[1.0], [0.0], [1.0]])}, {"x": 0})


def test_no_vectors_and_vectors_of_different_shapes_are_refused() -> None:
    with pytest.raises(VectorsMismatch, match="No vectors"):
        PersonaVectors.from_tensors({}, {})
    for other in (torch.eye(4), torch.ones(3, 4), torch.ones(3), torch.ones(1, 3, 3)):
        with pytest.raises(VectorsMismatch, match="same shape"):
            PersonaVectors.from_tensors({"x": torch.eye(3), "y": other}, {})


def test_vectors_cannot_be_changed_through_their_attributes() -> None:
    vectors: Any = calibrated()
    for mapping in (vectors.tensors, vectors.best_block, vectors.null, vectors.config):
        with pytest.raises(TypeError):
            mapping["x"] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        vectors.absent_blocks = (1,)


# Whom they fit.


def test_vectors_of_another_width_or_depth_are_refused(make_lm: Maker) -> None:
    lm = make_lm("llama")
    narrow = PersonaVectors.from_tensors({"x": torch.randn(3, 16)}, {"x": 0})
    for wrong, words in ((random_vectors(2), "2 blocks"), (random_vectors(4), "4 blocks"), (narrow, "width 16")):
        with pytest.raises(VectorsMismatch, match=rf"{words}.*3 blocks of width 32"):
            PersonaMonitor(lm, wrong)
        with pytest.raises(VectorsMismatch):
            wrong.check_fits(lm)


def test_another_base_model_or_template_warns_and_the_same_does_not(make_lm: Maker) -> None:
    lm = make_lm("llama")
    base = {"name": lm.name, "template_fingerprint": lm.chat.fingerprint}
    for change, words in (({"name": "org/other"}, "org/other"), ({"template_fingerprint": "feed"}, "template")):
        vectors = dataclasses.replace(calibrated(), config={"base_model": base | change})
        with pytest.warns(PersonaWarning, match=words):
            PersonaMonitor(lm, vectors)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PersonaMonitor(lm, dataclasses.replace(calibrated(), config={"base_model": base}))
        # The same model, once from the Hub and once from a folder.
        PersonaMonitor(lm, dataclasses.replace(calibrated(), config={"base_model": {"name": "org/" + lm.name}}))
        PersonaMonitor(lm, random_vectors(3))


def test_the_weights_of_the_file_that_vectors_were_made_on_fit_them_under_any_name(make_lm: Maker) -> None:
    file = {"file": "it.Q4_1.gguf", "sha256": "a" * 64}
    vectors = dataclasses.replace(calibrated(), config={"base_model": {"name": "it.Q4_1.gguf", "gguf": file}})
    lm = make_lm("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PersonaMonitor(dataclasses.replace(lm, gguf={**file, "file": "renamed.gguf", "quantization": "Q4_1"}), vectors)
        PersonaMonitor(dataclasses.replace(lm, converted_from=file), vectors)
        published = {"name": "it.Q4_1.gguf", "gguf": file, "published": f"org/{lm.name}"}
        PersonaMonitor(lm, dataclasses.replace(calibrated(), config={"base_model": published}))
    for other in (lm, dataclasses.replace(lm, converted_from={**file, "sha256": "b" * 64})):
        with pytest.warns(PersonaWarning, match=r"it\.Q4_1\.gguf"):
            PersonaMonitor(other, vectors)


# Damaged and foreign folders.


def edit_config(folder: Path, **changes: Any) -> None:
    """Change entries of `config.json`; `...` takes one out."""
    config = json.loads((folder / "config.json").read_text())
    merged = {k: v for k, v in (config | changes).items() if v is not ...}
    (folder / "config.json").write_text(json.dumps(merged))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return calibrated().save_pretrained(tmp_path / "vectors")


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, 0.5, 0.9, -1])
def test_a_truncated_vectors_file_is_refused(saved: Path, keep: float) -> None:
    file = saved / "vectors.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(CorruptFile, match=r"vectors\.safetensors"):
        PersonaVectors.from_pretrained(saved)


def test_a_vectors_file_with_a_flipped_bit_is_refused(saved: Path) -> None:
    file = saved / "vectors.safetensors"
    content = bytearray(file.read_bytes())
    for offset in (3, 20, len(content) - 5):  # in the length, in the header, in the numbers
        damaged = bytearray(content)
        damaged[offset] ^= 0x10
        file.write_bytes(damaged)
        with pytest.raises(PersonaError):
            PersonaVectors.from_pretrained(saved)


@pytest.mark.parametrize(
    "content",
    [b"<!doctype html><title>404</title>", b"\0" * 64, pickle.dumps({"x": 1})],
    ids=["html", "zeros", "pickle"],
)
def test_a_file_of_another_kind_is_refused(saved: Path, content: bytes) -> None:
    (saved / "vectors.safetensors").write_bytes(content)
    with pytest.raises(CorruptFile, match=r"vectors\.safetensors"):
        PersonaVectors.from_pretrained(saved)


def test_a_foreign_safetensors_file_is_refused(saved: Path) -> None:
    save_file({"model.embed_tokens.weight": torch.eye(3)}, str(saved / "vectors.safetensors"))
    with pytest.raises(CorruptFile, match="vector/candour"):
        PersonaVectors.from_pretrained(saved)


@pytest.mark.parametrize("name", ["vector/malice", "null_std/malice", "null_quantiles/candour", "null_mean/candour"])
def test_a_missing_tensor_is_refused(saved: Path, name: str) -> None:
    arrays = load_file(str(saved / "vectors.safetensors"))
    del arrays[name]
    save_file(arrays, str(saved / "vectors.safetensors"))
    with pytest.raises(CorruptFile):
        PersonaVectors.from_pretrained(saved)


def test_a_saved_vector_with_nan_is_refused(saved: Path) -> None:
    arrays = load_file(str(saved / "vectors.safetensors"))
    arrays["vector/malice"][0, 0] = torch.nan
    save_file(arrays, str(saved / "vectors.safetensors"))
    with pytest.raises(PersonaError, match=r"malice.*NaN"):
        PersonaVectors.from_pretrained(saved)


def test_files_that_do_not_belong_together_are_refused(saved: Path, tmp_path: Path) -> None:
    other = calibrated(seed=1).save_pretrained(tmp_path / "other")  # another null
    (saved / "vectors.safetensors").write_bytes((other / "vectors.safetensors").read_bytes())
    with pytest.raises(CorruptFile, match="belong together"):
        PersonaVectors.from_pretrained(saved)


def test_a_null_of_another_depth_is_refused(saved: Path) -> None:
    arrays = load_file(str(saved / "vectors.safetensors"))
    arrays["null_mean/malice"] = torch.zeros(2)
    save_file(arrays, str(saved / "vectors.safetensors"))
    edit_config(saved, fingerprint=...)  # as in a file of somebody else's making
    with pytest.raises(PersonaError):
        PersonaVectors.from_pretrained(saved)


@pytest.mark.parametrize("version", [0, 3, "1", None, ...], ids=["0", "3", "text", "null", "missing"])
def test_a_config_of_another_version_is_refused(saved: Path, version: Any) -> None:
    edit_config(saved, format_version=version)
    with pytest.raises(CorruptFile, match=r"config\.json.*format_version"):
        PersonaVectors.from_pretrained(saved)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"text"', "{}", "\ufeff{}"], ids=repr)
def test_a_config_that_is_no_config_is_refused(saved: Path, content: str) -> None:
    (saved / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(CorruptFile, match=r"config\.json"):
        PersonaVectors.from_pretrained(saved)


def test_a_config_that_is_not_text_is_refused(saved: Path) -> None:
    (saved / "config.json").write_bytes(b"\xff\xfe\x00{}")
    with pytest.raises(CorruptFile, match=r"config\.json"):
        PersonaVectors.from_pretrained(saved)


@pytest.mark.parametrize(
    "change",
    [
        {"traits": ...},
        {"best_block": ...},
        {"traits": 3},
        {"traits": ["candour", "charm"]},
        {"traits": []},
        {"traits": [1, 2]},
        {"best_block": None},
        {"best_block": [0, 1]},
        {"best_block": {"candour": 7}},
        {"best_block": {"candour": -1}},
        {"best_block": {"candour": "0"}},
        {"best_block": {"charm": 0}},
        {"absent_blocks": None},
        {"absent_blocks": 2},
        {"null_probabilities": None},
    ],
    ids=str,
)
def test_a_config_with_a_wrong_entry_is_refused(saved: Path, change: dict[str, Any]) -> None:
    edit_config(saved, **change)
    with pytest.raises(PersonaError):
        PersonaVectors.from_pretrained(saved)


@pytest.mark.parametrize("missing", ["config.json", "vectors.safetensors"])
def test_a_folder_without_one_of_the_files_is_not_found(saved: Path, missing: str) -> None:
    (saved / missing).unlink()
    with pytest.raises(NotFound, match=missing):
        PersonaVectors.from_pretrained(saved)


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "a/b/c", ""])
def test_a_folder_that_does_not_exist_is_not_found(source: str) -> None:
    with pytest.raises(NotFound):
        PersonaVectors.from_pretrained(source)


def test_a_repository_that_cannot_be_reached_is_not_found(tmp_path: Path) -> None:
    """In a separate process: the Hub library looks at its settings once."""
    code = (
        "from persona_core.utils.hub import fetch\n"
        "from persona_core.errors import NotFound\n"
        "for source in ('org/no-such-vectors', 'no such id!', 'no-such-vectors'):\n"
        "    try:\n"
        "        fetch(source, 'config.json', 'v1')\n"
        "    except NotFound as error:\n"
        "        print(error)\n"
    )
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    lines = run.stdout.splitlines()
    assert run.returncode == 0, run.stderr
    assert "org/no-such-vectors" in lines[0] and "config.json" in lines[0] and "'v1'" in lines[0]
    assert "no such id!" in run.stdout and "'no-such-vectors'" in lines[-1]


# Files of the persona_vectors family.


def reference_file(folder: Path, rows: Any = None, name: str = "evil.pt") -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    torch.save(torch.randn(5, 8) if rows is None else rows, folder / name)
    return folder / name


def test_reference_rows_are_shifted_by_one_block(tmp_path: Path) -> None:
    rows = torch.arange(1.0, 6.0)[:, None] * torch.ones(5, 8)  # row r holds r + 1
    vectors = PersonaVectors.from_reference({"evil": reference_file(tmp_path, rows)}, best_block={"evil": 2})
    assert vectors.n_blocks == 4 and vectors.d_model == 8
    assert vectors.tensor("evil")[:3, 0].tolist() == [2.0, 3.0, 4.0]
    assert vectors.best_block["evil"] == 2


def test_the_last_block_of_a_reference_file_is_absent(tmp_path: Path) -> None:
    vectors = PersonaVectors.from_reference({"evil": reference_file(tmp_path)})
    assert vectors.absent_blocks == (3,) and vectors.blocks == (0, 1, 2)
    assert vectors.tensor("evil")[3].isnan().all()
    with pytest.raises(UnknownBlock, match=r"3.*absent: \[3\]"):
        vectors.direction("evil", 3)
    assert same(PersonaVectors.from_pretrained(vectors.save_pretrained(tmp_path / "saved")), vectors)


def test_reference_files_of_low_precision_or_with_gradients_are_read(tmp_path: Path) -> None:
    for rows in (torch.randn(4, 8).bfloat16(), torch.randn(4, 8).double(), torch.nn.Parameter(torch.randn(4, 8))):
        vectors = PersonaVectors.from_reference({"evil": reference_file(tmp_path, rows)})
        assert torch.equal(vectors.tensor("evil")[:2], rows[1:3].detach().float())


class Touches:
    """Pickled, it becomes a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self._path),))


@pytest.mark.parametrize("container", ["zip", "legacy", "plain-pickle", "beside-a-tensor"])
def test_a_pt_file_with_code_in_it_is_refused_and_nothing_runs(tmp_path: Path, container: str) -> None:
    harm, file = tmp_path / "harm", tmp_path / "evil.pt"
    if container == "plain-pickle":
        file.write_bytes(pickle.dumps(Touches(harm)))
    elif container == "beside-a-tensor":
        torch.save({"vector": torch.randn(5, 8), "x": Touches(harm)}, file)
    else:
        torch.save(Touches(harm), file, _use_new_zipfile_serialization=container == "zip")
    with pytest.raises(CorruptFile, match=r"evil\.pt"):
        PersonaVectors.from_reference({"evil": file})
    assert not harm.exists()
    assert b"mkdir" in file.read_bytes()  # the call is in the file: an unsafe load would have made it


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_truncated_pt_file_is_refused(tmp_path: Path, share: float, zipped: bool) -> None:
    file = tmp_path / "evil.pt"
    torch.save(torch.randn(5, 64), file, _use_new_zipfile_serialization=zipped)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CorruptFile, match=r"evil\.pt"):
        PersonaVectors.from_reference({"evil": file})


@anyone
@given(content=st.one_of(st.binary(max_size=200), st.binary(max_size=60).map(lambda b: b"\x80\x02" + b)))
def test_a_pt_file_of_any_other_bytes_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "evil.pt"
    file.write_bytes(content)
    with pytest.raises(CorruptFile):
        PersonaVectors.from_reference({"evil": file})


@pytest.mark.parametrize(
    "held",
    [{"a": torch.eye(3)}, [torch.eye(3)], 3, None, torch.ones(5), torch.ones(2, 8), torch.ones(2, 3, 4)],
    ids=["dict", "list", "number", "none", "1-d", "two-rows", "3-d"],
)
def test_a_pt_file_that_holds_something_else_is_refused(tmp_path: Path, held: Any) -> None:
    file = tmp_path / "evil.pt"
    torch.save(held, file)
    with pytest.raises(CorruptFile, match=r"evil\.pt"):
        PersonaVectors.from_reference({"evil": file})


def test_a_reference_file_with_nan_and_files_of_different_models_are_refused(tmp_path: Path) -> None:
    broken = torch.randn(5, 8)
    broken[2, 1] = torch.nan
    with pytest.raises(VectorsMismatch, match="NaN"):
        PersonaVectors.from_reference({"evil": reference_file(tmp_path, broken)})
    for other in (torch.randn(6, 8), torch.randn(5, 9)):
        files = {"evil": reference_file(tmp_path), "kind": reference_file(tmp_path, other, "kind.pt")}
        with pytest.raises(VectorsMismatch, match="same shape"):
            PersonaVectors.from_reference(files)


def test_missing_reference_files_and_unknown_conventions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"nowhere\.pt"):
        PersonaVectors.from_reference({"evil": tmp_path / "nowhere.pt"})
    with pytest.raises(VectorsMismatch, match="blocks_first"):
        PersonaVectors.from_reference({"evil": reference_file(tmp_path)}, convention="blocks_first")
    with pytest.raises(VectorsMismatch):
        PersonaVectors.from_reference({})


def test_saved_tensors_are_as_readable_as_the_config_beside_them(tmp_path: Path) -> None:
    """safetensors leaves its files to their owner alone."""
    vectors = PersonaVectors.from_tensors({"evil": torch.randn(3, 8)}, {"evil": 1})
    folder = vectors.save_pretrained(tmp_path / "v")
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes["vectors.safetensors"] == modes["config.json"]
