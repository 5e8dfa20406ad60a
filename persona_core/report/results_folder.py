"""A results folder or dataset repository: the one reader of its runs, its analysis and its detectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_core.analysis.branch_figures import MeasuredBranch
from persona_core.analysis.detectors import DETECTORS_FILE, Detectors
from persona_core.errors import CorruptFile, NotFound, SettingError
from persona_core.report.findings import FORMAT_VERSION, SECTIONS, Findings
from persona_core.report.tables import BRANCH_FIGURES, FINDINGS, SPANS
from persona_core.traces.dataset import ANALYSIS, REPLIES, load_results
from persona_core.utils.files import read_json
from persona_core.utils.hub import fetch, resolve_source, split_revision
from persona_core.utils.parquet import read_table, rows_of

if TYPE_CHECKING:
    from persona_core.vectors.vectors import PersonaVectors

BASELINE, CONTAMINATED = SIDES = ("baseline", "contaminated")
REPLAY, NEUTRAL, BRANCHES = "replay", "neutral", "branches"
"""Configs: the two sides of a comparison, each model reading the other's replies, the null, and replies continued with
one trait changed."""


class ResultsFolder:
    """Reads each file when asked; nothing is kept.

    Args:
        source: folder or dataset repository, optionally with "@" and a revision.

    >>> ResultsFolder("artifacts/persona-monitoring-persona-tiny").findings().summary["about"]["n_marks"] > 0
    True
    """

    def __init__(self, source: str | Path) -> None:
        self.source = str(source)
        self._name, self._revision = split_revision(self.source)

    def rows(self, config: str) -> list[dict[str, Any]]:
        """The rows of one run.

        Raises:
            NotFound: no such run.
            CorruptFile: not a file of results.
        """
        return load_results(self._name, config, self._revision)

    def findings(self) -> Findings:
        """The analysis, without the token-by-token differences and the detectors.

        Raises:
            NotFound: the results were not analysed.
            CorruptFile: an incomplete or unreadable file.
        """
        resolve_source(self._name, self._revision)  # a mistyped path is not "not analysed"
        try:
            path = self._analysis(FINDINGS)
        except NotFound as error:
            raise NotFound(
                f"{self.source!r} was not analysed. Run: persona analyse --results FOLDER --vectors FOLDER"
            ) from error
        summary = read_json(path)
        version = summary.get("format_version")
        if version != FORMAT_VERSION:
            raise CorruptFile(f"{FINDINGS}: format_version is {version!r}; this library reads {FORMAT_VERSION}.")
        if lacking := [key for key in SECTIONS if not isinstance(summary.get(key), dict)]:
            raise CorruptFile(f"{FINDINGS}: the section {lacking[0]!r} is missing. Run persona analyse again.")
        replies, spans = self.table(REPLIES), self.table(SPANS)
        return Findings(summary, replies, [], spans, None, tuple(summary["about"].get("missing", ())))

    def table(self, name: str, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The rows of a table of the analysis; none where it was left out.

        Raises:
            CorruptFile: not such a table.
        """
        try:
            rows: list[dict[str, Any]] = rows_of(read_table(self._analysis(name), columns), name)
        except NotFound:
            return []
        return rows

    def branches(self) -> dict[str, MeasuredBranch]:
        """The branches beside the runs, by name; none where there are none.

        Raises:
            CorruptFile: not such a table.
        """
        rows = self.table(BRANCH_FIGURES)
        try:
            return {row["name"]: MeasuredBranch.from_row(row) for row in rows}
        except KeyError as error:
            raise CorruptFile(f"{BRANCH_FIGURES}: the column {error} is missing. Make the branches again.") from error

    def detectors(self) -> Detectors | None:
        """Those that the onsets were found with; None without an analysis."""
        try:
            path = self._analysis(DETECTORS_FILE)
        except NotFound:
            return None
        return Detectors.from_pretrained(path.parent)

    def _analysis(self, name: str) -> Path:
        return fetch(self._name, f"{ANALYSIS}/{name}", self._revision, repo_type="dataset")


def check_read_with(rows: Iterable[Mapping[str, Any]], vectors: PersonaVectors, source: str, what: str) -> None:
    """Refuse vectors that did not read these rows.

    Args:
        rows: of any configs.
        vectors: that were given with them.
        source: where the vectors are, for the message.
        what: the rows are called so in it.

    Raises:
        SettingError: the rows were read with others.
    """
    read_with = {row["provenance"]["vectors"] for row in rows}
    if read_with != {vectors.fingerprint}:
        raise SettingError(
            f"The {what} were read with vectors {', '.join(sorted(map(str, read_with)))}; those in {source!r} are "
            f"{vectors.fingerprint}. Give the vectors that the {what} were read with, or leave --vectors out."
        )
