"""Where each trait could have been known: its own score as a warning, and what it is held against."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from persona_core.analysis.early_warning import early_warning
from persona_core.analysis.series import reply_scores
from persona_core.elicitation.prompts import prompt_of
from persona_core.errors import SettingError
from persona_core.experiments.warning_baselines import (
    entropy_scores,
    last_prompt_scores,
    ngram_scores,
    position_scores,
    random_direction_scores,
)
from persona_core.report.analysed_runs import NEUTRAL, NO_NULL, SIDES, AnalysedRuns
from persona_core.traces.trace import Trace

NO_MARKS = "No sentence is marked: python -m scripts.mark says which of them show a trait."
N_RANDOM = 3
"""Random directions that are tried where the model is at hand."""
MIN_SHOWING = 10
"""Replies that show a trait, for a figure about what was known before."""


def where(runs: AnalysedRuns, config: str, rate: float) -> dict[str, Any]:
    """Each trait of one run: what its score and those beside it tell before the text shows it."""
    if not runs.judged.get(config):
        raise SettingError(NO_MARKS)
    if runs.detectors is None:
        raise SettingError(NO_NULL)
    return {t: runs.attempt(f"where, {config}, {t}", partial(_warning, runs, config, t, rate)) for t in runs.traits}


def _warning(runs: AnalysedRuns, config: str, trait: str, rate: float) -> dict[str, Any]:
    """The trait's own z and CUSUM as warnings, and what needs no vector beside them."""
    if trait not in runs.judged.get(config, ()):
        raise SettingError(f"Nobody looked for {trait} in the sentences of this run: scripts.mark does.")
    showing: list[tuple[Trace, int, str]] = []
    for row, trace, shown in zip(runs.rows[config], runs.traces[config], runs.shown[config], strict=True):
        first = [start for name, start, _ in shown if name == trait]
        if first:
            showing.append((trace, min(first), prompt_of(row["id"])))
    if len(showing) < MIN_SHOWING:
        raise SettingError(
            f"{len(showing)} of {len(runs.rows[config])} replies show {trait}; a figure about what came before needs "
            f"{MIN_SHOWING}."
        )
    traces, first = [one[0] for one in showing], [one[1] for one in showing]
    groups = [one[2] for one in showing], runs.ids(NEUTRAL)
    assert runs.detectors is not None
    detector = runs.detectors.of(trait)
    z = reply_scores(traces, trait), reply_scores(runs.neutral, trait)
    scores = {
        "z": z,
        "cusum": tuple([detector.cusum(one) for one in side] for side in z),
        "position": (position_scores(traces), position_scores(runs.neutral)),
        "other traits": (_of_others(runs, traces, trait), _of_others(runs, runs.neutral, trait)),
        "last prompt token": (last_prompt_scores(traces, trait), last_prompt_scores(runs.neutral, trait)),
    }
    scores |= _with_model(runs, config, trait, traces)
    words = runs.attempt(f"where, {trait}, n-grams", lambda: ngram_scores(traces, runs.neutral, groups))
    if not isinstance(words, dict):
        scores["n-grams"] = words
    found = {
        name: early_warning(shows, first, null, rate=rate, groups=groups, seed=runs.seed).to_dict()
        for name, (shows, null) in scores.items()
    }
    passed = found["z"]["threshold"]
    return {
        "n": len(showing),
        "first": float(np.median(first)),
        "at_start": sum(bool(one[0] > passed) for one in z[0]),
        "other_reader": traces[0].provenance.reading_model != runs.neutral[0].provenance.reading_model,
        "scores": found,
    }


def _of_others(runs: AnalysedRuns, traces: Sequence[Trace], trait: str) -> list[np.ndarray]:
    """Mean z of all other traits, `[n_own]` a reply: a warning that knows "not neutral", and nothing of this trait."""
    others = [reply_scores(traces, t) for t in runs.traits if t != trait] or [reply_scores(traces, trait)]
    return [np.mean(series, axis=0) for series in zip(*others, strict=True)]


def _with_model(runs: AnalysedRuns, config: str, trait: str, traces: Sequence[Trace]) -> dict[str, tuple[Any, Any]]:
    """Scores that take the model: its own doubt, and directions that mean nothing. Each text by its own reader."""
    if not {config, SIDES[0]} <= set(runs.models):
        return {}
    own, baseline = runs.models[config], runs.models[SIDES[0]]
    if "entropy" not in runs.null_scores:
        runs.null_scores["entropy"] = entropy_scores(baseline, runs.neutral)
    found: dict[str, tuple[Any, Any]] = {"entropy": (entropy_scores(own, traces), runs.null_scores["entropy"])}
    block = runs.neutral[0].best_block[trait]
    shows = random_direction_scores(own, block, traces, runs.neutral, N_RANDOM, runs.seed, null_reader=baseline)
    key = f"random/{block}"
    if key not in runs.null_scores:
        runs.null_scores[key] = random_direction_scores(
            baseline, block, runs.neutral, runs.neutral, N_RANDOM, runs.seed
        )
    for k, (one, null) in enumerate(zip(shows, runs.null_scores[key], strict=True), 1):
        # It has no sign of its own and takes the one that suits it, by the replies as wholes.
        sign = 1.0 if np.concatenate(one).mean() >= np.concatenate(null).mean() else -1.0
        found[f"random direction {k}"] = ([sign * z for z in one], [sign * z for z in null])
    return found
