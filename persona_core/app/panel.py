"""Figures and words that Python has made, as one Gradio component: what a report says, in the page's theme."""

from __future__ import annotations

import json

import gradio as gr

from persona_core.app.components import PLOTLY_JS
from persona_core.app.json_html import json_html

_TEMPLATE = '<p class="panel-note" data-part="note" role="status"></p><div data-part="report"></div>'
_MOUNT = """
const note = element.querySelector('[data-part=note]');
const show = () => {{
  const content = props.value ? JSON.parse(props.value) : null;
  note.textContent = content?.error || (content?.html ? '' : {empty});
  note.hidden = !note.textContent;
  if (!content?.html) return;
  report?.destroy();
  report = mountReport(element.querySelector('[data-part=report]'), content, {{
    plotly: personaPlotly({plotly}),
    trait: wanted,
    onTrait: (trait) => {{
      wanted = trait;
      personaLink.part({tab}, 'trait', trait);
    }},
  }});
}};
let wanted = null;
let report = null;
personaLink.register({tab}, {{ restore: (state) => (wanted = state.trait ?? null) }});
show();
watch('value', show);
"""


def panel_component(*, tab: str, elem_id: str, empty_text: str) -> gr.HTML:
    """A component whose value is what `report_content` gives, or {"error": "in words"}.

    Args:
        tab: id of the tab that it is in.
        elem_id: of the component.
        empty_text: what stands there before there is a value.
    """
    gr.set_static_paths([PLOTLY_JS])
    return json_html(
        None,
        html_template=_TEMPLATE,
        js_on_load=_MOUNT.format(
            empty=json.dumps(empty_text), plotly=json.dumps(f"gradio_api/file={PLOTLY_JS}"), tab=json.dumps(tab)
        ),
        apply_default_css=False,
        elem_id=elem_id,
    )
