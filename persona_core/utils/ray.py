"""Distribute tasks over Ray workers. With GPUs the driver holds no model: it may run where the model does not fit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from persona_core.errors import SettingError
from persona_core.utils.checks import check_integer, is_number

Result = TypeVar("Result")


@dataclass(frozen=True)
class Workers:
    """How many workers, and what each may use.

    Attributes:
        n: workers; each loads its own model.
        gpus: of each; None: one where the cluster has as many, else none. With more than one, load the model with
            `device="balanced"`, which spreads its blocks over them.

    Raises:
        SettingError: not a number of workers or GPUs.
    """

    n: int
    gpus: float | None = None

    def __post_init__(self) -> None:
        check_integer("n_workers", self.n)
        if self.gpus is not None and not (is_number(self.gpus) and self.gpus >= 0):
            raise SettingError(f"gpus_per_worker={self.gpus!r}; expected 0, a share such as 0.5, or a number of GPUs.")

    def check(self, available: float) -> float:
        """The GPUs of each worker, where the cluster has so many in all.

        Raises:
            SettingError: fewer than one worker needs: Ray would wait for them without end.
        """
        if self.gpus is None:
            return 1.0 if available >= self.n else 0.0
        if self.gpus > available:
            raise SettingError(
                f"A worker needs {self.gpus:g} GPUs, and the cluster has {available:g}. Lower --gpus-per-worker, or "
                "start Ray on a machine that has them (RAY_ADDRESS)."
            )
        return float(self.gpus)


@contextmanager
def cluster(workers: Workers) -> Iterator[Cluster]:
    """The cluster that RAY_ADDRESS names, or a local one that is shut down at the end.

    Raises:
        SettingError: Ray is missing, or the cluster has too few GPUs.
    """
    try:
        import ray
    except ImportError as error:
        raise SettingError("--ray needs Ray: pip install 'ray[data]'.") from error
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # the progress bar is enough
    try:
        yield Cluster(ray, workers.n, workers.check(ray.cluster_resources().get("GPU", 0)))
    finally:
        if started_here:
            ray.shutdown()


class Cluster:
    """Workers to map tasks over; made by `cluster`."""

    def __init__(self, ray: Any, n: int, gpus: float) -> None:
        self._ray, self._n, self._gpus = ray, n, gpus

    def ask(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """The result of one call on a worker, which ends with it and frees its GPUs.

        Without GPUs the call is made here: a process of its own costs ten seconds, and what fits a worker fits here.
        """
        if not self._gpus:
            return function(*arguments)
        remote = self._ray.remote(num_gpus=self._gpus, max_calls=1)(function)
        try:
            found: Result = self._ray.get(remote.remote(*arguments))
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
        return found

    def mapped(self, worker: type, arguments: tuple[Any, ...], n_tasks: int) -> Iterator[dict[str, Any]]:
        """Rows that workers return for the tasks 0, 1, ..., one each, in any order.

        Args:
            worker: a class, instantiated once per worker with `arguments` and called with `{"task": [number]}`.
        """
        if not n_tasks:
            return
        data = self._ray.data
        tasks = data.from_items([{"task": number} for number in range(n_tasks)], override_num_blocks=n_tasks)
        yield from tasks.map_batches(
            worker,
            fn_constructor_args=arguments,
            batch_size=1,
            compute=data.ActorPoolStrategy(size=self._n),
            num_gpus=self._gpus,
        ).iter_rows()
