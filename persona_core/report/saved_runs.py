"""Published results, read once and looked at in many ways: by prompt, by reader, as a table of small multiples."""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from persona_core.analysis.detectors import DETECTORS_FILE, Detectors
from persona_core.errors import NotFound
from persona_core.traces.dataset import ANALYSIS, REPLIES, load_results
from persona_core.traces.trace import UNITS, Trace
from persona_core.utils.hub import fetch, split_revision
from persona_core.utils.parquet import read_table

logger = logging.getLogger(__name__)

BASELINE, CONTAMINATED = SIDES = ("baseline", "contaminated")
REPLAY = "replay"
OTHERS = ("imported", "transcripts")
"""Configs that a results folder may hold in place of the two sides."""
READS_CONTAMINATED, READS_BASELINE = "baseline reads contaminated", "contaminated reads baseline"
STEPS = 127
"""Scores of small multiples are whole multiples of a step, -127 to 127: one byte a token."""
Z_STEP = 0.1
"""For z: exact to a twentieth of a standard deviation, and cut off at 12.7, where the colours have long ended."""


class SavedRuns:
    """The results of a folder or Hub repository.

    Everything is read when it is first asked for, and then kept; several threads may ask at once.

    Args:
        source: folder or dataset repository, also with "@" and a revision.

    >>> runs = SavedRuns("artifacts/persona-monitoring-persona-tiny")
    >>> runs.configs
    ('baseline', 'contaminated')
    >>> sorted(runs.traces("pilot-01"))
    ['baseline', 'baseline reads contaminated', 'contaminated', 'contaminated reads baseline']
    """

    def __init__(self, source: str | Path) -> None:
        self.source = str(source)
        self._lock = threading.RLock()
        self._rows: dict[str, list[dict[str, Any]] | None] = {}

    def _of(self, config: str) -> list[dict[str, Any]] | None:
        """Rows of a config; None where there is none. A broken file is an error."""
        with self._lock:
            if config not in self._rows:
                name, revision = split_revision(self.source)
                try:
                    self._rows[config] = load_results(name, config, revision)
                except NotFound as error:
                    logger.info("No config %s there: %s", config, error)
                    self._rows[config] = None
            return self._rows[config]

    @property
    def configs(self) -> tuple[str, ...]:
        """The runs that are there: the two sides, or what the folder holds in their place.

        Raises:
            NotFound: none.
            CorruptFile: a file that is none of results.
        """
        found = tuple(c for c in SIDES if self._of(c)) or tuple(c for c in OTHERS if self._of(c))
        if not found:
            raise NotFound(f"{self.source!r} holds none of the configs {', '.join((*SIDES, *OTHERS))}.")
        return found

    def rows(self, config: str) -> Sequence[Mapping[str, Any]]:
        """The rows of one run; empty where there is no such run."""
        return self._of(config) or []

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
            Those that are there of: each config's own run by its name, `READS_CONTAMINATED` and `READS_BASELINE`.
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
    def _analysed(self) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
        """(config, id) -> trait -> what the analysis says; empty without an analysis."""
        name, revision = split_revision(self.source)
        wanted = ["config", "id", "trait", "answer", "onset", "onset_low", "onset_high", "says"]
        try:
            path = fetch(name, f"{ANALYSIS}/{REPLIES}", revision, repo_type="dataset")
            records = read_table(path, wanted).to_pylist()
        except NotFound:
            return {}
        found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
        for one in records:
            if one["answer"] is not None:  # there were too few neutral replies to tell
                onset = {"answer": one["answer"], "onset": one["onset"], "low": one["onset_low"]}
                onset |= {"high": one["onset_high"], "says": one["says"]}
                found.setdefault((one["config"], one["id"]), {})[one["trait"]] = onset
        return found

    def onsets(self, config: str, id: str) -> dict[str, dict[str, Any]]:
        """Trait -> onset in one reply ("answer", "onset", "low", "high", "says"); empty without an analysis."""
        with self._lock:
            return self._analysed.get((config, id), {})

    @cached_property
    def _detectors(self) -> Detectors | None:
        """Those that the onsets were found with; None without an analysis."""
        name, revision = split_revision(self.source)
        try:
            path = fetch(name, f"{ANALYSIS}/{DETECTORS_FILE}", revision, repo_type="dataset")
        except NotFound:
            return None
        return Detectors.from_pretrained(path.parent)

    def caveats(self, trace: Trace) -> tuple[str, ...]:
        """In what a reply is not like the neutral ones, so that the stated rate of alarms need not hold for it."""
        with self._lock:
            return () if self._detectors is None else self._detectors.caveats(trace)

    def onsets_of(self, id: str) -> dict[str, dict[str, dict[str, Any]]]:
        """The same of all runs of one prompt."""
        return {config: self.onsets(config, id) for config in self.configs}

    @cached_property
    def _table(self) -> dict[str, Any]:
        traces = {c: {row["id"]: Trace.from_row(row) for row in self.rows(c)} for c in self.configs}
        every = [trace for own in traces.values() for trace in own.values()]
        kind = "z" if all(trace.calibrated for trace in every) else every[0].default_kind
        series = {
            c: {
                id: {t: trace.scores(t, kind)[trace.reply_positions] for t in trace.traits} for id, trace in own.items()
            }
            for c, own in traces.items()
        }
        every_score = np.concatenate([z for own in series.values() for one in own.values() for z in one.values()])
        most = float(np.nanmax(np.abs(every_score), initial=0.0)) or 1.0
        step = Z_STEP if kind == "z" else most / STEPS
        prompts = []
        for id, prompt in self.titles.items():
            rows = {c: row for c in self.configs for row in self.rows(c) if row["id"] == id}
            first = next(iter(rows.values()))
            runs = [self._cell(c, id, series[c][id], step) for c in rows]
            prompts.append(
                {"id": id, "prompt": prompt, "set": first["set"], "category": first["category"], "runs": runs}
            )
        return {
            "kind": kind,
            "unit": UNITS[kind],
            "step": step,
            "scale": 8.0 if kind == "z" else most,
            "configs": list(self.configs),
            "traits": list(self.traits),
            "analysed": bool(self._analysed),
            "prompts": prompts,
        }

    def _cell(self, config: str, id: str, series: Mapping[str, np.ndarray], step: float) -> dict[str, Any]:
        """One reply: a byte a token and trait for the picture, and the figures that replies are sorted by."""
        known = self.onsets(config, id)
        traits = {}
        for trait, z in series.items():
            finite = z[np.isfinite(z)]
            bytes_ = np.clip(np.round(np.nan_to_num(z) / step), -STEPS, STEPS).astype(np.int8).tobytes()
            traits[trait] = {
                "scores": base64.b64encode(bytes_).decode("ascii"),
                "mean": round(float(finite.mean()), 4) if finite.size else None,
                "max": round(float(finite.max()), 4) if finite.size else None,
                "onset": known.get(trait),
            }
        return {"config": config, "n": len(next(iter(series.values()), ())), "traits": traits}

    def table(self) -> dict[str, Any]:
        """All replies of all runs as small multiples take them: JSON-ready, about 3 kB a reply.

        Returns:
            "kind" and "unit" of the scores, "step" (a byte is a multiple of it), "scale" (where colours end),
            "configs", "traits", "analysed", and "prompts": for each "id", "prompt", "set", "category" and "runs", each
            with "config", "n" (tokens of the reply) and, by trait, "scores" (base64 of int8), "mean", "max" and
            "onset".
        """
        with self._lock:
            return self._table
