"""A model of the app: loaded once, on first use, and shared by all visitors."""

from __future__ import annotations

import itertools
import logging
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, cast

from persona_core.app.error_messages import public_message
from persona_core.app.model_source import model_source
from persona_core.app.settings import AppSettings
from persona_core.app.zero_gpu import zero_gpu
from persona_core.errors import NotFound, PersonaError, SettingError
from persona_core.traces.provenance import short_name
from persona_core.utils.hub import split_revision

if TYPE_CHECKING:
    from persona_core.analysis.detectors import Detectors
    from persona_core.monitor.monitor import PersonaMonitor

logger = logging.getLogger(__name__)

_NUMBERS = itertools.count()
_MODELS: weakref.WeakValueDictionary[int, PooledModel] = weakref.WeakValueDictionary()
_KEPT: list[PooledModel] = []  # by `register`


class PooledModel:
    """A model whose monitor is loaded once; callers of `monitor()` wait while it loads.

    It is pickled as its number: a process forked from this one finds its own copy by that number, with the model that
    was loaded before the fork.

    Args:
        load: makes the monitor. Called in a thread (on ZeroGPU in the caller's, see zero_gpu.py), and again after a
            failure (the Hub was down, say).

    Attributes:
        note: what visitors must know about the model once it is loaded; mostly empty.

    >>> pooled = PooledModel(lambda: "a monitor")
    >>> pooled.monitor()
    'a monitor'
    """

    def __init__(self, load: Callable[[], PersonaMonitor], where: Callable[[], str] = lambda: "the model") -> None:
        self._load = load
        self._where = where
        self.note = ""
        self._lock = threading.Lock()
        self._future: Future[PersonaMonitor] | None = None
        self._monitor: PersonaMonitor | None = None
        self._number = next(_NUMBERS)
        _MODELS[self._number] = self

    def __reduce__(self) -> tuple[Callable[[int], PooledModel], tuple[int]]:
        return _pooled_model, (self._number,)

    @classmethod
    def from_settings(cls, settings: AppSettings, instead: AppSettings | None = None) -> PooledModel:
        """The baseline. The loading thread imports torch.

        Args:
            settings: of the model.
            instead: of the model to load where this one cannot be.
        """

        def load_from(those: AppSettings) -> PersonaMonitor:
            return load_monitor(those.model, None, those.vectors, those.blocks, those.static_cache)

        def load() -> PersonaMonitor:
            try:
                return load_from(settings)
            except (PersonaError, OSError) as error:  # a full disk too
                if instead is None:
                    raise
                logger.warning("Loading another model instead: %s", error)
                why = public_message(error)
            monitor = load_from(instead)
            pooled.note = f"{short_name(monitor.lm.writer_name)} wrote and read this, not the model of this page: {why}"
            return monitor

        def where() -> str:
            source = model_source(settings.model, settings.vectors)
            return f"{source.title} {source.where}"

        pooled = cls(load, where)
        return pooled

    @classmethod
    def contaminated(
        cls, baseline: PooledModel, settings: AppSettings, instead: AppSettings | None = None
    ) -> PooledModel:
        """The baseline with the adapter on top: both use one copy of the weights.

        Args:
            baseline: from `from_settings`, with the same settings.
            settings, instead: as in `from_settings`.
        """

        def load() -> PersonaMonitor:
            below = baseline.monitor()
            pooled.note = baseline.note
            adapter = instead.adapter if baseline.note and instead is not None else settings.adapter
            if adapter is None:
                raise SettingError("There is no adapter, so there is no contaminated model.")
            return beside(below, adapter)

        pooled = cls(load, baseline._where)
        return pooled

    @property
    def loading(self) -> str:
        """The notice for a visitor who waits until it is loaded."""
        try:
            where = self._where()
        except PersonaError:  # said once it has been tried
            where = "the model"
        return f"Loading {where}. This happens once after a start."

    @property
    def ready(self) -> bool:
        """Whether `monitor()` returns at once."""
        return self._monitor is not None

    def monitor(self) -> PersonaMonitor:
        """The monitor. Waits while it loads; raises the error of a failed load."""
        # No lock once it is loaded: a fork may have been made while another thread held it.
        return cast("PersonaMonitor", self._monitor) if self.ready else self._begin().result()

    def check(self) -> None:
        """Raise what keeps a run from using it, if that is known without waiting."""

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """What the function returns, or yields, where the model is: in this process.

        Args:
            function: at module level.
            args: may hold this object, which is then that of the process in which the function runs.
        """
        return function(*args)

    def _begin(self) -> Future[PersonaMonitor]:
        """Start loading, unless it has started and not failed. Returns at once; on ZeroGPU once it is loaded."""
        with self._lock:
            over = self._future is not None and self._future.done()
            if self._future is None or (over and not self.ready):
                self._future = Future()
                if zero_gpu():
                    self._run(self._future)
                else:
                    threading.Thread(target=self._run, args=(self._future,), name="load-model", daemon=True).start()
            return self._future

    def _run(self, future: Future[PersonaMonitor]) -> None:
        try:
            self._monitor = self._load()
            future.set_result(self._monitor)
        except PersonaError as error:
            logger.error("The model could not be loaded: %s", error)
            future.set_exception(error)
        except BaseException as error:  # raised in every thread that waits for the monitor
            logger.exception("The model could not be loaded")
            future.set_exception(error)


def _pooled_model(number: int) -> PooledModel:
    """The pooled model of this process with that number."""
    return _MODELS[number]


def register(number: int, monitor: PersonaMonitor) -> None:
    """Let a model that was pickled as that number, in another process, be one of this process with that monitor."""
    pooled = _MODELS[number] = PooledModel(lambda: monitor)
    pooled.monitor()
    _KEPT.append(pooled)


def load_monitor(
    model: str | None, adapter: str | None, vectors: str, blocks: str, static_cache: bool = False
) -> PersonaMonitor:
    """A monitor, with the onset detectors beside the vectors if there are any.

    Args:
        model, adapter, vectors: Hub ids, optionally with "@" and a revision, or folders; without a model the one that
            the vectors were made on.
        blocks: "best" or "all".
        static_cache: as in `load_model`.
    """
    from persona_core.models.loading import load_model
    from persona_core.monitor.monitor import PersonaMonitor
    from persona_core.utils.template_kwargs import template_kwargs_from
    from persona_core.vectors.vectors import PersonaVectors

    known = PersonaVectors.from_pretrained(*split_revision(vectors))
    detectors = detectors_of(vectors)
    source = model_source(model, vectors)
    adapter_name, adapter_revision = split_revision(adapter) if adapter else (None, None)
    lm = load_model(
        source.fetched(),
        revision=source.revision,
        adapter=adapter_name,
        adapter_revision=adapter_revision,
        static_cache=static_cache,
        template_kwargs=template_kwargs_from(),
    )
    return PersonaMonitor(lm, known, blocks, detectors)


def detectors_of(vectors: str) -> Detectors | None:
    """The onset detectors that were published with vectors; None if there are none."""
    from persona_core.analysis.detectors import Detectors

    try:
        return Detectors.from_pretrained(*split_revision(vectors))
    except NotFound as error:
        logger.info("No onset detectors: %s", error)
        return None


def beside(monitor: PersonaMonitor, adapter: str) -> PersonaMonitor:
    """A monitor of the same model with an adapter on top: both use one copy of the weights."""
    from persona_core.models.loading import add_adapter
    from persona_core.monitor.monitor import PersonaMonitor

    lm = add_adapter(monitor.lm, *split_revision(adapter))
    return PersonaMonitor(lm, monitor.vectors, monitor.blocks, monitor.detectors)
