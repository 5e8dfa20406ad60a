"""An analysis as its files hold it: what `analyse_folder` wrote, read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from persona_core.errors import CorruptFile, NotFound
from persona_core.report.findings import FORMAT_VERSION, Findings
from persona_core.report.tables import FINDINGS, SPANS
from persona_core.traces.dataset import ANALYSIS, REPLIES
from persona_core.utils.files import read_json
from persona_core.utils.hub import fetch, split_revision

SECTIONS = ("about", "statistics", "when", "how", "where", "window", "comparison")


def read_findings(source: str | Path) -> Findings:
    """The findings of a results folder or Hub repository, without the token-by-token differences and the detectors.

    Args:
        source: folder or dataset repository, also with "@" and a revision.

    Raises:
        NotFound: it was not analysed.
        CorruptFile: a file that does not hold what it must.

    >>> read_findings("artifacts/persona-monitoring-persona-tiny").summary["about"]["n_marks"] > 0
    True
    """
    name, revision = split_revision(str(source))
    try:
        path = fetch(name, f"{ANALYSIS}/{FINDINGS}", revision, repo_type="dataset")
    except NotFound as error:
        raise NotFound(
            "These results were not analysed. `python -m scripts.analyse --results FOLDER --vectors FOLDER` does it."
        ) from error
    summary = read_json(path)
    version = summary.get("format_version")
    if version != FORMAT_VERSION:
        raise CorruptFile(f"{FINDINGS}: format_version is {version!r}; this library reads {FORMAT_VERSION}.")
    if lacking := [key for key in SECTIONS if not isinstance(summary.get(key), dict)]:
        raise CorruptFile(f"{FINDINGS}: no section {lacking[0]!r}; not what scripts.analyse writes.")
    replies, spans = (_rows(name, revision, table) for table in (REPLIES, SPANS))
    return Findings(summary, replies, [], spans, None, tuple(summary["about"].get("missing", ())))


def _rows(source: str, revision: str | None, table: str) -> list[dict[str, Any]]:
    """The rows of a table; none where it was left out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(
            fetch(source, f"{ANALYSIS}/{table}", revision, repo_type="dataset")
        ).to_pylist()
    except NotFound:
        return []
    except (pa.ArrowException, OSError) as error:
        raise CorruptFile(f"{table}: not the table that scripts.analyse writes: {error}") from error
    return rows
