"""How traits vary together in each run: couplings beyond those of the neutral replies, orders in time, steering."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from persona_core.analysis.coupling_controls import edges_on_neutral
from persona_core.analysis.couplings import OTHER_MODEL
from persona_core.analysis.graph import trait_graph
from persona_core.analysis.interaction import measure_couplings, trait_series
from persona_core.analysis.interventional import InterventionalEffects
from persona_core.analysis.precedence import (
    PrecedenceTable,
    activation_times,
    behaviour_times,
    precedence,
)
from persona_core.experiments.warning_baselines import random_direction_scores
from persona_core.report.analysed_runs import AnalysedRuns
from persona_core.report.results_folder import NEUTRAL, SIDES
from persona_core.report.when import clock_series

N_RANDOM = 16
"""Random directions that are read along if the model is available: 120 pairs."""


def how(runs: AnalysedRuns, config: str, tables: Sequence[InterventionalEffects]) -> dict[str, Any]:
    """The graph of one run, and how often its couplings would be claimed of neutral replies."""
    traces, traits = runs.traces[config], runs.traits
    # Of z, whatever the page's scores: a specific score has the other traits subtracted, which couples them by itself.
    series, control = trait_series(traces, kind="z"), _random(runs, config)
    null = trait_series(runs.neutral, traits, "z") if runs.neutral else None
    names = [f"random {k}" for k in range(1, 1 + len(control[0][0]))] if control else []
    couplings = measure_couplings(
        [*traits, *names],
        _joined(series, control[0]) if control else series,
        runs.ids(config),
        neutral=_joined(null, control[1]) if control and null else null,
        neutral_groups=runs.ids(NEUTRAL) if null else None,
        control=names,
        seed=runs.seed,
    )
    other_reader = null is not None and _reader(traces) != _reader(runs.neutral)
    if other_reader and not control:
        couplings = couplings.withheld(OTHER_MODEL)
    clocks: list[PrecedenceTable] = []
    if runs.clock:
        times = activation_times(traits, clock_series(runs.kind, traces), runs.clock)
        clocks.append(precedence(traits, times, "activation", seed=runs.seed))
    annotated = [t for t in traits if t in runs.judged.get(config, ())]
    if len(annotated) > 1:
        clocks.append(
            precedence(annotated, behaviour_times(annotated, runs.shown[config]), "behaviour", seed=runs.seed)
        )
    found = trait_graph(traits, couplings, clocks, tables).to_dict()
    if null is not None:
        if "neutral_edges" not in runs.null_scores:
            runs.null_scores["neutral_edges"] = runs.attempt(
                "how, neutral replies",
                lambda: edges_on_neutral(traits, null, runs.ids(NEUTRAL), seed=runs.seed).to_dict(),
            )
        found["neutral_texts"] = runs.null_scores["neutral_edges"]
        found["other_reader"] = other_reader
    return found


def _reader(traces: Sequence[Any]) -> str | None:
    reader: str | None = traces[0].provenance.reading_model
    return reader


def _random(runs: AnalysedRuns, config: str) -> tuple[list[np.ndarray], list[np.ndarray]] | None:
    """Scores along random directions of the run's replies and of the neutral ones, `[N_RANDOM, n_tokens]` each."""
    if not runs.neutral or not {config, SIDES[0]} <= set(runs.models):
        return None
    own, baseline = runs.models[config], runs.models[SIDES[0]]
    blocks = list(runs.neutral[0].best_block.values())
    block = max(dict.fromkeys(blocks), key=blocks.count)  # the one at which most traits are read

    def read(config: str, null_reader: Any = None) -> list[np.ndarray]:
        reader = own if config != NEUTRAL else baseline
        scores = random_direction_scores(
            reader, block, runs.traces[config], runs.neutral, N_RANDOM, runs.seed, null_reader=null_reader
        )
        return [np.stack(reply) for reply in zip(*scores, strict=True)]

    if "random" not in runs.null_scores:
        runs.null_scores["random"] = read(NEUTRAL)
    return read(config, baseline), runs.null_scores["random"]


def _joined(series: Sequence[np.ndarray], control: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [np.concatenate(rows) for rows in zip(series, control, strict=True)]
