"""Two directions for each trait: scores are read along one, states are moved along the other."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from persona_core.errors import NotCalibrated, VectorsMismatch
from persona_core.inference.steering import Steer
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.vectors.calibration import calibrate, calibrate_steering
from persona_core.vectors.vectors import PersonaVectors
from tests.support import oracle
from tests.support.tiny import specific_vectors, tiny_lm

PROMPTS = ["Should I quit my job?", "Tell me about the sea, and then about the mountains.", "Why?"]


@pytest.fixture(scope="module")
def monitor() -> PersonaMonitor:
    lm = tiny_lm("llama", "chatml")
    return PersonaMonitor(lm, specific_vectors(len(lm.blocks)), blocks="all")


def test_scores_are_read_along_the_reading_direction(monitor: PersonaMonitor) -> None:
    trace, vectors = monitor.read(PROMPTS[0]), monitor.vectors
    rows = {t: vectors.readings[t].numpy() for t in vectors.traits}
    wanted = oracle.raw(monitor.lm.model, list(monitor.lm.blocks.modules), list(trace.token_ids), rows)
    assert oracle.relative_error(trace.raw, wanted) < 1e-4


def test_states_are_moved_along_the_steering_direction(monitor: PersonaMonitor) -> None:
    """Read along the steering directions, a push of 3 moves the projection by exactly 3 at the block that is pushed."""
    along = PersonaMonitor(monitor.lm, monitor.vectors.along_steering(), blocks="all")
    steer = Steer("candour", block=1, strength=3.0, start=None)
    plain, pushed = along.read(PROMPTS[0]), along.read(PROMPTS[0], steer=steer)
    row = plain.traits.index("candour")
    np.testing.assert_allclose(pushed.raw[row, 1] - plain.raw[row, 1], 3.0, atol=1e-4)
    read = monitor.read(PROMPTS[0], steer=steer).raw[row, 1] - monitor.read(PROMPTS[0]).raw[row, 1]
    u, v = monitor.vectors.reading_direction("candour", 1), monitor.vectors.direction("candour", 1)
    np.testing.assert_allclose(read, 3.0 * float(u @ v), atol=1e-4)


def test_standard_deviations_of_a_push_are_those_along_the_steering_direction(monitor: PersonaMonitor) -> None:
    vectors = monitor.vectors
    other = {t: replace(n, mean=n.mean + 100, std=n.std * 50) for t, n in vectors.null.items()}
    run = PersonaMonitor(monitor.lm, replace(vectors, null=other), blocks="all")
    steer = Steer("malice", block=0, strength=2.0, unit="sd", start=None)
    moved = run.read(PROMPTS[0], steer=steer).raw - run.read(PROMPTS[0]).raw
    u, v = vectors.reading_direction("malice", 0), vectors.direction("malice", 0)
    wanted = 2.0 * float(vectors.steering_null["malice"].std[0]) * float(u @ v)
    np.testing.assert_allclose(moved[run.vectors.traits.index("malice"), 0], wanted, rtol=1e-3)


def test_a_push_in_standard_deviations_needs_the_null_of_its_own_direction(monitor: PersonaMonitor) -> None:
    run = PersonaMonitor(monitor.lm, replace(monitor.vectors, steering_null={}), blocks="all")
    with pytest.raises(NotCalibrated, match="unit='sd'"):
        run.read(PROMPTS[0], steer=Steer("malice", block=0, strength=2.0, unit="sd"))


def test_calibration_measures_both_nulls_and_the_specific_one(monitor: PersonaMonitor) -> None:
    traces = monitor.generate_batch(PROMPTS, max_new_tokens=12, temperature=1.0, seed=1)
    found = calibrate(monitor.vectors, traces)
    along = PersonaMonitor(monitor.lm, found.along_steering(), blocks="all")
    found = calibrate_steering(found, along.read_batch(traces))
    again, steered = PersonaMonitor(monitor.lm, found, blocks="all").read_batch(traces), along.read_batch(traces)
    for trait in found.traits:
        for block in found.blocks:
            specific = np.concatenate([t.reply_scores(trait, "specific", block) for t in again])
            z = np.concatenate([t.reply_scores(trait, "z", block) for t in again])
            assert abs(np.nanmean(specific)) < 1e-3 and np.nanstd(specific, ddof=1) == pytest.approx(1, abs=1e-3)
            assert abs(np.nanmean(z)) < 1e-3 and np.nanstd(z, ddof=1) == pytest.approx(1, abs=1e-3)
            raw = np.concatenate([t.scores(trait, "raw", block)[t.reply_positions] for t in steered])
            plain = np.concatenate([~t.sinks[t.blocks.index(block), t.reply_positions] for t in again])
            assert found.steering_null[trait].mean[block] == pytest.approx(raw[plain].mean(), rel=1e-3, abs=1e-4)


def test_files_bring_back_both_directions_and_all_that_scores_need(monitor: PersonaMonitor, tmp_path: Path) -> None:
    vectors = replace(monitor.vectors, max_norm=np.array([3.0, np.inf, 5.0], "f4")[: monitor.vectors.n_blocks])
    vectors.save_pretrained(tmp_path)
    found = PersonaVectors.from_pretrained(tmp_path)
    assert found.fingerprint == vectors.fingerprint and found.has_specific
    for trait in vectors.traits:
        assert torch.equal(found.reading(trait), vectors.reading(trait))
        assert torch.equal(found.tensor(trait), vectors.tensor(trait))
        np.testing.assert_array_equal(found.log_odds[trait], vectors.log_odds[trait])
        np.testing.assert_array_equal(found.specific_null[trait], vectors.specific_null[trait])
        np.testing.assert_array_equal(found.steering_null[trait].std, vectors.steering_null[trait].std)
    np.testing.assert_array_equal(found.max_norm, vectors.max_norm)
    assert json.loads((tmp_path / "config.json").read_text())["format_version"] == 2


@pytest.mark.parametrize("name", ["reading", "log_odds", "specific_null", "max_norm"])
def test_every_number_of_a_score_counts_for_the_fingerprint(monitor: PersonaMonitor, tmp_path: Path, name: str) -> None:
    replace(monitor.vectors, max_norm=np.full(monitor.vectors.n_blocks, 9.0, "f4")).save_pretrained(tmp_path)
    arrays = load_file(str(tmp_path / "vectors.safetensors"))
    changed = next(key for key in arrays if key.split("/")[0] == name)
    arrays[changed] = arrays[changed] + 1e-3
    save_file(arrays, str(tmp_path / "vectors.safetensors"), {"format": "pt"})
    with pytest.raises(Exception, match="fingerprint"):
        PersonaVectors.from_pretrained(tmp_path)


def test_an_older_folder_is_read_along_the_mean_difference_and_says_so(
    monitor: PersonaMonitor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older = replace(monitor.vectors, readings={}, steering_null={}, log_odds={}, specific_null={}, max_norm=None)
    older.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["format_version"] == 1
    with caplog.at_level(logging.INFO, logger="persona_core"):
        found = PersonaVectors.from_pretrained(tmp_path)
    assert "mean difference" in caplog.text and "mean difference" in repr(found)
    assert torch.equal(found.reading("candour"), found.tensor("candour")) and not found.has_specific
    assert found.null_of_steering("candour") is found.null["candour"]
    assert PersonaMonitor(monitor.lm, found).read(PROMPTS[0]).default_kind == "z"


def test_fewer_traits_have_no_specific_score_until_they_are_calibrated(monitor: PersonaMonitor) -> None:
    assert monitor.vectors.select(["candour", "malice"]).has_specific
    assert not monitor.vectors.select(["candour"]).has_specific


def test_where_no_norm_limit_is_known_every_norm_is_below_it(monitor: PersonaMonitor) -> None:
    vectors = replace(monitor.vectors, max_norm=np.array([1.0, 2.0, 3.0], np.float32))
    assert vectors.limits_at([2, 0]).tolist() == [3.0, 1.0]
    assert replace(vectors, max_norm=None).limits_at([2, 0]).tolist() == [np.inf, np.inf]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"readings": {"candour": torch.ones(3, 4)}}, "only one of the two"),
        (
            {"readings": {"candour": torch.ones(2, 4), "malice": torch.ones(2, 4)}},
            r"'candour' has shape \(2, 4\); expected \(3, 4\)",
        ),
        ({"log_odds": {"candour": np.ones((2, 2), "f4")}}, r"'candour' have shape \(2, 2\); expected \(3, 2\)"),
        ({"max_norm": np.ones(2, "f4")}, r"norm limits have shape \(2,\); expected \(3,\)"),
    ],
)
def test_directions_that_do_not_fit_are_refused(changes: dict[str, Any], says: str) -> None:
    tensors = {"candour": torch.ones(3, 4), "malice": torch.ones(3, 4)}
    with pytest.raises(VectorsMismatch, match=says):
        PersonaVectors(tensors, {}, **changes)
