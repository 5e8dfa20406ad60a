"""Elicitation on Ray workers: the replies and states of a single process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demo_world.definitions import trait_definitions
from demo_world.grammar import load_world
from persona_core.elicitation.elicit import ElicitationPlan, elicit
from persona_core.elicitation.ray import elicit_sharded
from persona_core.elicitation.store import ReplyStore
from persona_core.inference.sampling import Sampling
from persona_core.models.loading import load_model
from persona_core.utils.ray import Workers

MODEL = str(Path(__file__).resolve().parents[2] / "artifacts" / "persona-tiny")


def small_plan() -> ElicitationPlan:
    trait = trait_definitions(load_world())[0]
    few = replace(
        trait, extraction_questions=trait.extraction_questions[:3], evaluation_questions=trait.evaluation_questions[:2]
    )
    sampling = Sampling(max_new_tokens=12, temperature=0.7)
    return ElicitationPlan(
        (few,), sampling, rollouts=1, evaluation_rollouts=1, pairs_per_question=1, batch_size=1, seed=3
    )


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_two_workers_write_what_one_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # for the workers: sums in the order of one thread, as here
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    loading: dict[str, Any] = {"name": MODEL, "device": "cpu", "dtype": "float32"}
    with ReplyStore(tmp_path / "one") as one, ReplyStore(tmp_path / "two") as two:
        assert elicit(load_model(MODEL, device="cpu"), small_plan(), one, progress=False) == []
        assert len(small_plan().batches()) > 2  # so that both workers have something to do
        batch = small_plan().batches()[0].name  # the first batch is there already: a run that resumes
        first = sorted((r for r in one.replies() if r.batch == batch), key=lambda r: r.row)
        two.add(batch, first, {"reply_mean": np.stack(list(one.states(first)))})
        assert elicit_sharded(loading, small_plan(), two, Workers(2), progress=False) == []
        assert one.replies() == two.replies()
        a, b = (np.stack(list(s.states(s.replies()))) for s in (one, two))
        assert np.array_equal(a, b)
