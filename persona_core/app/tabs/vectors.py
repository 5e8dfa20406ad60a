"""The Vectors tab: what the vectors were extracted from, and the validation card of each."""

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
from persona_core.report.markup import figure_json, plot_placeholder
from persona_core.utils.hub import public_name, split_revision
from persona_core.utils.markdown import escape
from persona_core.vectors.card_sections import CONTROLS, overview, trait_section
from persona_core.vectors.figures import cosine_figure, validation_figure
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
            return _summary(vectors, self.source) + "\n\n" + overview(vectors), picker, *self._show(first), True
        except PersonaError as error:
            return html.escape(public_message(error)), gr.skip(), gr.skip(), gr.skip(), False

    def _show(self, trait: Any) -> tuple[Any, Any]:
        """Figures and text of one trait's validation."""
        vectors = self.vectors()
        if trait not in vectors.traits:
            return gr.skip(), gr.skip()
        validated = "auroc" in vectors.config.get("validation", {}).get(trait, {})
        figures = {"validation": validation_figure(vectors, trait)} if validated else {}
        if len(vectors.traits) > 1 and vectors.best_block:
            figures["cosine"] = cosine_figure(vectors)
        says = {
            "validation": f"{trait}: AUROC by block, rivals, correlation with the judge's score, and steering; the "
            "table below has the same numbers",
            "cosine": "Cosines between the traits' vectors",
        }
        for one in figures.values():
            one.update_layout(width=None)  # as wide as the page
        places = "".join(
            f'<section class="scroll" tabindex="0" role="region" aria-label="{html.escape(name)}"><div class="wide">'
            f"{plot_placeholder(name, one, says[name])}</div></section>"
            for name, one in figures.items()
        )
        content = {"html": places or "<p></p>", "figures": {name: figure_json(one) for name, one in figures.items()}}
        words = trait_section(vectors, trait) or f"The vector of {html.escape(trait)} was not validated."
        return as_json(content), words


def _summary(vectors: PersonaVectors, source: str) -> str:
    """One line about the vectors, as Markdown."""
    base = vectors.config.get("base_model", {})
    neutral = "a specific score of 0" if vectors.has_specific else "z = 0"
    name = escape(base.get("name", "an unnamed model"))
    return (
        f"**{html.escape(public_name(split_revision(source)[0]))}**: {len(vectors.traits)} traits, read in the "
        f"residual stream of `{name}` ({vectors.n_blocks} blocks, numbered from 0, width {vectors.d_model}). A larger "
        f"projection means more of the trait; zero is not neutral, {neutral} is."
    )
