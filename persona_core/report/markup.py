"""Pieces of the report's markup: sections, placeholders of figures, cells and lists. All texts are escaped."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from persona_core.report.figure_style import interval
from persona_core.report.pairs import READ_BY_BOTH, TEXTS
from persona_core.report.sentences import SCORES

N_SHOWN = 8
"""Sentences listed for each search; the file holds all."""


def figure_json(figure: go.Figure) -> dict[str, Any]:
    """A figure as JSON, without Plotly's template: report.js knows the theme."""
    record: dict[str, Any] = json.loads(figure.to_json())
    record["layout"].pop("template", None)
    return record


def plot_placeholder(name: str, figure: go.Figure, says: str) -> str:
    """Where report.js draws a figure. The figure's height is reserved, so that nothing jumps when it is drawn."""
    return (
        f'<div class="plot" data-figure="{html.escape(name)}" data-height="{figure.layout.height:g}" role="img" '
        f'aria-label="{html.escape(says)}"></div>'
    )


def section(title: str, question: str, body: str) -> str:
    return f"<section><h2>{title} <small>{question}</small></h2>{body}</section>"


def answer(says: str, plot: str, heading: str) -> str:
    """Sentences, and beside them the one figure that shows it.

    Args:
        says: markup.
        plot: where the figure is drawn.
        heading: of the figure, as text.
    """
    return f'<div class="answer"><div>{says}</div><div><h3>{html.escape(heading)}</h3>{plot}</div></div>'


def folded(summary: str, body: str) -> str:
    """What is shown on request; report.js draws no figure in it before."""
    return f"<details><summary>{summary}</summary>{body}</details>" if body else ""


def folded_section(title: str, question: str, body: str) -> str:
    """A section of which only the heading shows."""
    return f"<section>{folded(f'<h2>{title} <small>{question}</small></h2>', body)}</section>"


def reader_name(about: Mapping[str, Any], config: str) -> str:
    return html.escape(about["readers"].get(config) or "an unknown model")


def spans_source(config: str, of: str) -> str:
    if of == "difference":
        return f"{config}'s text, by the difference between the two readers"
    return f"{config}, by {SCORES.get(of, of)}"


def statistic_cell(own: Mapping[str, Any], name: str) -> str:
    changed = " (not a result: sink tokens change it)" if name == "mean" and own.get("changed_by_sinks") else ""
    return interval(own.get(name), missing="–") + changed


def listed_spans(spans: Sequence[Mapping[str, Any]], shown: int = N_SHOWN) -> str:
    """Sentences, each of which report.js makes a link to its reply where replies can be opened."""
    items = []
    for s in spans[:shown]:
        share = s["unusual"]
        null = (
            ""
            if share is None
            else ", < 1 % of neutral text"
            if share < 0.01
            else f", {100 * share:.0f} % of neutral text"
        )
        often = "" if s["replies"] <= 1 else f", in {s['replies']} replies"
        text, where = html.escape(s["text"].strip()), html.escape(s["id"] + often + null)
        place = f'data-id="{html.escape(s["id"])}" data-at="{int(s["at"])}"'
        if s.get("of") == "difference":  # of the two readings of one text
            place += f' data-text="{TEXTS.index(READ_BY_BOTH[s["config"]])}"'
        items.append(
            f'<li><b>{s["value"]:+.1f}</b><span><q dir="auto" {place}>{text}</q><small>{where}</small></span></li>'
        )
    return f'<ol class="spans">{"".join(items)}</ol>'
