"""What the tests share: tiny models with real tokenizers, and vectors for them."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import pages, view_page
from tests.chat_templates import tokenizer_for
from tests.families import D_MODEL, build

Maker = Callable[..., Any]

# Read when `datasets` is imported. Its cache goes by names of folders, and would hand rows of one run to the next.
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="datasets-cache-")
atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models run fastest on one thread, and two test processes then share two cores in peace."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def _model(family: str, seed: int) -> Any:
    return build(family, seed)


def tiny_lm(family: str = "llama", shape: str = "llama3", seed: int = 0, **tokenizer: Any) -> Any:
    """A `LanguageModel` of random weights, which are built once and shared: a test must not change them."""
    from persona_core.models.loading import wrap_model

    return wrap_model(_model(family, seed), tokenizer_for(shape, **tokenizer), name=f"tiny-{family}")


def random_vectors(n_blocks: int, traits: tuple[str, ...] = ("candour", "malice"), seed: int = 5) -> Any:
    """Uncalibrated vectors of random directions and very different lengths."""
    from persona_core.vectors.vectors import PersonaVectors

    generator = torch.Generator().manual_seed(seed)
    tensors = {t: (10.0**i) * torch.randn(n_blocks, D_MODEL, generator=generator) for i, t in enumerate(traits)}
    return PersonaVectors.from_tensors(tensors, best_block={t: i % n_blocks for i, t in enumerate(traits)})


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


def hooks_on(model: torch.nn.Module) -> int:
    """How many forward hooks of any kind hang on `model` and its parts."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


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


@pytest.fixture
def show(open_page: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Shows a payload in a bare page with nothing but a token view."""
    return view_page.shower(open_page, tmp_path)


# ---- the app ----


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[..., str]]:
    """Serves the app in this process; returns its address."""
    import app

    running = []

    def serve_(desk: Any, settings: Any, contaminated: Any = None) -> str:
        demo = app.build_demo(settings, desk, contaminated)
        running.append(demo)
        _, url, _ = demo.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **app.LAUNCH)
        return str(url)

    yield serve_
    for demo in running:
        demo.close()


@pytest.fixture(scope="module")
def slow() -> Any:
    from tests.standins import SlowMonitor, steady_monitor

    return SlowMonitor(steady_monitor(), 0.0)


@pytest.fixture
def slowly(slow: Any) -> Iterator[Any]:
    """The app's monitor, writing so slowly that even a starved browser is there to see it."""
    slow.pause = 0.4
    yield slow
    slow.pause = 0.0


@pytest.fixture(scope="module")
def address(serve: Callable[..., str], slow: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An app with a saved trace and examples, on the monitor that can be slowed."""
    from persona_core.app.home import Example, save_welcome
    from persona_core.app.model_pool import ModelDesk
    from persona_core.app.settings import AppSettings
    from tests.standins import HOSTILE, save_hostile_results

    folder = tmp_path_factory.mktemp("vectors")
    examples = [Example("Move", "Should I move?", "Be warm."), Example(HOSTILE[2], HOSTILE[0])]
    save_welcome(folder, about=f"A tiny model. {HOSTILE[1]}", examples=examples)
    results = save_hostile_results(folder)
    return serve(ModelDesk(lambda: slow), AppSettings(vectors=str(folder), results=results, max_prompt_chars=3000))


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens the app as a new visitor; afterwards pages must have been silent and have asked this machine only."""
    opened = pages.Pages(chromium, ("http://127.0.0.1:",))

    def visit_(url: str, **kwargs: Any) -> Any:
        page = opened.open(url, **kwargs)
        page.wait_for_selector("#view .tv", state="attached")  # a link may have opened another tab
        return page

    visit_.pages = opened  # type: ignore[attr-defined]
    yield visit_
    opened.close()
