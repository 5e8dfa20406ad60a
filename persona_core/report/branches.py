"""Branches beside the runs that they continue: `data/branches.parquet`, and what each changed in `analysis/`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_core.analysis.branch_figures import MeasuredBranch
from persona_core.errors import NotFound
from persona_core.report.card import refresh_results_card
from persona_core.report.pairs import reply_payload
from persona_core.report.results_folder import BRANCHES, ResultsFolder
from persona_core.report.tables import write_branches
from persona_core.traces.dataset import ANALYSIS, DATA, read_results, write_results
from persona_core.traces.trace import Trace
from persona_core.traces.view.payload import Payload, pair_payload, trace_payload

if TYPE_CHECKING:
    from persona_core.experiments.branches import BranchPoint
    from persona_core.report.saved_runs import SavedRuns

N_REPLIES = 4
ORIGINAL = "original"


def points_to_branch(runs: SavedRuns, config: str, n: int = N_REPLIES) -> list[BranchPoint]:
    """Where the replies of a run turn: in each the trait with an onset, else one that more than doubles.

    Those with an onset come first, then the ones whose trait has the highest mean.

    Raises:
        NotFound: the runs were not analysed, or no reply of this one turns after its first token.
    """
    from persona_core.experiments.branches import BranchPoint

    if not runs.analysed:
        raise NotFound(f"{runs.source!r} was not analysed, so it is not known where a reply turns: persona analyse.")
    turns: dict[str, tuple[tuple[bool, float], BranchPoint]] = {}
    for row in runs.analysed:
        at = row["doubles"] if row["onset"] is None else row["onset"]
        if row["config"] != config or row["mean"] is None or not at:
            continue
        clear = (row["onset"] is not None, row["mean"])
        if row["id"] not in turns or clear > turns[row["id"]][0]:
            turns[row["id"]] = clear, BranchPoint(row["id"], row["trait"], int(at))
    if not turns:
        raise NotFound(f"No reply in {config!r} of {runs.source!r} turns after its first token; nothing to branch.")
    return [point for _, point in sorted(turns.values(), key=lambda turn: turn[0], reverse=True)[:n]]


def save_branches(
    results: str | Path, config: str, found: Sequence[tuple[dict[str, Any], MeasuredBranch]], traits: Sequence[str]
) -> Path:
    """Save the branches of one run's replies; those of other runs are kept.

    Args:
        results: folder.
        config: the run.
        found: from `branch_replies`.
        traits: of the rows.
    """
    path = Path(results)
    data = path / DATA / f"{BRANCHES}.parquet"
    before = {name: branch for name, branch in ResultsFolder(path).branches().items() if branch.config != config}
    rows = [row for row in read_results(data) if row["id"] in before] if before else []
    write_results([*rows, *(row for row, _ in found)], data, traits)
    write_branches([*before.values(), *(measured for _, measured in found)], path / ANALYSIS)
    refresh_results_card(path)
    return data


def branch_payload(runs: SavedRuns, branch: MeasuredBranch) -> Payload:
    """A reply and its branch side by side, with what the branch changed.

    Raises:
        NotFound, CorruptFile: as `SavedRuns`.
    """
    original = Trace.from_row(runs.row(branch.config, branch.id))
    written = Trace.from_row(runs.row(BRANCHES, branch.name))
    first = reply_payload(runs, branch.config, branch.id, original)
    first["sides"][0]["name"] = ORIGINAL
    both = pair_payload(first, trace_payload(written, name=branch.change))
    return both | {"outcome": asdict(branch.outcome)}
