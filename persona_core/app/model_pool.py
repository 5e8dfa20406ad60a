"""The app's models: each loaded once, on first use, and shared by all visitors."""

from __future__ import annotations

import itertools
import logging
import re
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_core.app.settings import AppSettings
from persona_core.app.zero_gpu import zero_gpu
from persona_core.errors import NotFound, PersonaError, SettingError

if TYPE_CHECKING:
    from persona_core.monitor.monitor import PersonaMonitor

logger = logging.getLogger(__name__)

_NUMBERS = itertools.count()
_MODELS: weakref.WeakValueDictionary[int, PooledModel] = weakref.WeakValueDictionary()


class PooledModel:
    """A model whose monitor is loaded once; callers of `monitor()` wait while it loads.

    It is pickled as its number: a process forked from this one finds its own copy by that number, with the model that
    was loaded before the fork.

    Args:
        load: makes the monitor. Called in a thread (on ZeroGPU in the caller's, see zero_gpu.py), and again after a
            failure (the Hub was down, say).

    >>> pooled = PooledModel(lambda: "a monitor")
    >>> pooled.monitor()
    'a monitor'
    """

    def __init__(self, load: Callable[[], PersonaMonitor]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._future: Future[PersonaMonitor] | None = None
        self._monitor: PersonaMonitor | None = None
        self._number = next(_NUMBERS)
        _MODELS[self._number] = self

    def __reduce__(self) -> tuple[Callable[[int], PooledModel], tuple[int]]:
        return _pooled_model, (self._number,)

    @classmethod
    def from_settings(cls, settings: AppSettings, contaminated: bool = False) -> PooledModel:
        """The baseline, or the baseline with the adapter. The loading thread imports torch."""
        adapter = settings.adapter if contaminated else None
        return cls(
            lambda: load_monitor(settings.model, adapter, settings.vectors, settings.blocks, settings.static_cache)
        )

    @property
    def ready(self) -> bool:
        """Whether `monitor()` returns at once."""
        return self._monitor is not None

    def monitor(self) -> PersonaMonitor:
        """The monitor. Waits while it loads; raises the error of a failed load."""
        # No lock once it is loaded: a fork may have been made while another thread held it.
        return self._monitor if self._monitor is not None else self._begin().result()

    def _begin(self) -> Future[PersonaMonitor]:
        """Start loading, unless it has started and not failed. Returns at once; on ZeroGPU once it is loaded."""
        with self._lock:
            failed = self._future is not None and self._future.done() and self._future.exception() is not None
            if self._future is None or failed:
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


class ModelPool:
    """The models that visitors name, at most one at a time.

    Args:
        settings: whether visitors may name one, and how large it may be.

    >>> ModelPool(AppSettings()).named("org/model", None, "org/vectors")
    Traceback (most recent call last):
    persona_core.errors.SettingError: This app serves only its own models: its owner has not set PERSONA_OPEN_MODELS=1.
    """

    def __init__(self, settings: AppSettings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._named: tuple[tuple[str, str | None, str], PooledModel] | None = None

    def named(self, model: str, adapter: str | None, vectors: str) -> PooledModel:
        """The model that a visitor has named; the previous one is released.

        Nothing is fetched before `monitor()` is called, which raises what is wrong with the repositories. They must be
        public: the app's own token gives visitors no access.

        Args:
            model, adapter, vectors: ids on the Hub, "owner/name" or "owner/name@revision", never folders.

        Raises:
            SettingError: visitors may not name models here, or this is not a Hub id.
        """
        if not self.settings.open_models:
            raise SettingError("This app serves only its own models: its owner has not set PERSONA_OPEN_MODELS=1.")
        if zero_gpu():
            raise SettingError("On ZeroGPU only models loaded at the app's start can be used.")
        wanted = _hub_id("model", model), _hub_id("adapter", adapter) if adapter else None, _hub_id("vectors", vectors)
        with self._lock:
            if self._named is None or self._named[0] != wanted:
                self._named = None  # freed before the next one is loaded, unless a run still holds it
                self._named = wanted, PooledModel(lambda: _load_public(*wanted, self.settings))
            return self._named[1]


def _load_public(model: str, adapter: str | None, vectors: str, settings: AppSettings) -> PersonaMonitor:
    names = [name for name in (model, adapter, vectors) if name]
    _check_public(names, settings.max_model_gb)
    return load_monitor(model, adapter, vectors, "best", settings.static_cache)


_HUB_ID = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}(@\w[\w./-]{0,127})?", re.ASCII)


def _hub_id(what: str, name: Any) -> str:
    """A Hub id; the name of a folder on this machine is refused."""
    if not isinstance(name, str) or not _HUB_ID.fullmatch(name) or ".." in name:
        raise SettingError(f"{what}: {str(name)[:200]!r} is not a Hub id; expected owner/name or owner/name@revision.")
    if Path(name).exists() or Path(name.partition("@")[0]).exists():
        raise SettingError(f"{what}: {name!r} cannot be used here; name a Hub repository.")
    return name


def _check_public(names: Sequence[str], max_gb: int) -> None:
    """Refuse private and gated repositories, and weights that are too large, before anything is downloaded."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    size = 0
    for name in names:
        repo, _, revision = name.partition("@")
        try:
            info = HfApi(token=False).model_info(repo, revision=revision or None, files_metadata=True)
        except (HfHubHTTPError, HTTPError, OSError) as error:
            logger.info("A named model: %s", error)
            raise NotFound(f"{name!r} does not exist, is not public, or the Hub cannot be reached.") from error
        if info.private or info.gated:
            raise NotFound(f"{name!r} is private or gated; name a public model.")
        size += sum(file.size or 0 for file in info.siblings or () if file.rfilename.endswith(".safetensors"))
    if size > max_gb * 1e9:
        raise SettingError(f"The weights take {size / 1e9:.1f} GB; this app loads at most {max_gb} GB.")


def load_monitor(
    model: str, adapter: str | None, vectors: str, blocks: str, static_cache: bool = False
) -> PersonaMonitor:
    """A monitor, with the onset detectors beside the vectors if there are any.

    Args:
        model, adapter, vectors: Hub ids, optionally with "@" and a revision, or folders.
        blocks: "best" or "all".
        static_cache: as in `load_model`.
    """
    from persona_core.analysis.detectors import Detectors
    from persona_core.models.loading import load_model
    from persona_core.monitor.monitor import PersonaMonitor
    from persona_core.utils.hub import split_revision
    from persona_core.utils.template_kwargs import template_kwargs_from
    from persona_core.vectors.vectors import PersonaVectors

    known = PersonaVectors.from_pretrained(*split_revision(vectors))
    detectors: Any = None
    try:
        detectors = Detectors.from_pretrained(*split_revision(vectors))
    except NotFound as error:
        logger.info("No onset detectors: %s", error)
    name, revision = split_revision(model)
    adapter_name, adapter_revision = split_revision(adapter) if adapter else (None, None)
    lm = load_model(
        name,
        revision=revision,
        adapter=adapter_name,
        adapter_revision=adapter_revision,
        static_cache=static_cache,
        template_kwargs=template_kwargs_from(),
    )
    return PersonaMonitor(lm, known, blocks, detectors)
