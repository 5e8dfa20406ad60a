"""The explorer of published runs, for the app and the static site: markup, styles and script (`static/explorer.*`)."""

from __future__ import annotations

from persona_core.utils.files import compact_script, read_asset


def explorer_template() -> str:
    """Its markup; no data, and nothing that Gradio's template engine would expand."""
    return _read("explorer.html")


def explorer_styles() -> str:
    """Its CSS; every rule nests under `.ex`."""
    return _read("explorer.css")


def explorer_script() -> str:
    """Declares `mountExplorer(root, options)`, which takes `SavedRuns.table()`, and mounts nothing."""
    parts = compact_script("\n".join(_read(name) for name in ("explorer_lanes.js", "explorer.js")))
    return f"(() => {{\n{parts}\nwindow.mountExplorer = mountExplorer;\n}})();"


def _read(name: str) -> str:
    return read_asset("persona_core.report", f"static/{name}")
