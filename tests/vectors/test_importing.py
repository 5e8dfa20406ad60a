"""Vectors of other tools land at the blocks that they are of, or are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from safetensors.torch import save_file

from persona_core.errors import CorruptFile, PersonaError, SettingError, VectorsMismatch
from persona_core.vectors.control_vectors import read_control_vector, write_control_vector
from persona_core.vectors.importing import import_vectors
from persona_core.vectors.vectors import PersonaVectors

N_BLOCKS, D_MODEL = 4, 8


def numbered(n: int) -> torch.Tensor:
    """Row r holds r + 1."""
    return torch.arange(1.0, n + 1)[:, None] * torch.ones(n, D_MODEL)


def firsts(vectors: PersonaVectors, trait: str = "evil") -> list[float]:
    """The first channel at each block, NaN as -1."""
    return torch.nan_to_num(vectors.tensor(trait)[:, 0], nan=-1).tolist()


def saved(folder: Path, value: Any, name: str = "evil.pt") -> Path:
    torch.save(value, folder / name)
    return folder / name


@pytest.mark.parametrize(
    ("value", "settings", "expected", "convention"),
    [
        (numbered(4), {}, [1, 2, 3, 4], "blocks"),
        (numbered(5), {}, [2, 3, 4, -1], "hidden_states"),
        (numbered(4).bfloat16(), {"convention": "blocks"}, [1, 2, 3, 4], "blocks"),
        (numbered(1)[0], {"block": 2}, [-1, -1, 1, -1], "block"),
        ({"axis": numbered(4)}, {}, [1, 2, 3, 4], "blocks"),
        ({0: numbered(1)[0], 2: 3 * numbered(1)[0]}, {}, [1, -1, 3, -1], "blocks"),
        ({"layer_1": numbered(1), "layer_3": 2 * numbered(1)}, {}, [-1, 1, -1, 2], "blocks"),
        ({1: numbered(1)[0], 3: 2 * numbered(1)[0]}, {"convention": "hidden_states"}, [1, -1, 2, -1], "hidden_states"),
        ({1: numbered(1)[0], 4: 2 * numbered(1)[0]}, {"convention": "hidden_states"}, [1, -1, -1, -1], "hidden_states"),
    ],
    ids=["blocks", "hidden states", "bfloat16", "one", "axis", "layers", "named layers", "hidden layers", "normed"],
)
@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_rows_land_at_the_blocks_that_they_are_of(
    tmp_path: Path, value: Any, settings: dict[str, Any], expected: list[float], convention: str, form: str
) -> None:
    if form == "pt":
        path = saved(tmp_path, value)
    else:
        path = tmp_path / "evil.safetensors"
        save_file({str(k): v.clone() for k, v in (value if isinstance(value, dict) else {"x": value}).items()}, path)
    vectors, used = import_vectors({"evil": path}, N_BLOCKS, **settings)
    assert firsts(vectors) == expected and used == {"evil": convention}
    assert vectors.blocks == tuple(i for i, v in enumerate(expected) if v >= 0)
    again = PersonaVectors.from_pretrained(vectors.save_pretrained(tmp_path / "out"))
    assert firsts(again) == expected and convention in str(again.config["imported_from"])


def test_a_file_of_several_names_gives_several_traits_at_the_blocks_that_all_have(tmp_path: Path) -> None:
    path = saved(tmp_path, {"lies": {0: numbered(1)[0], 1: numbered(1)[0]}, "joy": {1: 2 * numbered(1)[0]}})
    vectors, used = import_vectors({"all": path}, N_BLOCKS)
    assert set(vectors.traits) == {"all/lies", "all/joy"} == set(used)
    assert vectors.blocks == (1,) and vectors.best_block == {"all/lies": 1, "all/joy": 1}


def test_a_control_vector_goes_out_and_comes_back(tmp_path: Path) -> None:
    vectors = PersonaVectors.from_tensors({"evil": torch.randn(N_BLOCKS, D_MODEL)}, {"evil": 2})
    path = write_control_vector(vectors, "evil", tmp_path / "evil.gguf", "llama")
    reader = GGUFReader(path)
    assert [t.name for t in reader.tensors] == ["direction.1", "direction.2", "direction.3"]
    assert bytes(reader.fields["general.architecture"].parts[-1]) == b"controlvector"
    again, used = import_vectors({"evil": path}, N_BLOCKS, best_block={"evil": 2})
    assert used == {"evil": "control-vector"} and again.absent_blocks == (0,)
    assert torch.equal(again.tensor("evil")[1:], vectors.tensor("evil")[1:])


def sae(folder: Path, hook: str | None = "blocks.2.hook_resid_post", **record: Any) -> Path:
    folder.mkdir()
    save_file({"W_dec": numbered(6), "W_enc": numbered(6).T.contiguous()}, folder / "sae_weights.safetensors")
    if hook is not None:
        (folder / "cfg.json").write_text(json.dumps({"hook_name": hook, **record}))
    return folder


def test_a_row_of_an_saes_decoder_is_of_the_block_that_its_hook_names(tmp_path: Path) -> None:
    after = import_vectors({"evil": sae(tmp_path / "a")}, N_BLOCKS, row=4)[0]
    before = import_vectors({"evil": sae(tmp_path / "b", "blocks.2.hook_resid_pre")}, N_BLOCKS, row=4)[0]
    named = import_vectors({"evil": sae(tmp_path / "c", None)}, N_BLOCKS, row=4, block=3)[0]
    newer = import_vectors(
        {"evil": sae(tmp_path / "d", "", metadata={"hook_name": "blocks.0.hook_resid_post"})}, 4, row=0
    )
    assert firsts(after) == [-1, -1, 5, -1] and after.best_block == {"evil": 2}
    assert firsts(before) == [-1, 5, -1, -1] and firsts(named) == [-1, -1, -1, 5]
    assert firsts(newer[0]) == [1, -1, -1, -1]
    for hook in (None, "blocks.2.attn.hook_z"):
        with pytest.raises(SettingError, match="name the block"):
            import_vectors({"evil": sae(tmp_path / f"{hook}", hook)}, N_BLOCKS, row=4)


@pytest.mark.parametrize(
    ("value", "settings", "error", "says"),
    [
        (numbered(7), {}, VectorsMismatch, "7 rows do not fit 4 blocks"),
        (numbered(5), {"convention": "blocks"}, VectorsMismatch, "5 rows do not fit"),
        (numbered(1)[0], {}, SettingError, "name the block"),
        (numbered(1)[0], {"block": 9}, VectorsMismatch, "blocks 0 to 3"),
        ({0: torch.ones(3), 1: torch.ones(4)}, {}, CorruptFile, "widths"),
        ({10**4: torch.ones(3)}, {}, VectorsMismatch, "block 10000"),
        ({"a": "text"}, {}, PersonaError, "evil"),
        ([1, 2], {}, CorruptFile, "holds a list"),
        (torch.ones(2, 3, 4), {}, CorruptFile, "shape"),
        ({"a": numbered(4), "b": numbered(1)[0]}, {"block": 1}, VectorsMismatch, "different forms"),
    ],
    ids=["rows", "convention", "no block", "far block", "widths", "far layer", "text", "list", "3-d", "forms"],
)
def test_what_does_not_fit_is_refused_in_words(
    tmp_path: Path, value: Any, settings: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        import_vectors({"evil": saved(tmp_path, value)}, N_BLOCKS, **settings)


def with_nan(rows: torch.Tensor, row: int, channels: slice = slice(2, 3)) -> torch.Tensor:
    changed = rows.clone()
    changed[row, channels] = torch.nan
    return changed


ONE = numbered(1)[0]


@pytest.mark.parametrize(
    ("value", "settings", "says"),
    [
        (torch.nested.nested_tensor([ONE, ONE]), {}, "a nested tensor"),
        (numbered(4).to(torch.complex64), {}, "complex64"),
        ({"mask": numbered(4) > 2}, {}, "bool"),
        ({0: ONE > 2}, {}, "bool"),
        ({"\ud800": numbered(4), "b": numbered(4)}, {}, "surrogate"),
        (ONE, {"block": 1.0}, "block=1.0"),
        (ONE, {"block": True}, "block=True"),
        ({3: ONE, "3": ONE}, {}, "two directions of layer 3"),
        ({"layer_3": ONE, "blocks.3": ONE}, {}, "two directions of layer 3"),
        ({3: numbered(4), "3": numbered(4)}, {}, "two vectors have the name '3'"),
        ({-5: ONE, 0: ONE}, {}, "layer -5"),
        ({-1: ONE, 1: ONE}, {"convention": "hidden_states"}, "layer -1"),
        ({0: ONE}, {"convention": "hidden_states"}, "no direction of a block"),
        (with_nan(numbered(4), 2), {}, "row 2 of 'evil' holds NaN"),
        (with_nan(numbered(5), 2), {}, "row 2 of 'evil' holds NaN"),
        ({"a": numbered(4), "b": with_nan(numbered(4), 3)}, {}, "row 3 of 'evil/b' holds NaN"),
        ({1: ONE, 2: with_nan(numbered(1), 0)[0]}, {}, "row 2 of 'evil' holds NaN"),
        (with_nan(numbered(1), 0), {"block": 1}, "the direction of 'evil' holds NaN"),
        (numbered(4) * torch.nan, {}, "NaN at every block"),
    ],
)
def test_what_would_be_lost_or_read_as_something_else_is_refused(
    tmp_path: Path, value: Any, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(PersonaError) as caught:
        import_vectors({"evil": saved(tmp_path, value)}, N_BLOCKS, **settings)
    assert says in str(caught.value)


def test_a_mask_in_safetensors_and_an_endless_layer_of_an_sae_are_refused(tmp_path: Path) -> None:
    save_file({"a": numbered(4) > 2}, tmp_path / "a.safetensors")
    with pytest.raises(CorruptFile, match="bool"):
        import_vectors({"evil": tmp_path / "a.safetensors"}, N_BLOCKS)
    with pytest.raises(SettingError, match="name the block") as caught:
        import_vectors({"evil": sae(tmp_path / "sae", f"blocks.{'9' * 5000}.hook_resid_post")}, N_BLOCKS, row=0)
    assert len(str(caught.value)) < 500


def test_a_row_of_nan_is_a_block_without_a_direction_and_inner_names_are_kept(tmp_path: Path) -> None:
    rows = with_nan(numbered(4), 2, slice(None))
    vectors, _ = import_vectors({"a/b": saved(tmp_path, {"x": {"y": rows, "z": 2 * rows}})}, N_BLOCKS)
    assert vectors.traits == ("a/b/x/y", "a/b/x/z") and vectors.blocks == (0, 1, 3)
    assert firsts(vectors, "a/b/x/z") == [2, 4, -1, 8]


def test_a_broken_control_vector_is_refused(tmp_path: Path) -> None:
    vectors = PersonaVectors.from_tensors({"evil": torch.randn(N_BLOCKS, D_MODEL)}, {"evil": 2})
    path = write_control_vector(vectors, "evil", tmp_path / "evil.gguf")
    data, rng = path.read_bytes(), np.random.default_rng(0)
    for cut in (0, 4, 100, len(data) - 30):
        path.write_bytes(data[:cut])
        with pytest.raises(CorruptFile, match="evil"):
            read_control_vector(path)
    for _ in range(100):
        changed = bytearray(data)
        changed[rng.integers(200)] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(changed))
        try:
            read_control_vector(path)
        except PersonaError as error:
            assert str(error)


def test_a_control_vector_with_two_directions_of_a_block_is_refused(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "evil.gguf", "controlvector")
    for name in ("direction.1", "direction.01"):
        writer.add_tensor(name, numbered(1)[0].numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CorruptFile, match="two directions of one block"):
        import_vectors({"evil": tmp_path / "evil.gguf"}, N_BLOCKS)


def test_the_commands_print_how_rows_were_understood(tmp_path: Path) -> None:
    def persona(*words: str) -> str:
        run = subprocess.run(
            [sys.executable, "-m", "persona_core.cli.main", *words], capture_output=True, text=True, timeout=120
        )
        assert run.returncode == 0, run.stderr
        return run.stdout

    path = saved(tmp_path, numbered(5))
    said = persona("import-vectors", f"evil={path}", "--blocks", "4", "--best-block", "1", "--out", str(tmp_path / "v"))
    assert "evil: read as hidden_states, at blocks [0, 1, 2]." in said
    persona("export-vectors", str(tmp_path / "v"), "--trait", "evil", "--out", str(tmp_path / "x.gguf"))
    assert list(read_control_vector(tmp_path / "x.gguf")) == [1, 2]
