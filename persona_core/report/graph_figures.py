"""How traits vary together: the matrix of couplings and the graph of edges."""

from __future__ import annotations

import html
import math

import plotly.graph_objects as go

from persona_core.report.figure_style import SCALE, Figure, apply_layout, interval
from persona_core.report.sentences import claimed_edges, describe_edge


def coupling_matrix(graph: Figure) -> go.Figure:
    """Above the diagonal the excess of the same-token coupling over neutral replies, below it the neutral coupling."""
    traits = graph["nodes"]
    index = {t: k for k, t in enumerate(traits)}
    z: list[list[float | None]] = [[None] * len(traits) for _ in traits]
    says = [[""] * len(traits) for _ in traits]
    for pair in graph["couplings"]["together"]:
        a, b = sorted((index[pair["source"]], index[pair["target"]]))
        pair_name = f"{html.escape(pair['source'])}, {html.escape(pair['target'])}"
        if (excess := pair.get("excess")) is not None:
            own = interval(pair["estimate"])
            z[a][b] = round(excess["value"], 2)
            says[a][b] = f"excess of {pair_name}: {interval(excess)} in Fisher's z; correlation {own}"
        if (null := pair.get("null")) is not None:
            z[b][a] = round(null["value"], 2)
            says[b][a] = f"correlation of {pair_name} in neutral replies: {interval(null)}"
    names = [html.escape(t) for t in traits]
    figure = go.Figure(
        go.Heatmap(
            z=z, x=names, y=names, text=says, zmin=-1, zmax=1, zmid=0, texttemplate="%{z:.2f}", hoverongaps=False,
            hovertemplate="%{text}<extra></extra>", colorscale=SCALE,
            showscale=False,
        )
    )  # fmt: skip
    apply_layout(figure, 116 + 27 * len(traits), margin={"l": 136, "r": 10, "t": 10, "b": 96})
    figure.update_yaxes(autorange="reversed", showgrid=False, automargin=True)
    figure.update_xaxes(showgrid=False, tickangle=-35, automargin=True)
    return figure


def graph_figure(graph: Figure) -> go.Figure:
    """The traits on a circle: lines for "together" (dotted: less than in neutral replies), arrows for the others."""
    traits = graph["nodes"]
    angles = [math.pi / 2 - 2 * math.pi * k / len(traits) for k in range(len(traits))]
    at = {t: (math.cos(a), math.sin(a)) for t, a in zip(traits, angles, strict=True)}
    figure = go.Figure()
    for edge in claimed_edges(graph):
        (x0, y0), (x1, y1) = at[edge["source"]], at[edge["target"]]
        if edge["kind"] == "together":
            excess = edge["estimate"]["value"]
            line = {"width": 1 + 8 * min(abs(excess), 0.5), "dash": "dot" if excess < 0 else "solid"}
            figure.add_scatter(
                x=[x0, x1], y=[y0, y1], mode="lines", hoverinfo="skip", showlegend=False,
                line={"color": "#8893a5", **line},
            )  # fmt: skip
            continue
        confirmed = edge["kind"] == "confirmed"
        figure.add_annotation(
            x=x1 * 0.93, y=y1 * 0.93, ax=x0 * 0.93, ay=y0 * 0.93, xref="x", yref="y", axref="x", ayref="y",
            arrowhead=3, arrowwidth=2.5 if confirmed else 1.8, arrowsize=1.1, text="", standoff=14,
            arrowcolor="#d1495b" if confirmed else "#8455c0" if edge["clock"] == "behaviour" else "#2f6fb5",
        )  # fmt: skip
        figure.add_scatter(
            x=[0.45 * x0 + 0.55 * x1], y=[0.45 * y0 + 0.55 * y1], mode="markers", marker={"size": 14, "opacity": 0},
            text=[describe_edge(edge)], hovertemplate="%{text}<extra></extra>", showlegend=False,
        )  # fmt: skip
    figure.add_scatter(
        x=[at[t][0] for t in traits], y=[at[t][1] for t in traits], mode="markers+text", showlegend=False,
        text=[html.escape(t) for t in traits], hoverinfo="skip",
        textposition=["bottom center" if at[t][1] < -0.1 else "top center" for t in traits],
        marker={"size": 16, "color": "#566072"},
    )  # fmt: skip
    apply_layout(figure, 420, margin={"l": 10, "r": 10, "t": 10, "b": 10})
    figure.update_xaxes(visible=False, range=[-2.3, 2.3])
    figure.update_yaxes(visible=False, range=[-1.35, 1.35])
    return figure
