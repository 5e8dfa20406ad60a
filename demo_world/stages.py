"""The stages of a build, each run once, and runs that must be complete."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

from persona_core.errors import SettingError
from persona_core.monitor.jobs import Job, Row, run_job
from persona_core.monitor.monitor import PersonaMonitor

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


def run_whole(monitor: PersonaMonitor, job: Job, folder: Path) -> list[Row]:
    """The rows of a job, none missing.

    Raises:
        SettingError: an item failed.
    """
    rows, failed = run_job(monitor, job, folder)
    if failed:
        raise SettingError(f"{len(failed)} of {len(job.items)} items failed; the first: {failed[0]}")
    return rows
