"""The Runs tab: small multiples of the published runs to filter and sort, and the chosen reply in the token view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gradio as gr

from persona_core.app.components import as_json, explorer_component, notice_component, token_view_component
from persona_core.app.error_messages import public_message
from persona_core.app.run_controls import UNQUEUED
from persona_core.errors import PersonaError
from persona_core.report.pairs import OWN_REPLIES, TEXTS, published_payload

if TYPE_CHECKING:
    from persona_core.report.saved_runs import SavedRuns

TAB = "runs"


class RunsTab:
    """Components and events, added to the tab that is being built.

    Args:
        tab: the tab; the runs are read when it is first selected.
        runs: the published results.
    """

    def __init__(self, tab: gr.Tab, runs: SavedRuns) -> None:
        self.runs = runs
        self.explorer = explorer_component(tab=TAB, elem_id="explorer", target="#runs-view")
        self.notice = notice_component(elem_id="runs-notice")
        self.view = token_view_component(
            None, tab=TAB, elem_id="runs-view", empty_text="Choose a prompt above to read its replies."
        )
        self.opened = gr.State(False)
        tab.select(self._open, self.opened, [self.explorer, self.opened], **UNQUEUED)
        self.explorer.pick(self._pick, None, [self.view, self.notice], **UNQUEUED)

    def _open(self, opened: bool) -> tuple[Any, bool]:
        """The table, once per visit."""
        if opened:
            return gr.skip(), True
        try:
            return as_json(self.runs.table()), True
        except PersonaError as error:
            return as_json({"error": public_message(error)}), False

    def _pick(self, event: gr.EventData) -> tuple[Any, str]:
        picked = event._data if isinstance(event._data, Mapping) else {}
        return self.show(picked.get("id"), picked.get("trait"), picked.get("text"))

    def show(self, id: Any, trait: Any, text: Any = "0") -> tuple[Any, str]:
        """Values of view and notice for a chosen prompt, on the trait that was selected; `text`: place in `TEXTS`."""
        try:
            if not isinstance(id, str) or id not in self.runs.titles:
                return gr.skip(), "Unknown prompt. Choose one from the list."
            shown = {str(number): one for number, one in enumerate(TEXTS)}.get(text, OWN_REPLIES)
            payload, notice = published_payload(self.runs, id, shown)
            chosen = {"trait": trait} if trait in payload["traits"] else {}
            return as_json(payload | {"view": payload["view"] | chosen}), notice
        except PersonaError as error:
            return gr.skip(), public_message(error)
