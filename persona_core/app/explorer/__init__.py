"""The client-side explorer of published runs: filters, sorting and small multiples. Plain html, css and js.

What goes into it is `SavedRuns.table()`. `script()` declares `mountExplorer(root, options)`.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def _read(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")


def template() -> str:
    """The explorer's static markup; it holds no data and nothing that Gradio's template engine would expand."""
    return _read("explorer.html")


def styles() -> str:
    """Every rule nests under `.ex`."""
    return _read("explorer.css")


def script() -> str:
    """Declares `mountExplorer` and mounts nothing."""
    return f"(() => {{\n{_read('explorer.js')}\nwindow.mountExplorer = mountExplorer;\n}})();"
