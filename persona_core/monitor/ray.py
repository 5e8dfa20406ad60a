"""Monitoring shared out to Ray workers, each with a model of its own, with one process's results.

A batch has the same neighbours and seeds wherever it is done, and the driver alone touches the folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from persona_core.models.loading import load_model
from persona_core.monitor.jobs import Failure, Job, Row, described, do_batch, working
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.utils.ray import mapped
from persona_core.vectors.vectors import PersonaVectors


def run_sharded(
    loading: Mapping[str, Any],
    vectors: PersonaVectors,
    blocks: str | Sequence[int],
    job: Job,
    folder: str | Path,
    n_workers: int,
    progress: bool = True,
) -> tuple[list[Row], list[Failure]]:
    """As `runs.run_job`, with the batches mapped over Ray workers; the rows are identical.

    Args:
        loading: arguments of `load_model`; each worker loads the model itself.
        vectors, blocks: of the monitor.
        job, folder: as in `runs.run_job`.
        n_workers: workers; with GPUs in the cluster each takes one.

    Raises:
        SettingError: Ray is missing, or the folder was begun with another job, model or vectors.
    """
    monitor = PersonaMonitor(load_model(**loading), vectors, blocks)
    with working(folder, job, described(monitor)) as batches:
        todo = [batch for batch in batches if batch.open]
        failed: list[Failure] = []
        with tqdm(total=sum(len(b.open) for b in todo), desc="monitoring", unit="text", disable=not progress) as bar:
            tasks = [(batch.name, batch.open) for batch in todo]
            for row in mapped(_Reader, (dict(loading), vectors, blocks, job, tasks), len(tasks), n_workers):
                batch = todo[int(row["number"])]
                batch.keep(json.loads(row["rows"]), vectors.traits)
                failed += [(item, why) for item, why in json.loads(row["failed"])]
                bar.update(len(batch.open))
        return [row for batch in batches for row in batch.rows()], failed


class _Reader:
    """Holds a model and vectors and does batches of a job."""

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
        done, failed = do_batch(self._monitor, self._job, items, name)
        # JSON keeps a float32 exactly, NaN as well.
        return {"number": [number], "rows": [json.dumps(done)], "failed": [json.dumps(failed)]}
