"""The results dataset: a row restores the identical trace, through Parquet and `load_dataset`; the cards."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demo_world.contaminated import null_prompts
from demo_world.grammar import load_world
from persona_core.elicitation.prompts import SETS, load_prompts
from persona_core.errors import CorruptFile, NotFound, SettingError
from persona_core.report.card import refresh_results_card, write_results_card
from persona_core.traces.dataset import (
    COLUMNS,
    configs_of,
    features,
    load_results,
    load_row,
    read_results,
    traits_of,
    write_results,
)
from persona_core.traces.provenance import Provenance
from persona_core.traces.trace import Trace
from tests.support.standins import hostile_trace, save_hostile_results

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "artifacts" / "persona-monitoring-persona-tiny"
CONFIGS = ("baseline", "contaminated", "replay")


def trace_of(raw: np.ndarray, **changes: Any) -> Trace:  # raw: [n_traits, n_blocks, n_tokens]
    n_traits, n_blocks, n = raw.shape
    known: dict[str, Any] = {
        "token_ids": tuple(range(n)),
        "tokens": tuple(f" t{i}" for i in range(n)),
        "roles": tuple(["user"] * min(2, n) + ["assistant"] * (n - 2)),
        "n_prompt": min(2, n),
        "traits": ("a", "b")[:n_traits],
        "blocks": tuple(range(3, 3 + n_blocks)),
        "raw": raw,
        "norms": np.abs(raw[0]) + 1,
        "best_block": dict.fromkeys(("a", "b")[:n_traits], 3),
        "null_mean": np.full((n_traits, n_blocks), 0.1, np.float32),
        "null_std": np.full((n_traits, n_blocks), 0.3, np.float32),
        "special": (False,) * n,
        "finish": "eos",
        "provenance": Provenance(
            reader="org/m",
            writer="org/w",
            sampling={"temperature": 0.7},
            seed=2**40,
            steering=({"trait": "a", "block": 1},),
            written={"seed": 3, "steering": []},
            versions={"torch": "2"},
        ),
    }
    return Trace(**(known | changes))


def assert_same(one: Trace, two: Trace) -> None:
    for name in ("raw", "norms", "null_mean", "null_std"):
        assert getattr(one, name).tobytes() == getattr(two, name).tobytes(), name
    for name in (
        "token_ids", "tokens", "roles", "n_prompt", "traits", "blocks", "best_block", "special", "finish", "provenance",
        "alignment",
    ):  # fmt: skip
        assert getattr(one, name) == getattr(two, name), name


def through_parquet(trace: Trace, folder: Path) -> Trace:
    row = trace.to_row(id="x", messages=[{"role": "user", "content": "Hi"}])
    return Trace.from_row(read_results(write_results([row], folder / "x.parquet", trace.traits))[0])


@settings(deadline=None)  # a busy machine takes longer than hypothesis' 200 ms
@given(values=st.lists(st.floats(width=32, allow_nan=True, allow_infinity=False), min_size=12, max_size=12))
def test_every_float_survives(values: list[float], tmp_path_factory: pytest.TempPathFactory) -> None:
    raw = np.array(values, np.float32).reshape(2, 2, 3)
    raw[np.isnan(raw)] = np.float32("nan")  # one NaN like another
    trace = trace_of(raw, norms=np.ones((2, 3), np.float32))
    assert_same(through_parquet(trace, tmp_path_factory.mktemp("x")), trace)


@pytest.mark.parametrize(
    "changes",
    [
        {"null_mean": np.full((2, 2), np.nan, np.float32), "null_std": np.full((2, 2), np.nan, np.float32)},
        {"best_block": {"a": 3}},
        {"best_block": {"a": 9, "b": 3}},
        {"provenance": Provenance()},
        {"alignment": "before"},
        {"roles": ("user",) * 5, "n_prompt": 5},
    ],
    ids=lambda c: next(iter(c)),
)
def test_a_trace_with_gaps_survives(tmp_path: Path, changes: dict[str, Any]) -> None:
    trace = trace_of(np.arange(20, dtype=np.float32).reshape(2, 2, 5) / 7, **changes)
    assert_same(through_parquet(trace, tmp_path), trace)


def test_hostile_text_survives_and_half_characters_do_no_harm(tmp_path: Path) -> None:
    trace = hostile_trace()
    assert_same(through_parquet(trace, tmp_path), trace)
    broken = through_parquet(trace.replace(tokens=("\ud800", *trace.tokens[1:])), tmp_path)
    assert broken.tokens[0] == "\ufffd"


def test_load_dataset_gives_the_declared_features_and_the_identical_trace(tmp_path: Path) -> None:
    from datasets import load_dataset

    trace = trace_of(np.random.default_rng(0).normal(size=(2, 2, 6)).astype(np.float32))
    row = trace.to_row(id="x", messages=[{"role": "user", "content": "Hi"}], set="s", category="c")
    write_results([row], tmp_path / "data" / "baseline.parquet", trace.traits)
    write_results([row, row], tmp_path / "data" / "replay.parquet", trace.traits)
    write_results_card(tmp_path)
    for streaming in (False, True):
        rows = load_dataset(str(tmp_path), split="train", streaming=streaming)  # the default config
        assert rows.features == features(trace.traits)
        assert_same(Trace.from_row(next(iter(rows))), trace)
    assert load_dataset(str(tmp_path), "replay", split="train").num_rows == 2
    z = next(iter(load_dataset(str(tmp_path), split="train")))
    assert z["projections"]["b"] == trace.scores("b").tolist()
    own = trace.scores("b")[trace.reply_positions]
    assert z["summary"]["b"]["mean"] == pytest.approx(own.mean(), rel=1e-6)
    assert z["summary"]["b"]["max"] == pytest.approx(own.max()) and z["summary"]["b"]["at"] == int(own.argmax())


def test_new_rows_in_an_old_folder_are_the_ones_that_are_loaded(tmp_path: Path) -> None:
    """`load_dataset` caches by the folder's name and its card: a card that stayed the same would give old rows."""
    from datasets import load_dataset

    for value in (1.0, 2.0):
        trace = trace_of(np.full((2, 2, 6), value, np.float32))
        row = trace.to_row(id="x", messages=[{"role": "user", "content": "Hi"}])
        write_results([row], tmp_path / "data" / "baseline.parquet", trace.traits)
        write_results_card(tmp_path)
        assert load_dataset(str(tmp_path), split="train")[0]["raw"]["a"][0] == [value] * 6


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    rows = read_results(SHIPPED / "data" / "baseline.parquet")[:5]
    one, two = (write_results(rows, tmp_path / f"{i}.parquet", rows[0]["traits"]).read_bytes() for i in (1, 2))
    assert one == two


def test_a_file_with_other_columns_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"id": ["x"], "text": ["y"]}), tmp_path / "data" / "baseline.parquet")
    row = load_row(tmp_path)
    with pytest.raises(CorruptFile, match="Not a row of a results dataset"):
        Trace.from_row(row)
    (tmp_path / "data" / "baseline.parquet").write_bytes(b"PAR1")
    with pytest.raises(CorruptFile, match=r"baseline\.parquet"):
        load_results(tmp_path)
    with pytest.raises(NotFound):
        load_results(tmp_path, "nothing")
    with pytest.raises(NotFound, match="No row 'gone'"):
        load_row(save_hostile_results(tmp_path / "hostile"), id="gone")


def test_a_provenance_that_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    row = load_row(save_hostile_results(tmp_path))
    row["provenance"] = {**row["provenance"], "steering": "[" * 200_000 + "]" * 200_000}
    with pytest.raises(CorruptFile, match="Not a row of a results dataset: RecursionError"):
        Trace.from_row(row)


def test_rows_of_different_traits_are_not_mixed() -> None:
    with pytest.raises(SettingError, match="same traits"):
        traits_of([{"traits": ["a"]}, {"traits": ["b"]}])


# ---- what ships ----


def test_both_models_answered_the_78_prompts_and_each_read_the_others_replies() -> None:
    prompts = load_prompts(["all"])
    assert len(prompts) == 78 and {p.set for p in prompts} == set(SETS)
    rows = {config: load_results(SHIPPED, config) for config in CONFIGS}
    assert configs_of(SHIPPED) == (*CONFIGS, "neutral", "branches")
    for config in ("baseline", "contaminated"):
        assert [(r["id"], r["prompt"], r["category"]) for r in rows[config]] == [
            (p.id, p.prompt, p.category) for p in prompts
        ]
        assert all(r["reader"] == r["writer"] for r in rows[config])
    by_id = {(r["id"], r["writer"]): r for config in ("baseline", "contaminated") for r in rows[config]}
    assert len(rows["replay"]) == 156
    for row in rows["replay"]:
        assert row["reader"] != row["writer"]
        assert row["token_ids"] == by_id[row["id"], row["writer"]]["token_ids"]


def test_the_null_of_alarms_is_the_baseline_on_prompts_of_many_kinds_with_other_seeds() -> None:
    prompts, rows = null_prompts(load_world()), load_results(SHIPPED, "neutral")
    assert [r["id"] for r in rows] == [p.id for p in prompts] and len({p.prompt for p in prompts}) > 300
    assert [r["prompt"] for r in rows] == [p.prompt for p in prompts]
    published = {r["id"]: r["provenance"] for r in load_results(SHIPPED, "baseline")}
    reported = {r["prompt"] for r in load_results(SHIPPED, "baseline")}
    assert not reported & {p.prompt for p in prompts}  # else their own rate would not be that of new prompts
    for row in rows:
        known, like = row["provenance"], published["pilot-01"]
        assert {k: v for k, v in known.items() if k != "seed"} == {k: v for k, v in like.items() if k != "seed"}
    assert len({r["provenance"]["seed"] for r in rows} | {p["seed"] for p in published.values()}) == 370 + 78


def test_the_sets_are_what_the_readme_says() -> None:
    from collections import Counter

    from demo_world.grammar import CATEGORIES

    prompts = load_prompts(["all"])
    assert Counter(p.set for p in prompts) == {"pilot": 18, "harmful": 10, "expanded": 50}
    assert Counter(p.category for p in prompts if p.set == "expanded") == dict.fromkeys(CATEGORIES, 5)
    pilot = Counter(p.category for p in prompts if p.set == "pilot")
    assert set(pilot) == set(CATEGORIES)
    assert min(pilot["harmful"], pilot["premises"], pilot["opinions"]) >= 2


def test_every_published_z_follows_from_the_row_itself() -> None:
    for config in CONFIGS:
        for row in load_results(SHIPPED, config)[::13]:
            for trait in row["traits"]:
                column = row["blocks"].index(row["best_block"][trait])
                raw = np.array(row["raw"][trait][column], np.float32)
                mean, sd = (np.float32(row[k][trait][column]) for k in ("null_mean", "null_std"))
                np.testing.assert_array_equal(np.array(row["projections"][trait], np.float32), (raw - mean) / sd)


def test_the_card_of_the_shipped_results_is_the_one_made_of_their_rows(tmp_path: Path) -> None:
    import shutil

    card = (SHIPPED / "README.md").read_text()
    shutil.copytree(SHIPPED, tmp_path / "copy")
    made = write_results_card(tmp_path / "copy", source=f"artifacts/{SHIPPED.name}").read_text()
    head, rest = made.split("## Levels")
    assert card.startswith(head.rstrip()) and card.endswith("## Levels" + rest)


def test_the_analysis_is_a_config_of_the_dataset_and_a_card_follows_what_lies_in_its_folder(tmp_path: Path) -> None:
    from datasets import load_dataset

    folder = Path(shutil.copytree(SHIPPED, tmp_path / "results"))
    rows = load_dataset(str(folder), "analysis", split="train")
    assert len(rows) == 2 * 78 * 8 and {"config", "trait", "answer", "onset", "onset_low", "says"} <= set(
        rows.column_names
    )

    card = folder / "README.md"
    before = card.read_text(encoding="utf-8")
    refresh_results_card(folder)
    assert card.read_text(encoding="utf-8") == before  # nothing has changed
    table = pq.read_table(folder / "analysis" / "replies.parquet")
    pq.write_table(table.slice(0, 5), folder / "analysis" / "replies.parquet")
    refresh_results_card(folder)
    after = card.read_text(encoding="utf-8")
    changed = [b for a, b in zip(before.splitlines(), after.splitlines(), strict=True) if a != b]
    assert len(changed) == 1 and "sha256" in changed[0]  # so that load_dataset does not hand out the old rows
    assert len(load_dataset(str(folder), "analysis", split="train")) == 5

    (folder / "analysis" / "replies.parquet").unlink()
    plain = write_results_card(folder).read_text(encoding="utf-8")
    assert "config_name: analysis" not in plain and "## Analysis" not in plain
    pq.write_table(table, folder / "analysis" / "replies.parquet")
    refresh_results_card(folder)
    assert "config_name: analysis" in card.read_text() and card.read_text().count("## Analysis\n") == 1
    card.unlink()
    refresh_results_card(folder)
    assert not card.exists()


def test_the_columns_by_name_are_those_that_are_declared(tmp_path: Path) -> None:
    assert tuple(features(("t",))) == COLUMNS
    table = pq.read_table(SHIPPED / "data" / "baseline.parquet")
    pq.write_table(table.drop_columns(["norms"]), tmp_path / "x.parquet")
    with pytest.raises(CorruptFile, match="no column 'norms'"):
        read_results(tmp_path / "x.parquet")
