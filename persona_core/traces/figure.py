"""Plotly figures of traces, for notebooks and reports."""

from __future__ import annotations

import html

import numpy as np
import plotly.graph_objects as go

from persona_core.errors import SettingError
from persona_core.traces.trace import UNITS, Alignment, Kind, Trace

# The trait colours of the token view (--tv-c0 … in view/colours.css); further traits repeat them dotted.
TRAIT_COLOURS = ("#d1495b", "#2f6fb5", "#2b8a57", "#8455c0", "#a87400", "#0e8587", "#bd4aa5", "#6a7280")
_GREY, _PALE = "#566072", "#e1e6ed"


def trace_figure(
    trace: Trace,
    *,
    kind: Kind | None = None,
    block: int | None = None,
    alignment: Alignment = "at",
    smooth: int = 1,
    title: str | None = None,
) -> go.Figure:
    """A line for each trait over the tokens of a conversation.

    Args:
        trace: what to draw.
        kind: "specific", "z", "raw" or "cosine"; the first two come with a band of two standard deviations around
            neutral. None takes the trace's default.
        block: block to read all traits at; None reads each trait at its best block.
        alignment: "at" or "before", as in `Trace.scores`.
        smooth: tokens in the causal moving average (this token and those before it); 1 does not smooth.
        title: text over the figure.

    Returns:
        A figure with one line of `n_tokens` points for each trait, in the order of `trace.traits`, with gaps at sink
        tokens. The axis counts tokens of the reply from 0, as onsets do; those of the prompt are negative. Hovering
        shows the token. A dotted line marks where the reply begins.

    Raises:
        SettingError: an unknown kind or alignment, or a window below 1.
        UnknownBlock, NotCalibrated: as `Trace.scores`.

    Example:
        >>> trace_figure(trace, smooth=8).show()  # doctest: +SKIP
    """
    if smooth < 1:
        raise SettingError(f"smooth={smooth!r}; expected a whole number of tokens from 1.")
    kind = kind or trace.default_kind
    positions = np.arange(trace.n_tokens) - trace.n_prompt
    # Plotly reads a subset of HTML in text: without escaping a token such as <a href=…> would become a link.
    tokens = [shown(token) for token in trace.tokens]
    figure = go.Figure()
    for index, trait in enumerate(trace.traits):
        scores = _causal_mean(trace.scores_without_sinks(trait, kind, block, alignment), smooth)  # [n_tokens]
        figure.add_scatter(
            x=positions,
            y=scores,
            mode="lines",
            name=html.escape(trait),
            text=tokens,
            hovertemplate="%{text}  %{y:+.2f}",
            line={
                "color": TRAIT_COLOURS[index % len(TRAIT_COLOURS)],
                "width": 1.6,
                "dash": "solid" if index < len(TRAIT_COLOURS) else "dot",
            },
        )
    if kind in ("specific", "z"):
        figure.add_hrect(y0=-2, y1=2, fillcolor=_GREY, opacity=0.07, line_width=0, layer="below")
    if 0 < trace.n_prompt < trace.n_tokens:
        figure.add_vline(x=-0.5, line={"color": _GREY, "width": 1, "dash": "dot"}, annotation_text="reply")
    window = f", mean of {smooth} tokens" if smooth > 1 else ""
    figure.update_layout(
        title=html.escape(title) if title else None,
        template="plotly_white",
        hovermode="x unified",
        xaxis={
            "title": "token of the reply",
            "showgrid": False,
            "range": [-0.5 - trace.n_prompt, max(trace.n_tokens, 1) - 0.5 - trace.n_prompt],
        },
        yaxis={"title": UNITS[kind] + window, "zerolinecolor": _GREY, "gridcolor": _PALE},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        margin={"l": 60, "r": 20, "t": 70 if title else 50, "b": 50},
    )
    return figure


def _causal_mean(scores: np.ndarray, window: int) -> np.ndarray:  # [n_tokens] -> [n_tokens]
    """Mean of each score and up to `window - 1` before it; a score that does not exist (NaN) is left out."""
    if window == 1:
        return scores
    known = np.isfinite(scores)
    total = np.cumsum(np.where(known, scores, 0.0), dtype=np.float64)
    count = np.cumsum(known)
    total[window:] -= total[:-window].copy()
    count[window:] -= count[:-window].copy()
    return np.where(known, total / np.maximum(count, 1), np.nan).astype(np.float32)


def shown(token: str) -> str:
    """A token as visible, inert text: white space has a sign, and nothing in it is markup."""
    return html.escape(token.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")) or "∅"
