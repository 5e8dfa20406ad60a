"""Elicitation and monitoring shared out to Ray workers, each with a model of its own, with one process's results.

A batch has the same neighbours and seeds wherever it is done, and the driver alone touches the folder.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save
from tqdm import tqdm

from persona_core.elicitation.elicit import Batch, Plan, Written, described, write_batch
from persona_core.elicitation.store import ReplyStore, Request, as_reply, to_record
from persona_core.errors import SettingError
from persona_core.models.loading import LanguageModel, load_model
from persona_core.monitor.jobs import Failure, Job, Row, do_batch, working
from persona_core.monitor.jobs import described as described_run
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.utils.checks import from_one
from persona_core.vectors.vectors import PersonaVectors

logger = logging.getLogger(__name__)


def elicit_sharded(
    loading: Mapping[str, Any], plan: Plan, store: ReplyStore, n_workers: int, progress: bool = True
) -> list[tuple[Request, str]]:
    """As `elicitation.elicit`, with the batches mapped over a Ray Data set.

    Args:
        loading: arguments of `load_model`; each worker loads the model itself.
        n_workers: workers; with GPUs in the cluster each takes one.

    Returns:
        Requests that could not be answered, with the reason.

    Raises:
        SettingError: Ray is missing, or the store was begun with another plan or model.
    """
    store.check_plan(described(plan, _model(tuple(sorted(loading.items())))))
    todo = []
    for batch in plan.batches():
        missing = tuple(r for r in batch.requests if not store.has(r.index))
        if missing:
            todo.append(Batch(store.free_name(batch.name), missing))
    if not todo:
        return []
    failed: list[tuple[Request, str]] = []
    with tqdm(total=sum(len(b.requests) for b in todo), desc="eliciting", unit="reply", disable=not progress) as bar:
        for row in mapped(_Worker, (dict(loading), plan, todo), len(todo), n_workers):
            batch = todo[int(row["number"])]
            written = _unpack(row, batch)
            store.add(batch.name, written.replies, written.states)
            failed += written.failed
            bar.update(len(batch.requests))
    return failed


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
    monitor = PersonaMonitor(_model(tuple(sorted(loading.items()))), vectors, blocks)
    with working(folder, job, described_run(monitor)) as batches:
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


def mapped(worker: type, arguments: tuple[Any, ...], n_tasks: int, n_workers: int) -> Iterator[dict[str, Any]]:
    """What workers return for the tasks 0, 1, ..., in any order, one row each.

    Args:
        worker: a class; made once in each worker with the arguments, and called with `{"task": [number]}`.
    """
    from_one("n_workers", n_workers)
    try:
        import ray
    except ImportError as error:
        raise SettingError("--ray needs Ray: pip install 'ray[data]'.") from error
    if not n_tasks:
        return
    begun = not ray.is_initialized()
    if begun:  # RAY_ADDRESS names a cluster; without it a local one is started
        ray.init(include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # the bar says how far it is
    try:
        gpus = 1 if ray.cluster_resources().get("GPU", 0) >= n_workers else 0
        tasks = ray.data.from_items([{"task": number} for number in range(n_tasks)], override_num_blocks=n_tasks)
        yield from tasks.map_batches(
            worker,
            fn_constructor_args=arguments,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=n_workers),
            num_gpus=gpus,
        ).iter_rows()
    finally:
        if begun:
            ray.shutdown()


class _Worker:
    """Holds a model and writes batches."""

    def __init__(self, loading: dict[str, Any], plan: Plan, todo: list[Batch]) -> None:
        self._lm, self._plan, self._todo = load_model(**loading), plan, todo

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        number = int(rows["task"][0])
        written = write_batch(self._lm, self._plan, self._todo[number])
        return {"number": [number], **{key: [value] for key, value in _pack(written).items()}}


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


def _pack(written: Written) -> dict[str, Any]:
    """A batch's results as what a table can hold: JSON, and safetensors bytes."""
    return {
        "replies": json.dumps([to_record(reply) for reply in written.replies]),
        "failed": json.dumps([(request.index, why) for request, why in written.failed]),
        "states": save({p: np.ascontiguousarray(v) for p, v in written.states.items()}),
    }


def _unpack(row: Mapping[str, Any], batch: Batch) -> Written:
    requests = {r.index: r for r in batch.requests}
    return Written(
        replies=tuple(as_reply(record) for record in json.loads(row["replies"])),
        states=load(bytes(row["states"])),
        failed=tuple((requests[index], why) for index, why in json.loads(row["failed"])),
    )


@lru_cache(maxsize=1)
def _model(loading: tuple[tuple[str, Any], ...]) -> LanguageModel:
    return load_model(**dict(loading))
