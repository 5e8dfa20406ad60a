"""The app's look: Gradio's base theme, the machine's own fonts (nothing is fetched) and a quiet palette."""

from __future__ import annotations

import gradio as gr

# Each font is a name for the browser to look up, never a file to load.
_SANS = [
    gr.themes.Font(name)
    for name in ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "DejaVu Sans", "sans-serif")
]
_MONO = [gr.themes.Font(name) for name in ("ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")]

CSS = """
.gradio-container { width: 100%; max-width: 1560px !important; margin-inline: auto !important; }
#masthead h1 { font-size: 22px; font-weight: 650; letter-spacing: -0.01em; margin: 4px 0 2px; }
#masthead p {
  font-size: 14px; line-height: 1.5; max-width: 120ch; margin: 0; color: var(--body-text-color-subdued);
}
#masthead .lede { font-size: 15.5px; color: var(--body-text-color); margin-bottom: 4px; }
#masthead .tour-start {
  border: 0; padding: 0 2px; background: none; color: var(--body-text-color); font: inherit; font-weight: 600;
  text-decoration: underline; text-underline-offset: 3px; cursor: pointer;
}
#controls, #read-controls { gap: 12px; }
#controls .label { color: var(--body-text-color-subdued); }
.panel-note { margin: 24px 0; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
.panel-note[hidden] { display: none; }
.html-container { padding: 0 !important; }
#notice:has(.notice[hidden]), #compare-notice:has(.notice[hidden]), #read-notice:has(.notice[hidden]),
#runs-notice:has(.notice[hidden]) { display: none; }
.notice {
  margin: 0; padding: 9px 12px; border-radius: 8px; overflow-wrap: anywhere;
  font-size: 14px; line-height: 1.45;
  border: 1px solid #d9a441; background: #fff7e6; color: #5c3d00;
}
.dark .notice { border-color: #7a5a14; background: #2b2210; color: #ffdf9e; }
#vectors-summary, #vectors-words { overflow-x: auto; }
#vectors-summary table { min-width: 680px; }
#vectors-summary :is(th, td) { white-space: nowrap; overflow-wrap: normal; word-break: normal; }
#vectors-summary :is(table, th, td), #vectors-words :is(table, th, td) { border-color: #d3dae3; }
.dark :is(#vectors-summary, #vectors-words) :is(table, th, td) { border-color: #2f3947; }
.tour-card {
  box-sizing: border-box; position: fixed; z-index: 1000; inset-block-end: 20px; inset-inline: 0; margin-inline: auto;
  width: min(430px, calc(100vw - 32px)); padding: 18px 20px; border-radius: 12px;
  background: #1a2130; color: #ffffff; box-shadow: 0 12px 40px rgba(0, 0, 0, 0.35); text-align: start;
}
.dark .tour-card { background: #e8ecf3; color: #151a22; }
.tour-count { margin: 0; font-size: 12px; opacity: 0.85; }
.tour-title { margin: 2px 0 6px; font-size: 17px; font-weight: 650; color: inherit; }
.tour-text { margin: 0 0 14px; font-size: 14px; line-height: 1.5; }
.tour-card button {
  padding: 7px 16px; margin-inline-end: 8px; border-radius: 7px; cursor: pointer;
  font-family: inherit; font-size: 14px; font-weight: 600;
  border: 1px solid currentColor; background: transparent; color: inherit;
}
.tour-card .tour-next { background: #ffffff; color: #1a2130; }
.dark .tour-card .tour-next { background: #151a22; color: #ffffff; }
.tour-target { outline: 3px solid #d98300; outline-offset: 4px; border-radius: 8px; }
#tabs [role=tab][aria-selected=true] { color: var(--body-text-color); font-weight: 650; }
#compare-saved input { padding-inline-end: 36px; text-overflow: ellipsis; }
/* Gradio shows the focus of a field by a shade of its border alone. */
.gradio-container :is(textarea, input):focus-visible,
.gradio-container label:has(input:is([type=radio], [type=checkbox]):focus-visible) {
  outline: 2px solid #1a5fb0 !important; outline-offset: 1px;
}
.dark .gradio-container :is(textarea, input):focus-visible,
.dark .gradio-container label:has(input:is([type=radio], [type=checkbox]):focus-visible) {
  outline-color: #7cbcff !important;
}
/* On a phone the reply comes first, the form after it. */
@media (max-width: 760px) {
  .live-reply { order: -1; }
  #masthead .lede { font-size: 14px; }
  #masthead .about > span { display: none; }
}
"""


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
