"""Published results as the app looks at them: by prompt and reader, with onsets, and as small multiples."""

from __future__ import annotations

import base64
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from persona_core.analysis.detectors import Detectors
from persona_core.errors import CorruptFile, NotFound
from persona_core.report.home import load_home
from persona_core.report.results_folder import ResultsFolder
from persona_core.report.saved_runs import SavedRuns
from persona_core.traces.dataset import load_results, read_results, write_results
from persona_core.traces.importing import import_results
from tests.support.standins import TRAITS, hostile_trace, save_hostile_results
from tests.traces.test_dataset import SHIPPED
from tests.traces.test_importing import ENTRY, saved

VECTORS = SHIPPED.parent / "persona-vectors-persona-tiny"

pytestmark = pytest.mark.skipif(not SHIPPED.is_dir(), reason="the results have not been built")


@pytest.fixture(scope="module")
def runs() -> SavedRuns:
    return SavedRuns(SHIPPED)


def test_each_reading_is_by_the_named_reader(runs: SavedRuns) -> None:
    traces = runs.traces("pilot-03")
    who = {key: (t.provenance.reading_model, t.provenance.writer) for key, t in traces.items()}
    plain, moved = "persona-tiny", "persona-tiny + persona-tiny-contaminated"
    assert who == {
        "baseline": (plain, plain),
        "contaminated": (moved, moved),
        "contaminated reads baseline": (moved, plain),
        "baseline reads contaminated": (plain, moved),
    }
    assert traces["contaminated reads baseline"].token_ids == traces["baseline"].token_ids
    assert traces["baseline reads contaminated"].token_ids == traces["contaminated"].token_ids


def test_prompts_without_a_category_are_examples_too_each_once(tmp_path: Path) -> None:
    for config in ("baseline", "contaminated"):
        rows = [{**row, "category": ""} for row in load_results(SHIPPED, config)[:3]]
        write_results(rows, tmp_path / "data" / f"{config}.parquet", rows[0]["traits"])
    examples = load_home(None, SavedRuns(tmp_path)).examples
    assert sorted(e.user for e in examples) == sorted(row["prompt"] for row in rows)


def test_replies_read_by_the_other_model_have_onsets_too(runs: SavedRuns) -> None:
    detectors = Detectors.from_pretrained(VECTORS)
    found = runs.onsets_of("pilot-03")
    assert found["contaminated"] == runs.onsets("contaminated", "pilot-03")
    for key in ("contaminated reads baseline", "baseline reads contaminated"):
        trace = runs.traces("pilot-03")[key]
        assert found[key] == {t: detectors.find(trace, t).to_dict() for t in trace.traits}
    steadfast = found["baseline reads contaminated"]["sycophancy"]
    assert steadfast["answer"] != "none" and steadfast["no_rate"] == ["text that another wrote"]


def test_the_order_of_the_replay_decides_nothing(tmp_path: Path, runs: SavedRuns) -> None:
    shutil.copytree(SHIPPED / "data", tmp_path / "data")
    rows = read_results(tmp_path / "data" / "replay.parquet")
    write_results(rows[::-1], tmp_path / "data" / "replay.parquet", runs.traits)
    turned = SavedRuns(tmp_path).traces("pilot-03")
    assert {k: t.raw.tobytes() for k, t in turned.items()} == {
        k: t.raw.tobytes() for k, t in runs.traces("pilot-03").items()
    }


def test_the_small_multiples_are_the_scores_to_a_twentieth(runs: SavedRuns) -> None:
    table = runs.table()
    kind = next(iter(runs.traces("pilot-01").values())).default_kind
    assert (table["kind"], table["step"], table["scale"], table["analysed"]) == (kind, 0.1, 8.0, True)
    assert [p["id"] for p in table["prompts"]] == [row["id"] for row in load_results(SHIPPED)]
    for prompt in table["prompts"][:8]:
        for run in prompt["runs"]:
            trace = runs.traces(prompt["id"])[run["config"]]
            for trait, shown in run["traits"].items():
                z = trace.reply_scores(trait)
                drawn = np.frombuffer(base64.b64decode(shown["scores"]), np.int8) * table["step"]
                assert run["n"] == len(z) == len(drawn) and run["start"] == 0
                np.testing.assert_allclose(drawn, np.clip(np.nan_to_num(z), -12.7, 12.7), atol=0.0501)
                assert shown["mean"] == pytest.approx(np.nanmean(z), abs=1e-4)
                assert shown["max"] == pytest.approx(np.nanmax(z), abs=1e-4)
                assert shown["onset"] == runs.onsets(run["config"], prompt["id"])[trait]


def test_onsets_are_those_of_the_analysis(runs: SavedRuns) -> None:
    found = {(r["config"], r["id"], r["trait"]): r for r in ResultsFolder(SHIPPED).findings().replies}
    for config in runs.configs:
        for trait, onset in runs.onsets(config, "pilot-03").items():
            record = found[config, "pilot-03", trait]
            assert (onset["says"], onset["onset"], onset["low"]) == (
                record["says"],
                record["onset"],
                record["onset_low"],
            )
    assert runs.onsets("baseline", "no such prompt") == {}


def test_the_clearest_turn_has_an_onset_and_is_the_changed_models(runs: SavedRuns) -> None:
    config, id, turns = runs.clearest_turn or ("", "", "")
    onsets = runs.onsets(config, id)
    assert config == "contaminated" and onsets[turns]["onset"] is not None
    timed = [t for t, onset in onsets.items() if onset["onset"] is not None]
    trace = runs.traces(id)[config]
    rises = []
    for trait in timed:
        z, at = trace.reply_scores(trait, "specific"), onsets[trait]["onset"]
        rises.append(float(np.nanmean(z[at:]) - np.nanmean(z[:at])))
    assert max(rises) > 1.0


def test_one_run_or_another_tools_file_will_do(tmp_path: Path) -> None:
    alone = SavedRuns(save_hostile_results(tmp_path / "alone"))
    assert alone.configs == ("baseline",) and list(alone.traces("x")) == ["baseline"]
    table = alone.table()
    assert not table["analysed"] and table["prompts"][0]["runs"][0]["traits"][TRAITS[0]]["onset"] is None
    np.testing.assert_array_equal(alone.traces("x")["baseline"].raw, hostile_trace().raw)
    rows = import_results(saved(tmp_path, [ENTRY]))
    write_results(rows, tmp_path / "other" / "data" / "imported.parquet", rows[0]["traits"])
    imported = SavedRuns(tmp_path / "other").table()
    assert imported["kind"] == "raw" and imported["configs"] == ["imported"]
    (run,) = imported["prompts"][0]["runs"]
    drawn = np.frombuffer(base64.b64decode(run["traits"]["evil"]["scores"]), np.int8) * imported["step"]
    assert np.abs(drawn).max() == pytest.approx(imported["scale"], rel=0.01)


def test_runs_of_the_contaminated_model_alone_have_a_first_view(tmp_path: Path) -> None:
    save_hostile_results(tmp_path)
    (tmp_path / "data" / "baseline.parquet").rename(tmp_path / "data" / "contaminated.parquet")
    first = load_home(None, SavedRuns(tmp_path)).first_reply
    assert first is not None and first.config == "contaminated"


def test_runs_without_messages_give_no_examples(tmp_path: Path) -> None:
    row = {**hostile_trace().to_row(id="x", messages=[]), "messages": None}
    write_results([row], tmp_path / "data" / "baseline.parquet", TRAITS)
    home = load_home(None, SavedRuns(tmp_path))
    assert home.first_reply is not None and home.examples == ()


def test_missing_runs_are_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(NotFound, match="none of the configs baseline"):
        _ = SavedRuns(tmp_path).configs
    with pytest.raises(NotFound, match="persona analyse"):
        ResultsFolder(tmp_path).findings()
    (tmp_path / "data" / "baseline.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(CorruptFile, match="Parquet"):
        _ = SavedRuns(tmp_path).configs


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("findings.json", "{", "JSON"),
        ("findings.json", '{"format_version": 9}', "format_version is 9"),
        ("findings.json", '{"format_version": 1, "about": {}}', "section 'statistics' is missing"),
        ("replies.parquet", "no table", "not a Parquet file"),
    ],
)
def test_a_broken_analysis_is_named(tmp_path: Path, name: str, text: str, says: str) -> None:
    shutil.copytree(SHIPPED / "analysis", tmp_path / "analysis")
    (tmp_path / "analysis" / name).write_text(text, encoding="utf-8")
    with pytest.raises(CorruptFile, match=says):
        ResultsFolder(tmp_path).findings()


def test_many_visitors_read_the_files_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import persona_core.report.results_folder as module

    read: list[str] = []

    def counted(source: str, config: str, revision: str | None) -> list[dict]:
        read.append(config)
        return load_results(source, config, revision)

    monkeypatch.setattr(module, "load_results", counted)
    runs = SavedRuns(SHIPPED)
    threads = [threading.Thread(target=runs.table) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(read) == ["baseline", "contaminated"]
