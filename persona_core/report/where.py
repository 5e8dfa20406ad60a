"""Where each trait could have been known: its own score as a warning, compared with baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
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
from persona_core.report.analysed_runs import NO_NULL, AnalysedRuns
from persona_core.report.results_folder import NEUTRAL, SIDES
from persona_core.traces.trace import UNITS, Trace

NOT_ANNOTATED = "No sentence is annotated. Run persona mark to find those that show a trait."
N_RANDOM = 3
"""Random directions that are tried if the model is available."""
MIN_SHOWING = 10
"""Replies that must show a trait to be analysed for early warning."""


def where(runs: AnalysedRuns, config: str, rate: float) -> dict[str, Any]:
    """Each trait of one run: how well its score and the baselines predict it before the text shows it."""
    if not runs.judged.get(config):
        raise SettingError(NOT_ANNOTATED)
    if runs.detectors is None:
        raise SettingError(NO_NULL)
    return {t: runs.attempt(f"where, {config}, {t}", partial(_warning, runs, config, t, rate)) for t in runs.traits}


def _warning(runs: AnalysedRuns, config: str, trait: str, rate: float) -> dict[str, Any]:
    """The trait's own score and its detector's statistic as warnings, beside baselines that need no vector of it."""
    if trait not in runs.judged.get(config, ()):
        raise SettingError(f"The sentences of this run were not annotated for {trait}. Run persona mark.")
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
    kind = runs.kind
    own = reply_scores(traces, trait, kind), reply_scores(runs.neutral, trait, kind)
    scores = {
        str(kind): own,
        "cusum": tuple([detector.statistic(one) for one in side] for side in own),
        "position": (position_scores(traces), position_scores(runs.neutral)),
        "other traits": (_of_others(runs, traces, trait), _of_others(runs, runs.neutral, trait)),
        "last prompt token": (last_prompt_scores(traces, trait, kind), last_prompt_scores(runs.neutral, trait, kind)),
    }
    if kind == "specific":
        scores["z"] = reply_scores(traces, trait, "z"), reply_scores(runs.neutral, trait, "z")
    scores |= _with_model(runs, config, trait, traces)
    ngrams = runs.attempt(f"where, {trait}, n-grams", lambda: ngram_scores(traces, runs.neutral, groups))
    if not isinstance(ngrams, dict):
        scores["n-grams"] = ngrams
    found = {
        name: early_warning(shows, first, null, rate=rate, groups=groups, seed=runs.seed).to_dict()
        for name, (shows, null) in scores.items()
    }
    threshold, any_trait = found[kind]["threshold"], runs.detectors.rate()
    return {
        "kind": kind,
        "unit": UNITS[kind],
        "against": list(runs.traits),
        "detector": {"rate": detector.rate, "any": any_trait and asdict(any_trait)},
        "n": len(showing),
        "first": float(np.median(first)),
        "at_start": sum(bool(one[0] > threshold) for one in own[0]),
        "other_reader": traces[0].provenance.reading_model != runs.neutral[0].provenance.reading_model,
        "scores": found,
    }


def _of_others(runs: AnalysedRuns, traces: Sequence[Trace], trait: str) -> list[np.ndarray]:
    """Mean z of all other traits, `[n_reply_tokens]` each: it knows "not neutral", but nothing of this trait.

    NaN where a token is a sink token for one of them.
    """
    others = [reply_scores(traces, t, "z") for t in runs.traits if t != trait] or [reply_scores(traces, trait, "z")]
    return [np.mean(series, axis=0) for series in zip(*others, strict=True)]


def _with_model(runs: AnalysedRuns, config: str, trait: str, traces: Sequence[Trace]) -> dict[str, tuple[Any, Any]]:
    """Scores that need the model: next-token entropy and random directions. Each text is read by its own reader."""
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
        # A random direction has no sign: it takes the one that suits it best over whole replies.
        sign = 1.0 if np.nanmean(np.concatenate(one)) >= np.nanmean(np.concatenate(null)) else -1.0
        found[f"random direction {k}"] = ([sign * z for z in one], [sign * z for z in null])
    return found
