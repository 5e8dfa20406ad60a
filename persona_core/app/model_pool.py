"""The models that visitors name: which may be named, and which one is held."""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_core.app.pooled_model import load_monitor
from persona_core.app.settings import AppSettings
from persona_core.app.visitor_model import VisitorModel
from persona_core.app.zero_gpu import zero_gpu
from persona_core.errors import NotFound, SettingError

if TYPE_CHECKING:
    from persona_core.monitor.monitor import PersonaMonitor

logger = logging.getLogger(__name__)


class ModelPool:
    """The models that visitors name, at most one at a time, in a process of its own.

    Args:
        settings: whether visitors may name one, and its limits.
        load: makes the monitor in that process, from model, adapter, vectors and settings.

    >>> ModelPool(AppSettings()).named("org/model", None, "org/vectors")
    Traceback (most recent call last):
    persona_core.errors.SettingError: This app serves only its own models: its owner has not set PERSONA_OPEN_MODELS=1.
    """

    def __init__(self, settings: AppSettings, load: Callable[..., PersonaMonitor] | None = None) -> None:
        self.settings = settings
        self._load = load or _load_public
        self._lock = threading.Lock()
        self._named: tuple[tuple[str, str | None, str], VisitorModel] | None = None
        self._visitors: set[str] = set()

    def named(self, model: str, adapter: str | None, vectors: str, visitor: str = "") -> VisitorModel:
        """The model that a visitor has named; the process of the previous one is ended.

        Nothing is fetched before `monitor()` is called, which raises what is wrong with the repositories. They must be
        public: the app's own token gives visitors no access.

        Args:
            model, adapter, vectors: ids on the Hub, "owner/name" or "owner/name@revision", never folders.
            visitor: the session in which it is used, see `left`.

        Raises:
            SettingError: visitors may not name models here, or this is not a Hub id.
        """
        if not self.settings.open_models:
            raise SettingError("This app serves only its own models: its owner has not set PERSONA_OPEN_MODELS=1.")
        if zero_gpu():
            raise SettingError("On ZeroGPU only models loaded at the app's start can be used.")
        if sys.platform == "win32":
            raise SettingError("PERSONA_OPEN_MODELS needs Linux or macOS: pipes to a process of its own.")
        wanted = _hub_id("model", model), _hub_id("adapter", adapter) if adapter else None, _hub_id("vectors", vectors)
        with self._lock:
            if self._named is None or self._named[0] != wanted:
                self._release()  # before the next one is loaded
                self._named = wanted, VisitorModel(self._load, (*wanted, self.settings), repr(model), self.settings)
            self._visitors.add(visitor)
            return self._named[1]

    def left(self, visitor: str) -> None:
        """A visitor has left: the model is released if it was the last who used it."""
        with self._lock:
            self._visitors.discard(visitor)
            if not self._visitors:
                self._release()

    def close(self) -> None:
        """Release the model."""
        with self._lock:
            self._release()

    def _release(self) -> None:
        if self._named is not None:
            self._named[1].release()
        self._named = None
        self._visitors.clear()


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


def _load_public(model: str, adapter: str | None, vectors: str, settings: AppSettings) -> PersonaMonitor:
    names = [name for name in (model, adapter, vectors) if name]
    _check_public(names, settings.max_model_gb)
    return load_monitor(model, adapter, vectors, "best", settings.static_cache)
