"""The client-side explorer of published runs: filters, sorting and small multiples. Plain html, css and js.

What goes into it is `SavedRuns.table()`. `script()` declares `mountExplorer(root, options)`.
"""

from __future__ import annotations

from persona_core.utils.files import read_asset


def _read(name: str) -> str:
    return read_asset("persona_core.app.static", name)


def template() -> str:
    """The explorer's static markup; it holds no data and nothing that Gradio's template engine would expand."""
    return _read("explorer.html")


def styles() -> str:
    """Every rule nests under `.ex`."""
    return _read("explorer.css")


def script() -> str:
    """Declares `mountExplorer` and mounts nothing."""
    return f"(() => {{\n{_read('explorer.js')}\nwindow.mountExplorer = mountExplorer;\n}})();"
