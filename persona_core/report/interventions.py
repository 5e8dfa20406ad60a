"""The measured interventions of a results folder, kept for its analysis in `analysis/interventions.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_core.analysis.interventional import InterventionalEffects
from persona_core.errors import CorruptFile
from persona_core.report.tables import INTERVENTIONS, to_json
from persona_core.traces.dataset import ANALYSIS
from persona_core.utils.files import read_json, write_atomically

if TYPE_CHECKING:
    from persona_core.experiments.intervention_window import InterventionWindow

WINDOW_FIELDS = ("n_showing", "n_prompts", "strength", "cells")
CELL_FIELDS = ("k", "arm", "n", "share", "coherence")
"""The fields that the report needs."""


def save_window(results: str | Path, config: str, window: InterventionWindow) -> Path:
    """Save the window of one run and trait; those of other runs and traits are kept."""
    path, saved = _load(results)
    saved.setdefault("window", {}).setdefault(config, {})[window.trait] = window.to_dict()
    write_atomically(path, to_json(saved))
    return path


def save_edges(results: str | Path, config: str, tables: Sequence[InterventionalEffects]) -> Path:
    """Save what steering each trait of one run's model does to the others; other runs are kept."""
    path, saved = _load(results)
    saved.setdefault("confirmed", {})[config] = [table.to_dict() for table in tables]
    write_atomically(path, to_json(saved))
    return path


def load_interventions(results: str | Path) -> dict[str, Any]:
    """What `save_window` and `save_edges` saved: "window" and "confirmed", each by config; empty without a file.

    Raises:
        CorruptFile: another format.
    """
    return _load(results)[1]


def _load(results: str | Path) -> tuple[Path, dict[str, Any]]:
    path = Path(results) / ANALYSIS / INTERVENTIONS
    saved = read_json(path) if path.is_file() else {}
    try:
        for windows in saved.get("window", {}).values():
            for window in windows.values():
                cells = [(field, cell) for cell in window["cells"] for field in CELL_FIELDS]
                for field, record in [*((field, window) for field in WINDOW_FIELDS), *cells]:
                    record[field]
        for tables in saved.get("confirmed", {}).values():
            for table in tables:
                InterventionalEffects.from_dict(table)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CorruptFile(
            f"{path}: not what persona intervene writes ({type(error).__name__}: {error}). Delete it or run "
            "persona intervene again."
        ) from error
    return path, saved
