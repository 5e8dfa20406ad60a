"""The When / How / Where tab: the published analysis with its uncertainty, in figures and sentences."""

from __future__ import annotations

import threading
from typing import Any

import gradio as gr

from persona_core.app.components import as_json, report_panel_component
from persona_core.app.error_messages import public_message
from persona_core.app.run_controls import UNQUEUED
from persona_core.errors import PersonaError
from persona_core.report.saved_analysis import analysis_content
from persona_core.report.saved_runs import SavedRuns

TAB = "analysis"


class AnalysisTab:
    """A report panel and its event, added to the tab that is being built.

    Args:
        tab: the tab; the analysis is read when it is first selected.
        runs: the published results.
    """

    def __init__(self, tab: gr.Tab, runs: SavedRuns) -> None:
        self.runs = runs
        self._lock = threading.Lock()
        self._content: dict[str, Any] | None = None
        self.panel = report_panel_component(tab=TAB, elem_id="analysis", empty_text="Loading the analysis …")
        self.opened = gr.State(False)
        tab.select(self._open, self.opened, [self.panel, self.opened], **UNQUEUED)

    def _open(self, opened: bool) -> tuple[Any, bool]:
        """The content, once per visit."""
        if opened:
            return gr.skip(), True
        try:
            return as_json(self.content()), True
        except PersonaError as error:
            return as_json({"error": public_message(error)}), False

    def content(self) -> dict[str, Any]:
        """The panel's content; computed once per process.

        Raises:
            NotFound: the results were not analysed.
            CorruptFile: an incomplete or unreadable analysis.
        """
        with self._lock:
            if self._content is None:
                self._content = analysis_content(self.runs)
            return self._content
