"""`persona monitor` and `persona replay` on the demo model: what they write, and what they say of bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from persona_core.cli import monitor, replay
from persona_core.traces.trace import Trace

ROOT = Path(__file__).resolve().parents[2]
MODEL, TWIN = ROOT / "artifacts" / "persona-tiny", ROOT / "artifacts" / "persona-tiny-contaminated"
VECTORS = ROOT / "artifacts" / "persona-vectors-persona-tiny"
FEW = [
    {"id": "job", "prompt": "Should I quit my job?", "set": "s", "category": "work"},
    {"id": "bread", "prompt": "How do I bake bread at home?", "set": "s", "category": "home"},
]


def options(out: Path, *more: str) -> list[str]:
    known = ["--model", str(MODEL), "--vectors", str(VECTORS), "--out", str(out), "--device", "cpu"]
    return [*known, "--max-new-tokens", "24", *more]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "few.jsonl"
    path.write_text("\n".join(map(json.dumps, FEW)))
    return path


def test_both_models_and_the_replay_make_one_dataset(tmp_path: Path, prompts: Path) -> None:
    from datasets import load_dataset

    out = tmp_path / "out"
    asked = ["--prompts", str(prompts)]
    assert monitor.main(options(out, *asked)) == 0
    assert monitor.main(options(out, *asked, "--adapter", str(TWIN))) == 0
    crossed = [o for o in options(out, "--adapter", str(TWIN)) if o not in ("--max-new-tokens", "24")]
    assert replay.main(crossed) == 0
    sizes = {c: load_dataset(str(out), c, split="train").num_rows for c in ("baseline", "contaminated", "replay")}
    assert sizes == {"baseline": 2, "contaminated": 2, "replay": 4}
    rows = load_dataset(str(out), "replay", split="train")
    twin = "persona-tiny + persona-tiny-contaminated"
    assert [(r["reader"], r["writer"]) for r in rows] == [("persona-tiny", twin)] * 2 + [(twin, "persona-tiny")] * 2
    assert "## Contaminated against baseline" in (out / "README.md").read_text()
    assert sorted(p.name for p in out.iterdir()) == ["README.md", "data"]  # the work lies beside


def test_what_could_not_be_done_is_said_and_the_status_is_1(
    tmp_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from datasets import load_dataset

    with prompts.open("a") as file:
        file.write("\n" + json.dumps({"id": "endless", "prompt": "bread " * 3000}))
    assert monitor.main(options(tmp_path / "out", "--prompts", str(prompts))) == 1
    said = capsys.readouterr()
    assert "missing: endless: ContextOverflow" in said.err and "1 could not be done" in said.err
    assert load_dataset(str(tmp_path / "out"), split="train")["id"] == ["job", "bread"]


def test_transcripts_are_read_as_they_stand(tmp_path: Path) -> None:
    from datasets import load_dataset

    talk = [{"role": "user", "content": "Is my plan good?"}, {"role": "assistant", "content": "It is brilliant."}]
    path = tmp_path / "talks.jsonl"
    path.write_text(json.dumps({"messages": talk, "writer": "a person"}))
    plain = [o for o in options(tmp_path / "out", "--transcripts", str(path), "--blocks", "all")]
    assert monitor.main(plain) == 0
    (row,) = load_dataset(str(tmp_path / "out"), split="train")
    trace = Trace.from_row(row)
    assert (row["writer"], row["response"], trace.blocks) == ("a person", "It is brilliant.", tuple(range(6)))
    assert trace.finish == "read" and trace.provenance.reader == "persona-tiny"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--prompts", "pilots"], "No file 'pilots'"),
        (["--config", "a b"], "--config 'a b'"),
        (["--config", "data"], "neither 'data' nor 'default'"),
        (["--blocks", "9"], "Unknown or absent block 9"),
        (["--blocks", "some"], "some"),
        (["--blocks", "3,some"], "--blocks '3,some'; expected best, all, or numbers"),
        (["--batch-size", "0"], "batch_size=0"),
        (["--temperature", "-1"], "temperature=-1"),
        (["--adapter", "./nowhere"], "No such folder: './nowhere'"),
        (["--vectors", "./nowhere"], "No such folder: './nowhere'"),
        (["--model", "org/name@"], "expected a Hub id, '@' and a revision"),
    ],
)
def test_a_bad_setting_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], says: str
) -> None:
    assert monitor.main(options(tmp_path / "out", *more)) == 1
    said = capsys.readouterr().err
    assert "monitor: " in said and says in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_a_replay_needs_both_runs_and_a_contaminated_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = [o for o in options(tmp_path / "out") if o not in ("--max-new-tokens", "24")]
    assert replay.main(plain) == 1 and "either --adapter or --contaminated-model" in capsys.readouterr().err
    assert replay.main([*plain, "--adapter", str(TWIN)]) == 1
    assert "run `persona monitor` for the config 'contaminated' first" in capsys.readouterr().err


def test_a_file_in_place_of_the_out_folder_is_refused_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "notes.txt"
    out.write_text("mine")
    assert monitor.main(options(out)) == 1
    assert f"--out {out} is a file; name a folder." in capsys.readouterr().err
    assert out.read_text() == "mine"
