"""The head of the page: what this is, what the model shown is and is not, and a tour of three steps."""

from __future__ import annotations

from typing import Any

import gradio as gr

from persona_core.utils.files import read_asset

TITLE = "Persona traits, token by token"
LEDE = (
    "Each piece of text is coloured by how far the model's inner state leans towards a trait: orange above its neutral "
    "talk, blue below. Move over the text, or drag the slider."
)

_TEMPLATE = """
<h1 data-part="title"></h1>
<p class="lede" data-part="lede"></p>
<p class="about"><span data-part="about"></span>
<button type="button" class="tour-start" data-part="tour">Tour: three steps</button></p>
"""

_MOUNT = """
for (const name of ['title', 'lede', 'about'])
  element.querySelector(`[data-part=${name}]`).textContent = props.value[name];
element.querySelector('[data-part=tour]').addEventListener('click', (event) => startTour(event.currentTarget));
"""


def masthead(about: str) -> gr.HTML:
    """The page's head.

    Args:
        about: what the model is and is not; comes from a file beside the vectors and is set as text.
    """
    value: Any = {"title": TITLE, "lede": LEDE, "about": about}
    return gr.HTML(value, html_template=_TEMPLATE, js_on_load=_MOUNT, apply_default_css=False, elem_id="masthead")


def tour_script() -> str:
    """Declares `startTour(button)`; belongs into the page's head."""
    return read_asset("persona_core.app.static", "tour.js")
