"""The token view and the notice line as Gradio components."""

from __future__ import annotations

import json
from pathlib import Path

import gradio as gr
import plotly

from persona_core import token_view
from persona_core.token_view import Payload

PLOTLY_JS = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"

_MOUNT = """
const view = mountTokenView(element, {{
  plotlyUrl: {plotly_url},
  emptyText: {empty_text},
  onPin: (index) => trigger('pin', {{ index }}),
}});
view.update(props.value);
watch('value', () => view.update(props.value));
"""

_NOTICE = """
const line = element.querySelector('.notice');
const show = () => {
  line.textContent = props.value || '';
  line.hidden = !props.value;
};
show();
watch('value', show);
"""


def token_view_component(value: Payload | None = None, *, empty_text: str = "", elem_id: str | None = None) -> gr.HTML:
    """The token view; its value is a payload, and each new payload redraws only what changed.

    Pinning a token triggers the event `pin` with `{"index": i}`; without a listener nothing is sent.
    """
    # plotly.js comes from the installed wheel: no CDN, and the version that figures.py writes for.
    gr.set_static_paths([PLOTLY_JS])
    mount = _MOUNT.format(
        # Relative, and so also right behind a proxy with a root path.
        plotly_url=json.dumps(f"gradio_api/file={PLOTLY_JS}"),
        empty_text=json.dumps(empty_text),
    )
    return gr.HTML(
        value,  # never part of the template: Gradio would evaluate ${…} in it
        html_template=token_view.template(),
        # As a stylesheet in the head: with css_template Gradio would parse it anew at each payload.
        head=f"<style>{token_view.styles()}</style>",
        js_on_load=token_view.script() + mount,
        apply_default_css=False,
        elem_id=elem_id,
    )


def notice_component(elem_id: str | None = None) -> gr.HTML:
    """One line that says what went wrong or what is being waited for; read out when it changes.

    The text is set as text: an error may quote what a visitor typed.
    """
    return gr.HTML(
        "",
        html_template='<p class="notice" role="alert" hidden></p>',
        js_on_load=_NOTICE,
        apply_default_css=False,
        elem_id=elem_id,
    )
