"""The app: a language model's persona traits, token by token. `python app.py` serves it; Spaces run it."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr
from dotenv import load_dotenv

from persona_core.errors import PersonaError
from persona_core.pages.desk import ModelDesk
from persona_core.pages.live import build_live
from persona_core.pages.settings import AppSettings
from persona_core.pages.theme import CSS, theme
from persona_core.welcome import load_welcome

TITLE = "Persona traits, token by token"

LEDE = (
    "Each piece of text is coloured by how far the model's inner state leans towards a trait: orange above its neutral "
    "talk, blue below. Move over the text or drag the slider under the chart; choose another trait with the buttons."
)

# What every launch shares, the tests' included: nothing recorded, nothing fetched from elsewhere.
LAUNCH: dict[str, Any] = {
    "theme": theme(),
    "css": CSS,
    "run_history": False,
    "enable_monitoring": False,
    "ssr_mode": False,
    "pwa": False,
    "max_file_size": "1kb",  # nothing here takes a file; an upload is only somebody else's storage
    "mcp_server": False,
    "footer_links": ["gradio", "settings"],
}


def build_demo(settings: AppSettings, desk: ModelDesk, contaminated: ModelDesk | None = None) -> gr.Blocks:
    """Build the app; serves nothing and loads no model: the first view is from the published results.

    Args:
        settings: what to show and which limits to keep.
        desk: hands out the baseline.
        contaminated: hands out the contaminated model, if there is one.
    """
    welcome = load_welcome(settings.vectors, settings.results)
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)) as demo:
        gr.HTML(f'<h1>{TITLE}</h1><p class="lede">{LEDE}</p><p>{html.escape(welcome.about)}</p>', elem_id="masthead")
        build_live(settings, desk, welcome, contaminated)
    return demo.queue(max_size=settings.max_queue, default_concurrency_limit=1)


def main() -> None:
    """Serve the app; a model is loaded when somebody first generates with it."""
    load_dotenv()
    try:
        settings = AppSettings.from_environment()
        contaminated = ModelDesk.from_settings(settings, contaminated=True) if settings.adapter else None
        demo = build_demo(settings, ModelDesk.from_settings(settings), contaminated)
    except PersonaError as error:
        raise SystemExit(str(error)) from error
    try:
        demo.launch(server_name=settings.host, server_port=settings.port, **LAUNCH)
    except OSError as error:  # the port is taken, or the host is not ours
        raise SystemExit(f"The app could not be served: {error}") from error


if __name__ == "__main__":
    main()
