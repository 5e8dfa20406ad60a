"""Whatever a file holds, a loader gives an object or one of the library's errors: never a raw exception or a hang.

Each file is damaged in many ways: bits flipped, cut off, bytes inserted, and in JSON one value replaced by something
absurd. Seeds are fixed; the counts are printed.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from persona_core.analysis.detectors import Detectors
from persona_core.app.home import load_home
from persona_core.elicitation.prompts import load_prompts, load_transcripts
from persona_core.elicitation.traits import TraitDefinition
from persona_core.errors import PersonaError
from persona_core.models.loading import load_model
from persona_core.report.saved_runs import SavedRuns
from persona_core.traces.dataset import read_results, write_results
from persona_core.traces.trace import Trace
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
