"""Elicitation on Ray workers, each with its own copy of the model; the results are those of a single process.

A batch has the same neighbours and seeds wherever it runs, and only the driver writes to the folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import load, save
from tqdm import tqdm

from persona_core.elicitation.elicit import ElicitationPlan, batches_of, plan_record
from persona_core.elicitation.growing import begin
from persona_core.elicitation.store import ElicitationRequest, ReplyStore, as_reply, to_record
from persona_core.elicitation.writing import BatchResult, RequestBatch, sink_limits, write_batch
from persona_core.models.loading import load_model
from persona_core.utils.ray import Workers, cluster


def elicit_sharded(
    loading: Mapping[str, Any], plan: ElicitationPlan, store: ReplyStore, workers: Workers, progress: bool = True
) -> list[tuple[ElicitationRequest, str]]:
    """As `elicit`, with the batches mapped over Ray workers.

    Args:
        loading: arguments of `load_model`; each worker loads the model itself.
        workers: how many, and the GPUs of each.

    Returns:
        Requests that could not be answered, with the reason.

    Raises:
        SettingError: Ray is missing, too few GPUs, or the store was started with another plan or model.
    """
    failed: list[tuple[ElicitationRequest, str]] = []
    with cluster(workers) as ray:
        stages = begin(store, plan.traits, plan.requests(), ray.ask(_record, dict(loading), plan))
        todo = []
        for batch in batches_of(stages, plan.batch_size):
            missing = tuple(r for r in batch.requests if not store.has(r.index))
            if missing:
                todo.append(RequestBatch(store.free_name(batch.name), missing))
        total = sum(len(batch.requests) for batch in todo)
        with tqdm(total=total, desc="eliciting", unit="reply", disable=not progress) as bar:
            for row in ray.mapped(_Worker, (dict(loading), plan, todo), len(todo)):
                batch = todo[int(row["number"])]
                written = _unpack(row, batch)
                store.add(batch.name, written.replies, written.states)
                failed += written.failed
                bar.update(len(batch.requests))
    return failed


def _record(loading: dict[str, Any], plan: ElicitationPlan) -> dict[str, Any]:
    """What the replies depend on: the weights are on the workers only."""
    return plan_record(plan, load_model(**loading))


class _Worker:
    """Holds a model and writes batches."""

    def __init__(self, loading: dict[str, Any], plan: ElicitationPlan, todo: list[RequestBatch]) -> None:
        self._lm, self._plan, self._todo = load_model(**loading), plan, todo
        self._max_norm = sink_limits(self._lm, plan)

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        number = int(rows["task"][0])
        written = write_batch(self._lm, self._plan, self._todo[number], self._max_norm)
        return {"number": [number], **{key: [value] for key, value in _pack(written).items()}}


def _pack(written: BatchResult) -> dict[str, Any]:
    """A batch's results as values of a table: JSON, and safetensors bytes."""
    return {
        "replies": json.dumps([to_record(reply) for reply in written.replies]),
        "failed": json.dumps([(request.index, why) for request, why in written.failed]),
        "states": save({p: np.ascontiguousarray(v) for p, v in written.states.items()}),
    }


def _unpack(row: Mapping[str, Any], batch: RequestBatch) -> BatchResult:
    requests = {r.index: r for r in batch.requests}
    return BatchResult(
        replies=tuple(as_reply(record, "a worker's reply") for record in json.loads(row["replies"])),
        states=load(bytes(row["states"])),
        failed=tuple((requests[index], why) for index, why in json.loads(row["failed"])),
    )
