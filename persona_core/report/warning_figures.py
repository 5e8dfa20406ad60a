"""Early warning and intervention: a measure against the number of tokens before the trait's first token."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from persona_core.report.figure_style import Figure, apply_layout, error_bars, interval

SCORES = {
    "specific": "#d1495b",
    "z": "#b26a72",
    "cusum": "#a87400",
    "last prompt token": "#2f6fb5",
    "n-grams": "#2b8a57",
    "position": "#6a7280",
    "other traits": "#0e8587",
    "entropy": "#8455c0",
    "random direction 1": "#7a8699",
    "random direction 2": "#7a8699",
    "random direction 3": "#7a8699",
}
DASHES = {
    "cusum": "dash",
    "last prompt token": "dashdot",
    "n-grams": "dot",
    "position": "longdash",
    "other traits": "longdashdot",
    "random direction 1": "dot",
    "random direction 2": "dash",
    "random direction 3": "dashdot",
}
ARMS = {
    "none": "#6a7280",
    "cap": "#d1495b",
    "cap, random": "#b26a72",
    "steer": "#8455c0",
    "steer, random": "#8d7aa8",
}
LEAD_AXIS = {"text": "tokens before the first one that shows the trait (replies)", "standoff": 6}


def warning_figure(scores: Mapping[str, Figure], measure: str, title: str) -> go.Figure:
    """A measure of each score against the number of tokens before the first one that shows the trait.

    Args:
        scores: by name; the first is the trait's own.
        measure: of each number of tokens.
        title: of the axis.
    """
    figure = go.Figure()
    for name, found in scores.items():
        points = [one for one in found["ahead"] if one[measure] is not None]
        values = [one[measure] for one in points]
        figure.add_scatter(
            x=[lead_label(one) for one in points],
            y=[v["value"] for v in values],
            error_y=error_bars(values),
            text=[f"{interval(one[measure])}, {one['n']} replies" for one in points],
            mode="lines+markers",
            name=name,
            line={"color": SCORES.get(name, "#6a7280"), "dash": DASHES.get(name, "solid")},
            hovertemplate=f"{html.escape(name)}, %{{text}}<extra></extra>",
        )
    apply_layout(figure, 330, margin={"l": 60, "r": 16, "t": 56, "b": 66})
    figure.update_xaxes(title=LEAD_AXIS, autorange="reversed", type="category")
    figure.update_yaxes(title=title, range=[-0.03, 1.05])
    return figure


def window_figure(cells: Sequence[Figure], measure: str, title: str, top: float = 1.0) -> go.Figure:
    """What is left of the trait when an intervention starts k tokens before it."""
    figure = go.Figure()
    for arm, colour in ARMS.items():
        own = [c for c in cells if c["arm"] == arm and c[measure] is not None]
        if own:
            figure.add_scatter(
                x=[lead_label(c) for c in own],
                y=[c[measure]["value"] for c in own],
                error_y=error_bars([c[measure] for c in own]),
                name=arm,
                mode="lines+markers",
                line={"color": colour, "dash": "dot" if "random" in arm else "solid"},
                text=[f"{interval(c[measure])}, {c['n']} replies" for c in own],
                hovertemplate=f"{html.escape(arm)}, from %{{text}}<extra></extra>",
            )
    apply_layout(figure, 330, margin={"l": 60, "r": 16, "t": 56, "b": 66})
    figure.update_xaxes(title=LEAD_AXIS, autorange="reversed", type="category")
    figure.update_yaxes(title=title, range=[-0.03 * top, 1.05 * top])
    return figure


def lead_label(point: Figure) -> str:
    """A tick label: tokens before, and the number of replies that are long enough; it differs between points."""
    return f"{point['k']}<br>({point['n']})"
