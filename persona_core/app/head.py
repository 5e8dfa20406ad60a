"""What the page's head holds: the styles and scripts of all client-side parts, once for the whole page."""

from __future__ import annotations

from persona_core.app import explorer
from persona_core.app.masthead import tour_script
from persona_core.report import page as report
from persona_core.traces.view import assets as token_view
from persona_core.utils.files import read_asset


def head() -> str:
    """For `launch(head=...)`."""
    link = read_asset("persona_core.app.static", "link.js")
    styles = "\n".join((token_view.styles(), explorer.styles(), report.styles()))
    scripts = "\n".join((token_view.script(), explorer.script(), report.script(), link, tour_script()))
    return f"<style>{styles}</style>\n<script>{scripts}</script>"
