"""The page of when, how and where: the published analysis with its uncertainty and its plain-language reading."""

from __future__ import annotations

import logging
import threading
from typing import Any

import gradio as gr

from persona_core.app.json_html import sent
from persona_core.app.panel import panel_component
from persona_core.app.queue import QUIET
from persona_core.app.words import in_words
from persona_core.errors import CorruptFile, PersonaError
from persona_core.report.page import report_content
from persona_core.report.saved_findings import read_findings
from persona_core.report.saved_runs import REPLAY, SavedRuns

logger = logging.getLogger(__name__)

TAB = "analysis"


class AnalysisPage:
    """The page's component and its event, added to the tab that is being built.

    Args:
        tab: the tab; the analysis is read when it is first selected.
        runs: the published results, whose analysis it is.
    """

    def __init__(self, tab: gr.Tab, runs: SavedRuns) -> None:
        self.runs = runs
        self._lock = threading.Lock()
        self._content: dict[str, Any] | None = None
        self.panel = panel_component(tab=TAB, elem_id="analysis", empty_text="The analysis is being loaded ...")
        self.opened = gr.State(False)
        tab.select(
            self._open,
            self.opened,
            [self.panel, self.opened],
            **QUIET,
        )

    def _open(self, opened: bool) -> tuple[Any, bool]:
        """The content, once a visit."""
        if opened:
            return gr.skip(), True
        try:
            return sent(self.content()), True
        except PersonaError as error:
            return sent({"error": in_words(error)}), False

    def content(self) -> dict[str, Any]:
        """What the panel shows; made once a process.

        Raises:
            NotFound: the results were not analysed.
            CorruptFile: an analysis that does not hold what it must.
        """
        with self._lock:
            if self._content is None:
                found = read_findings(self.runs.source)
                rows = {c: self.runs.rows(c) for c in (*self.runs.configs, REPLAY) if self.runs.rows(c)}
                try:
                    self._content = report_content(found, rows)
                except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
                    logger.exception("The analysis could not be shown")
                    raise CorruptFile(
                        f"The analysis of these results is not one that this app can show ({type(error).__name__}). "
                        "Run scripts.analyse again."
                    ) from error
            return self._content
