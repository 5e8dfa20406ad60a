"""The page of published runs: small multiples to filter and sort, and the chosen reply in the token view."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gradio as gr

from persona_core.app import explorer
from persona_core.app.components import notice_component, token_view_component
from persona_core.app.json_html import json_html, sent
from persona_core.app.published import published_payload
from persona_core.app.queue import QUIET
from persona_core.app.words import in_words
from persona_core.errors import PersonaError

if TYPE_CHECKING:
    from persona_core.report.saved_runs import SavedRuns

TAB = "runs"
_MOUNT = """
const explorer = mountExplorer(element, {{
  emptyText: 'The published runs are being loaded ...',
  onPick: (id, trait) => {{
    trigger('pick', {{ id, trait }});
    // The reply opens below the list: bring it to where it is seen, with what was clicked still in sight.
    const under = document.getElementById('runs-view').getBoundingClientRect().top - innerHeight * 0.45;
    if (under > 0) scrollBy({{ top: under }});
  }},
  onState: (state) => personaLink.part({tab}, 'runs', state),
}});
personaLink.register({tab}, {{ restore: (_, asked) => explorer.restore(asked.runs) }});
const show = () => explorer.update(props.value ? JSON.parse(props.value) : null);
show();
watch('value', show);
"""


class RunsPage:
    """The page's components and events, added to the tab that is being built.

    Args:
        tab: the tab; the runs are read when it is first selected.
        runs: the published results.
    """

    def __init__(self, tab: gr.Tab, runs: SavedRuns) -> None:
        self.runs = runs
        self.explorer = json_html(
            None,
            html_template=explorer.template(),
            js_on_load=_MOUNT.format(tab=json.dumps(TAB)),
            apply_default_css=False,
            elem_id="explorer",
        )
        self.notice = notice_component(elem_id="runs-notice")
        self.view = token_view_component(
            None, tab=TAB, elem_id="runs-view", empty_text="Choose a prompt above to read its replies."
        )
        self.opened = gr.State(False)
        tab.select(self._open, self.opened, [self.explorer, self.opened], **QUIET)
        self.explorer.pick(self._pick, None, [self.view, self.notice], **QUIET)

    def _open(self, opened: bool) -> tuple[Any, bool]:
        """The table, once a visit."""
        if opened:
            return gr.skip(), True
        try:
            return sent(self.runs.table()), True
        except PersonaError as error:
            return sent({"error": in_words(error)}), False

    def _pick(self, event: gr.EventData) -> tuple[Any, str]:
        picked = event._data if isinstance(event._data, Mapping) else {}
        return self.show(picked.get("id"), picked.get("trait"))

    def show(self, id: Any, trait: Any) -> tuple[Any, str]:
        """Values of view and notice for a chosen prompt, opening on the trait that was looked at."""
        try:
            if not isinstance(id, str) or id not in self.runs.titles:
                return gr.skip(), "There is no such published prompt."
            payload, notice = published_payload(self.runs, id)
            chosen = {"trait": trait} if trait in payload["traits"] else {}
            return sent(payload | {"view": payload["view"] | chosen}), notice
        except PersonaError as error:
            return gr.skip(), in_words(error)
