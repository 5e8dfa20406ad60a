"""The findings that the page opens on: each sentence is checked against the rows that it is about."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest

from persona_core.report.gallery import Finding, gallery
from persona_core.report.pairs import TEXTS
from persona_core.report.saved_runs import SavedRuns

ARTIFACTS = Path(__file__).resolve().parents[2] / "artifacts"
DEMO, REAL = (ARTIFACTS / f"persona-monitoring-{name}" for name in ("persona-tiny", "smollm2-135m"))


@pytest.fixture(scope="module", params=[DEMO, REAL], ids=lambda path: path.name)
def results(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


@pytest.fixture(scope="module")
def found(results: Path) -> dict[str, Finding]:
    return {one.name: one for one in gallery(SavedRuns(results))}


def analysed(results: Path, **of: Any) -> list[dict[str, Any]]:
    rows = parquet.read_table(results / "analysis" / "replies.parquet").to_pylist()
    return [row for row in rows if all(row[key] == value for key, value in of.items())]


def branches(results: Path) -> list[dict[str, Any]]:
    return list(parquet.read_table(results / "analysis" / "branches.parquet").to_pylist())


def reply(results: Path, config: str, id: str) -> Mapping[str, Any]:
    rows = parquet.read_table(results / "data" / f"{config}.parquet").to_pylist()
    return next(row for row in rows if row["id"] == id)


def test_every_finding_is_of_a_published_reply_and_each_view_is_there_once(
    results: Path, found: dict[str, Finding]
) -> None:
    runs = SavedRuns(results)
    assert 5 <= len(found) <= 8
    assert len({(f.id, f.text) for f in found.values()}) == len(found)
    for one in found.values():
        assert one.id in runs.ids and one.trait in runs.traits and one.text in (*TEXTS, *runs.branches)
        assert one.at is None or 0 <= one.at < reply(results, "contaminated", one.id)["n_reply"]
        assert one.says[0].isupper() and one.says.endswith(".") and "None" not in one.says


def test_before_the_words_both_replies_are_the_same_up_to_where_they_part() -> None:
    one = gallery(SavedRuns(DEMO))[0]
    assert one.name == "before-the-words"
    words = int(re.search(r"the same (\d+) words", one.says)[1])  # type: ignore[index]
    texts = [reply(DEMO, config, one.id)["response"].split() for config in ("baseline", "contaminated")]
    assert texts[0][: words - 1] == texts[1][: words - 1], "the last of them may be part of a word"
    assert texts[0][: words + 1] != texts[1][: words + 1]
    (row,) = analysed(DEMO, config="contaminated", id=one.id, trait=one.trait)
    assert one.at in (row["onset"], row["doubles"]) and f"token {one.at}" in one.says
    means = {r["trait"]: r["mean"] for r in analysed(DEMO, config="contaminated", id=one.id)}
    assert max(means, key=means.__getitem__) == one.trait, "it is about what the reply then shows"


def test_a_false_alarm_is_an_onset_in_a_reply_whose_annotator_found_nothing(
    results: Path, found: dict[str, Finding]
) -> None:
    one = found["false-alarm"]
    rows = [r for r in analysed(results, id=one.id, trait=one.trait) if r["onset"] == one.at]
    assert rows and all(row["first_shown"] is None for row in rows)
    marks = (results / "analysis" / "marks.jsonl").read_text()
    config = rows[0]["config"]
    assert not re.search(rf'"id": "{one.id}", "config": "{config}", "trait": "{one.trait}"', marks)


def test_the_calm_reply_is_the_one_whose_highest_score_is_lowest(results: Path, found: dict[str, Finding]) -> None:
    one = found["calm"]
    peaks: dict[str, float] = {}
    for row in analysed(results, config="baseline"):
        peaks[row["id"]] = max(peaks.get(row["id"], -99.0), row["max"])
    alarmed = {row["id"] for row in analysed(results, config="baseline") if row["answer"] != "none"}
    calm = min((id for id in peaks if id not in alarmed), key=peaks.__getitem__)
    assert one.id == calm and f"{peaks[calm]:+.1f}" in one.says


@pytest.mark.parametrize("effect", ["weights", "text"])
def test_text_and_weights_are_the_largest_effects_of_one_prompt(
    results: Path, found: dict[str, Finding], effect: str
) -> None:
    one = found[effect]
    (row,) = analysed(results, config="contaminated", id=one.id, trait=one.trait)
    assert row[effect] >= 0.8 * max(r[effect] for r in analysed(results, config="contaminated"))
    assert f"{row[effect]:.1f} standard deviations" in one.says


def test_the_branch_that_worked_took_out_most_and_stayed_fluent(results: Path, found: dict[str, Finding]) -> None:
    rows = {row["name"]: row for row in branches(results)}
    one = rows[found["branch-worked"].text]
    assert one["mode"] != "add" and one["branch_fluency"] >= 0.8 * one["original_fluency"]
    rivals = [r for r in rows.values() if r["mode"] != "add" and r["branch_fluency"] >= 0.8 * r["original_fluency"]]
    less = max(r["original_high"] - r["branch_high"] for r in rivals if r["branch_repeated"] <= 0.25)
    assert one["original_high"] - one["branch_high"] == less >= 0.2
    says = found["branch-worked"].says
    assert f"{100 * one['branch_high']:.0f} % of the" in says
    assert f"instead of {100 * one['original_high']:.0f} %" in says and f"of {len(rows)} branches" in says


def test_the_branch_that_broke_is_the_least_fluent_push(results: Path, found: dict[str, Finding]) -> None:
    rows = {row["name"]: row for row in branches(results)}
    one = rows[found["branch-broke"].text]
    kept = {name: row["branch_fluency"] / row["original_fluency"] for name, row in rows.items() if row["mode"] == "add"}
    assert kept[one["name"]] == min(kept.values()) < 0.5
    wanted = f"is {100 * one['branch_fluency']:.0f} % instead of {100 * one['original_fluency']:.0f} %"
    assert wanted in found["branch-broke"].says


def test_runs_that_were_not_analysed_have_at_most_the_clearest_turn(tmp_path: Path) -> None:
    shutil.copytree(DEMO / "data", tmp_path / "data")
    assert [one.name for one in gallery(SavedRuns(tmp_path))] == ["clearest-turn"]
