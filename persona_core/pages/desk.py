"""The app's models: each loaded once, when somebody first asks for it, and shared by all visitors."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from persona_core.errors import PersonaError
from persona_core.pages.settings import AppSettings

if TYPE_CHECKING:
    from persona_core.monitor import PersonaMonitor

logger = logging.getLogger(__name__)


class ModelDesk:
    """Hands out the monitor; whoever asks before it is loaded waits for it.

    Args:
        load: makes the monitor. Called in a thread, and again after a failure (the Hub was down, say).

    >>> desk = ModelDesk(lambda: "a monitor")
    >>> desk.monitor()
    'a monitor'
    """

    def __init__(self, load: Callable[[], PersonaMonitor]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._future: Future[PersonaMonitor] | None = None

    @classmethod
    def from_settings(cls, settings: AppSettings, contaminated: bool = False) -> ModelDesk:
        """A desk for the baseline, or for the baseline with the adapter. The loading thread imports torch."""

        def load() -> PersonaMonitor:
            from persona_core.hub import split_revision
            from persona_core.models import load_model
            from persona_core.monitor import PersonaMonitor
            from persona_core.vectors import PersonaVectors

            vectors = PersonaVectors.from_pretrained(*split_revision(settings.vectors))
            name, revision = split_revision(settings.model)
            adapter, adapter_revision = split_revision(settings.adapter or "") if contaminated else (None, None)
            lm = load_model(name, revision=revision, adapter=adapter, adapter_revision=adapter_revision)
            return PersonaMonitor(lm, vectors)

        return cls(load)

    @property
    def ready(self) -> bool:
        """Whether `monitor()` returns at once."""
        return self._future is not None and self._future.done() and self._future.exception() is None

    def start_loading(self) -> None:
        """Begin to load, if that has not begun or has failed. Returns at once."""
        self._begin()

    def monitor(self) -> PersonaMonitor:
        """The monitor. Waits while it loads; raises what the loading raised."""
        return self._begin().result()

    def _begin(self) -> Future[PersonaMonitor]:
        with self._lock:
            failed = self._future is not None and self._future.done() and self._future.exception() is not None
            if self._future is None or failed:
                self._future = Future()
                threading.Thread(target=self._run, args=(self._future,), name="load-model", daemon=True).start()
            return self._future

    def _run(self, future: Future[PersonaMonitor]) -> None:
        try:
            future.set_result(self._load())
        except PersonaError as error:
            logger.error("The model could not be loaded: %s", error)
            future.set_exception(error)
        except BaseException as error:  # handed to whoever waits for the monitor
            logger.exception("The model could not be loaded")
            future.set_exception(error)
