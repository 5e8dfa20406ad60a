"""The page's own scripts and styles (`static/`), and the page's head with those of all client-side parts."""

from __future__ import annotations

from persona_core.report import page as report
from persona_core.report.explorer import explorer_script, explorer_styles
from persona_core.traces.view import assets as token_view
from persona_core.utils.files import read_asset


def _read(name: str) -> str:
    return read_asset("persona_core.app.static", name)


def page_styles() -> str:
    """CSS of the page around the client-side parts, for `launch(css=...)`."""
    return _read("page.css")


def page_head() -> str:
    """Styles and scripts of all client-side parts, once for the whole page, for `launch(head=...)`."""
    styles = "\n".join((token_view.styles(), explorer_styles(), report.styles()))
    own = (_read(f"{name}.js") for name in ("link", "findings", "tour"))
    scripts = (token_view.script(), explorer_script(), report.script(), *own)
    return f"<style>{styles}</style>\n<script>{chr(10).join(scripts)}</script>"
