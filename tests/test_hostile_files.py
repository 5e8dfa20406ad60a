"""Whatever a file holds, a loader gives an object or one of the library's errors: never a raw exception or a hang.

Each file is damaged in many ways: bits flipped, cut off, bytes inserted, and in JSON one value replaced by something
absurd. Seeds are fixed; the counts are printed.
"""

from __future__ import annotations

import json
import random
import shutil
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from persona_core.analysis.detectors import Detectors
from persona_core.elicitation.labelled_texts import load_texts
from persona_core.elicitation.prompts import load_prompts, load_transcripts
from persona_core.elicitation.store import ReplyStore
from persona_core.elicitation.traits import TraitDefinition
from persona_core.errors import CorruptFile, PersonaError
from persona_core.models.loading import load_model
from persona_core.report.home import load_home
from persona_core.report.saved_runs import SavedRuns
from persona_core.traces.dataset import read_results, write_results
from persona_core.traces.trace import Trace
from persona_core.vectors.importing import import_vectors
from persona_core.vectors.vectors import PersonaVectors

ARTIFACTS = Path(__file__).parents[1] / "artifacts"
ABSURD: tuple[Any, ...] = (
    None, True, -1, 0, 10**30, 10**400, 1e308, float("nan"), float("inf"), -0.5, "", "10", "\ud800", [], {}, [[]],
    [None], {"a": {}}, [1, 2, 3],
)  # fmt: skip
INSERTED = (b"[" * 100_000, b'{"a":' * 50_000, b"\x00" * 5, b"\xff\xfe", b"}")

Loader = Callable[[Path], object]
"""From the folder that holds the file."""


def _results(folder: Path) -> list[Trace]:
    return [Trace.from_row(row) for row in read_results(folder / "data" / "baseline.parquet")]


def _runs(folder: Path) -> object:
    runs = SavedRuns(folder)
    return runs.onsets("baseline", "pilot-01"), runs.traces("pilot-01")


LOADERS: dict[str, tuple[str, str, Loader, int]] = {
    "config of vectors": ("persona-vectors-persona-tiny", "config.json", PersonaVectors.from_pretrained, 250),
    "tensors of vectors": ("persona-vectors-persona-tiny", "vectors.safetensors", PersonaVectors.from_pretrained, 150),
    "detectors": ("persona-vectors-persona-tiny", "onset.json", Detectors.from_pretrained, 250),
    "home": ("persona-vectors-persona-tiny", "app.json", load_home, 150),
    "results": ("results", "data/baseline.parquet", _results, 150),
    "analysed replies": ("results", "analysis/replies.parquet", _runs, 100),
    "trait": ("persona-tiny/traits", "evil.json", lambda folder: TraitDefinition.load(folder / "evil.json"), 150),
    "prompts": ("texts", "prompts.jsonl", lambda folder: load_prompts([folder / "prompts.jsonl"]), 200),
    "transcripts": ("texts", "talk.jsonl", lambda folder: load_transcripts(folder / "talk.jsonl"), 200),
    "trace": ("texts", "trace.json", lambda folder: Trace.load(folder / "trace.json"), 200),
    "config of a model": ("persona-tiny", "config.json", load_model, 60),
    "generation config": ("persona-tiny", "generation_config.json", load_model, 40),
    "tokenizer config": ("persona-tiny", "tokenizer_config.json", load_model, 30),
    "tokenizer": ("persona-tiny", "tokenizer.json", load_model, 30),
    "chat template": (
        "persona-tiny", "chat_template.jinja", lambda folder: load_model(folder).chat.render("Hi"), 30,
    ),
    "adapter config": (
        "persona-tiny-contaminated",
        "adapter_config.json",
        lambda folder: load_model(ARTIFACTS / "persona-tiny", adapter=folder),
        40,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of the shipped folders, small results, and a file of each kind of text."""
    folder = tmp_path_factory.mktemp("hostile")
    for name in ("persona-vectors-persona-tiny", "persona-tiny", "persona-tiny-contaminated"):
        shutil.copytree(ARTIFACTS / name, folder / name)
    shipped = ARTIFACTS / "persona-monitoring-persona-tiny"
    rows = read_results(shipped / "data" / "baseline.parquet")[:2]
    write_results(rows, folder / "results" / "data" / "baseline.parquet", rows[0]["traits"])
    shutil.copytree(shipped / "analysis", folder / "results" / "analysis")
    texts = folder / "texts"
    texts.mkdir()
    prompts = [{"id": "a", "prompt": "Hi there", "category": "x", "system": "S"}, {"id": "b", "prompt": "Yo"}]
    (texts / "prompts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    (texts / "talk.jsonl").write_text(json.dumps({"id": "a", "messages": talk, "writer": "me"}) + "\n")
    Trace.from_row(rows[0]).save(texts / "trace.json")
    return folder


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:6]) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _paths(inner, (*path, key))


def _with_absurd_value(text: str, rng: random.Random) -> str:
    record = json.loads(text)
    path = rng.choice(list(_paths(record)))
    if not path:
        return json.dumps(rng.choice(ABSURD))
    holder = record
    for key in path[:-1]:
        holder = holder[key]
    if rng.random() < 0.2:
        del holder[path[-1]]
    else:
        holder[path[-1]] = rng.choice(ABSURD)
    return json.dumps(record)


def damaged(data: bytes, name: str, rng: random.Random) -> bytes:
    how = rng.random()
    if name.endswith((".json", ".jsonl")) and how < 0.75:
        lines = data.decode().splitlines() if name.endswith(".jsonl") else [data.decode()]
        at = rng.randrange(len(lines))
        lines[at] = _with_absurd_value(lines[at], rng)
        return "\n".join(lines).encode("utf-8", "surrogatepass")
    changed = bytearray(data)
    if how < 0.9:
        early = rng.random() < 0.5  # headers, which decide more
        changed[rng.randrange(min(len(data), 20_000) if early else len(data))] ^= 1 << rng.randrange(8)
    elif how < 0.95:
        del changed[rng.randrange(len(data)) :]
    else:
        at = rng.randrange(len(data))
        changed[at:at] = rng.choice(INSERTED)
    return bytes(changed)


@pytest.mark.slow
@pytest.mark.parametrize("what", LOADERS)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_is_loaded_or_refused_in_words(
    source: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, name, load, n = LOADERS[what]
    path, rng, found = source / folder / name, random.Random(what), Counter[str]()
    data = path.read_bytes()
    load(source / folder)
    try:
        for _ in range(n):
            path.write_bytes(damaged(data, path.name, rng))
            try:
                load(source / folder)
                found["loaded"] += 1
            except PersonaError as error:
                assert str(error).strip()
                found["refused"] += 1
    finally:
        path.write_bytes(data)
    with capsys.disabled():
        print(f"\n{what}: {dict(found)}")
    assert found["refused"]


# What a file asks for may be far more than what it holds.

SIZES = {"num_hidden_layers": 10**6, "num_local_experts": 10**7, "vocab_size": 10**12, "hidden_size": 10**9}
DEEP = '{"a":' * 200_000 + "1" + "}" * 200_000


def _model_with(source: Path, folder: Path, **changes: Any) -> Path:
    shutil.copytree(source / "persona-tiny", folder)
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(record | changes))
    return folder


@pytest.mark.parametrize("name", SIZES)
def test_a_model_of_an_absurd_size_is_refused_before_it_is_built(source: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(CorruptFile):
        load_model(_model_with(source, tmp_path / "model", **{name: SIZES[name]}))


def test_a_config_that_asks_for_more_weights_than_there_are_is_refused_before_they_are_made(
    source: Path, tmp_path: Path
) -> None:
    """transformers would draw the missing ones first, and say so afterwards."""
    with pytest.raises(CorruptFile, match=r"asks for 40,\d\d\d,\d\d\d weights, and its files hold"):
        load_model(_model_with(source, tmp_path / "model", num_hidden_layers=100))


@pytest.mark.parametrize("files", [["../../elsewhere.safetensors"], [f"{i}.safetensors" for i in range(2000)], [7]])
def test_an_index_that_names_files_elsewhere_or_too_many_is_refused(
    source: Path, tmp_path: Path, files: list[Any]
) -> None:
    folder = _model_with(source, tmp_path / "model")
    index = {"metadata": {}, "weight_map": {f"weight {i}": file for i, file in enumerate(files)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CorruptFile, match=r"index\.json"):
        load_model(folder)


def test_a_tensor_that_is_not_in_its_file_is_refused(source: Path, tmp_path: Path) -> None:
    header = json.dumps({"vector/evil": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}})
    content = len(header).to_bytes(8, "little") + header.encode()
    shutil.copytree(source / "persona-vectors-persona-tiny", tmp_path / "vectors")
    for path in (tmp_path / "vectors" / "vectors.safetensors", tmp_path / "alone.safetensors"):
        path.write_bytes(content)
    with pytest.raises(CorruptFile, match="truncated"):
        PersonaVectors.from_pretrained(tmp_path / "vectors")
    with pytest.raises(CorruptFile, match="truncated"):
        import_vectors({"evil": tmp_path / "alone.safetensors"}, 6)


def _packed(path: Path) -> None:
    """As `torch.save` writes it, but compressed, and with zeros in place of the numbers."""
    torch.save({"evil": torch.zeros(6, 8)}, path)
    with zipfile.ZipFile(path) as stored:
        parts = {name: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, bytes(10**8) if name.endswith("data/0") else content)


def _nested() -> dict[str, Any]:
    held: dict[str, Any] = {"evil": torch.zeros(6, 8)}
    for _ in range(60):
        held = {"deeper": held}
    return held


HELD: dict[str, tuple[Callable[[Path], object], str]] = {
    "packed": (_packed, "unpacks to"),
    "repeated": (lambda path: torch.save(torch.zeros(1).expand(6, 10**10), path), "repeats its numbers"),
    "meta": (lambda path: torch.save({"evil": torch.zeros(6, 10**10, device="meta")}, path), "meta tensor"),
    "sparse": (lambda path: torch.save(torch.eye(6).to_sparse(), path), "layout"),
    "nested": (lambda path: torch.save(_nested(), path), "nested"),
}


@pytest.mark.parametrize("kind", HELD)
def test_a_pt_file_that_holds_less_than_it_says_is_refused(tmp_path: Path, kind: str) -> None:
    save, says = HELD[kind]
    save(tmp_path / "evil.pt")
    with pytest.raises(CorruptFile, match=says):
        import_vectors({"evil": tmp_path / "evil.pt"}, 6)


def _gguf(*, n_tensors: int = 0, fields: Sequence[bytes] = ()) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, len(fields)) + b"".join(fields) + bytes(100)


_FIELD = struct.pack("<Q", 1) + b"a"  # its name
GGUF = {
    "tensors": _gguf(n_tensors=2**40),
    "a text": _gguf(fields=[_FIELD + struct.pack("<IQ", 8, 2**50)]),
    "an array of texts": _gguf(fields=[_FIELD + struct.pack("<IIQ", 9, 8, 2**45)]),
    "an array of numbers": _gguf(fields=[_FIELD + struct.pack("<IIQ", 9, 4, 2**45)]),
    "arrays of arrays": _gguf(fields=[_FIELD + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 100_000]),
    "half a header": b"GGUF" + struct.pack("<IQ", 3, 0),
}


@pytest.mark.parametrize("what", GGUF)
def test_a_gguf_file_that_announces_more_than_it_holds_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(GGUF[what])
    for load in (load_model, lambda path: import_vectors({"evil": path}, 6)):
        with pytest.raises(CorruptFile, match="GGUF"):
            load(path)


JSON_READERS: dict[str, tuple[str, Loader]] = {
    "trace": ("a.json", lambda folder: Trace.load(folder / "a.json")),
    "trait": ("a.json", lambda folder: TraitDefinition.load(folder / "a.json")),
    "prompts": ("a.jsonl", lambda folder: load_prompts([folder / "a.jsonl"])),
    "transcripts": ("a.jsonl", lambda folder: load_transcripts(folder / "a.jsonl")),
    "labelled texts": ("a.jsonl", lambda folder: load_texts(folder / "a.jsonl")),
    "replies": ("replies.jsonl", ReplyStore),
    "config of vectors": ("config.json", PersonaVectors.from_pretrained),
    "config of a model": ("config.json", load_model),
    "tokenizer": ("tokenizer.json", load_model),
    "tokenizer config": ("tokenizer_config.json", load_model),
    "generation config": ("generation_config.json", load_model),
}


@pytest.mark.parametrize("what", JSON_READERS)
def test_json_that_is_nested_too_deeply_is_refused(source: Path, tmp_path: Path, what: str) -> None:
    name, load = JSON_READERS[what]
    folder = _model_with(source, tmp_path / "model") if load is load_model else tmp_path
    (folder / name).write_text(DEEP + "\n")
    with pytest.raises(PersonaError):
        load(folder)


@pytest.mark.parametrize("what", [what for what in JSON_READERS if what != "replies"])
def test_a_file_that_is_too_large_for_the_memory_is_refused_unread(source: Path, tmp_path: Path, what: str) -> None:
    name, load = JSON_READERS[what]
    folder = _model_with(source, tmp_path / "model") if load is load_model else tmp_path
    with (folder / name).open("wb") as file:
        file.truncate(10**12)  # holds no data, so it takes no room
    with pytest.raises(CorruptFile, match="at most"):
        load(folder)


def test_too_many_lines_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("persona_core.utils.files.MAX_RECORDS", 3)
    (tmp_path / "a.jsonl").write_text("".join(f'{{"id": "{i}", "prompt": "Hi {i}"}}\n' for i in range(4)))
    with pytest.raises(CorruptFile, match=r"5 lines"):
        load_prompts([tmp_path / "a.jsonl"])
