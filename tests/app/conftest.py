"""The app, served in this process, and visitors to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import pages
from tests.support.hub_server import Hub, Repo, serving_hub

ARTIFACTS = Path(__file__).resolve().parents[2] / "artifacts"


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[..., str]]:
    """Serves the app in this process; returns its address."""
    from persona_core.app.layout import build_app
    from persona_core.app.serve import LAUNCH
    from persona_core.app.served_set import ServedSet

    running = []

    def serve_(pooled: Any, settings: Any, contaminated: Any = None) -> str:
        models = {"baseline": pooled} | ({} if contaminated is None else {"contaminated": contaminated})
        demo = build_app(ServedSet("", settings, models))
        running.append(demo)
        _, url, _ = demo.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **LAUNCH)
        return str(url)

    yield serve_
    for demo in running:
        demo.close()


@pytest.fixture(scope="module")
def slow() -> Any:
    from tests.support.standins import SlowMonitor, steady_monitor

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
    from persona_core.app.pooled_model import PooledModel
    from persona_core.app.settings import AppSettings
    from persona_core.report.home import Example, save_home
    from tests.support.standins import HOSTILE, save_hostile_results

    folder = tmp_path_factory.mktemp("vectors")
    examples = [Example("Move", "Should I move?", "Be warm."), Example(HOSTILE[2], HOSTILE[0])]
    save_home(folder, about=f"A tiny model. {HOSTILE[1]}", examples=examples)
    results = save_hostile_results(folder)
    return serve(PooledModel(lambda: slow), AppSettings(vectors=str(folder), results=results, max_prompt_chars=3000))


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens the app as a new visitor; afterwards nothing was logged and only this machine was contacted."""
    opened = pages.Pages(chromium, ("http://127.0.0.1:",))

    def visit_(url: str, **kwargs: Any) -> Any:
        live = "#" not in url and kwargs.pop("tab", "live") == "live"  # most tests are about this tab
        page = opened.open(url, **kwargs)
        page.wait_for_selector(".tv", state="attached")
        if live and page.locator("#tab-findings-button").count():
            page.locator("#tab-live-button").click()
        page.wait_for_selector("#view .tv" if live else ".tv", state="attached")  # a link may have opened another tab
        return page

    visit_.pages = opened  # type: ignore[attr-defined]
    yield visit_
    opened.close()


# ---- models that visitors name ----------------------------------------------------------------------------------


def files_of(name: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (ARTIFACTS / name).iterdir() if path.is_file()}


CODE = {
    "config.json": json.dumps(
        {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}
    ).encode(),
    "mine.py": b"from pathlib import Path\nPath('ran').touch()\n",
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A Hub with the demo model, its adapter and vectors, and repositories that must not be loaded."""
    with serving_hub(tmp_path_factory.mktemp("hub")) as hub:
        model = files_of("persona-tiny")
        for name, files in (
            ("model", model),
            ("tuned", files_of("persona-tiny-contaminated")),
            ("vectors", files_of("persona-vectors-persona-tiny")),
            ("private", model),
            ("gated", model),
            ("code", CODE | {k: v for k, v in model.items() if k.startswith("tokenizer")}),
        ):
            repo = Repo(private=name == "private", gated=name == "gated")
            repo.commit("all", files)
            hub.repos["model", f"org/{name}"] = repo
        yield hub
