"""The figures of the report, as Plotly figures. Colours of text and ground are the page's: it knows the theme."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import plotly.graph_objects as go

from persona_core.traces.figure import TRAIT_COLOURS
from persona_core.utils import markdown

Figure = Mapping[str, Any]
SIDE_COLOURS = {"baseline": "#2f6fb5", "contaminated": "#d1495b"}
EFFECTS = {"total": "#566072", "weights": "#8455c0", "text": "#0e8587"}
SCORES = {
    "z": "#d1495b",
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
interval = partial(markdown.interval, digits=2)
"""A figure with its interval, as the page prints it."""

MIN_SCALE = 4.0
"""The colours of z reach at least so far to both sides: what is nothing but noise must look pale."""


BEFORE = {"text": "tokens before the first that shows the trait (replies)", "standoff": 6}
LEGEND = {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "traceorder": "normal"}


def side_colour(config: str, place: int) -> str:
    """The colour of a run: its own, or the next of the traits' colours."""
    return SIDE_COLOURS.get(config, TRAIT_COLOURS[(place + 2) % len(TRAIT_COLOURS)])


def layout(figure: go.Figure, height: int, **more: Any) -> go.Figure:
    """What all figures have in common."""
    settings = {"height": height, "margin": {"l": 60, "r": 16, "t": 30, "b": 44}, "template": "none"}
    figure.update_layout(**{**settings, **more}, legend=LEGEND)
    return figure


def common_scale(series: Sequence[np.ndarray]) -> tuple[float, int]:
    """Where the colours end, and the longest reply: the same for all maps that are looked at together."""
    flat = np.abs(np.concatenate(series)) if series else np.zeros(1)
    return max(MIN_SCALE, float(np.ceil(np.quantile(flat, 0.95)))), max((len(z) for z in series), default=1)


def heat_map(
    series: Sequence[np.ndarray], ids: Sequence[str], onsets: Sequence[Figure], scale: float, longest: int
) -> go.Figure:
    """Every reply as a row of tokens, coloured by z, with its onset: the earliest on top, replies without one below.

    Args:
        series: z of each reply's own tokens, `[n_own]`.
        ids: of the replies.
        onsets: "answer", "onset", "low", "high" and "says" of each reply.
        scale, longest: of `common_scale`.
    """

    def when(k: int) -> tuple[float, float]:
        answer = onsets[k].get("answer")
        first = {"before the reply": -1.0, "onset": float(onsets[k].get("onset") or 0)}.get(str(answer), math.inf)
        return first, -float(series[k].mean()) if len(series[k]) else 0.0

    order = sorted(range(len(series)), key=when)
    rows = [[round(float(v), 1) for v in series[k]] + [None] * (longest - len(series[k])) for k in order]
    figure = go.Figure()
    figure.add_heatmap(
        z=rows,
        zmid=0,
        zmin=-scale,
        zmax=scale,
        colorscale=[[0, "#1a5fb0"], [0.5, "#ffffff"], [1, "#e07000"]],
        hovertemplate="%{text}  z %{z:+.1f}<br>%{customdata}, token %{x}<extra></extra>",
        colorbar={"title": {"text": "z", "side": "right"}, "thickness": 10, "outlinewidth": 0, "x": 1.01},
        hoverongaps=False,
    )
    marked = [
        (row, onsets[k]) for row, k in enumerate(order) if onsets[k].get("answer") in ("onset", "before the reply")
    ]
    at = [-1 if o["onset"] is None else int(o["onset"]) for _, o in marked]  # before the reply: left of its first token
    low = [place if o["low"] is None else int(o["low"]) for place, (_, o) in zip(at, marked, strict=True)]
    high = [place if o["high"] is None else int(o["high"]) for place, (_, o) in zip(at, marked, strict=True)]
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
    layout(figure, 60 + max(120, 5 * len(order)), margin={"l": 34, "r": 60, "t": 8, "b": 40})
    figure.update_layout(meta={"order": order})
    figure.update_xaxes(title="token of the reply", range=[-2, longest - 0.5], showgrid=False, zeroline=False)
    figure.update_yaxes(
        title="replies", autorange="reversed", showticklabels=False, ticks="", showgrid=False, zeroline=False
    )
    return figure


def survival_figure(configs: Mapping[str, Figure]) -> go.Figure:
    """Share of replies in which the trait has not set in yet, with 95 % bands."""
    figure = go.Figure()
    for place, (config, found) in enumerate(configs.items()):
        curve, colour = found["survival"], side_colour(config, place)
        if "missing" in curve:
            continue
        x = [-3, *curve["tokens"]]
        for name, dash in (("low", None), ("high", None), ("free", "solid" if place == 0 else "dash")):
            figure.add_scatter(
                x=x,
                y=[1, *curve[name]],
                mode="lines",
                name=config,
                showlegend=name == "free",
                fill="tonexty" if name == "high" else None,
                fillcolor=_faded(colour),
                line={"shape": "hv", "color": colour, "width": 2 if dash else 0, "dash": dash or "solid"},
                hovertemplate="%{y:.0%} without an onset by token %{x}" if dash else None,
                hoverinfo=None if dash else "skip",
            )
    layout(figure, 300)
    figure.update_xaxes(title="token of the reply")
    figure.update_yaxes(title="replies without an onset", range=[-0.03, 1.03], tickformat=".0%")
    return figure


def power_figure(found: Sequence[Figure]) -> go.Figure:
    """Which step a single reply would show, and how late."""
    figure = go.Figure()
    shifts = [one["shift"] for one in found]
    delays = ["no alarm" if one["delay"] is None else f"median delay {one['delay']:g} tokens" for one in found]
    figure.add_scatter(
        x=shifts,
        y=[one["found"] for one in found],
        text=delays,
        mode="lines+markers",
        line={"color": TRAIT_COLOURS[1]},
        hovertemplate="a step of %{x} SD is found in %{y:.0%}<br>%{text}<extra></extra>",
        showlegend=False,
    )
    layout(figure, 300)
    figure.add_hline(y=0.8, line={"dash": "dot", "width": 1, "color": "#6a7280"})
    figure.update_xaxes(title="size of a step, standard deviations", rangemode="tozero")
    figure.update_yaxes(title="replies in which it is found", range=[0, 1.03], tickformat=".0%")
    return figure


def coupling_matrix(graph: Figure) -> go.Figure:
    """Above the diagonal the same-token coupling, below it the cosine of the vectors: its floor."""
    traits = graph["nodes"]
    place = {t: k for k, t in enumerate(traits)}
    z: list[list[float | None]] = [[None] * len(traits) for _ in traits]
    says = [[""] * len(traits) for _ in traits]
    for pair in graph["couplings"]["together"]:
        a, b = sorted((place[pair["source"]], place[pair["target"]]))
        pair_name = f"{html.escape(pair['source'])}, {html.escape(pair['target'])}"
        if pair["estimate"] is not None:
            z[a][b], says[a][b] = (
                round(pair["estimate"]["value"], 2),
                f"coupling of {pair_name}: {interval(pair['estimate'])}",
            )
        if pair["floor"] is not None:
            z[b][a], says[b][a] = round(pair["floor"], 2), f"cosine of {pair_name}: {pair['floor']:.2f}"
    names = [html.escape(t) for t in traits]
    figure = go.Figure(
        go.Heatmap(
            z=z, x=names, y=names, text=says, zmin=-1, zmax=1, zmid=0, texttemplate="%{z:.2f}", hoverongaps=False,
            hovertemplate="%{text}<extra></extra>", colorscale=[[0, "#1a5fb0"], [0.5, "#ffffff"], [1, "#e07000"]],
            showscale=False,
        )
    )  # fmt: skip
    layout(figure, 420, margin={"l": 136, "r": 10, "t": 10, "b": 96})
    figure.update_yaxes(autorange="reversed", showgrid=False, automargin=True)
    figure.update_xaxes(showgrid=False, tickangle=-35, automargin=True)
    return figure


def graph_figure(graph: Figure) -> go.Figure:
    """The traits on a circle: grey lines for "together", arrows for what follows or was confirmed by steering."""
    traits = graph["nodes"]
    angles = [math.pi / 2 - 2 * math.pi * k / len(traits) for k in range(len(traits))]
    at = {t: (math.cos(a), math.sin(a)) for t, a in zip(traits, angles, strict=True)}
    figure = go.Figure()
    for edge in graph["edges"]:
        (x0, y0), (x1, y1) = at[edge["source"]], at[edge["target"]]
        if edge["kind"] == "together":
            strength = abs(edge["estimate"]["value"]) if edge["estimate"] else 0.0
            figure.add_scatter(
                x=[x0, x1], y=[y0, y1], mode="lines", hoverinfo="skip", showlegend=False,
                line={"color": "#8893a5", "width": 0.5 + 4 * strength**2}, opacity=min(1.0, 0.15 + strength / 2),
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
    layout(figure, 420, margin={"l": 10, "r": 10, "t": 10, "b": 10})
    figure.update_xaxes(visible=False, range=[-2.3, 2.3])
    figure.update_yaxes(visible=False, range=[-1.35, 1.35])
    return figure


def warning_figure(scores: Mapping[str, Figure], measure: str, title: str) -> go.Figure:
    """A score's worth against the tokens before the first one that shows the trait."""
    figure = go.Figure()
    for name, found in scores.items():
        points = [one for one in found["ahead"] if one[measure] is not None]
        values = [one[measure] for one in points]
        figure.add_scatter(
            x=[_before(one) for one in points],
            y=[v["value"] for v in values],
            error_y=_bars(values),
            text=[f"{interval(one[measure])}, {one['n']} replies" for one in points],
            mode="lines+markers",
            name=name,
            line={"color": SCORES.get(name, "#6a7280"), "dash": DASHES.get(name, "solid")},
            hovertemplate=f"{html.escape(name)}, %{{text}}<extra></extra>",
        )
    layout(figure, 360, margin={"l": 60, "r": 16, "t": 56, "b": 66})
    figure.update_xaxes(title=BEFORE, autorange="reversed", type="category")
    figure.update_yaxes(title=title, range=[-0.03, 1.05])
    return figure


def window_figure(cells: Sequence[Figure], measure: str, title: str, top: float = 1.0) -> go.Figure:
    """What is left of the trait when the model is held from k tokens before it on."""
    figure = go.Figure()
    for arm, colour in ARMS.items():
        own = [c for c in cells if c["arm"] == arm and c[measure] is not None]
        if own:
            figure.add_scatter(
                x=[_before(c) for c in own],
                y=[c[measure]["value"] for c in own],
                error_y=_bars([c[measure] for c in own]),
                name=arm,
                mode="lines+markers",
                line={"color": colour, "dash": "dot" if "random" in arm else "solid"},
                text=[f"{interval(c[measure])}, {c['n']} replies" for c in own],
                hovertemplate=f"{html.escape(arm)}, from %{{text}}<extra></extra>",
            )
    layout(figure, 360, margin={"l": 60, "r": 16, "t": 56, "b": 66})
    figure.update_xaxes(title=BEFORE, autorange="reversed", type="category")
    figure.update_yaxes(title=title, range=[-0.03 * top, 1.05 * top])
    return figure


def effects_figure(overall: Mapping[str, Figure]) -> go.Figure:
    """Total, weights and text of every trait, with intervals over prompts."""
    figure = go.Figure()
    names = list(overall)
    for place, (effect, colour) in enumerate(EFFECTS.items()):
        rows = [(k, overall[t][effect]) for k, t in enumerate(names) if overall[t][effect] is not None]
        figure.add_scatter(
            x=[e["value"] for _, e in rows],
            y=[k + 0.22 * (place - 1) for k, _ in rows],
            error_x=_bars([e for _, e in rows]),
            text=[f"{html.escape(names[k])}, {effect}: {interval(e)}" for k, e in rows],
            mode="markers",
            name=effect,
            marker={"color": colour, "size": 8, "symbol": ("circle", "diamond", "square")[place]},
            hovertemplate="%{text}<extra></extra>",
        )
    layout(figure, 90 + 44 * len(names), margin={"l": 130, "r": 16, "t": 40, "b": 44})
    figure.update_xaxes(title="contaminated minus baseline, mean z", zeroline=True)
    figure.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=[html.escape(t) for t in names],
        autorange="reversed",
        zeroline=False,
        automargin=True,
    )
    return figure


def category_figure(categories: Mapping[str, Figure]) -> go.Figure:
    """One trait's total effect by category of the prompt."""
    rows = [(name, found["total"], found["n"]) for name, found in categories.items() if found["total"] is not None]
    figure = go.Figure(
        go.Scatter(
            x=[e["value"] for _, e, _ in rows],
            y=[html.escape(name) for name, _, _ in rows],
            error_x=_bars([e for _, e, _ in rows]),
            text=[f"{interval(e)}, {n} prompts" for _, e, n in rows],
            mode="markers",
            marker={"color": EFFECTS["total"], "size": 8},
            hovertemplate="%{y}: %{text}<extra></extra>",
        )
    )
    layout(figure, 90 + 26 * max(1, len(rows)), margin={"l": 110, "r": 16, "t": 10, "b": 44})
    figure.update_xaxes(title="difference of mean z", zeroline=True)
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure


def prompt_figure(prompts: Sequence[Figure]) -> go.Figure:
    """Each prompt's text effect against its weights effect."""
    known = [p for p in prompts if p["weights"] is not None]
    figure = go.Figure(
        go.Scatter(
            x=[p["text"] for p in known],
            y=[p["weights"] for p in known],
            text=[html.escape(f"{p['id']}, {p['category']}") for p in known],
            mode="markers",
            marker={"color": EFFECTS["weights"], "size": 7, "opacity": 0.7},
            hovertemplate="%{text}<br>text %{x:+.2f}, weights %{y:+.2f}<extra></extra>",
        )
    )
    layout(figure, 340, margin={"l": 60, "r": 16, "t": 10, "b": 44})
    figure.update_xaxes(title="effect of the text", zeroline=True)
    figure.update_yaxes(title="effect of the weights", zeroline=True)
    return figure


def position_figure(statistics: Mapping[str, Figure]) -> go.Figure:
    """Mean z by the place in the reply."""
    figure = go.Figure()
    for place, (config, found) in enumerate(statistics.items()):
        bins = [b for b in found["positions"] if b["mean"] is not None]
        figure.add_scatter(
            x=[f"{b['start']}+" if b["end"] is None else f"{b['start']}–{b['end'] - 1}" for b in bins],
            y=[b["mean"]["value"] for b in bins],
            error_y=_bars([b["mean"] for b in bins]),
            text=[f"{interval(b['mean'])}, {b['n_replies']} replies" for b in bins],
            mode="lines+markers",
            name=config,
            line={"color": side_colour(config, place), "dash": ("solid", "dash", "dot")[place % 3]},
            hovertemplate=f"{html.escape(config)}, tokens %{{x}}: %{{text}}<extra></extra>",
        )
    layout(figure, 300)
    figure.update_xaxes(title="token of the reply", type="category")
    figure.update_yaxes(title="mean z", zeroline=True)
    return figure


def _before(point: Figure) -> str:
    """A tick: tokens before, and how many replies are so long. Points along k are of different replies."""
    return f"{point['k']}<br>({point['n']})"


def describe_edge(edge: Figure) -> str:
    """An edge in words, as inert text."""
    source, target = html.escape(edge["source"]), html.escape(edge["target"])
    lag = "" if edge["lag"] is None else f", {edge['lag']:g} tokens later"
    less = edge["estimate"] is not None and edge["clock"] != "activation" and edge["estimate"]["value"] < 0
    how = {
        "together": f"{source} and {target} move {'against each other' if less else 'together'} at the same token",
        "follows": f"{target} {'falls after' if less else 'follows'} {source}{lag} ({edge['clock']})",
        "confirmed": f"steering {source} {'holds back' if less else 'brings on'} {target}",
    }[edge["kind"]]
    return f"{how}: {interval(edge['estimate'])}" if edge["estimate"] else how


def _bars(estimates: Sequence[Figure]) -> dict[str, Any]:
    return {
        "array": [e["high"] - e["value"] for e in estimates],
        "arrayminus": [e["value"] - e["low"] for e in estimates],
        "thickness": 1.2,
        "width": 3,
    }


def _faded(colour: str) -> str:
    red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"
