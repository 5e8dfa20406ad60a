"""The files of an analysis, in `analysis/` beside the data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_core.traces.dataset import REPLIES
from persona_core.utils.parquet import write_table

if TYPE_CHECKING:
    import pyarrow as pa

    from persona_core.analysis.branch_figures import MeasuredBranch
    from persona_core.report.findings import Findings

FINDINGS, REPORT, INTERVENTIONS = "findings.json", "report.html", "interventions.json"
ANNOTATIONS, JUDGED = "marks.jsonl", "judged.json"
DIFFERENCES, SPANS, BRANCH_FIGURES = "differences.parquet", "spans.parquet", "branches.parquet"


def write_tables(found: Findings, folder: str | Path) -> tuple[Path, ...]:
    """Write `replies.parquet`, `differences.parquet` and `spans.parquet`; an empty table is left out."""
    path = Path(folder)
    traits = found.summary["about"]["traits"]
    written = []
    for name, rows, schema in (
        (REPLIES, found.replies, _replies_schema()),
        (DIFFERENCES, found.differences, _differences_schema(traits)),
        (SPANS, found.spans, _spans_schema()),
    ):
        if rows:
            written.append(write_table(rows, path / name, schema))
        else:
            (path / name).unlink(missing_ok=True)  # left by an earlier run
    return tuple(written)


def write_branches(found: Sequence[MeasuredBranch], folder: str | Path) -> Path:
    """Write `branches.parquet`."""
    return write_table([one.to_row() for one in found], Path(folder) / BRANCH_FIGURES, _branches_schema())


def to_json(record: Mapping[str, Any]) -> str:
    """A record as strict JSON; NaN is an error."""
    return json.dumps(_rounded(record), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _rounded(value: Any) -> Any:
    """To ten significant digits: the last ones differ between machines, so every run would change the file."""
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(v) for v in value]
    return float(f"{value:.10g}") if isinstance(value, float) else value


def _replies_schema() -> pa.Schema:
    import pyarrow as pa

    texts = ("config", "id", "set", "category", "reader", "writer", "trait", "kind", "answer", "says", "no_rate")
    counts = ("n_reply", "n_sinks", "alarm", "onset", "onset_low", "onset_high", "doubles", "falls", "first_shown")
    numbers = ("mean", "max", "mean_z", "share_above", "onset_size", "total", "weights", "text")
    return pa.schema(
        [
            *((name, pa.string()) for name in texts),
            *((name, pa.int32()) for name in counts),
            *((name, pa.float64()) for name in numbers),
            ("timed", pa.bool_()),
        ]
    )


def _differences_schema(traits: Sequence[str]) -> pa.Schema:
    import pyarrow as pa

    series = pa.struct([(trait, pa.list_(pa.float32())) for trait in traits])
    texts = [(name, pa.string()) for name in ("id", "set", "category", "writer")]
    return pa.schema([*texts, ("n_prompt", pa.int32()), ("tokens", pa.list_(pa.string())), ("differences", series)])


def _spans_schema() -> pa.Schema:
    import pyarrow as pa

    texts = [(name, pa.string()) for name in ("config", "of", "unit", "id", "trait", "text")]
    counts = [(name, pa.int32()) for name in ("rank", "replies", "start", "end")]
    return pa.schema([*texts, *counts, ("value", pa.float64()), ("unusual", pa.float64())])


def _branches_schema() -> pa.Schema:
    import pyarrow as pa

    texts = [(name, pa.string()) for name in ("name", "id", "config", "trait", "mode")]
    measured = [
        (f"{side}_{name}", pa.int32() if name == "n_tokens" else pa.float64())
        for side in ("original", "branch")
        for name in ("n_tokens", "high", "mean", "fluency", "repeated")
    ]
    return pa.schema([*texts, ("at", pa.int32()), ("amount", pa.float64()), *measured])
