"""What an analysis of a results folder found, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from persona_core.analysis.detectors import Detectors

FORMAT_VERSION = 1
SECTIONS = ("about", "statistics", "when", "how", "where", "window", "comparison")


@dataclass(frozen=True, eq=False)
class Findings:
    """The results of all analyses.

    Attributes:
        summary: all figures, JSON-ready, by section (`SECTIONS`). A section without enough data holds
            `{"missing": reason}` in place of figures.
        replies: one record for each reply and trait: onset, mean, maximum, first annotated token, its prompt's effects.
        differences: one record for each text that both models have read: trait -> z of the contaminated reader minus z
            of the baseline, token by token.
        spans: highest windows and sentences, by config and trait.
        detectors: calibrated on the neutral replies; None without enough of them.
        missing: what could not be analysed, and why.
        left_out: rows that hold a number that is not finite, and had no part in it.
    """

    summary: dict[str, Any]
    replies: list[dict[str, Any]]
    differences: list[dict[str, Any]]
    spans: list[dict[str, Any]]
    detectors: Detectors | None
    missing: tuple[str, ...]
    left_out: tuple[str, ...] = ()
