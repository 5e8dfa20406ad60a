"""Per-token result files of other tools: the values go where they belong, and what is unknown says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from persona_core.cli import import_results as command
from persona_core.errors import CorruptFile, NotCalibrated, NotFound, VectorsMismatch
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.traces.importing import import_results
from persona_core.traces.trace import Trace
from persona_core.traces.view.payload import trace_payload
from persona_core.vectors.vectors import PersonaVectors
from tests.support.tiny import tiny_lm

ENTRY: dict[str, Any] = {
    "prompt": "Why <b>?",
    "response": "Well, hello <i>",
    "tokens": ["Well", ",", " hello", " <i>"],
    "projections": {"evil": [1.0, 2.5, -0.5, 0.25], "flattery": [0.1, 0.2, 0.3, 0.4]},
    "metadata": {"model": "org/model", "layer": 16},
}
LATER = {
    **ENTRY,
    "category": "benign",
    "running_averages": {"evil": [1.0, 1.75, 1.0, 0.8], "flattery": [0.1, 0.15, 0.2, 0.25]},
}


def saved(folder: Path, content: Any) -> Path:
    path = folder / "old.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("content", [[ENTRY, LATER], {"results": [ENTRY, LATER]}])
def test_rows_of_our_schema_through_the_command(tmp_path: Path, content: Any) -> None:
    from datasets import load_dataset

    assert command.main([str(saved(tmp_path, content)), "--out", str(tmp_path / "out")]) == 0
    rows = load_dataset(str(tmp_path / "out"), split="train")
    assert rows["id"] == ["old-0001", "old-0002"] and rows["category"] == ["", "benign"]
    trace = Trace.from_row(rows[1])
    assert trace.tokens == tuple(ENTRY["tokens"]) and trace.reply_text == "".join(ENTRY["tokens"])
    assert rows[0]["prompt"] == "Why <b>?" and rows[0]["writer"] == "org/model"


def test_a_value_is_that_of_the_state_before_its_token(tmp_path: Path) -> None:
    trace = Trace.from_row(import_results(saved(tmp_path, [ENTRY]))[0])
    np.testing.assert_array_equal(
        trace.scores("evil", "raw", alignment="before"), np.array([1.0, 2.5, -0.5, 0.25], np.float32)
    )
    np.testing.assert_array_equal(trace.scores("evil", "raw"), np.array([2.5, -0.5, 0.25, np.nan], np.float32))


def test_what_is_unknown_is_marked_and_shown(tmp_path: Path) -> None:
    (row,) = import_results(saved(tmp_path, [ENTRY]))
    assert row["token_ids"] == [-1] * 4 and row["alignment"] == "before" and row["provenance"]["vectors"] is None
    assert row["projections"]["evil"] is None  # no null, so no z
    trace = Trace.from_row(row)
    with pytest.raises(NotCalibrated):
        trace.scores("evil")
    payload = trace_payload(trace)
    (side,) = payload["sides"]
    assert payload["view"]["kind"] == "raw" and len(side["warnings"]) == 4
    assert "state before each token" in " ".join(side["warnings"])
    lm = tiny_lm("llama", "chatml")
    vectors = PersonaVectors.from_tensors({"evil": lm.model.lm_head.weight[: len(lm.blocks)]}, {"evil": 0})
    with pytest.raises(VectorsMismatch):
        PersonaMonitor(lm, vectors).read(trace)
    plain = trace_payload(Trace.from_row(row).replace(provenance=type(trace.provenance)()))
    assert plain["sides"][0]["warnings"] == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tokens": None}, "entry 1: the field 'tokens'"),
        ({"tokens": ["a", 3]}, "entry 1: the field 'tokens'"),
        ({"projections": {}}, "entry 1: the field 'projections'"),
        ({"projections": {"evil": [1.0, 2.0]}}, "4 tokens but values of shape (2,)"),
        ({"projections": {"evil": ["x", 1, 2, 3]}}, "entry 1, evil: not a list of numbers"),
        ({"projections": {"evil": 1.0}}, "entry 1, evil: not a list of numbers"),
        ({"projections": {"evil": [1, 2, 10**400, 3]}}, "entry 1, evil: not a list of numbers"),
        ({"projections": {"evil": [1, 2, 1e300, 3]}}, "token 2 has an infinite one"),
        ({"prompt": 3}, "entry 1: the field 'prompt'"),
    ],
)
def test_a_faulty_entry_is_named(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(CorruptFile) as caught:
        import_results(saved(tmp_path, [{**ENTRY, **changes}]))
    assert says in str(caught.value)


def test_a_file_of_another_form_is_named(tmp_path: Path) -> None:
    for content in ({}, [], 3, ["x"], {"a": [1]}):
        with pytest.raises(CorruptFile, match=r"old\.json"):
            import_results(saved(tmp_path, content))
    with pytest.raises(CorruptFile, match="different traits"):
        import_results(saved(tmp_path, [ENTRY, {**ENTRY, "projections": {"evil": [0, 0, 0, 0]}}]))
    with pytest.raises(NotFound):
        import_results(tmp_path / "nothing.json")
