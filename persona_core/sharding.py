"""Elicitation shared out to Ray workers, each with a model of its own; the results are those of one process.

A batch has the same neighbours and seeds wherever it is written, and the driver alone touches the store.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from safetensors.numpy import load, save
from tqdm import tqdm

from persona_core.elicitation import Batch, Plan, Written, described, write_batch
from persona_core.errors import SettingError
from persona_core.models import LanguageModel, load_model
from persona_core.replies import ReplyStore, Request, as_reply, to_record

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
    try:
        import ray
    except ImportError as error:
        raise SettingError("--ray needs Ray: pip install 'persona-core[ray]'.") from error
    if n_workers < 1:
        raise SettingError(f"n_workers={n_workers!r}; expected a whole number from 1.")
    store.check_plan(described(plan, _model(tuple(sorted(loading.items())))))
    todo = []
    for batch in plan.batches():
        missing = tuple(r for r in batch.requests if not store.has(r.index))
        if missing:
            todo.append(Batch(store.free_name(batch.name), missing))
    if not todo:
        return []
    begun = not ray.is_initialized()
    if begun:  # RAY_ADDRESS names a cluster; without it a local one is started
        ray.init(include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # the bar says how far it is
    try:
        return _map(ray, dict(loading), plan, store, todo, n_workers, progress)
    finally:
        if begun:
            ray.shutdown()


def _map(
    ray: Any, loading: dict[str, Any], plan: Plan, store: ReplyStore, todo: list[Batch], n_workers: int, progress: bool
) -> list[tuple[Request, str]]:
    failed: list[tuple[Request, str]] = []
    gpus = 1 if ray.cluster_resources().get("GPU", 0) >= n_workers else 0
    rows = ray.data.from_items([{"batch": number} for number in range(len(todo))], override_num_blocks=len(todo))
    results = rows.map_batches(
        _Worker,
        fn_constructor_args=(loading, plan, todo),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=n_workers),
        num_gpus=gpus,
    )
    total = sum(len(b.requests) for b in todo)
    with tqdm(total=total, desc="eliciting", unit="reply", disable=not progress) as bar:
        for row in results.iter_rows():
            batch, written = todo[int(row["number"])], _unpack(row, todo[int(row["number"])])
            store.add(batch.name, written.replies, written.states)
            failed += written.failed
            bar.update(len(batch.requests))
    return failed


class _Worker:
    """Holds a model and writes batches."""

    def __init__(self, loading: dict[str, Any], plan: Plan, todo: list[Batch]) -> None:
        self._lm, self._plan, self._todo = load_model(**loading), plan, todo

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        number = int(rows["batch"][0])
        written = write_batch(self._lm, self._plan, self._todo[number])
        return {"number": [number], **{key: [value] for key, value in _pack(written).items()}}


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
