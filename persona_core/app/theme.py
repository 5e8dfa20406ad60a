"""The app's look: Gradio's base theme, the machine's own fonts (nothing is fetched) and a quiet palette."""

from __future__ import annotations

import gradio as gr

# Each font is a name for the browser to look up, never a file to load.
_SANS = [
    gr.themes.Font(name)
    for name in ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "DejaVu Sans", "sans-serif")
]
_MONO = [gr.themes.Font(name) for name in ("ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")]


def theme() -> gr.themes.Base:
    """Slate neutrals, one dark accent; colour is left to the scores."""
    return gr.themes.Base(
        primary_hue="slate",
        secondary_hue="slate",
        neutral_hue="slate",
        radius_size="md",
        font=_SANS,
        font_mono=_MONO,
    ).set(
        body_background_fill="#f1f4f8",
        body_background_fill_dark="#0c1016",
        block_background_fill="#ffffff",
        block_background_fill_dark="#151a22",
        input_background_fill="#fbfcfd",
        input_background_fill_dark="#10141b",
        input_border_width="1px",
        input_border_color="#d3dae3",
        input_border_color_dark="#2f3947",
        input_placeholder_color="#6a7485",
        input_placeholder_color_dark="#8c97a8",
        button_large_padding="9px 16px",
        button_large_text_size="15px",
        button_primary_background_fill="#1a2130",
        button_primary_background_fill_hover="#323c50",
        button_primary_text_color="#ffffff",
        button_primary_background_fill_dark="#e8ecf3",
        button_primary_background_fill_hover_dark="#ffffff",
        button_primary_text_color_dark="#151a22",
        body_text_color_subdued="#566072",
        body_text_color_subdued_dark="#a0abbb",
    )
