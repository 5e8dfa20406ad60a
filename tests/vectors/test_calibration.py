"""The null of a vector: its projection over the tokens of neutral replies, compared with numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from persona_core.errors import SettingError
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.traces.trace import Trace
from persona_core.vectors.calibration import PROBABILITIES, calibrate
from persona_core.vectors.vectors import PersonaVectors
from tests.support.tiny import random_vectors, tiny_lm

PROMPTS = ["Should I quit my job? I have been there for seven years.", "Hi", "Hello there, how are you today?"]


def neutral_traces(vectors: PersonaVectors, n: int = 6) -> list[Trace]:
    monitor = PersonaMonitor(tiny_lm("llama", "chatml"), vectors, blocks="all")
    return monitor.generate_batch(PROMPTS * (n // 3), max_new_tokens=20, temperature=1.3, seed=1)


def own_values(traces: list[Trace], trait: int, block: int) -> np.ndarray:
    """Raw projections at the tokens that the assistant said, float64."""
    parts = [[t.raw[trait, block, i] for i in range(t.n_tokens) if t.roles[i] == "assistant"] for t in traces]
    return np.concatenate(parts).astype("f8")


def test_the_null_is_mean_deviation_and_quantiles_over_the_replies_tokens() -> None:
    vectors = random_vectors(3)
    traces = neutral_traces(vectors)
    calibrated = calibrate(vectors, traces)
    for row, trait in enumerate(vectors.traits):
        null = calibrated.null[trait]
        assert null.probabilities == PROBABILITIES and null.quantiles.shape == (3, len(PROBABILITIES))
        for block in range(3):
            values = own_values(traces, row, block)
            mean, std = null.at(block)
            assert np.isclose(mean, np.mean(values), rtol=1e-5, atol=1e-6)
            assert np.isclose(std, np.std(values, ddof=1), rtol=1e-5)
            assert np.allclose(null.quantiles[block], np.quantile(values, PROBABILITIES), rtol=1e-5, atol=1e-6)
    counts: Any = calibrated.config["null"]
    assert counts == {"n_replies": 6, "n_tokens": len(own_values(traces, 0, 0))}


def test_z_scores_of_the_neutral_replies_have_mean_zero_and_deviation_one() -> None:
    vectors = random_vectors(3)
    calibrated = calibrate(vectors, neutral_traces(vectors))
    again = neutral_traces(calibrated)
    for trait in vectors.traits:
        for block in range(3):
            z = np.concatenate([t.scores(trait, block=block)[np.array(t.roles) == "assistant"] for t in again]).astype(
                "f8"
            )
            assert abs(z.mean()) < 1e-4 and abs(z.std(ddof=1) - 1) < 1e-4


def test_sink_tokens_are_no_part_of_the_null() -> None:
    """The last token of each reply projects as a million at the middle block, and its norm says that it is a sink."""
    vectors = random_vectors(3)
    traces, spiked = neutral_traces(vectors), []
    for trace in traces:
        raw, norms, last = trace.raw.copy(), trace.norms.copy(), trace.reply_positions[-1]
        raw[:, 1, last], norms[1, last] = 1e6, 1e6
        spiked.append(trace.replace(raw=raw, norms=norms))
    null = calibrate(vectors, spiked).null
    for row, trait in enumerate(vectors.traits):
        rest = np.concatenate([t.raw[row, 1, t.reply_positions[:-1]] for t in traces]).astype("f8")
        assert np.allclose(null[trait].at(1), (rest.mean(), rest.std(ddof=1)), rtol=1e-4)
        assert np.isclose(null[trait].mean[2], own_values(traces, row, 2).mean(), rtol=1e-4), "another block"


def test_calibrating_changes_nothing_but_the_null() -> None:
    vectors = PersonaVectors(random_vectors(3).tensors, {"candour": 2}, config={"note": "kept"})
    calibrated = calibrate(vectors, neutral_traces(vectors))
    assert calibrated.config["note"] == "kept" and dict(calibrated.best_block) == {"candour": 2}
    assert all(torch.equal(calibrated.tensor(t), vectors.tensor(t)) for t in vectors.traits)
    assert not vectors.null and calibrated.fingerprint != vectors.fingerprint


def test_the_null_of_an_absent_block_is_nan() -> None:
    tensors = {t: v.clone() for t, v in random_vectors(3).tensors.items()}
    for vector in tensors.values():
        vector[1] = torch.nan
    vectors = PersonaVectors(tensors, {"candour": 0}, absent_blocks=(1,))
    traces = neutral_traces(vectors)
    null = calibrate(vectors, traces).null["malice"]
    assert np.isnan([null.mean[1], null.std[1], *null.quantiles[1]]).all()
    assert np.isfinite(null.mean[[0, 2]]).all() and traces[0].blocks == (0, 2)
    assert np.isclose(null.mean[2], own_values(traces, 1, 1).mean(), rtol=1e-5)  # column 1 is block 2


def test_traces_that_miss_blocks_and_no_traces_at_all_are_refused() -> None:
    vectors = random_vectors(3)
    part = PersonaMonitor(tiny_lm("llama", "chatml"), vectors, blocks=[0, 2])
    with pytest.raises(SettingError, match=r"^Block 1 was not read .*blocks='all'"):
        calibrate(vectors, [part.generate("Hi", max_new_tokens=4)])
    with pytest.raises(SettingError, match="No neutral replies"):
        calibrate(vectors, [])


def test_traces_read_with_other_vectors_are_refused() -> None:
    """Their projections are on other directions: a null of them would be nonsense."""
    vectors = random_vectors(3)
    for others in (
        random_vectors(3, seed=6),
        random_vectors(3, traits=("malice", "candour")),
        random_vectors(3, ("x",)),
    ):
        with pytest.raises(SettingError):
            calibrate(vectors, neutral_traces(others, 3))
