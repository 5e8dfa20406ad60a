"""Plotly figures of a vector's validation, for cards, notebooks and the app."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from persona_core.errors import SettingError, UnknownTrait
from persona_core.vectors.vectors import PersonaVectors
from persona_core.vectors.verdict import Figures, verdict

OWN, OTHER, PLAIN, GRID = "#2f6fb5", "#c26a00", "#566072", "#e1e6ed"
INK = "#1f2733"
TITLE_WIDTH = 130  # letters of a line under the title


def validation_figure(vectors: PersonaVectors, trait: str) -> go.Figure:
    """Four panels: AUROC by block, confounds, correlation with the judge, and steering.

    Raises:
        UnknownTrait: not one of the vectors' traits.
        SettingError: the vectors were not validated.
    """
    vectors.tensor(trait)
    figures = vectors.config.get("validation", {}).get(trait, {})
    if "auroc" not in figures:
        raise SettingError(f"The vector of {trait!r} was not validated; run persona extract --stage validate.")
    figure = make_subplots(
        rows=2,
        cols=2,
        subplot_titles=(
            "Held-out AUROC by block",
            "What would tell the trait as well",
            "Correlation with the judge's score",
            "Steering: judge's scores by strength",
        ),
        horizontal_spacing=0.22,
        vertical_spacing=0.22,
    )
    _by_block(figure, figures)
    _rivals(figure, figures)
    _correlations(figure, figures)
    _steering(figure, figures.get("steering"))
    says = "<br>".join(textwrap.wrap(str(verdict(figures)), TITLE_WIDTH))
    figure.update_layout(
        title={
            "text": f"<b>{_plain(trait)}</b>",
            "subtitle": {"text": says, "font": {"size": 13, "color": INK}},
            "x": 0.02,
            "y": 0.98,
            "yanchor": "top",
            "font": {"size": 17},
        },
        width=1040,
        height=780,
        template="plotly_white",
        font={"size": 12, "color": INK, "family": "Arial, Helvetica, sans-serif"},
        margin={"l": 170, "r": 30, "t": 100 + 18 * says.count("<br>"), "b": 150},
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": -0.12, "yanchor": "top", "entrywidth": 290},
        paper_bgcolor="white",
        plot_bgcolor="white",
    )
    figure.update_xaxes(gridcolor=GRID, zeroline=False, title_standoff=8, title_font_size=13)
    figure.update_yaxes(gridcolor=GRID, zeroline=False, title_standoff=8, title_font_size=13)
    figure.update_annotations(font_size=14, selector={"yanchor": "bottom"})
    return figure


def cosine_figure(vectors: PersonaVectors) -> go.Figure:
    """Cosines between the traits' vectors; each row at its trait's best block."""
    traits = [t for t in vectors.traits if t in vectors.best_block]
    if not traits:
        raise UnknownTrait("any with a best block", vectors.traits)
    rows = [[float(vectors.direction(t, vectors.best_block[t]) @ vectors.direction(o, vectors.best_block[t]))
             for o in traits] for t in traits]  # fmt: skip
    names = [_plain(t) for t in traits]
    figure = go.Figure(
        go.Heatmap(
            z=rows,
            x=names,
            y=names,
            zmin=-1,
            zmax=1,
            colorscale=[[0, OWN], [0.5, "#ffffff"], [1, OTHER]],
            text=[[f"{value:.2f}" for value in row] for row in rows],
            texttemplate="%{text}",
            colorbar={"title": "cosine"},
        )
    )
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(
        title={"text": "Cosine between vectors, at the block of the row's trait", "x": 0.02},
        width=220 + 80 * len(traits),
        height=200 + 48 * len(traits),
        template="plotly_white",
        font={"size": 12, "color": INK, "family": "Arial, Helvetica, sans-serif"},
        margin={"l": 140, "t": 70},
    )
    return figure


def _by_block(figure: go.Figure, f: Figures) -> None:
    known = [(b, a) for b, a in enumerate(f["auroc_by_block"]) if a is not None]
    chosen = f.get("block", {}).get("chosen")
    _points(figure, [b for b, _ in known], [a for _, a in known], "vector", OWN, (1, 1), legend=False)
    at = [(b, a) for b, a in known if b == chosen]
    if at:
        figure.add_scatter(
            x=[at[0][0]], y=[at[0][1]["value"]], mode="markers", showlegend=False, hoverinfo="skip",
            marker={"size": 17, "color": "rgba(0,0,0,0)", "line": {"width": 2, "color": INK}}, row=1, col=1,
        )  # fmt: skip
    random = f["nulls"]["random_directions"]["auroc_95"]
    if random is None:
        return
    figure.add_hline(y=random, line={"dash": "dot", "color": PLAIN}, row=1, col=1)
    low = min([random, *(a["low"] for _, a in known)], default=0.5)
    figure.update_yaxes(range=[min(0.9, low - 0.03), 1.01], row=1, col=1)
    title, every = "block (ring: chosen; dotted: 95 % of random directions)", max(1, len(f["auroc_by_block"]) // 8)
    figure.update_xaxes(title=title, dtick=every, row=1, col=1)


def _rivals(figure: go.Figure, f: Figures) -> None:
    confounds = f["confounds"]
    rows = [
        ("the vector", f["auroc"]),
        ("best other vector", (f.get("best_other_vector") or {}).get("auroc")),
        ("words alone", (f.get("text_baseline") or {}).get("auroc")),
        ("tokens without context", confounds["token_identity"]["auroc"]),
        ("positions of tokens", confounds["position"]["auroc"]),
        ("length", confounds["length"]["auroc"]),
        ("declining", confounds["refusal"]["auroc"]),
    ]
    known = [(name, a) for name, a in rows if a is not None][::-1]
    figure.add_scatter(
        x=[a["value"] for _, a in known],
        y=[name for name, _ in known],
        mode="markers",
        showlegend=False,
        marker={"size": 10, "color": [OWN if name == "the vector" else PLAIN for name, _ in known],
                "symbol": ["circle" if name == "the vector" else "diamond" for name, _ in known]},
        error_x=_bars([a for _, a in known], PLAIN),
        row=1, col=2,
    )  # fmt: skip
    figure.add_vline(x=0.5, line={"dash": "dot", "color": PLAIN}, row=1, col=2)
    figure.update_xaxes(title="AUROC (0.5 is chance)", row=1, col=2)
    figure.update_yaxes(dtick=1, row=1, col=2)  # every label, however many fit by Plotly's own rule


def _correlations(figure: go.Figure, f: Figures) -> None:
    names = (("all", "all replies"), ("high", "positive side"), ("low", "negative side"))
    known = [(label, f["correlation"][key]) for key, label in names if f["correlation"][key] is not None][::-1]
    figure.add_scatter(
        x=[c["value"] for _, c in known], y=[label for label, _ in known], mode="markers", showlegend=False,
        marker={"size": 10, "color": OWN}, error_x=_bars([c for _, c in known], OWN), row=2, col=1,
    )  # fmt: skip
    figure.add_vline(x=0, line={"dash": "dot", "color": PLAIN}, row=2, col=1)
    figure.update_xaxes(title="r of mean projection and judge's score", range=[-1.05, 1.05], row=2, col=1)
    figure.update_yaxes(dtick=1, row=2, col=1)


def _steering(figure: go.Figure, steering: Figures | None) -> None:
    if steering is None:
        # A trace rather than an annotation: without one Plotly leaves the panel out, and all that refers to its axes.
        figure.add_scatter(
            x=[0], y=[0], mode="text", text=["not measured"], textfont={"size": 13, "color": PLAIN}, showlegend=False,
            hoverinfo="skip", row=2, col=2,
        )  # fmt: skip
        figure.update_xaxes(visible=False, row=2, col=2)
        figure.update_yaxes(visible=False, row=2, col=2)
        return
    for arm, what, colour, dash in (
        ("vector", "trait", OWN, "solid"),
        ("random", "trait", OTHER, "solid"),
        ("vector", "coherence", OWN, "dot"),
        ("random", "coherence", OTHER, "dot"),
    ):
        known = [(p["strength"], p[what]) for p in steering[arm] if p[what] is not None]
        name = f"{what}, {'vector' if arm == 'vector' else 'random directions'}"
        _points(figure, [s for s, _ in known], [v for _, v in known], name, colour, (2, 2), dash)
    _matched(figure, steering.get("matched"), float(steering["effect_at"]))
    figure.update_xaxes(title=f"strength (1 = the vector's norm, {steering['norm']:.3g})", row=2, col=2)
    figure.update_yaxes(title="score, 0 to 100", range=[-3, 105], row=2, col=2)


def _matched(figure: go.Figure, matched: Figures | None, at: float) -> None:
    """The random push that leaves the replies as coherent as the vector at strength `at`."""
    if matched is None or matched["trait_random"] is None:
        return
    figure.add_scatter(
        x=[matched["strength"]], y=[matched["trait_random"]["value"]], mode="markers", row=2, col=2,
        name=f"trait, random, as coherent as the vector at {at:g}" if matched["effect"] else "trait, random, nearest",
        marker={"symbol": "star", "size": 13, "color": OTHER}, error_y=_bars([matched["trait_random"]], OTHER),
    )  # fmt: skip


def _points(
    figure: go.Figure,
    x: Sequence[float],
    values: Sequence[Figures],
    name: str,
    colour: str,
    at: tuple[int, int],
    dash: str = "solid",
    legend: bool = True,
) -> None:
    figure.add_scatter(
        x=list(x), y=[v["value"] for v in values], mode="lines+markers", name=name, showlegend=legend,
        line={"color": colour, "dash": dash}, error_y=_bars(values, colour), row=at[0], col=at[1],
        marker={"symbol": "circle" if dash == "solid" else "diamond", "size": 7},
    )  # fmt: skip


def _bars(values: Sequence[Figures], colour: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [v["high"] - v["value"] for v in values],
        "arrayminus": [v["value"] - v["low"] for v in values],
        "color": colour,
        "thickness": 1.5,
        "width": 4,
    }


def _plain(text: str) -> str:
    """Plotly reads a subset of HTML in text."""
    return text.replace("&", "&amp;").replace("<", "&lt;")
