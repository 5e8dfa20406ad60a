"""The tab "About the instrument": what the vectors were extracted from, and the validation card of each."""

from __future__ import annotations

import html
import threading
from typing import Any

import gradio as gr

from persona_core.app.components import as_json, report_panel_component
from persona_core.app.error_messages import public_message
from persona_core.app.run_controls import UNQUEUED
from persona_core.app.settings import AppSettings
from persona_core.errors import PersonaError
from persona_core.report.vectors_content import trait_content, trait_words, vectors_summary
from persona_core.utils.hub import split_revision
from persona_core.vectors.card_sections import CONTROLS, overview
from persona_core.vectors.vectors import PersonaVectors

TAB = "vectors"


class VectorsTab:
    """Components and events, added to the tab that is being built.

    Args:
        settings: which vectors.
        tab: the tab; the vectors are read when it is first selected.
    """

    def __init__(self, settings: AppSettings, tab: gr.Tab) -> None:
        self.source = settings.vectors
        self._lock = threading.Lock()
        self._vectors: PersonaVectors | None = None
        self.summary = gr.Markdown("Loading the vectors …", elem_id="vectors-summary")
        self.trait = gr.Radio([], label="Trait", elem_id="vectors-trait", visible=False)
        self.panel = report_panel_component(tab=TAB, elem_id="vectors-figures", empty_text="")
        self.words = gr.Markdown("", elem_id="vectors-words")
        with gr.Accordion("About the controls", open=False):
            gr.Markdown(CONTROLS)
        self.opened = gr.State(False)
        shown = [self.panel, self.words]
        tab.select(self._open, self.opened, [self.summary, self.trait, *shown, self.opened], **UNQUEUED)
        self.trait.input(self._show, self.trait, shown, **UNQUEUED)

    def vectors(self) -> PersonaVectors:
        """The vectors; read once per process."""
        with self._lock:
            if self._vectors is None:
                self._vectors = PersonaVectors.from_pretrained(*split_revision(self.source))
            return self._vectors

    def _open(self, opened: bool) -> tuple[Any, ...]:
        if opened:
            return *(gr.skip() for _ in range(4)), True
        try:
            vectors = self.vectors()
            first = vectors.traits[0]
            picker = gr.Radio(list(vectors.traits), value=first, visible=True)
            return vectors_summary(vectors, self.source) + "\n\n" + overview(vectors), picker, *self._show(first), True
        except PersonaError as error:
            return html.escape(public_message(error)), gr.skip(), gr.skip(), gr.skip(), False

    def _show(self, trait: Any) -> tuple[Any, Any]:
        """Figures and text of one trait's validation."""
        vectors = self.vectors()
        if trait not in vectors.traits:
            return gr.skip(), gr.skip()
        return as_json(trait_content(vectors, trait)), trait_words(vectors, trait)
