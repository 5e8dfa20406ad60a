"""Branches of published replies: each is what the monitor writes, and what it changed is what its text says."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from persona_core import Branch, PersonaMonitor, PersonaVectors, Steer, load_model
from persona_core.analysis.branch_figures import MeasuredBranch
from persona_core.cli import intervene
from persona_core.errors import CorruptFile, NotFound, UnknownTrait
from persona_core.experiments.branches import TOO_FAR, BranchPoint, branch_replies, changes
from persona_core.report.branches import branch_payload, points_to_branch, save_branches
from persona_core.report.results_folder import BRANCHES, ResultsFolder
from persona_core.report.saved_runs import SavedRuns
from persona_core.traces.dataset import read_results
from persona_core.traces.trace import Trace
from persona_core.utils.parquet import read_table, write_table
from persona_core.vectors.card_steering import suggested_amount
from tests.traces.test_dataset import SHIPPED

ARTIFACTS = SHIPPED.parent
VECTORS = ARTIFACTS / "persona-vectors-persona-tiny"
POINT = BranchPoint("expanded-17", "deception", 40)

Found = list[tuple[dict[str, Any], MeasuredBranch]]


@pytest.fixture(scope="module")
def monitor() -> PersonaMonitor:
    lm = load_model(ARTIFACTS / "persona-tiny", adapter=ARTIFACTS / "persona-tiny-contaminated", device="cpu")
    return PersonaMonitor(lm, PersonaVectors.from_pretrained(VECTORS))


@pytest.fixture(scope="module")
def found(monitor: PersonaMonitor) -> Found:
    return branch_replies(monitor, SavedRuns(SHIPPED).rows("contaminated"), "contaminated", [POINT], progress=False)


def test_each_branch_keeps_the_reply_up_to_the_point_and_is_what_the_monitor_writes(
    monitor: PersonaMonitor, found: Found
) -> None:
    row = SavedRuns(SHIPPED).row("contaminated", POINT.id)
    original = Trace.from_row(row)
    block = monitor.vectors.best_block["deception"]
    cap, push = (suggested_amount(monitor.vectors, "deception", mode) for mode in ("cap", "add"))
    assert cap is not None and push is not None
    steers = [
        Steer.cap("deception", block, cap, start=40, unit="sd"),
        Steer.ablate("deception", block, start=40),
        Steer("deception", block, strength=push, start=40, unit="sd"),
        Steer("deception", block, strength=20.0, start=40, unit="sd"),
    ]
    sampling = dict(original.provenance.sampling or {})
    for (branch, measured), steer in zip(found, steers, strict=True):
        seed = row["provenance"]["seed"]
        wanted = monitor.generate(Branch(original, 40), seed=seed, steer=steer, **sampling)
        assert tuple(branch["token_ids"]) == wanted.token_ids
        assert wanted.token_ids[: row["n_prompt"] + 40] == tuple(row["token_ids"][: row["n_prompt"] + 40])
        assert (branch["id"], branch["prompt"], branch["set"]) == (measured.name, row["prompt"], row["set"])
        assert (measured.id, measured.config, measured.at) == (POINT.id, "contaminated", 40)


def test_what_a_branch_changed_is_read_from_its_text_without_the_steering(
    monitor: PersonaMonitor, found: Found
) -> None:
    """A push of 20 SD moves its own reading by 20; what the text says is another matter."""
    branch, measured = found[-1]
    assert (measured.mode, measured.amount) == ("add", TOO_FAR)
    steered = Trace.from_row(branch)
    plain = monitor.read(steered)
    start = steered.n_prompt + 40
    own = [t for t in range(start, steered.n_tokens) if steered.roles[t] == "assistant"]
    scores = plain.scores_without_sinks("deception")[own]
    assert measured.branch.mean is not None
    assert measured.branch.mean == pytest.approx(float(np.nanmean(scores.astype(np.float64))), abs=1e-6)
    assert float(np.nanmean(steered.scores_without_sinks("deception")[own])) > measured.branch.mean + 10
    assert measured.outcome.warning and measured.fluency_kept is not None and measured.fluency_kept < 0.1


def test_a_push_that_no_card_names_is_left_out(monitor: PersonaMonitor) -> None:
    vectors = monitor.vectors
    silent = replace(vectors, config={**vectors.config, "validation": {}})
    assert [steer.amount for steer in changes(silent, "deception", 3) if steer.mode == "add"] == [TOO_FAR]
    with pytest.raises(UnknownTrait):
        changes(vectors, "kindness", 3)


def test_a_reply_that_is_not_in_the_run_is_named(monitor: PersonaMonitor) -> None:
    with pytest.raises(NotFound, match="'gone'"):
        branch_replies(monitor, [], "contaminated", [BranchPoint("gone", "deception", 3)])


# ---- beside the runs ----


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """The shipped results without their branches."""
    folder = tmp_path / "results"
    for part in ("data", "analysis"):
        shutil.copytree(SHIPPED / part, folder / part, ignore=shutil.ignore_patterns("branches.parquet", "neutral*"))
    return folder


def test_branches_come_back_as_they_were_saved_and_those_of_other_runs_stay(
    results: Path, monitor: PersonaMonitor, found: Found
) -> None:
    other = [
        ({**row, "id": f"other-{k}"}, replace(measured, name=f"other-{k}", config="baseline"))
        for k, (row, measured) in enumerate(found[:2])
    ]
    save_branches(results, "baseline", other, monitor.vectors.traits)
    save_branches(results, "contaminated", found, monitor.vectors.traits)
    save_branches(results, "contaminated", found[:3], monitor.vectors.traits)
    kept = ResultsFolder(results).branches()
    assert list(kept.values()) == [measured for _, measured in (*other, *found[:3])]
    rows = read_results(results / "data" / "branches.parquet")
    assert [row["id"] for row in rows] == list(kept)
    assert [list(row["token_ids"]) for row in rows] == [list(row["token_ids"]) for row, _ in (*other, *found[:3])]


def test_a_branch_is_shown_beside_its_reply_with_what_it_changed(
    results: Path, monitor: PersonaMonitor, found: Found
) -> None:
    save_branches(results, "contaminated", found, monitor.vectors.traits)
    runs = SavedRuns(results)
    for _, measured in found:
        payload = branch_payload(runs, measured)
        assert [side["name"] for side in payload["sides"]] == ["original", measured.change]
        assert payload["outcome"]["says"] == measured.outcome.says
    assert "branches" not in runs.configs, "they are no run of their own"


def test_points_are_where_replies_turn_the_timed_ones_first() -> None:
    points = points_to_branch(SavedRuns(SHIPPED), "contaminated", 100)
    rows = {(r["id"], r["trait"]): r for r in SavedRuns(SHIPPED).analysed if r["config"] == "contaminated"}
    chosen = [rows[point.id, point.trait] for point in points]
    assert all(point.at in (row["onset"], row["doubles"]) for point, row in zip(points, chosen, strict=True))
    timed = [row["onset"] is not None for row in chosen]
    assert timed == sorted(timed, reverse=True) and 0 < sum(timed) < len(timed)
    means = [row["mean"] for row in chosen]
    assert means[: sum(timed)] == sorted(means[: sum(timed)], reverse=True)
    assert len({point.id for point in points}) == len(points)


def test_runs_that_do_not_turn_or_were_not_analysed_are_named(results: Path) -> None:
    with pytest.raises(NotFound, match="turns after its first token"):
        points_to_branch(SavedRuns(results), "elsewhere")
    shutil.rmtree(results / "analysis")
    with pytest.raises(NotFound, match="persona analyse"):
        points_to_branch(SavedRuns(results), "contaminated")


def test_a_table_of_branches_without_a_column_is_corrupt(results: Path) -> None:
    table = read_table(SHIPPED / "analysis" / "branches.parquet").drop_columns(["branch_high"])
    write_table(table.to_pylist(), results / "analysis" / "branches.parquet", table.schema)
    with pytest.raises(CorruptFile, match="branch_high"):
        ResultsFolder(results).branches()


def test_the_command_branches_without_a_judge(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--model", str(ARTIFACTS / "persona-tiny"), "--adapter", str(ARTIFACTS / "persona-tiny-contaminated")]
    common += ["--vectors", str(VECTORS), "--results", str(results), "--device", "cpu"]
    assert intervene.main([*common, "--branches", "1"]) == 0
    assert str(results / "data" / "branches.parquet") in capsys.readouterr().out
    kept = ResultsFolder(results).branches()
    assert {one.mode for one in kept.values()} == {"cap", "ablate", "add"}
    assert len({one.id for one in kept.values()}) == 1
    assert [row["id"] for row in read_results(results / "data" / f"{BRANCHES}.parquet")] == list(kept)
    assert intervene.main([*common, "--branches", "0"]) == 1
    assert intervene.main(common) == 1
    assert "--judge" in capsys.readouterr().err
