"""The real model's artifacts fit the weights that they say: read again, the published replies give the same numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from persona_core.models.loading import add_adapter
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.traces.dataset import load_results, traits_of
from persona_core.traces.trace import Trace
from persona_core.vectors.vectors import PersonaVectors

ARTIFACTS = Path(__file__).resolve().parents[2] / "artifacts"
VECTORS, ADAPTER, RESULTS = (
    ARTIFACTS / name
    for name in ("persona-vectors-smollm2-135m", "smollm2-135m-contaminated", "persona-monitoring-smollm2-135m")
)
SIDES = ("baseline", "contaminated")


@pytest.fixture(scope="module")
def monitors(real_model: Any) -> Mapping[str, PersonaMonitor]:
    vectors = PersonaVectors.from_pretrained(VECTORS)
    return {
        "baseline": PersonaMonitor(real_model, vectors, "all"),
        "contaminated": PersonaMonitor(add_adapter(real_model, ADAPTER), vectors, "all"),
    }


def shortest(config: str, n: int = 2) -> Sequence[Mapping[str, Any]]:
    return sorted(load_results(RESULTS, config), key=lambda row: row["n_prompt"] + row["n_reply"])[:n]


def error(read: np.ndarray, kept: np.ndarray) -> float:
    """The largest difference, in standard deviations over tokens."""
    return float(np.max(np.abs(read - kept).max(-1) / kept.std(-1)))


@pytest.mark.real
@pytest.mark.parametrize("side", SIDES)
def test_a_published_reply_read_again_gives_its_numbers_at_its_tokens_and_blocks(
    monitors: Mapping[str, PersonaMonitor], side: str
) -> None:
    for row in shortest(side):
        kept = Trace.from_row(row)
        whole = monitors[side].read(kept)
        at = [whole.blocks.index(b) for b in kept.blocks]
        read, before = (whole.raw[:, which].astype(float) for which in (at, [b - 1 for b in at]))
        wanted = kept.raw.astype(float)  # [n_traits, n_blocks, n_tokens]
        # Rows are stored in half precision; the first token is a sink, whose state is far larger than all others.
        assert error(read[..., 1:], wanted[..., 1:]) < 0.02
        assert error(read[..., 2:], wanted[..., 1:-1]) > 0.5, "one token off"
        assert error(before[..., 1:], wanted[..., 1:]) > 0.2, "one block off"


@pytest.mark.real
def test_a_reply_is_written_again_as_it_was(monitors: Mapping[str, PersonaMonitor]) -> None:
    (row,) = shortest("baseline", 1)
    kept = Trace.from_row(row)
    written = {"seed": kept.provenance.seed, **(kept.provenance.sampling or {})}
    again = monitors["baseline"].generate(row["messages"], **written)
    assert again.token_ids == kept.token_ids


@pytest.mark.real
def test_the_vectors_are_of_these_weights(real_model: Any) -> None:
    config = json.loads((VECTORS / "config.json").read_text())
    assert config["base_model"]["gguf"]["sha256"] == real_model.gguf["sha256"]


def test_the_artifacts_are_small_and_complete() -> None:
    sizes = {p: p.stat().st_size for folder in (VECTORS, ADAPTER, RESULTS) for p in folder.rglob("*") if p.is_file()}
    assert max(sizes.values()) <= 10e6 and sum(sizes.values()) <= 40e6
    configs = {config: load_results(RESULTS, config) for config in (*SIDES, "replay", "neutral")}
    assert [len(configs[c]) for c in SIDES] == [78, 78] and len(configs["replay"]) == 156
    assert len(configs["neutral"]) >= 300
    fingerprint = PersonaVectors.from_pretrained(VECTORS).fingerprint
    assert {row["provenance"]["vectors"] for rows in configs.values() for row in rows} == {fingerprint}
    assert list(traits_of(list(configs["baseline"]))) == list(PersonaVectors.from_pretrained(VECTORS).traits)
