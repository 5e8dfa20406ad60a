"""How traits vary together in a run: held against its neutral replies, and against random directions with a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from persona_core.analysis.couplings import NO_NEUTRAL, OTHER_MODEL
from persona_core.elicitation.prompts import prompt_of
from persona_core.models.loading import load_model
from persona_core.report.analysed_runs import AnalysedRuns
from persona_core.report.how import N_RANDOM, how
from persona_core.report.sentences import describe_graph
from persona_core.report.when import clock_series
from persona_core.traces.dataset import load_results
from persona_core.traces.trace import Trace
from tests.traces.test_dataset import SHIPPED
from tests.traces.test_specific import calibrated


def runs(n_neutral: int, config: str = "baseline", **more: Any) -> AnalysedRuns:
    rows = {config: load_results(SHIPPED, config)[:30], "neutral": load_results(SHIPPED, "neutral")}
    prompts = sorted({prompt_of(r["id"]) for r in rows["neutral"]})[:n_neutral]
    rows["neutral"] = [r for r in rows["neutral"] if prompt_of(r["id"]) in prompts]
    rows = {c: own for c, own in rows.items() if own}
    traces = {c: [Trace.from_row(row) for row in own] for c, own in rows.items()}
    traits = traces[config][0].traits
    return AnalysedRuns(rows, traces, traits, (), {}, 0, **more)


def test_without_neutral_replies_no_edge_is_claimed_and_the_page_says_why() -> None:
    graph = how(runs(0), "baseline", [])
    assert graph["edges"] == [] and graph["couplings"]["missing"] == NO_NEUTRAL
    assert "neutral_texts" not in graph and describe_graph(graph)[0].startswith("No coupling is claimed")


def test_the_clock_runs_on_the_specific_scores_and_without_them_on_z_less_the_other_traits() -> None:
    trace = calibrated()
    specific, relative = (clock_series(kind, [trace])[0] for kind in ("specific", "z"))
    for k, trait in enumerate(trace.traits):
        np.testing.assert_array_equal(specific[k], trace.reply_scores(trait, "specific").astype(float))
        others = np.mean([trace.reply_scores(t, "z").astype(float) for t in trace.traits if t != trait], axis=0)
        np.testing.assert_allclose(relative[k], trace.reply_scores(trait, "z") - others, atol=1e-6)


@pytest.mark.slow
def test_the_null_is_the_neutral_replies_and_what_it_says_of_them_stands_beside_it() -> None:
    found = runs(60)
    graph = how(found, "baseline", [])
    assert graph["couplings"]["n_neutral"] == len(found.neutral) and graph["couplings"]["n_neutral_prompts"] == 60
    assert graph["couplings"]["control"] is None and graph["other_reader"] is False
    assert not any(c["claimed"] for c in graph["couplings"]["together"])
    assert graph["neutral_texts"]["n_prompts"] == 60 and graph["neutral_texts"]["together"] <= 14  # of 280
    says = " ".join(describe_graph(graph))
    assert f"of {graph['neutral_texts']['n_together']} pairs at the same token" in says


@pytest.mark.slow
def test_against_another_models_neutral_replies_nothing_is_claimed_without_random_directions() -> None:
    found = runs(60, config="contaminated")
    graph = how(found, "contaminated", [])
    assert graph["other_reader"] and graph["couplings"]["missing"] == OTHER_MODEL
    assert sum(c["significant"] for c in graph["couplings"]["together"]) > 0 and graph["edges"] == []
    assert describe_graph(graph)[0] == OTHER_MODEL.replace("'", "&#x27;")


@pytest.mark.slow
def test_with_the_model_random_directions_are_read_along_and_are_no_edges_of_their_own() -> None:
    model = load_model(SHIPPED.parent / "persona-tiny", device="cpu")
    graph = how(runs(40, models={"baseline": model}), "baseline", [])
    assert set(graph["nodes"]) == set(runs(0).traits) and len(graph["couplings"]["together"]) == 28
    share = graph["couplings"]["control"]["together"]
    assert share["n"] == N_RANDOM * (N_RANDOM - 1) // 2 and share["value"] <= 0.05
