"""Runs over many prompts: resumable, seeded by prompt, the same rows however they are batched or shared out."""

from __future__ import annotations

import json
import random
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from persona_core.elicitation.prompts import Prompt, RecordedConversation, prompt_of, repeated
from persona_core.errors import CorruptFile, SettingError
from persona_core.inference.sampling import Sampling
from persona_core.monitor.jobs import GenerateJob, ReadJob, ReplayJob, Row, run_job, seed_of
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.traces.trace import Trace
from persona_core.vectors.null import Null
from persona_core.vectors.vectors import PersonaVectors
from tests.support.forks import Fork, forking
from tests.support.tiny import tiny_lm

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = tuple(
    Prompt(f"p{i}", "word " * (i % 4 + 1) + "?", "a set", "odd" if i % 2 else "even", "Be kind." if i == 3 else None)
    for i in range(7)
)
JOB = GenerateJob(PROMPTS, Sampling(6, 0.9), seed=3, batch_size=3)


def monitor(blocks: Any = "best", model_seed: int = 0) -> PersonaMonitor:
    lm = tiny_lm("llama", "chatml", seed=model_seed)
    generator = torch.Generator().manual_seed(1)
    n, width = len(lm.blocks), lm.blocks.d_model
    tensors = {t: torch.randn(n, width, generator=generator) for t in ("candour", "malice")}
    null = Null(np.full(n, 0.25, np.float32), np.full(n, 2.0, np.float32), np.zeros((n, 1), np.float32), (0.5,))
    return PersonaMonitor(
        lm, PersonaVectors(tensors, {"candour": 1, "malice": 0}, dict.fromkeys(tensors, null)), blocks
    )


def rows_of(job: Any, folder: Path, **more: Any) -> list[Row]:
    rows, failed = run_job(monitor(**more), job, folder, progress=False)
    assert failed == []
    return rows


def test_a_row_is_the_trace_of_the_prompt_alone(tmp_path: Path) -> None:
    rows = rows_of(JOB, tmp_path)
    assert [row["id"] for row in rows] == [p.id for p in PROMPTS]
    assert len({row["provenance"]["seed"] for row in rows}) == len(PROMPTS)
    for prompt, row in zip(PROMPTS, rows, strict=True):
        alone = monitor().generate(
            prompt.messages, max_new_tokens=6, temperature=0.9, seed=seed_of(prompt.id, JOB.seed)
        )
        trace = Trace.from_row(row)
        assert trace.token_ids == alone.token_ids and trace.provenance == alone.provenance
        np.testing.assert_allclose(trace.raw, alone.raw, rtol=1e-4, atol=1e-4)
        assert (row["set"], row["category"], row["prompt"]) == (prompt.set, prompt.category, prompt.prompt)
        assert row["messages"] == prompt.messages


def test_a_prompt_is_answered_the_same_whatever_the_other_prompts(tmp_path: Path) -> None:
    everything = rows_of(JOB, tmp_path / "all")
    few = rows_of(replace(JOB, items=(PROMPTS[5], PROMPTS[2])), tmp_path / "few")
    assert [row["token_ids"] for row in few] == [everything[5]["token_ids"], everything[2]["token_ids"]]


def test_the_same_model_against_itself_differs_by_exactly_zero(tmp_path: Path) -> None:
    from persona_core.analysis.comparison import effect

    one, two = rows_of(JOB, tmp_path / "one"), rows_of(JOB, tmp_path / "two")
    found = effect("malice", one, two, n_resamples=50)
    assert found.total is not None
    assert (found.total.value, found.total.low, found.total.high, found.n) == (0.0, 0.0, 0.0, 7)


def test_replay_reads_the_very_ids_with_the_other_model(tmp_path: Path) -> None:
    written = rows_of(JOB, tmp_path / "written")
    read = rows_of(ReplayJob.of(written, 2), tmp_path / "read", model_seed=9)
    for before, after in zip(written, read, strict=True):
        for same in ("id", "token_ids", "tokens", "roles", "writer", "messages", "set", "category", "response"):
            assert before[same] == after[same], same
        assert after["finish"] == "read" and after["raw"] != before["raw"]
        wanted = monitor(model_seed=9).read(Trace.from_row(before))
        np.testing.assert_allclose(Trace.from_row(after).raw, wanted.raw, rtol=1e-4, atol=1e-4)
        assert Trace.from_row(after).provenance.written == wanted.provenance.written
    again = rows_of(ReplayJob.of(written, 2), tmp_path / "again")
    for before, after in zip(written, again, strict=True):  # the same model: what was read live
        np.testing.assert_allclose(Trace.from_row(after).raw, Trace.from_row(before).raw, rtol=1e-4, atol=1e-4)


def test_transcripts_of_any_writer_are_read_in_order(tmp_path: Path) -> None:
    items = tuple(
        RecordedConversation(
            f"t{i}",
            ({"role": "user", "content": "word ?"}, {"role": "assistant", "content": "word " * (i + 1)}),
            writer=("human", None)[i % 2],
        )
        for i in range(5)
    )
    rows = rows_of(ReadJob(items, 3), tmp_path)
    assert [(row["id"], row["writer"]) for row in rows] == [(i.id, i.writer) for i in items]
    assert all(row["response"].strip() == i.messages[1]["content"].strip() for row, i in zip(rows, items, strict=True))
    assert all(row["messages"] == [{"role": "user", "content": "word ?"}] for row in rows)


def test_what_cannot_be_done_is_named_and_the_rest_is_kept_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = replace(JOB, items=(*PROMPTS[:4], Prompt("long", "word " * 5000), *PROMPTS[4:]))
    rows, failed = run_job(monitor(), job, tmp_path, progress=False)
    assert [row["id"] for row in rows] == [p.id for p in PROMPTS]
    ((name, why),) = failed
    assert name == "long" and "ContextOverflow" in why
    asked: list[list[str]] = []
    plain = GenerateJob.rows

    def counted(self: GenerateJob, watcher: PersonaMonitor, items: Any) -> list[Row]:
        asked.append([i.id for i in items])
        return plain(self, watcher, items)

    monkeypatch.setattr(GenerateJob, "rows", counted)
    again, failed = run_job(monitor(), job, tmp_path, progress=False)
    assert asked == [["long"]] and again == rows and len(failed) == 1


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    rows_of(JOB, tmp_path)
    with pytest.raises(SettingError, match="seed = 3; now it is 4"):
        run_job(monitor(), replace(JOB, seed=4), tmp_path, progress=False)
    with pytest.raises(SettingError, match=r"model\.weights"):  # another model under the same name
        run_job(monitor(model_seed=1), JOB, tmp_path, progress=False)
    other = replace(JOB, items=(*PROMPTS[:6], Prompt("p6", "word " * 900)))
    with pytest.raises(SettingError, match=r"prompts\[6\]\[2\] = ") as caught:
        run_job(monitor(), other, tmp_path, progress=False)
    assert len(str(caught.value)) < 600
    with pytest.raises(SettingError, match="blocks"):
        run_job(monitor(blocks=[1]), JOB, tmp_path, progress=False)
    with pytest.raises(SettingError, match="occurs twice"):
        run_job(monitor(), replace(JOB, items=(PROMPTS[0], PROMPTS[0])), tmp_path / "x", progress=False)
    with pytest.raises(SettingError, match="Nothing to do"):
        run_job(monitor(), replace(JOB, items=()), tmp_path / "x", progress=False)


def test_a_truncated_batch_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("persona_core.monitor.jobs.BATCHES_PER_PART", 1)
    rows_of(JOB, tmp_path)
    broken = tmp_path / "batches" / "00001.parquet"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(CorruptFile, match=r"00001\.parquet.*Delete it"):
        run_job(monitor(), JOB, tmp_path, progress=False)
    broken.unlink()
    assert len(rows_of(JOB, tmp_path)) == 7


def test_all_blocks_are_kept_for_heat_maps(tmp_path: Path) -> None:
    rows = rows_of(JOB, tmp_path, blocks="all")
    lm = tiny_lm("llama", "chatml")
    assert rows[0]["blocks"] == list(range(len(lm.blocks)))
    assert len(rows[0]["raw"]["malice"]) == len(lm.blocks)


SCRIPT = """
import sys, time
import torch
torch.set_num_threads(1)
from persona_core.monitor import jobs
from persona_core.traces.dataset import write_results
from persona_core.monitor.jobs import GenerateJob, run_job
from tests.monitor.test_jobs import JOB, monitor

jobs.BATCHES_PER_PART = 1
plain = GenerateJob.rows
def slowly(self, watcher, items):
    time.sleep(0.1)
    return plain(self, watcher, items)
GenerateJob.rows = slowly
rows, failed = run_job(monitor(), JOB, sys.argv[1], progress=False)
write_results(rows, sys.argv[1] + "/results.parquet", rows[0]["traits"])
"""


@pytest.mark.slow
def test_killed_at_any_moment_the_run_ends_with_the_same_file(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(SCRIPT))
    with forking("tests.monitor.test_jobs") as forks:

        def start(folder: Path) -> Fork:
            return forks.start([str(script), str(folder)])

        assert start(tmp_path / "whole").wait() == 0
        killed, rng = 0, random.Random(2)
        batches = tmp_path / "killed" / "batches"
        for n in (1, 2):
            process = start(tmp_path / "killed")
            while process.poll() is None and len(list(batches.glob("*.parquet"))) < n:
                time.sleep(0.005)
            time.sleep(rng.random() * 0.1)
            killed += process.poll() is None
            process.kill()
            process.wait()
        assert killed and not (tmp_path / "killed" / "results.parquet").exists()
        assert start(tmp_path / "killed").wait() == 0
    assert (tmp_path / "whole" / "results.parquet").read_bytes() == (
        tmp_path / "killed" / "results.parquet"
    ).read_bytes()


@pytest.mark.slow
def test_two_workers_make_the_rows_of_one_process(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from persona_core.monitor.ray import run_sharded
    from persona_core.utils.ray import Workers

    model = str(ROOT / "artifacts" / "persona-tiny")
    vectors = PersonaVectors.from_pretrained(ROOT / "artifacts" / "persona-vectors-persona-tiny")
    loading: dict[str, Any] = {"name": model, "dtype": "float32", "device": "cpu"}
    prompts = (*PROMPTS, Prompt("long", "word " * 5000))
    job = GenerateJob(prompts, Sampling(8, 0.7), batch_size=1)  # more than one batch, so that both workers read
    shared, failed = run_sharded(loading, vectors, "best", job, tmp_path / "shared", Workers(2), progress=False)
    from persona_core.models.loading import load_model

    alone, failed_alone = run_job(PersonaMonitor(load_model(**loading), vectors), job, tmp_path / "alone", False)
    assert failed == failed_alone and [name for name, _ in failed] == ["long"]
    assert json.dumps(shared) == json.dumps(alone)


def test_a_repeated_prompt_is_answered_differently_each_time(tmp_path: Path) -> None:
    twice = GenerateJob(repeated(PROMPTS[:3], 2), Sampling(6, 0.9), seed=3, batch_size=4)
    rows = rows_of(twice, tmp_path)
    assert [row["id"] for row in rows] == ["p0#1", "p1#1", "p2#1", "p0#2", "p1#2", "p2#2"]
    assert [prompt_of(row["id"]) for row in rows] == ["p0", "p1", "p2"] * 2
    assert len({row["provenance"]["seed"] for row in rows}) == 6
    assert rows[0]["messages"] == rows[3]["messages"] and rows[0]["token_ids"] != rows[3]["token_ids"]
    assert repeated(PROMPTS, 1) == PROMPTS
    with pytest.raises(SettingError, match="repeats"):
        repeated(PROMPTS, 0)
