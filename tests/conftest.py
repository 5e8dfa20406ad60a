"""Fixtures that every room shares: tiny models, vectors and monitors for them, and a browser."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import pages
from tests.support.tiny import Maker, random_vectors, tiny_lm

# Tiny models run fastest on one thread, and two test processes then share two cores in peace. For commands that tests
# start as well: on busy cores two threads that wait for each other are three times as slow as one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

# Read when `datasets` is imported. Its cache goes by names of folders, and would hand rows of one run to the next.
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="datasets-cache-")
atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


class _DoctestModules:
    """Collects doctests only from modules that have some: importing all others, Gradio's among them, takes seconds."""

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        name = collection_path.name
        if not name.endswith(".py") or name.startswith("test_") or name == "__init__.py":
            return None
        return None if ">>>" in collection_path.read_text(encoding="utf-8") else True


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_DoctestModules())  # a hook in this file would not reach persona_core/


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what drives a browser, and run the files that take longest first, so that the workers end together."""
    tenths: Counter[Path] = Counter()  # of a second, roughly
    for item in items:
        if "chromium" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")
        if "real_model" in getattr(item, "fixturenames", ()):
            item.add_marker("real")
        weight = 200 if item.get_closest_marker("slow") else 50 if item.get_closest_marker("browser") else 1
        tenths[item.path] += weight
    items.sort(key=lambda item: -tenths[item.path])


@pytest.fixture
def make_lm() -> Maker:
    return tiny_lm


@pytest.fixture
def make_vectors() -> Maker:
    return random_vectors


@pytest.fixture
def make_monitor() -> Maker:
    """`make_monitor("gpt2", shape="chatml")`: a monitor that reads all blocks of a tiny model."""
    from persona_core.monitor.monitor import PersonaMonitor

    def make(
        family: str = "llama", shape: str = "llama3", traits: tuple[str, ...] = ("candour", "malice"), **kw: Any
    ) -> Any:
        lm = tiny_lm(family, shape, **kw)
        return PersonaMonitor(lm, random_vectors(len(lm.blocks), traits), blocks="all")

    return make


@pytest.fixture(scope="session")
def real_model() -> Any:
    """SmolLM2-135M-Instruct in float32 on the CPU. It is shared: a test must not change it."""
    from persona_core.models.loading import load_model
    from scripts import weights

    path, reason = weights.find()
    if path is None:
        pytest.skip(reason)
    return load_model(path, device="cpu")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with pages.chromium() as running:
        yield running


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens local files as pages; afterwards they must have been silent and have asked for nothing else."""
    opened = pages.Pages(chromium, ("file:",))
    yield opened.open
    opened.close()
