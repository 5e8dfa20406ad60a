"""The Gradio components that the tabs share: token view, explorer of runs, report panel and notice line.

The client-side ones take their values as JSON strings. Gradio's page would clone an object and wrap each of its lists,
at every payload of a stream: half of the page's work while 500 tokens stream in, and tasks of up to 200 ms. A string is
passed on unchanged. It is never part of the template, where Gradio would evaluate `${…}` in it. (Not a subclass of
`gr.HTML` with its own `postprocess`: Gradio writes a .pyi file beside the module of each subclass.)
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
import plotly

from persona_core.report.explorer import explorer_template
from persona_core.traces.view import assets, standalone
from persona_core.traces.view.payload import Payload

PLOTLY_JS = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
# Relative addresses also work behind a proxy with a root path.
_PLOTLY_URL = json.dumps(f"gradio_api/file={PLOTLY_JS}")

_TOKEN_VIEW = """
let payload = null;
let saving = null; // takes the server's answer
const save = async () => {{
  const shown = payload;
  if (!shown.link?.saved) {{
    const answer = await new Promise((settle) => {{
      saving = settle;
      trigger('save', {{ link: shown.link }});
    }});
    if (!answer?.saved) throw new Error(answer?.error ?? 'the server did not answer.');
    if (payload !== shown) throw new Error('the view shows another reply by now.');
    shown.link = {{ ...shown.link, saved: answer.saved }};
    personaLink.changed({tab}, view.state(), shown.link);
  }}
  return personaLink.copied();
}};
const view = mountTokenView(element, {{
  shellUrl: {shell_url},
  emptyText: {empty_text},
  onState: (state) => personaLink.changed({tab}, state, payload ? payload.link : null),
  onBranch: {branch},
  onAlternatives: {alternatives},
  link: personaLink.copied,
  onSave: {save},
  saveNote: {save_note},
}});
let place = null; // a reply to open: its payload is on the way
const arrive = () => {{
  if (!place || payload?.link?.id !== place.id || (place.text ?? payload.link.text) !== payload.link.text) return;
  const {{ trait, at, stay }} = place;
  place = null;
  view.restore({{ ...(trait && {{ trait }}), ...(at !== undefined && {{ at }}) }});
  if (stay) return;
  element.scrollIntoView();
  element.querySelector('[data-part=thumb]').focus({{ preventScroll: true }});
}};
const open = (next) => {{
  place = next;
  arrive();
}};
// For a part of the same tab that opens a reply itself.
const aim = (next) => open({{ ...next, stay: true }});
// The cursor of the page's link: the page may come with another reply than the one that it is about.
let linked = null;
const reach = () => {{
  const other = ([key, value]) => key in linked.query && linked.query[key] !== String(value);
  if (!linked || !payload || Object.entries(payload.link ?? {{}}).some(other)) return;
  // What the page opens on has no link of its own; it is not the reply that a link names.
  if (['saved', 'said', 'id', 'finding'].some((key) => key in linked.query && !(key in (payload.link ?? {{}})))) return;
  view.restore(linked.cursor);
  linked = null;
}};
const restore = ({{ at, span, ...choices }}, query) => {{
  view.restore(choices);
  linked = {{ cursor: {{ at, span }}, query }};
  reach();
}};
personaLink.register({tab}, {{ ...view, element, open, aim, restore, saved: (answer) => saving?.(answer) }});
const show = () => {{
  view.update((payload = props.value ? JSON.parse(props.value) : null));
  reach();
  arrive();
}};
show();
watch('value', show);
"""

_EXPLORER = """
let linked = null; // a reply to open, and which of its texts
const explorer = mountExplorer(element, {{
  emptyText: 'Loading the published runs …',
  onPick: ({{ id, trait, picked, at }}) => {{
    const text = (linked?.id === id && linked.text) || '0';
    if (linked?.id !== id) personaLink.aim({tab}, {{ id, at, text, trait: picked ? trait : undefined }});
    linked = null;
    trigger('pick', {{ id, trait, text }});
    // The reply opens below the list: scroll to it, but keep the clicked cell in sight where there is room for both.
    const room = innerWidth > 760 ? innerHeight * 0.45 : 0;
    const under = document.querySelector({target}).getBoundingClientRect().top - room;
    if (under > 0) scrollBy({{ top: under }});
  }},
  onState: (state) => personaLink.part({tab}, 'runs', state),
}});
personaLink.register({tab}, {{
  restore: (_, query) => {{
    linked = {{ id: query.runs?.id, text: query.text }};
    explorer.restore(query.runs);
  }},
  open: (place) => {{
    linked = place;
    explorer.open(place.id, place.trait);
  }},
}});
const show = () => explorer.update(props.value ? JSON.parse(props.value) : null);
show();
watch('value', show);
"""

_FINDINGS_MARKUP = """
<section class="finding" aria-label="What this pair shows">
<p class="finding-says" data-part="says" role="status"></p>
<div class="finding-actions">
<button type="button" class="finding-ask" data-part="ask">Ask it yourself</button>
<button type="button" data-part="next">Next finding</button>
</div>
<nav class="finding-list" data-part="list" aria-label="Findings"></nav>
</section>
"""
_FINDINGS = """
const found = JSON.parse(props.value);
const panel = mountFindings(element, {{
  ...found,
  tab: {tab},
  onPick: (name) => trigger('pick', {{ name }}),
  onAsk: (name) => trigger('ask', {{ name }}),
}});
personaLink.register({tab}, {{
  restore: (_, query) => query.finding && panel.show(query.finding),
  back: (query) => panel.pick(query.finding ?? found.shown),
}});
"""

_PANEL_MARKUP = '<p class="panel-note" data-part="note" role="status"></p><div data-part="report"></div>'
_PANEL = """
const note = element.querySelector('[data-part=note]');
let wanted = null;
let report = null;
const runsAddress = ({{ id, trait, at, text }}) => {{
  const reply = {{ runs: JSON.stringify({{ id, trait }}), ...(text && {{ text }}) }};
  return '#' + new URLSearchParams({{ tab: 'runs', ...reply, ...viewAddress.write({{ trait, at }}) }});
}};
const show = () => {{
  const content = props.value ? JSON.parse(props.value) : null;
  note.textContent = content?.error || (content?.html ? '' : {empty_text});
  note.hidden = !note.textContent;
  if (!content?.html) return;
  report?.destroy();
  report = mountReport(element.querySelector('[data-part=report]'), content, {{
    plotly: () => personaPlotly({plotly_url}),
    trait: wanted,
    onTrait: (trait) => {{
      wanted = trait;
      personaLink.part({tab}, 'trait', trait);
    }},
    address: content.ids && document.getElementById('tab-runs-button') ? runsAddress : undefined,
    onOpen: (place) => personaLink.open('runs', place),
  }});
}};
personaLink.register({tab}, {{ restore: (state) => (wanted = state.trait ?? null) }});
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


_SENT_MARKUP = """
<section class="sent" aria-label="Sent" role="status" hidden>
<p class="sent-who">You</p><p class="sent-text" dir="auto"></p><p class="sent-wait">No answer yet.</p>
</section>
"""
_SENT = """
const line = element.querySelector('.sent');
const show = () => {
  line.querySelector('.sent-text').textContent = props.value || '';
  line.hidden = !props.value;
  const { top } = line.getBoundingClientRect();
  if (props.value && (top < 0 || top > innerHeight * 0.6)) line.scrollIntoView({ block: 'start' });
};
show();
watch('value', show);
"""


def as_json(value: Any) -> str:
    """A JSON-ready value as the string that the client-side components take."""
    return standalone.inline_json(value)


def token_view_component(
    value: Payload | None = None,
    *,
    tab: str,
    elem_id: str,
    empty_text: str = "",
    branch: bool = False,
    alternatives: bool = False,
    save: str | None = None,
) -> gr.HTML:
    """The token view. Its value is a payload; each new payload redraws only what changed.

    Args:
        value: the first payload.
        tab: id of the tab; while it is open, the view's choices are in the page's address.
        elem_id: of the component.
        empty_text: shown while there is no payload.
        branch: whether to offer buttons that trigger the event `branch` with `{"side": s, "at": t, "trait": name,
            "action": "cap" | "remove" | "add"}`, where t counts tokens of the reply and the trait is the one shown.
            `personaLink.branch(tab)` triggers it without an action.
        alternatives: whether to offer a button that triggers the event `alternatives` with `{"side": s, "at": t}`; the
            answer goes to `personaLink.alternatives(tab, found)`. A choice triggers `branch` with the action "choose"
            and `"token": id`.
        save: what is kept of a reply that is saved, told beside the button that triggers the event `save` with
            `{"link": fields}`, those of the payload; the answer, `{"saved": id}` or `{"error": message}`, goes to
            `personaLink.saved(tab, answer)`. Nothing else calls the server.
    """
    gr.set_static_paths([_shell()])
    return gr.HTML(
        None if value is None else as_json(value),
        html_template=assets.template(),
        js_on_load=_TOKEN_VIEW.format(
            shell_url=json.dumps(f"gradio_api/file={_shell()}"),
            empty_text=json.dumps(empty_text),
            tab=json.dumps(tab),
            branch="(where) => trigger('branch', where)" if branch else "undefined",
            alternatives="(where) => trigger('alternatives', where)" if alternatives else "undefined",
            save="undefined" if save is None else "save",
            save_note=json.dumps(save),
        ),
        apply_default_css=False,
        elem_id=elem_id,
    )


@cache
def _shell() -> Path:
    """The page that the HTML export fills in, as a file that the server hands out; one per process."""
    folder = Path(tempfile.mkdtemp(prefix="token-view-"))
    path = folder / "shell.html"
    path.write_text(standalone.shell_page(), encoding="utf-8")
    return path


def explorer_component(*, tab: str, elem_id: str, target: str) -> gr.HTML:
    """Small multiples of the published runs; the value is `SavedRuns.table()` or {"error": message}.

    Args:
        tab: id of the tab; while it is open, the filters are in the page's address.
        elem_id: of the component.
        target: selector of the view that opens a picked run. The event `pick` carries `{"id": id, "trait": name,
            "text": number}`, the place in `TEXTS` of the text to show.
    """
    return gr.HTML(
        None,
        html_template=explorer_template(),
        js_on_load=_EXPLORER.format(tab=json.dumps(tab), target=json.dumps(target)),
        apply_default_css=False,
        elem_id=elem_id,
    )


def findings_component(value: Mapping[str, Any], *, tab: str, elem_id: str) -> gr.HTML:
    """The sentence over a published pair, and the list of findings; the event `pick` carries `{"name": name}`.

    Args:
        value: "findings", each with "name", "label" and "says", and "shown", the name of the first.
        tab: id of the tab.
        elem_id: of the component.
    """
    return gr.HTML(
        as_json(value),
        html_template=_FINDINGS_MARKUP,
        js_on_load=_FINDINGS.format(tab=json.dumps(tab)),
        apply_default_css=False,
        elem_id=elem_id,
    )


def report_panel_component(*, tab: str, elem_id: str, empty_text: str) -> gr.HTML:
    """Figures and text of a report; the value is the result of `report_content` or {"error": message}.

    Args:
        tab: id of the tab.
        elem_id: of the component.
        empty_text: shown while there is no value.
    """
    # plotly.js comes from the installed wheel: no CDN, and the version that the figures are written for. Fetched with
    # the first figure that comes into view.
    gr.set_static_paths([PLOTLY_JS])
    return gr.HTML(
        None,
        html_template=_PANEL_MARKUP,
        js_on_load=_PANEL.format(empty_text=json.dumps(empty_text), plotly_url=_PLOTLY_URL, tab=json.dumps(tab)),
        apply_default_css=False,
        elem_id=elem_id,
    )


def sent_component(elem_id: str) -> gr.HTML:
    """A visitor's message, as text, until the model begins its answer; its value is the message, "" for none."""
    return gr.HTML("", html_template=_SENT_MARKUP, js_on_load=_SENT, apply_default_css=False, elem_id=elem_id)


def notice_component(elem_id: str | None = None) -> gr.HTML:
    """One line for errors and waiting messages; screen readers announce each change.

    It is set as text, because an error may quote what a visitor typed.
    """
    return gr.HTML(
        "",
        html_template='<p class="notice" role="alert" hidden></p>',
        js_on_load=_NOTICE,
        apply_default_css=False,
        elem_id=elem_id,
    )
