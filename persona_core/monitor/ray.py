"""Monitoring distributed over Ray workers, each with a copy of the model; the results are those of one process.

Batches and seeds are the same wherever a part runs, and only the driver writes to the folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from persona_core.models.loading import load_model
from persona_core.monitor.jobs import Failure, Job, Row, identity_of, open_work_folder, run_part
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.utils.ray import Workers, cluster
from persona_core.vectors.vectors import PersonaVectors


def run_sharded(
    loading: Mapping[str, Any],
    vectors: PersonaVectors,
    blocks: str | Sequence[int],
    job: Job,
    folder: str | Path,
    workers: Workers,
    progress: bool = True,
) -> tuple[list[Row], list[Failure]]:
    """As `jobs.run_job`, with the parts mapped over Ray workers; the rows are identical.

    Args:
        loading: arguments of `load_model`; each worker loads the model itself.
        vectors, blocks: of the monitor.
        job, folder: as in `jobs.run_job`.
        workers: how many, and the GPUs of each.

    Raises:
        SettingError: Ray is missing, too few GPUs, or the folder belongs to another job, model or vectors.
    """
    with (
        cluster(workers) as ray,
        open_work_folder(folder, job, ray.ask(_identity, dict(loading), vectors, blocks)) as parts,
    ):
        todo = [part for part in parts if part.pending]
        failed: list[Failure] = []
        with tqdm(total=sum(len(p.pending) for p in todo), desc="monitoring", unit="text", disable=not progress) as bar:
            tasks = [(part.name, part.pending) for part in todo]
            for row in ray.mapped(_Reader, (dict(loading), vectors, blocks, job, tasks), len(tasks)):
                part = todo[int(row["number"])]
                part.save(json.loads(row["rows"]), vectors.traits)
                failed += [(item, why) for item, why in json.loads(row["failed"])]
                bar.update(len(part.pending))
        return [row for part in parts for row in part.rows()], failed


def _identity(loading: dict[str, Any], vectors: PersonaVectors, blocks: str | Sequence[int]) -> dict[str, Any]:
    """What rows depend on: the weights are on the workers only."""
    return identity_of(PersonaMonitor(load_model(**loading), vectors, blocks))


class _Reader:
    """Holds a model and vectors and does parts of a job."""

    def __init__(
        self,
        loading: dict[str, Any],
        vectors: PersonaVectors,
        blocks: str | Sequence[int],
        job: Job,
        tasks: list[tuple[str, Sequence[Any]]],
    ) -> None:
        self._monitor = PersonaMonitor(load_model(**loading), vectors, blocks)
        self._job, self._tasks = job, tasks

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        number = int(rows["task"][0])
        name, items = self._tasks[number]
        done, failed = run_part(self._monitor, self._job, items, name)
        # JSON keeps a float32 exactly, NaN as well.
        return {"number": [number], "rows": [json.dumps(done)], "failed": [json.dumps(failed)]}
