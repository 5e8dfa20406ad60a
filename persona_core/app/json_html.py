"""Values of client-side components as one JSON text.

As an object Gradio's page would clone a value and wrap each of its lists, at every payload of a stream: half of the
page's work while 500 tokens stream in, and tasks of up to 200 ms. As a text it is handed on as it is. It is never part
of the template, where Gradio would evaluate `${…}` in it. (Not a subclass of `gr.HTML` with a `postprocess` of its own:
for each of those Gradio writes a .pyi file beside its module.)
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from persona_core.traces.view.standalone import inline_json


def json_html(value: Any, **settings: Any) -> gr.HTML:
    """Markup and script that take their value as `JSON.parse(props.value)`; what events give it is `sent(value)`.

    Args:
        value: what it opens on, JSON-ready; None for nothing.
        settings: of `gr.HTML`.
    """
    return gr.HTML(None if value is None else sent(value), **settings)


def sent(value: Any) -> str:
    """A JSON-ready value as the text that the components take."""
    return inline_json(value)
