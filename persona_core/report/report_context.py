"""What the sections of the report share: the findings, the traces, and the figures drawn so far."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from persona_core.report.findings import Findings
from persona_core.report.markup import figure_json, plot_placeholder
from persona_core.report.sentences import SCORES
from persona_core.traces.figure import shown
from persona_core.traces.trace import Trace

Row = Mapping[str, Any]


class ReportContext:
    """The findings and the rows of a report, by config; sections add their figures to it.

    Args:
        findings: of `analyse`, or of its files.
        rows: by config, those that were analysed.
    """

    def __init__(self, findings: Findings, rows: Mapping[str, Sequence[Row]]) -> None:
        self.found, self.summary = findings, findings.summary
        self.rows = {c: own for c, own in rows.items() if c in self.summary["how"]}
        self.traces = {c: [Trace.from_row(row) for row in own] for c, own in self.rows.items()}
        self.starts = {c: {row["id"]: int(row["n_prompt"]) for row in own} for c, own in self.rows.items()}
        self.figures: dict[str, Any] = {}
        self.kind = self.summary["about"].get("kind", "z")
        self.score = SCORES[self.kind]
        self.traits = self._ranked()

    def _ranked(self) -> list[str]:
        """The traits, the one with the largest difference (or the most alarms) first."""
        compared = self.summary["comparison"]
        if "missing" not in compared:
            weight = {t: abs((e["total"] or {"value": 0})["value"]) for t, e in compared["overall"].items()}
        elif "missing" not in self.summary["when"]:
            weight = {
                t: sum(c["n"] - c["none"] for c in w["configs"].values()) for t, w in self.summary["when"].items()
            }
        else:
            weight = {}
        return sorted(self.summary["about"]["traits"], key=lambda t: -weight.get(t, 0))

    def plot(self, name: str, figure: go.Figure, says: str) -> str:
        """A placeholder for a figure, with what it shows in words for those who do not see it."""
        self.figures[name] = figure_json(figure)
        return plot_placeholder(name, figure, says)

    def per_trait(self, parts: Mapping[str, str]) -> str:
        """Markup of which report.js shows one trait's at a time."""
        return "".join(f'<div data-trait="{html.escape(t)}" hidden>{part}</div>' for t, part in parts.items())

    def replies(self) -> dict[str, Any]:
        """Tokens, ids and positions of the replies, by config, for the figures in which a dot or a row is a reply.

        Positions count from the first token of a reply, a thought included.
        """
        positions = {c: [[p - t.n_prompt for p in t.reply_positions] for t in own] for c, own in self.traces.items()}
        tokens = {c: [[shown(t.tokens[p]) for p in t.reply_positions] for t in own] for c, own in self.traces.items()}
        return {
            "tokens": tokens,
            "ids": {c: [row["id"] for row in own] for c, own in self.rows.items()},
            "positions": {c: [_compact(own) for own in every] for c, every in positions.items()},
        }


def _compact(positions: Sequence[int]) -> int | list[int]:
    """The first position, where the others follow it one by one.

    >>> _compact([7, 8, 9]), _compact([7, 9])
    (7, [7, 9])
    """
    if positions and list(positions) == list(range(positions[0], positions[0] + len(positions))):
        return positions[0]
    return list(positions)
