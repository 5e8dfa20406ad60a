"""Distribute tasks over Ray workers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from persona_core.errors import SettingError
from persona_core.utils.checks import check_integer


def mapped(worker: type, arguments: tuple[Any, ...], n_tasks: int, n_workers: int) -> Iterator[dict[str, Any]]:
    """Rows that workers return for the tasks 0, 1, ..., one each, in any order.

    Args:
        worker: a class, instantiated once per worker with `arguments` and called with `{"task": [number]}`.
    """
    check_integer("n_workers", n_workers)
    try:
        import ray
    except ImportError as error:
        raise SettingError("--ray needs Ray: pip install 'ray[data]'.") from error
    if not n_tasks:
        return
    started_here = not ray.is_initialized()
    if started_here:  # RAY_ADDRESS names a cluster; otherwise a local one starts
        ray.init(include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # the progress bar is enough
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
        if started_here:
            ray.shutdown()
