"""The token view and the notice line as Gradio components."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path

import gradio as gr
import plotly

from persona_core.app.json_html import json_html
from persona_core.traces.view import assets, standalone
from persona_core.traces.view.payload import Payload

PLOTLY_JS = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"

_MOUNT = """
let payload = null;
const view = mountTokenView(element, {{
  plotlyUrl: {plotly_url},
  shellUrl: {shell_url},
  emptyText: {empty_text},
  onState: (state) => personaLink.changed({tab}, state, payload ? payload.link : null),
  onBranch: {branch},
  link: personaLink.copied,
}});
personaLink.register({tab}, view);
const show = () => view.update((payload = props.value ? JSON.parse(props.value) : null));
show();
watch('value', show);
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


def token_view_component(
    value: Payload | None = None, *, tab: str, elem_id: str, empty_text: str = "", branch: bool = False
) -> gr.HTML:
    """The token view; its value is a payload, and each new payload redraws only what changed.

    Its scripts and styles are in the page's head (`persona_core.app.head`).

    Args:
        value: what it opens on.
        tab: id of the tab that it is in; its choices are in the page's address while that tab is open.
        elem_id: of the component.
        empty_text: what stands there before there is anything.
        branch: whether there is a button that triggers the event `branch` with `{"side": s, "at": t, "trait": name}`,
            where t counts tokens of the reply and the trait is the one shown. Nothing else asks the server.
    """
    # plotly.js comes from the installed wheel: no CDN, and the version that figures.py writes for.
    gr.set_static_paths([PLOTLY_JS, _shell()])
    return json_html(
        value,
        html_template=assets.template(),
        js_on_load=_MOUNT.format(
            # Relative, and so also right behind a proxy with a root path.
            plotly_url=json.dumps(f"gradio_api/file={PLOTLY_JS}"),
            shell_url=json.dumps(f"gradio_api/file={_shell()}"),
            empty_text=json.dumps(empty_text),
            tab=json.dumps(tab),
            branch="(where) => trigger('branch', where)" if branch else "undefined",
        ),
        apply_default_css=False,
        elem_id=elem_id,
    )


@cache
def _shell() -> Path:
    """The page that an export as HTML is filled into, as a file that the server hands out; one a process."""
    folder = Path(tempfile.mkdtemp(prefix="token-view-"))
    path = folder / "shell.html"
    path.write_text(standalone.shell_page(), encoding="utf-8")
    return path


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
