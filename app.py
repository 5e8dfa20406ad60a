"""The app: a language model's persona traits, token by token. `python app.py` serves it; Spaces run it."""

from __future__ import annotations

import json
import warnings
from typing import Any

import gradio as gr
from dotenv import load_dotenv

from persona_core.app.api import build_api, mcp_available
from persona_core.app.head import head
from persona_core.app.home import load_welcome
from persona_core.app.masthead import TITLE, masthead
from persona_core.app.model_pool import Desks, ModelDesk
from persona_core.app.queue import QUIET
from persona_core.app.settings import AppSettings
from persona_core.app.tabs.analysis import AnalysisPage
from persona_core.app.tabs.compare import ComparePage
from persona_core.app.tabs.live import LivePage
from persona_core.app.tabs.read import ReadPage
from persona_core.app.tabs.runs import RunsPage
from persona_core.app.tabs.vectors import VectorsPage
from persona_core.app.theme import CSS, theme
from persona_core.app.zero_gpu import zero_gpu
from persona_core.errors import PersonaError
from persona_core.report.saved_runs import BASELINE, CONTAMINATED, SavedRuns

# What every launch shares, the tests' included: nothing recorded, nothing fetched from elsewhere.
LAUNCH: dict[str, Any] = {
    "theme": theme(),
    "css": CSS,
    "head": head(),
    "run_history": False,
    "enable_monitoring": False,
    "ssr_mode": False,
    "pwa": False,
    "max_file_size": "1kb",  # nothing here takes a file; an upload is only somebody else's storage
    "mcp_server": mcp_available(),
    "footer_links": ["api", "gradio", "settings"],
}


def build_demo(settings: AppSettings, desk: ModelDesk, contaminated: ModelDesk | None = None) -> gr.Blocks:
    """Build the app; serves nothing and loads no model: the first view is from the published results.

    Args:
        settings: what to show and which limits to keep.
        desk: hands out the baseline.
        contaminated: hands out the contaminated model, if there is one.
    """
    desks = {BASELINE: desk} | ({} if contaminated is None else {CONTAMINATED: contaminated})
    runs = None if settings.results is None else SavedRuns(settings.results)
    welcome = load_welcome(settings.vectors, runs)
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)) as demo:
        masthead(welcome.about)
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap") as bar:
            tabs: list[gr.Tab] = []
            with gr.Tab("Live", id="live") as tab:
                tabs.append(tab)
                live = LivePage(settings, desks, Desks(settings), welcome)
            with gr.Tab("Compare", id="compare") as tab:
                tabs.append(tab)
                compare = ComparePage(settings, desks, runs, tab, welcome.first)
            with gr.Tab("Read a text", id="read") as tab:
                tabs.append(tab)
                ReadPage(settings, desks)
            if runs is not None:
                with gr.Tab("Runs", id="runs") as tab:
                    tabs.append(tab)
                    RunsPage(tab, runs)
                with gr.Tab("When / How / Where", id="analysis") as tab:
                    tabs.append(tab)
                    AnalysisPage(tab, runs)
            with gr.Tab("Vectors", id="vectors") as tab:
                tabs.append(tab)
                VectorsPage(settings, tab)
        build_api(settings, desks)
        _keep_link(demo, bar, tabs, live, compare)
    return demo.queue(max_size=settings.max_queue, default_concurrency_limit=1)


def _keep_link(demo: gr.Blocks, bar: gr.Tabs, tabs: list[gr.Tab], live: LivePage, compare: ComparePage) -> None:
    """The page's address follows what is shown, and a link brings it back (pages/link.js)."""
    for tab in tabs:
        tab.select(None, None, None, js=f"() => personaLink.opened({json.dumps(tab.id)})", **QUIET)
    asked = gr.JSON(visible="hidden", elem_id="asked")
    opened = demo.load(None, None, asked, js="() => personaLink.asked()", **QUIET)

    def restore(query: Any, live_ticket: Any, compare_ticket: Any) -> tuple[Any, ...]:
        query = query if isinstance(query, dict) else {}
        chosen = gr.Tabs(selected=query["tab"]) if query.get("tab") in [tab.id for tab in tabs] else gr.skip()
        found = live.restore(query if query.get("tab", "live") == "live" else {}, live_ticket)
        return chosen, *found, *compare.restore(query if query.get("tab") == "compare" else {}, compare_ticket)

    opened.then(
        restore, [asked, live.counter.ticket, compare.counter.ticket], [bar, *live.restored, *compare.restored], **QUIET
    )


def main() -> None:
    """Serve the app; a model is loaded when somebody first generates with it."""
    # Gradio quotes what a program sends with too few values: what people type belongs into no log.
    warnings.filterwarnings("ignore", message=r"(?s).*Received inputs")
    load_dotenv()
    try:
        settings = AppSettings.from_environment()
        contaminated = ModelDesk.from_settings(settings, contaminated=True) if settings.adapter else None
        desk = ModelDesk.from_settings(settings)
        demo = build_demo(settings, desk, contaminated)
        if zero_gpu():  # a process that is forked for the GPU has the models that its parent has loaded
            for one in filter(None, (desk, contaminated)):
                one.monitor()
    except PersonaError as error:
        raise SystemExit(str(error)) from error
    try:
        demo.launch(server_name=settings.host, server_port=settings.port, **LAUNCH)
    except OSError as error:  # the port is taken, or the host is not ours
        raise SystemExit(f"The app could not be served: {error}") from error


if __name__ == "__main__":
    main()
