"""What the builds of the demo and of the real model share: stages that run once, both models' runs, the analysis."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from persona_core.errors import SettingError
from persona_core.experiments.branches import branch_replies
from persona_core.models.language_model import LanguageModel
from persona_core.monitor.jobs import GenerateJob, Job, ReplayJob, Row, run_job
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.report.analysis_folder import analyse_folder
from persona_core.report.branches import points_to_branch, save_branches
from persona_core.report.results_folder import BASELINE, CONTAMINATED, NEUTRAL, REPLAY, SIDES
from persona_core.report.saved_runs import SavedRuns
from persona_core.report.tables import REPORT
from persona_core.traces.dataset import ANALYSIS, DATA, read_results, write_results
from persona_core.vectors.vectors import PersonaVectors

logger = logging.getLogger(__name__)


class Stages:
    """Runs each stage once, and again if its inputs or an earlier stage changed.

    Args:
        work: where `NAME.done` says what a stage was made from.
    """

    def __init__(self, work: Path) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self._work, self._rerun, self._fingerprint = work, False, ""

    def run(self, name: str, inputs: object, stage: Callable[[], object]) -> None:
        text = json.dumps([self._fingerprint, name, inputs], sort_keys=True)
        self._fingerprint = hashlib.sha256(text.encode()).hexdigest()  # covers all earlier stages
        stamp = self._work / f"{name}.done"
        if not self._rerun and stamp.is_file() and stamp.read_text() == self._fingerprint:
            logger.info("%s: up to date", name)
            return
        logger.info("%s ...", name)
        self._rerun = True
        stamp.unlink(missing_ok=True)
        stage()
        stamp.write_text(self._fingerprint)


def load_sides(load: Callable[..., LanguageModel], adapter: Path) -> dict[str, LanguageModel]:
    """The model of each side.

    Args:
        load: `load_model` of the baseline's weights.
        adapter: what makes it the contaminated model.
    """
    return {BASELINE: load(), CONTAMINATED: load(adapter=adapter)}


def write_runs(
    models: Mapping[str, LanguageModel],
    vectors: PersonaVectors,
    prompts: GenerateJob,
    neutral: GenerateJob,
    work: Path,
    results: Path,
) -> None:
    """Write all runs: each side's own replies, each model reading the other's, and the baseline's neutral replies.

    Args:
        models: from `load_sides`.
        vectors: to read with.
        prompts: which both models answer.
        neutral: prompts of the null.
        work: what is complete is taken from there.
        results: the results folder.

    Raises:
        SettingError: a prompt failed.
    """
    monitors = {side: PersonaMonitor(model, vectors) for side, model in models.items()}
    rows = {side: _run_whole(monitor, prompts, work / side) for side, monitor in monitors.items()}
    rows[NEUTRAL] = _run_whole(monitors[BASELINE], neutral, work / NEUTRAL)
    rows[REPLAY] = [
        row
        for reader, writer in (SIDES, SIDES[::-1])
        for row in _run_whole(monitors[reader], ReplayJob.of(rows[writer]), work / f"{reader}-reads-{writer}")
    ]
    for config, own in rows.items():
        write_results(own, results / DATA / f"{config}.parquet", vectors.traits)


def read_own_replies(results: Path) -> dict[str, list[Row]]:
    """The rows of the replies that each side wrote."""
    return {side: read_results(results / DATA / f"{side}.parquet") for side in SIDES}


def branch_runs(results: Path, vectors: Path, models: Mapping[str, LanguageModel]) -> None:
    """Branch the contaminated model's replies where they turn; needs the analysis."""
    runs, monitor = SavedRuns(results), PersonaMonitor(models[CONTAMINATED], PersonaVectors.from_pretrained(vectors))
    points = points_to_branch(runs, CONTAMINATED)
    found = branch_replies(monitor, runs.rows(CONTAMINATED), CONTAMINATED, points)
    save_branches(results, CONTAMINATED, found, monitor.vectors.traits)


def analyse_runs(results: Path, vectors: Path, models: Mapping[str, LanguageModel]) -> None:
    """All analyses, as `analyse_folder`. The page is left out: it takes a minute to make."""
    analyse_folder(results, vectors=vectors, models=models)
    (results / ANALYSIS / REPORT).unlink()


def _run_whole(monitor: PersonaMonitor, job: Job, folder: Path) -> list[Row]:
    rows, failed = run_job(monitor, job, folder)
    if failed:
        raise SettingError(f"{len(failed)} of {len(job.items)} items failed; the first: {failed[0]}")
    return rows
