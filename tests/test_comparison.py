"""Weights and text told apart: on cells whose effects are known, and on the shipped runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from persona_core.analysis.comparison import effect, mean_over_prompts, means
from persona_core.demo.twin import CONTAMINANT
from persona_core.errors import SettingError
from persona_core.results import load_results

SHIPPED = Path(__file__).resolve().parent.parent / "artifacts" / "persona-monitoring-persona-tiny"


def row(prompt: str, reader: str, writer: str, mean: float | None) -> dict[str, Any]:
    return {"id": prompt, "reader": reader, "writer": writer, "traits": ["t"], "summary": {"t": {"mean": mean}}}


def cells(
    weights: float, text: float, n: int = 40, noise: float = 0.3, seed: int = 0
) -> tuple[list[Any], list[Any], list[Any]]:
    """Rows of both runs and of the replay: each prompt has a level of its own, to which the two effects are added."""
    rng = np.random.default_rng(seed)
    level = rng.normal(0, 2, n)

    def of(reader: str, writer: str) -> list[Any]:
        added = weights * (reader == "C") + text * (writer == "C")
        return [row(f"p{i}", reader, writer, level[i] + added + rng.normal(0, noise)) for i in range(n)]

    return of("B", "B"), of("C", "C"), of("C", "B") + of("B", "C")


@pytest.mark.parametrize(("weights", "text"), [(1.0, 0.0), (0.0, 1.0), (0.5, 2.0)])
def test_each_effect_is_found_where_it_was_put(weights: float, text: float) -> None:
    found = effect("t", *cells(weights, text))
    assert found.weights is not None and found.text is not None and found.total is not None
    for estimate, wanted in ((found.weights, weights), (found.text, text), (found.total, weights + text)):
        assert estimate.low <= wanted <= estimate.high and estimate.high - estimate.low < 0.5
    assert found.total.value == pytest.approx(found.weights.value + found.text.value)
    assert found.n == 40


def test_readers_and_writers_are_not_taken_for_each_other() -> None:
    baseline, contaminated, replay = cells(0.0, 1.0)
    swapped = [{**r, "reader": r["writer"], "writer": r["reader"]} for r in replay]
    found = effect("t", baseline, contaminated, swapped)
    assert found.weights is not None and abs(found.weights.value) > 0.8


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(100):
        found = effect("t", *cells(0.4, 0.0, n=20, seed=seed), n_resamples=200).weights
        covered += found is not None and found.low <= 0.4 <= found.high
    assert covered >= 88  # of 95 expected


def test_pairs_only_and_no_empty_reply() -> None:
    baseline, contaminated, replay = cells(1.0, 0.0)
    baseline[3] = row("p3", "B", "B", None)
    assert effect("t", baseline, contaminated[:10], replay).n == 9
    with pytest.raises(SettingError, match="no prompt in common"):
        effect("t", baseline[:5], contaminated[10:], replay)
    with pytest.raises(SettingError, match="comes twice"):
        means([*baseline, baseline[0]], "t")
    with pytest.raises(SettingError, match="No trait 'x'"):
        means(baseline, "x")
    assert mean_over_prompts([1.0]) is None and mean_over_prompts([]) is None


def test_the_twins_traits_rise_where_the_contamination_put_them() -> None:
    rows = {config: load_results(SHIPPED, config) for config in ("baseline", "contaminated", "replay")}
    found = {
        t: effect(t, rows["baseline"], rows["contaminated"], rows["replay"]) for t in rows["baseline"][0]["traits"]
    }
    planted = found[CONTAMINANT]
    assert planted.total is not None and planted.weights is not None and planted.text is not None
    others = [e.total.high for t, e in found.items() if t != CONTAMINANT and e.total is not None]
    assert planted.total.low > 1.5 * max(others)  # every vector rises with any trait; this one by far the most
    assert planted.weights.low > max(e.weights.high for t, e in found.items() if t != CONTAMINANT and e.weights)
    assert planted.text.low > 0
    for side in ("baseline", "contaminated"):
        same = effect(CONTAMINANT, rows[side], rows[side])
        assert same.total is not None and (same.total.value, same.total.low, same.total.high) == (0.0, 0.0, 0.0)


def test_the_mean_of_a_row_is_that_of_its_own_tokens() -> None:
    for r in load_results(SHIPPED, "contaminated")[:5]:
        z = np.array(r["projections"][CONTAMINANT])
        own = [role == "assistant" and place >= r["n_prompt"] for place, role in enumerate(r["roles"])]
        assert means([r], CONTAMINANT)[r["id"]] == pytest.approx(z[own].mean(), rel=1e-5)
