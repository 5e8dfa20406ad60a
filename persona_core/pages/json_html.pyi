"""A `gr.HTML` whose value reaches the browser as one JSON text."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from gradio.events import Dependency

class JsonHTML(gr.HTML):
    """Client-side markup and script, with a JSON value: `js_on_load` takes it as `JSON.parse(props.value)`.

    As an object Gradio's page would clone the value and wrap each of its lists, at every payload of a stream: half of
    the page's work while 500 tokens stream in, and tasks of up to 200 ms. As a text it is handed on as it is. It is
    never part of the template, where Gradio would evaluate `${…}` in it.
    """

    def postprocess(self, value: Any) -> str | None:
        return None if value is None else json.dumps(value, allow_nan=False, separators=(",", ":"))

    def get_block_name(self) -> str:
        return "html"
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component