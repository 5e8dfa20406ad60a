"""The page: its header, its tabs, the API, and the address that follows what is shown."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

import gradio as gr

from persona_core.app.api import build_api
from persona_core.app.model_pool import ModelPool
from persona_core.app.run_controls import UNQUEUED
from persona_core.app.saved_replies import SavedReplies
from persona_core.app.served_set import ServedSet
from persona_core.app.tabs.analysis import AnalysisTab
from persona_core.app.tabs.compare import CompareTab
from persona_core.app.tabs.findings import FindingsTab
from persona_core.app.tabs.live import LiveTab
from persona_core.app.tabs.read import ReadTab
from persona_core.app.tabs.runs import RunsTab
from persona_core.app.tabs.vectors import VectorsTab
from persona_core.errors import PersonaError, SettingError
from persona_core.report.gallery import Finding, gallery
from persona_core.report.home import TITLE, load_home
from persona_core.report.saved_runs import SavedRuns

logger = logging.getLogger(__name__)

_HEADER_MARKUP = """
<div class="masthead"><a class="skip" href="#" data-part="skip">Skip to the text</a>
<h1 data-part="title"></h1><p class="about" data-part="about"></p>
<button type="button" class="tour-start" data-part="tour">Tour</button></div>
"""
_HEADER = """
for (const name of ['title', 'about'])
  element.querySelector(`[data-part=${name}]`).textContent = props.value[name];
element.querySelector('[data-part=about]').title = props.value.about; // what does not fit is cut
element.querySelector('[data-part=skip]').addEventListener('click', (event) => {
  event.preventDefault();
  [...document.querySelectorAll('.tv-text')].find((text) => text.offsetParent)?.focus();
});
element.querySelector('[data-part=tour]').addEventListener('click', (event) => startTour(event.currentTarget));
"""


def build_app(*sets: ServedSet) -> gr.Blocks:
    """Build the app. Serves nothing and loads no model: the first view comes from the published results.

    Args:
        sets: a page for each, the first of them at the app's own address; with several, a menu names them.

    Raises:
        SettingError: a name whose address the server uses itself, or a folder for replies that cannot be written.
    """
    settings = sets[0].settings
    pool = ModelPool(settings)
    saved = None if settings.saved is None else SavedReplies(settings.saved)
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)) as page:
        if len(sets) > 1:
            gr.Navbar(main_page_name=sets[0].name)
        _tabs(page, sets[0], pool, saved)
        build_api(sets)

        def left(request: gr.Request) -> None:
            pool.left(request.session_hash or "")

        if settings.open_models:
            page.unload(left)
    for one in sets[1:]:
        try:
            route = page.route(one.name, _address(one.name))
        except ValueError as error:  # such as "config" and "login"
            raise SettingError(
                f"The set {one.name!r} cannot have the address /{_address(one.name)}, which the server uses itself. "
                "Give the set another name."
            ) from error
        with route:
            gr.Navbar(main_page_name=sets[0].name)
            _tabs(page, one, pool, saved)
    # Not open: a direct call of an endpoint would pass by the queue, and leave a reply begun.
    return page.queue(max_size=settings.max_queue, default_concurrency_limit=1, api_open=False)


def _address(name: str) -> str:
    """The last part of a page's address."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "model"


def _tabs(page: gr.Blocks, one: ServedSet, pool: ModelPool, saved: SavedReplies | None) -> None:
    """The page of one set, added to the page that is being built."""
    settings, models = one.settings, one.models
    runs = None if settings.results is None else SavedRuns(settings.results)
    home = load_home(settings.vectors, runs)
    _header(home.about)
    with gr.Tabs(elem_id="tabs", overflow_behavior="wrap") as bar:
        tabs: list[gr.Tab] = []
        findings = None
        if runs is not None and (found := _gallery(runs)):
            with gr.Tab("Findings", id="findings", elem_id="tab-findings") as tab:
                tabs.append(tab)
                findings = FindingsTab(runs, found)
        with gr.Tab("Live", id="live", elem_id="tab-live") as tab:
            tabs.append(tab)
            live = LiveTab(settings, models, pool, home, runs, saved)
        with gr.Tab("Compare", id="compare", elem_id="tab-compare") as tab:
            tabs.append(tab)
            compare = CompareTab(settings, models, runs, tab, home.first_reply)
        with gr.Tab("Read a text", id="read", elem_id="tab-read") as tab:
            tabs.append(tab)
            ReadTab(settings, models)
        if runs is not None:
            with gr.Tab("Runs", id="runs", elem_id="tab-runs") as tab:
                tabs.append(tab)
                RunsTab(tab, runs)
            with gr.Tab("When / How / Where", id="analysis", elem_id="tab-analysis") as tab:
                tabs.append(tab)
                AnalysisTab(tab, runs)
        with gr.Tab("About the instrument", id="vectors", elem_id="tab-vectors") as tab:
            tabs.append(tab)
            VectorsTab(settings, tab)
    if findings is not None:
        findings.connect(live, bar)
    _follow_address(page, bar, tabs, findings, live, compare)


def _gallery(runs: SavedRuns) -> tuple[Finding, ...]:
    """The findings that the page opens on; none where the runs cannot be read."""
    try:
        return gallery(runs)
    except PersonaError as error:  # shown where the runs are needed
        logger.warning("No findings: %s", error)
        return ()


def _header(about: str) -> gr.HTML:
    """Title, and what the model is, which comes from a file beside the vectors and is set as text."""
    value: Any = {"title": TITLE, "about": about}
    return gr.HTML(value, html_template=_HEADER_MARKUP, js_on_load=_HEADER, apply_default_css=False, elem_id="masthead")


def _follow_address(
    page: gr.Blocks, bar: gr.Tabs, tabs: list[gr.Tab], findings: FindingsTab | None, live: LiveTab, compare: CompareTab
) -> None:
    """The page's address follows what is shown, and a link restores it (static/link.js)."""
    for tab in tabs:
        tab.select(None, None, None, js=f"() => personaLink.opened({json.dumps(tab.id)})", **UNQUEUED)
    link = gr.JSON(visible="hidden", elem_id="link")
    opened = page.load(None, None, link, js="() => personaLink.query()", **UNQUEUED)

    def restore(query: Any, live_press: Any, compare_press: Any) -> tuple[Any, ...]:
        query = query if isinstance(query, dict) else {}
        chosen = gr.Tabs(selected=query["tab"]) if query.get("tab") in [tab.id for tab in tabs] else gr.skip()

        def own(name: str) -> dict[str, Any]:
            return query if query.get("tab") == name else {}

        first = () if findings is None else findings.restore(own("findings"))
        return (
            chosen, *first, *live.link.restore(own("live"), live_press), *compare.restore(own("compare"), compare_press)
        )  # fmt: skip

    restored = [*([] if findings is None else findings.restored), *live.link.restored, *compare.restored]
    opened.then(restore, [link, live.controls.press, compare.controls.press], [bar, *restored], **UNQUEUED)
