"""The page: its header, its tabs, the API, and the address that follows what is shown."""

from __future__ import annotations

import json
import re
from typing import Any

import gradio as gr

from persona_core.app.api import build_api
from persona_core.app.model_pool import ModelPool
from persona_core.app.run_controls import UNQUEUED
from persona_core.app.served_set import ServedSet
from persona_core.app.tabs.analysis import AnalysisTab
from persona_core.app.tabs.compare import CompareTab
from persona_core.app.tabs.live import LiveTab
from persona_core.app.tabs.read import ReadTab
from persona_core.app.tabs.runs import RunsTab
from persona_core.app.tabs.vectors import VectorsTab
from persona_core.report.home import COLOURS, COLOURS_OF_Z, TITLE, load_home
from persona_core.report.saved_runs import SavedRuns

_HEADER_MARKUP = """
<h1 data-part="title"></h1>
<p class="lede" data-part="lede"></p>
<p class="about"><span data-part="about"></span>
<button type="button" class="tour-start" data-part="tour">Tour: three steps</button></p>
"""
_HEADER = """
for (const name of ['title', 'lede', 'about'])
  element.querySelector(`[data-part=${name}]`).textContent = props.value[name];
element.querySelector('[data-part=tour]').addEventListener('click', (event) => startTour(event.currentTarget));
"""


def build_app(*sets: ServedSet) -> gr.Blocks:
    """Build the app. Serves nothing and loads no model: the first view comes from the published results.

    Args:
        sets: a page for each, the first of them at the app's own address; with several, a menu names them.
    """
    settings = sets[0].settings
    pool = ModelPool(settings)
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)) as page:
        if len(sets) > 1:
            gr.Navbar(main_page_name=sets[0].name)
        _tabs(page, sets[0], pool)
        build_api(sets)

        def left(request: gr.Request) -> None:
            pool.left(request.session_hash or "")

        if settings.open_models:
            page.unload(left)
    for one in sets[1:]:
        with page.route(one.name, _address(one.name)):
            gr.Navbar(main_page_name=sets[0].name)
            _tabs(page, one, pool)
    # Not open: a direct call of an endpoint would pass by the queue, and leave a reply begun.
    return page.queue(max_size=settings.max_queue, default_concurrency_limit=1, api_open=False)


def _address(name: str) -> str:
    """The last part of a page's address."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "model"


def _tabs(page: gr.Blocks, one: ServedSet, pool: ModelPool) -> None:
    """The page of one set, added to the page that is being built."""
    settings, models = one.settings, one.models
    runs = None if settings.results is None else SavedRuns(settings.results)
    home = load_home(settings.vectors, runs)
    first = home.first_reply
    colours = COLOURS if first is None or first.trace.has_specific else COLOURS_OF_Z
    _header(home.about, f"{colours} Move over the text, or drag the slider.")
    with gr.Tabs(elem_id="tabs", overflow_behavior="wrap") as bar:
        tabs: list[gr.Tab] = []
        with gr.Tab("Live", id="live") as tab:
            tabs.append(tab)
            live = LiveTab(settings, models, pool, home)
        with gr.Tab("Compare", id="compare") as tab:
            tabs.append(tab)
            compare = CompareTab(settings, models, runs, tab, home.first_reply)
        with gr.Tab("Read a text", id="read") as tab:
            tabs.append(tab)
            ReadTab(settings, models)
        if runs is not None:
            with gr.Tab("Runs", id="runs") as tab:
                tabs.append(tab)
                RunsTab(tab, runs)
            with gr.Tab("When / How / Where", id="analysis") as tab:
                tabs.append(tab)
                AnalysisTab(tab, runs)
        with gr.Tab("Vectors", id="vectors") as tab:
            tabs.append(tab)
            VectorsTab(settings, tab)
    _follow_address(page, bar, tabs, live, compare)


def _header(about: str, lede: str) -> gr.HTML:
    """Title, one sentence, and `about`, which comes from a file beside the vectors and is set as text."""
    value: Any = {"title": TITLE, "lede": lede, "about": about}
    return gr.HTML(value, html_template=_HEADER_MARKUP, js_on_load=_HEADER, apply_default_css=False, elem_id="masthead")


def _follow_address(page: gr.Blocks, bar: gr.Tabs, tabs: list[gr.Tab], live: LiveTab, compare: CompareTab) -> None:
    """The page's address follows what is shown, and a link restores it (static/link.js)."""
    for tab in tabs:
        tab.select(None, None, None, js=f"() => personaLink.opened({json.dumps(tab.id)})", **UNQUEUED)
    link = gr.JSON(visible="hidden", elem_id="link")
    opened = page.load(None, None, link, js="() => personaLink.query()", **UNQUEUED)

    def restore(query: Any, live_press: Any, compare_press: Any) -> tuple[Any, ...]:
        query = query if isinstance(query, dict) else {}
        chosen = gr.Tabs(selected=query["tab"]) if query.get("tab") in [tab.id for tab in tabs] else gr.skip()
        found = live.restore(query if query.get("tab", "live") == "live" else {}, live_press)
        return chosen, *found, *compare.restore(query if query.get("tab") == "compare" else {}, compare_press)

    opened.then(
        restore, [link, live.controls.press, compare.controls.press], [bar, *live.restored, *compare.restored],
        **UNQUEUED,
    )  # fmt: skip
