"""Onsets of a run: the share of replies without one, and how large a step a single reply would show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from persona_core.report.figure_style import Figure, apply_layout, faded, side_colour
from persona_core.traces.figure import TRAIT_COLOURS


def survival_figure(configs: Mapping[str, Figure]) -> go.Figure:
    """Kaplan-Meier curves: the share of replies without an onset so far, with 95 % bands."""
    figure = go.Figure()
    for index, (config, found) in enumerate(configs.items()):
        curve, colour = found["survival"], side_colour(config, index)
        if "missing" in curve:
            continue
        x = [-3, *curve["tokens"]]
        for name, dash in (("low", None), ("high", None), ("free", "solid" if index == 0 else "dash")):
            figure.add_scatter(
                x=x,
                y=[1, *curve[name]],
                mode="lines",
                name=config,
                showlegend=name == "free",
                fill="tonexty" if name == "high" else None,
                fillcolor=faded(colour),
                line={"shape": "hv", "color": colour, "width": 2 if dash else 0, "dash": dash or "solid"},
                hovertemplate="%{y:.0%} without an onset by token %{x}" if dash else None,
                hoverinfo=None if dash else "skip",
            )
    apply_layout(figure, 300)
    figure.update_xaxes(title="token of the reply")
    figure.update_yaxes(title="replies without an onset", range=[-0.03, 1.03], tickformat=".0%")
    return figure


def power_figure(found: Sequence[Figure]) -> go.Figure:
    """Share of replies in which a step would be detected, by its size, and the delay."""
    figure = go.Figure()
    shifts = [one["shift"] for one in found]
    delays = ["no alarm" if one["delay"] is None else f"median delay {one['delay']:g} tokens" for one in found]
    figure.add_scatter(
        x=shifts,
        y=[one["found"] for one in found],
        text=delays,
        mode="lines+markers",
        line={"color": TRAIT_COLOURS[1]},
        hovertemplate="a step of %{x} SD is detected in %{y:.0%} of replies<br>%{text}<extra></extra>",
        showlegend=False,
    )
    apply_layout(figure, 300)
    figure.add_hline(y=0.8, line={"dash": "dot", "width": 1, "color": "#6a7280"})
    figure.update_xaxes(title="size of a step, standard deviations", rangemode="tozero")
    figure.update_yaxes(title="replies in which it is detected", range=[0, 1.03], tickformat=".0%")
    return figure
