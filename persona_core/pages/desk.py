"""The app's models: each loaded once, when somebody first asks for it, and shared by all visitors."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from persona_core.errors import NotFound, PersonaError
from persona_core.pages.settings import AppSettings

if TYPE_CHECKING:
    from persona_core.monitor import PersonaMonitor

logger = logging.getLogger(__name__)

_NUMBERS = itertools.count()
_DESKS: dict[int, ModelDesk] = {}


class ModelDesk:
    """Hands out the monitor; whoever asks before it is loaded waits for it.

    A desk that is pickled is its number: a process that was forked from this one finds its own copy by it, with the
    model that was loaded before the fork.

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
        self._number = next(_NUMBERS)
        _DESKS[self._number] = self

    def __reduce__(self) -> tuple[Callable[[int], ModelDesk], tuple[int]]:
        return _DESKS.__getitem__, (self._number,)

    @classmethod
    def from_settings(cls, settings: AppSettings, contaminated: bool = False) -> ModelDesk:
        """A desk for the baseline, or for the baseline with the adapter. The loading thread imports torch."""
        adapter = settings.adapter if contaminated else None
        return cls(lambda: load_monitor(settings.model, adapter, settings.vectors, settings.blocks))

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


def load_monitor(model: str, adapter: str | None, vectors: str, blocks: str) -> PersonaMonitor:
    """A monitor with its onset detectors, where there are any beside the vectors.

    Args:
        model, adapter, vectors: Hub ids, also with "@" and a revision, or folders.
        blocks: "best" or "all".
    """
    from persona_core.analysis.detectors import Detectors
    from persona_core.hub import split_revision
    from persona_core.models import load_model
    from persona_core.monitor import PersonaMonitor
    from persona_core.vectors import PersonaVectors

    known = PersonaVectors.from_pretrained(*split_revision(vectors))
    detectors: Any = None
    try:
        detectors = Detectors.from_pretrained(*split_revision(vectors))
    except NotFound as error:
        logger.info("No onset detectors: %s", error)
    name, revision = split_revision(model)
    adapter_name, adapter_revision = split_revision(adapter) if adapter else (None, None)
    lm = load_model(name, revision=revision, adapter=adapter_name, adapter_revision=adapter_revision)
    return PersonaMonitor(lm, known, blocks, detectors)
