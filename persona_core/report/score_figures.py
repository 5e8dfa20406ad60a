"""Scores over the tokens of a reply: the heat map of a run, and the mean by position."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from persona_core.report.figure_style import SCALE, Figure, apply_layout, error_bars, interval, side_colour

MIN_SCALE = 4.0
"""The colour scale reaches at least this far to both sides, so that pure noise looks pale."""


def common_scale(series: Sequence[np.ndarray]) -> tuple[float, int]:
    """The end of the colour scale, and the longest reply: shared by all maps that are shown together."""
    flat = np.abs(np.concatenate(series)) if series else np.zeros(1)
    high = float(np.ceil(np.nanquantile(flat, 0.95))) if np.isfinite(flat).any() else 0.0
    return max(MIN_SCALE, high), max((len(z) for z in series), default=1)


def heat_map(
    series: Sequence[np.ndarray], ids: Sequence[str], onsets: Sequence[Figure], scale: float, longest: int, score: str
) -> go.Figure:
    """Every reply as a row of tokens, coloured by score, with its onset: earliest at the top, those without one below.

    Args:
        series: scores of each reply's tokens, `[n_reply_tokens]`; NaN at sink tokens, which stay blank.
        ids: of the replies.
        onsets: "answer", "onset", "low", "high" and "says" of each reply.
        scale, longest: from `common_scale`.
        score: what the score is called.
    """

    def when(k: int) -> tuple[float, float]:
        answer = onsets[k].get("answer")
        first = {"before the reply": -1.0, "onset": float(onsets[k].get("onset") or 0)}.get(str(answer), math.inf)
        return first, -float(np.nanmean(series[k])) if np.isfinite(series[k]).any() else 0.0

    order = sorted(range(len(series)), key=when)
    rows = [
        [None if np.isnan(v) else round(float(v), 1) for v in series[k]] + [None] * (longest - len(series[k]))
        for k in order
    ]
    figure = go.Figure()
    figure.add_heatmap(
        z=rows,
        zmid=0,
        zmin=-scale,
        zmax=scale,
        colorscale=SCALE,
        hovertemplate=f"%{{text}}  {score} %{{z:+.1f}}<br>%{{customdata}}, token %{{x}}<extra></extra>",
        colorbar={"title": {"text": score, "side": "right"}, "thickness": 10, "outlinewidth": 0, "x": 1.01},
        hoverongaps=False,
    )
    marked = [
        (row, onsets[k]) for row, k in enumerate(order) if onsets[k].get("answer") in ("onset", "before the reply")
    ]
    at = [
        -1 if o["onset"] is None else int(o["onset"]) for _, o in marked
    ]  # "before the reply" is drawn left of its first token
    low = [position if o["low"] is None else int(o["low"]) for position, (_, o) in zip(at, marked, strict=True)]
    high = [position if o["high"] is None else int(o["high"]) for position, (_, o) in zip(at, marked, strict=True)]
    figure.add_scatter(
        x=at,
        y=[row for row, _ in marked],
        mode="markers",
        marker={"symbol": "line-ns-open", "size": 6, "color": "#11151c", "line": {"width": 2}},
        error_x={
            "array": [h - a for a, h in zip(at, high, strict=True)],
            "arrayminus": [a - b for a, b in zip(at, low, strict=True)],
            "thickness": 1,
            "width": 0,
            "color": "#11151c",
        },
        text=[html.escape(f"{ids[order[row]]}: {o['says']}") for row, o in marked],
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
    )
    doubled = [(row, o) for row, o in marked if o.get("doubles") is not None]
    figure.add_scatter(
        x=[int(o["doubles"]) for _, o in doubled],
        y=[row for row, _ in doubled],
        mode="markers",
        marker={"symbol": "triangle-right-open", "size": 7, "color": "#11151c"},
        text=[html.escape(f"{ids[order[row]]}: {o['says']}") for row, o in doubled],
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
    )
    apply_layout(figure, 60 + max(120, 4 * len(order)), margin={"l": 34, "r": 60, "t": 8, "b": 40})
    figure.update_layout(meta={"order": order})
    figure.update_xaxes(title="token of the reply", range=[-2, longest - 0.5], showgrid=False, zeroline=False)
    figure.update_yaxes(
        title="replies", autorange="reversed", showticklabels=False, ticks="", showgrid=False, zeroline=False
    )
    return figure


def position_figure(statistics: Mapping[str, Figure], score: str) -> go.Figure:
    """Mean score by position in the reply; `score`: what it is called."""
    figure = go.Figure()
    for index, (config, found) in enumerate(statistics.items()):
        bins = [b for b in found["positions"] if b["mean"] is not None]
        figure.add_scatter(
            x=[f"{b['start']}+" if b["end"] is None else f"{b['start']}–{b['end'] - 1}" for b in bins],
            y=[b["mean"]["value"] for b in bins],
            error_y=error_bars([b["mean"] for b in bins]),
            text=[f"{interval(b['mean'])}, {b['n_replies']} replies" for b in bins],
            mode="lines+markers",
            name=config,
            line={"color": side_colour(config, index), "dash": ("solid", "dash", "dot")[index % 3]},
            hovertemplate=f"{html.escape(config)}, tokens %{{x}}: %{{text}}<extra></extra>",
        )
    apply_layout(figure, 300)
    figure.update_xaxes(title="token of the reply", type="category")
    figure.update_yaxes(title=f"mean {score}", zeroline=True)
    return figure
