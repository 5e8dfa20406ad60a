"""The runs that are analysed together: rows, traces, annotations, and what one section finds for the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from persona_core.analysis.detectors import Detectors
from persona_core.analysis.onset import OnsetDetector
from persona_core.analysis.onset_calibration import MIN_PROMPTS
from persona_core.analysis.series import checked, reply_scores, shared_kind
from persona_core.elicitation.prompts import prompt_of
from persona_core.errors import SettingError
from persona_core.judging.annotations import Annotation, JudgedTraits, annotated_positions, annotations_of
from persona_core.report.results_folder import NEUTRAL, REPLAY, SIDES
from persona_core.traces.trace import Kind, Trace

if TYPE_CHECKING:
    from persona_core.models.language_model import LanguageModel

NO_NULL = (
    f"Alarms need neutral replies of the same model to at least {MIN_PROMPTS} different prompts, best 300 or more of "
    f"many kinds: persona monitor ... --prompts neutral --config {NEUTRAL} --seed 1 --out FOLDER, with the folder of "
    "these results."
)

Row = Mapping[str, Any]
T = TypeVar("T")
TraitSpan = tuple[str, int, int]
"""Trait, first token, token after the last, counted over the reply tokens."""


@dataclass(eq=False)
class AnalysedRuns:
    """The rows as traces, and what the sections share."""

    rows: Mapping[str, Sequence[Row]]
    traces: Mapping[str, list[Trace]]
    traits: tuple[str, ...]
    annotations: Sequence[Annotation]
    judged: JudgedTraits
    seed: int
    missing: list[str] = field(default_factory=list)
    models: Mapping[str, LanguageModel] = field(default_factory=dict)
    detectors: Detectors | None = None
    clock: Mapping[str, OnsetDetector] = field(default_factory=dict)  # of the activation clock, one trait at a time
    shown: dict[str, list[list[TraitSpan]]] = field(default_factory=dict)  # annotated stretches of each reply
    null_scores: dict[str, Any] = field(default_factory=dict)  # of the neutral replies, computed once for all runs

    @property
    def configs(self) -> list[str]:
        """Runs with one reply per prompt: all but the replay and the null."""
        return [c for c in self.rows if c not in (NEUTRAL, REPLAY)]

    @cached_property
    def kind(self) -> Kind:
        """The score that all runs have: "specific", or "z"."""
        return shared_kind(trace for own in self.traces.values() for trace in own)

    @property
    def neutral(self) -> list[Trace]:
        return self.traces.get(NEUTRAL, [])

    def ids(self, config: str) -> list[str]:
        """The prompt of each reply."""
        return [prompt_of(row["id"]) for row in self.rows[config]]

    def attempt(self, what: str, analysis: Callable[[], T]) -> T | dict[str, str]:
        """The result of an analysis, or the reason why there is none."""
        try:
            return analysis()
        except SettingError as error:
            self.missing.append(f"{what}: {error}")
            return {"missing": str(error)}


def with_one_kind(traces: Mapping[str, list[Trace]]) -> dict[str, list[Trace]]:
    """The traces, all with specific scores or all without: figures of two kinds cannot be compared."""
    if shared_kind(t for own in traces.values() for t in own) == "specific":
        return dict(traces)
    return {config: [t.replace(log_odds=None) for t in own] for config, own in traces.items()}


def without_broken(
    rows: Mapping[str, Sequence[dict[str, Any]]],
) -> tuple[dict[str, list[dict[str, Any]]], tuple[str, ...]]:
    """The rows whose projections and norms are all finite, by config, and what was left out."""
    kept: dict[str, list[dict[str, Any]]] = {}
    left_out = []
    for config, own in rows.items():
        for row in own:
            norms = np.asarray(row["norms"], float)
            parts = [np.asarray(row["raw"][trait], float) for trait in row["traits"]]
            parts += [] if np.isnan(norms).all() else [norms]  # imported rows have none
            if all(np.isfinite(part).all() for part in parts):
                kept.setdefault(config, []).append(row)
            else:
                left_out.append(f"{config}: {row['id']!r} holds a projection or norm that is not finite, so not used")
    return kept, tuple(left_out)


def check_runs(runs: AnalysedRuns) -> None:
    """Refuse runs that cannot be analysed, and map the annotations to tokens.

    Raises:
        SettingError: several replies to a prompt, traces of different models or vectors, a score that is not finite, or
            annotations of another text.
    """
    for config in runs.configs:
        ids = runs.ids(config)
        if len(set(ids)) < len(ids):
            again = next(i for i in ids if ids.count(i) > 1)
            raise SettingError(
                f"The run {config!r} answers the prompt {again!r} several times; analysis takes one reply to a prompt. "
                f"Put repeated replies into the config {NEUTRAL!r}."
            )
    for config, traces in runs.traces.items():
        try:
            for trait in runs.traits:
                if config != REPLAY:
                    reply_scores(traces, trait)  # raises on several models, vectors or blocks
                for row, trace in zip(runs.rows[config], traces, strict=True):
                    checked(trace.scores(trait, runs.kind)[trace.reply_positions], f"{trait} in the row {row['id']!r}")
            runs.shown[config] = [  # raises on annotations of another text
                _shown(runs, config, row, trace) for row, trace in zip(runs.rows[config], traces, strict=True)
            ]
        except SettingError as error:
            raise SettingError(f"{config}: {error}") from error


def _shown(runs: AnalysedRuns, config: str, row: Row, trace: Trace) -> list[TraitSpan]:
    index = {t: k for k, t in enumerate(trace.reply_positions)}
    found = []
    for trait in runs.traits:
        for annotation in annotations_of(runs.annotations, row["id"], config, trait):
            tokens = [index[t] for t in annotated_positions(trace, [annotation])]
            if tokens:
                found.append((trait, tokens[0], tokens[-1] + 1))
    return found


def read_by_both(runs: AnalysedRuns) -> Iterable[tuple[Row, Trace, Trace]]:
    """Each text that both models have read: its row, as read by the baseline, as read by the contaminated model."""
    if not {*SIDES, REPLAY} <= set(runs.rows):
        return
    readers = [runs.rows[side][0]["reader"] for side in SIDES]
    by_text: dict[tuple[str, str], dict[str, tuple[Row, Trace]]] = {}
    for config in (*SIDES, REPLAY):
        for row, trace in zip(runs.rows[config], runs.traces[config], strict=True):
            by_text.setdefault((row["id"], row["writer"]), {})[row["reader"]] = (row, trace)
    for found in by_text.values():
        if set(readers) <= set(found):
            row, first = found[readers[0]]
            yield row, first, found[readers[1]][1]
