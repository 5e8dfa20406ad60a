"""The client-side token view: one trace, or two side by side, as coloured text, bars, trend lines and a slider, all on
one cursor.

Plain HTML, CSS and JavaScript without a build step. It runs under Gradio's `gr.HTML` (`persona_core.app.components`)
and as a standalone page (`standalone_page`); both mount the same `script()` on the same `template()`.

Its only input is one JSON object, the payload: see `persona_core.traces.view.payload`.
"""

from __future__ import annotations

from persona_core.utils.files import compact_script, read_asset

# Concatenated in this order: a file uses only what earlier ones declare.
_SCRIPTS = (
    "text.js",
    "payload.js",
    "positions.js",
    "scores.js",
    "choices.js",
    "marks.js",
    "legend.js",
    "chips.js",
    "pane.js",
    "bars.js",
    "axis.js",
    "chart.js",
    "orders.js",
    "lanes.js",
    "timeline.js",
    "picture.js",
    "export.js",
    "menus.js",
    "playback.js",
    "cursor.js",
    "readout.js",
    "branching.js",
    "turns.js",
    "address.js",
    "view.js",
)
_STYLES = ("colours.css", "view.css", "tools.css", "text.css", "panels.css", "timeline.css")


def _read(name: str) -> str:
    return read_asset("persona_core.traces.view", name)


def template() -> str:
    """The view's static markup. It holds no data and nothing that Gradio's template engine would expand."""
    return _read("view.html")


def styles() -> str:
    """The view's CSS; every rule nests under `.tv`."""
    return "\n".join(_read(name) for name in _STYLES)


def script() -> str:
    """The view's JavaScript. It mounts nothing and declares `mountTokenView(root, options)`, and `viewAddress`: the
    view's state in an address."""
    parts = compact_script("\n".join(_read(name) for name in _SCRIPTS))
    return f"(() => {{\n{parts}\nObject.assign(window, {{ mountTokenView, viewAddress }});\n}})();"
