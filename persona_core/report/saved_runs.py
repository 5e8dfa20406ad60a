"""Published results, read once and shown in many ways: by prompt, by reader, as a table of small multiples."""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from persona_core.analysis.branch_figures import MeasuredBranch
from persona_core.analysis.detectors import Detectors
from persona_core.analysis.series import shared_kind
from persona_core.analysis.turning_point import turning_point
from persona_core.errors import NotCalibrated, NotFound, SettingError
from persona_core.report.results_folder import BASELINE, BRANCHES, REPLAY, SIDES, ResultsFolder
from persona_core.traces.dataset import REPLIES
from persona_core.traces.trace import UNITS, Trace
from persona_core.utils.hub import resolve_source, split_revision

logger = logging.getLogger(__name__)

OTHERS = ("imported", "transcripts")
"""Configs that a results folder may hold in place of the two sides."""
READS_CONTAMINATED, READS_BASELINE = "baseline reads contaminated", "contaminated reads baseline"
TURN_FROM, TURN_TO = 1.0, 2.0
"""A clear turn begins within one standard deviation of neutral text, and ends above two."""
STEPS = 127
"""Scores of small multiples are whole multiples of a step, -127 to 127: one byte a token."""
Z_STEP = 0.1
"""For z and specific scores: exact to a twentieth of a standard deviation, clipped at 12.7, far beyond the end of the
colour scale."""


class SavedRuns:
    """The results of a folder or Hub repository.

    Everything is read on first use and then kept; safe to use from several threads.

    Args:
        source: folder or dataset repository, optionally with "@" and a revision.

    >>> runs = SavedRuns("artifacts/persona-monitoring-persona-tiny")
    >>> runs.configs
    ('baseline', 'contaminated')
    >>> sorted(runs.traces("pilot-01"))
    ['baseline', 'baseline reads contaminated', 'contaminated', 'contaminated reads baseline']
    """

    def __init__(self, source: str | Path) -> None:
        self.source = str(source)
        self._folder = ResultsFolder(source)
        self._lock = threading.RLock()
        self._rows: dict[str, list[dict[str, Any]] | None] = {}

    def _of(self, config: str) -> list[dict[str, Any]] | None:
        """Rows of a config; None where there is none. A broken file is an error."""
        with self._lock:
            if config not in self._rows:
                try:
                    self._rows[config] = self._folder.rows(config)
                except NotFound as error:
                    logger.info("No config %s there: %s", config, error)
                    self._rows[config] = None
            return self._rows[config]

    @property
    def configs(self) -> tuple[str, ...]:
        """The runs: the two sides, or what the folder holds in their place.

        Raises:
            NotFound: none, or no such folder.
            CorruptFile: not a file of results.
        """
        found = tuple(c for c in SIDES if self._of(c)) or tuple(c for c in OTHERS if self._of(c))
        if not found:
            resolve_source(*split_revision(self.source))  # names a mistyped path
            raise NotFound(f"{self.source!r} holds none of the configs {', '.join((*SIDES, *OTHERS))}.")
        return found

    def rows(self, config: str) -> Sequence[Mapping[str, Any]]:
        """The rows of one run; empty where there is no such run."""
        return self._of(config) or []

    def row(self, config: str, id: str) -> Mapping[str, Any]:
        """One reply.

        Raises:
            NotFound: there is none.
        """
        for row in self.rows(config):
            if row["id"] == id:
                return row
        raise NotFound(f"{self.source!r} has no reply {id!r} in {config!r}.")

    @property
    def titles(self) -> dict[str, str]:
        """Id -> prompt, in the order in which the prompts were published."""
        return {row["id"]: row["prompt"] for config in self.configs for row in self.rows(config)}

    @property
    def ids(self) -> list[str]:
        return list(self.titles)

    @property
    def traits(self) -> tuple[str, ...]:
        """Those of the first row."""
        return tuple(self.rows(self.configs[0])[0]["traits"])

    def traces(self, id: str) -> dict[str, Trace]:
        """All readings of the replies to one prompt.

        Returns:
            By name, those that exist: each config's own run, `READS_CONTAMINATED` and `READS_BASELINE`.
        """
        found = {c: row for c in self.configs for row in self.rows(c) if row["id"] == id}
        if set(SIDES) <= set(found):
            writers = {found[side]["writer"]: side for side in SIDES}
            for row in self.rows(REPLAY):
                writer = writers.get(row["writer"])
                if row["id"] == id and writer is not None and row["reader"] != row["writer"]:
                    found[READS_BASELINE if writer == BASELINE else READS_CONTAMINATED] = row
        return {key: Trace.from_row(row) for key, row in found.items()}

    @cached_property
    def analysed(self) -> list[dict[str, Any]]:
        """The analysis of each reply and trait (`replies.parquet`); empty where the runs were not analysed."""
        return self._folder.table(REPLIES)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The figures of the analysis.

        Raises:
            NotFound: the runs were not analysed.
        """
        return self._folder.findings().summary

    @cached_property
    def _analysed(self) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
        """(config, id) -> trait -> onset; empty without an analysis."""
        found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
        for one in self.analysed:
            if one["answer"] is not None:  # None: too few neutral replies
                onset = {"answer": one["answer"], "onset": one["onset"], "low": one["onset_low"]}
                onset |= {"high": one["onset_high"], "says": one["says"], "kind": one.get("kind") or "z"}
                onset |= {name: one.get(name) for name in ("doubles", "falls", "timed")}
                found.setdefault((one["config"], one["id"]), {})[one["trait"]] = onset
        return found

    def onsets(self, config: str, id: str) -> dict[str, dict[str, Any]]:
        """Trait -> onset in one reply, as in `Onset.to_dict`; empty without an analysis."""
        with self._lock:
            return self._analysed.get((config, id), {})

    @cached_property
    def branches(self) -> dict[str, MeasuredBranch]:
        """The branches of these replies, by name; none where none were made.

        Raises:
            CorruptFile: not a table of them.
        """
        return self._folder.branches()

    def model(self, config: str, id: str) -> str:
        """The run whose model wrote a reply: for a branch that of the reply it branches from."""
        return self.branches[id].config if id in self.branches and config == BRANCHES else config

    @cached_property
    def _detectors(self) -> Detectors | None:
        return self._folder.detectors()

    def caveats(self, trace: Trace) -> tuple[str, ...]:
        """How a reply differs from the neutral ones, so that the stated false-alarm rate need not hold for it."""
        with self._lock:
            return () if self._detectors is None else self._detectors.caveats(trace)

    def onsets_of(self, id: str) -> dict[str, dict[str, dict[str, Any]]]:
        """Onsets in the replies to one prompt by the keys of `traces`; see `onsets`."""
        found = {config: self.onsets(config, id) for config in self.configs}
        with self._lock:
            detectors = self._detectors
        if detectors is None:
            return found
        replayed = {key: trace for key, trace in self.traces(id).items() if key not in found}
        for key, trace in replayed.items():  # the analysis is of each model's own replies
            with suppress(NotCalibrated, SettingError):  # read with other vectors: then nothing is known
                found[key] = {t: onset.to_dict() for t, onset in detectors.find_all(trace).items()}
        return found

    @cached_property
    def clearest_turn(self) -> tuple[str, str, str] | None:
        """Config, id and trait: the reply in which a trait turns most clearly, from about neutral to well above.

        Replies with an onset come first, where the runs were analysed, and those of the changed model.
        """
        found = []
        for config in self.configs:
            for row in self.rows(config):
                trace = Trace.from_row(row)
                for trait in trace.traits:
                    one = turning_point(trace.reply_scores(trait, trace.default_kind))
                    if one is not None and abs(one.before) <= TURN_FROM and one.after >= TURN_TO:
                        timed = self.onsets(config, row["id"]).get(trait, {}).get("onset") is not None
                        found.append(((timed, config != BASELINE, one.t), config, row["id"], trait))
        return max(found)[1:] if found else None

    @cached_property
    def _table(self) -> dict[str, Any]:
        traces = {c: {row["id"]: Trace.from_row(row) for row in self.rows(c)} for c in self.configs}
        every = [trace for own in traces.values() for trace in own.values()]
        kind = shared_kind(every) if all(trace.calibrated for trace in every) else every[0].default_kind
        series = {
            c: {id: {t: trace.reply_scores(t, kind) for t in trace.traits} for id, trace in own.items()}
            for c, own in traces.items()
        }
        scores = np.concatenate([z for own in series.values() for one in own.values() for z in one.values()])
        most = float(np.nanmax(np.abs(scores), initial=0.0)) or 1.0
        in_sds = kind in ("specific", "z")
        step = Z_STEP if in_sds else most / STEPS
        prompts = []
        for id, prompt in self.titles.items():
            rows = {c: row for c in self.configs for row in self.rows(c) if row["id"] == id}
            first = next(iter(rows.values()))
            runs = [self._cell(c, id, traces[c][id], series[c][id], step) for c in rows]
            prompts.append(
                {"id": id, "prompt": prompt, "set": first["set"], "category": first["category"], "runs": runs}
            )
        return {
            "kind": kind,
            "unit": UNITS[kind],
            "step": step,
            "scale": 8.0 if in_sds else most,
            "configs": list(self.configs),
            "traits": list(self.traits),
            "analysed": bool(self._analysed),
            "prompts": prompts,
        }

    def _cell(
        self, config: str, id: str, trace: Trace, series: Mapping[str, np.ndarray], step: float
    ) -> dict[str, Any]:
        """One reply: a byte per token and trait for the picture (0 at sink tokens), and what replies are sorted by."""
        known = self.onsets(config, id)
        traits = {}
        for trait, z in series.items():
            finite, turns = z[np.isfinite(z)], turning_point(z)
            bytes_ = np.clip(np.round(np.nan_to_num(z) / step), -STEPS, STEPS).astype(np.int8).tobytes()
            traits[trait] = {
                "scores": base64.b64encode(bytes_).decode("ascii"),
                "mean": round(float(finite.mean()), 4) if finite.size else None,
                "max": round(float(finite.max()), 4) if finite.size else None,
                "turn": None if turns is None else round(turns.t, 2),
                "onset": known.get(trait),
            }
        n = len(next(iter(series.values()), ()))
        return {
            "config": config,
            "n": n,
            "start": trace.reply_positions[0] - trace.n_prompt if n else 0,
            "traits": traits,
        }

    def table(self) -> dict[str, Any]:
        """All replies of all runs as the small multiples need them: JSON-ready, about 3 kB a reply.

        Returns:
            "kind" and "unit" of the scores, "step" (a byte is a multiple of it), "scale" (where colours end),
            "configs", "traits", "analysed", and "prompts": for each "id", "prompt", "set", "category" and "runs", each
            with "config", "n" (tokens of the answer), "start" (tokens of the reply before it) and, by trait, "scores"
            (base64 of int8), "mean", "max", "turn" (how clearly it turns, in standard errors) and "onset".
        """
        with self._lock:
            return self._table
