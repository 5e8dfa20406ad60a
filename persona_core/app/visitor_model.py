"""A model that a visitor names, in a process of its own: there it may hang, fill the memory or crash.

A function that needs the model is sent there with `VisitorModel.run`, as ZeroGPU sends it to its fork (zero_gpu.py): by
name, with arguments that can be pickled, the model as its number.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from inspect import isgeneratorfunction
from typing import TYPE_CHECKING, Any, cast

from persona_core.app.limited_process import LimitedProcess, TimeLimit
from persona_core.app.pooled_model import PooledModel, register
from persona_core.app.settings import AppSettings
from persona_core.errors import ServerError

if TYPE_CHECKING:
    from persona_core.app.streaming import StopSignal
    from persona_core.monitor.monitor import PersonaMonitor
    from persona_core.traces.trace import Trace

MAX_WAITING = 8
"""Visitors who may wait for one load: each takes one of the app's 40 threads."""


class VisitorModel(PooledModel):
    """A model in a process of its own, which is ended where it exceeds its limits.

    Args:
        load: at module level; makes the monitor, there.
        args: of `load`.
        name: for messages.
        settings: the limits.
    """

    def __init__(
        self, load: Callable[..., PersonaMonitor], args: Sequence[Any], name: str, settings: AppSettings
    ) -> None:
        super().__init__(self._load_there)
        self._load_args = load, *args
        self._name, self._settings = name, settings
        self._process: LimitedProcess | None = None
        self._released = False
        self._places = threading.Semaphore(MAX_WAITING)

    @property
    def ready(self) -> bool:
        return self._monitor is not None and self._process is not None and self._process.alive

    def load(self, stop: StopSignal) -> None:
        """Wait until it is loaded, or has failed to; `check` tells. Loads again what has failed or was ended.

        Args:
            stop: ends the load, and its process.
        """
        if not self._places.acquire(blocking=False):
            return
        try:
            loading = self._begin()
            while not wait([loading], 0.1).done:
                if stop.is_set() and self._process is not None:
                    self._process.end()
        finally:
            self._places.release()

    def check(self) -> None:
        if self._future is None or not self._future.done():
            raise ServerError(f"{self._name} is being loaded for other visitors. Press Send again in a minute.")
        self.monitor()

    def monitor(self) -> Any:
        """What this process knows of the monitor: a `RemoteMonitor`.

        The first call loads it. An error of the load, or the end of the process, stays until the next `load`: a run,
        which others wait for, must not spend its time on that.
        """
        monitor = (self._future or self._begin()).result()
        if not self.ready:
            raise ServerError(f"{self._name} was ended or released. Press Send to load it again.")
        return monitor

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """What the function returns, or yields, in the model's process.

        Raises:
            PersonaError: also with the limits of time and memory, see `LimitedProcess`.
        """
        self.monitor()
        limit = TimeLimit(self._settings.max_seconds, "PERSONA_MAX_SECONDS")
        process = cast(LimitedProcess, self._process)
        return (process.stream if isgeneratorfunction(function) else process.call)(limit, function, *args)

    def release(self) -> None:
        """End the process, for good. A run or a load that is under way fails."""
        self._released = True
        if self._process is not None:
            self._process.end()

    def _load_there(self) -> Any:
        settings = self._settings
        self._process = LimitedProcess(self._name, settings.open_model_gb, "PERSONA_OPEN_MODEL_GB")
        if self._released:
            self._process.end()
        limit = TimeLimit(settings.open_model_seconds, "PERSONA_OPEN_MODEL_SECONDS")
        try:
            known = self._process.call(limit, _load_here, self._number, settings.open_model_gb, *self._load_args)
        except BaseException:
            self._process.end()
            raise
        return RemoteMonitor(self, *known)


@dataclass(frozen=True)
class WriterNames:
    """What is known of a model in another process, as of a `LanguageModel`."""

    writer_names: tuple[str, ...]

    @property
    def writer_name(self) -> str:
        return self.writer_names[0]


@dataclass(frozen=True)
class BestBlocks:
    """What is known of vectors in another process, as of `PersonaVectors`."""

    best_block: Mapping[str, int]


class RemoteMonitor:
    """A monitor in the process of a `VisitorModel`: what the app asks of it, under the names of `PersonaMonitor`."""

    def __init__(self, pooled: VisitorModel, writer_names: Sequence[str], best_block: Mapping[str, int]) -> None:
        self._pooled = pooled
        self.lm, self.vectors = WriterNames(tuple(writer_names)), BestBlocks(best_block)

    def generate(self, prompt: Any, **settings: Any) -> Trace:
        """As `PersonaMonitor.generate`."""
        return cast("Trace", self._pooled.run(_monitor_call, self._pooled, "generate", prompt, settings))

    def read(self, conversation: Any, **settings: Any) -> Trace:
        """As `PersonaMonitor.read`."""
        return cast("Trace", self._pooled.run(_monitor_call, self._pooled, "read", conversation, settings))


def _load_here(
    number: int, max_gb: float, load: Callable[..., PersonaMonitor], *args: Any
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Load the monitor in this process, under the model's number in the app's."""
    import torch

    for device in range(torch.cuda.device_count()):  # the process is not ended for the GPU's memory: torch refuses
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, max_gb * 1e9 / total), device)
    monitor = load(*args)
    register(number, monitor)
    return monitor.lm.writer_names, dict(monitor.vectors.best_block)


def _monitor_call(pooled: PooledModel, name: str, given: Any, settings: Mapping[str, Any]) -> Any:
    return getattr(pooled.monitor(), name)(given, **settings)
