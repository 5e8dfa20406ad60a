"""What all figures of the report share: colours, layout, error bars. Text and background colours are the page's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import plotly.graph_objects as go

from persona_core.traces.figure import TRAIT_COLOURS
from persona_core.utils import markdown

Figure = Mapping[str, Any]
SIDE_COLOURS = {"baseline": "#2f6fb5", "contaminated": "#d1495b"}
LEGEND = {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "traceorder": "normal"}
SCALE = [[0, "#1a5fb0"], [0.5, "#ffffff"], [1, "#e07000"]]
"""Diverging, for scores and correlations; the page replaces the middle by its own background."""

interval = partial(markdown.interval, digits=2)
"""An estimate with its interval, as the figures and the page print it."""


def side_colour(config: str, index: int) -> str:
    """The colour of a run: the side's, or the next of the traits' colours."""
    return SIDE_COLOURS.get(config, TRAIT_COLOURS[(index + 2) % len(TRAIT_COLOURS)])


def apply_layout(figure: go.Figure, height: int, **more: Any) -> go.Figure:
    """The layout that all figures share."""
    settings = {"height": height, "margin": {"l": 60, "r": 16, "t": 30, "b": 44}, "template": "none"}
    figure.update_layout(**{**settings, **more}, legend=LEGEND)
    return figure


def error_bars(estimates: Sequence[Figure]) -> dict[str, Any]:
    """Plotly error bars from estimate to the ends of its interval."""
    return {
        "array": [e["high"] - e["value"] for e in estimates],
        "arrayminus": [e["value"] - e["low"] for e in estimates],
        "thickness": 1.2,
        "width": 3,
    }


def faded(colour: str) -> str:
    """A hex colour at 16 % opacity."""
    red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"
