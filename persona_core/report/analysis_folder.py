"""Analyse a results folder in place: read what it holds, write `analysis/` beside the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_core.analysis.detectors import DETECTORS_FILE
from persona_core.analysis.interventional import InterventionalEffects
from persona_core.errors import CorruptFile, NotFound, SettingError
from persona_core.judging.annotations import load_annotations, load_judged_traits
from persona_core.report.card import refresh_results_card
from persona_core.report.findings import Findings, analyse, confirmation
from persona_core.report.page import report_page
from persona_core.report.tables import FINDINGS, INTERVENTIONS, JUDGED, MARKS, REPORT, plain, write_tables
from persona_core.traces.dataset import ANALYSIS, DATA, configs_of, read_results
from persona_core.utils.files import read_json, write_whole
from persona_core.vectors.vectors import PersonaVectors

if TYPE_CHECKING:
    from persona_core.experiments.intervention_window import InterventionWindow
    from persona_core.models.loading import LanguageModel


WINDOW_FIELDS = ("n_showing", "n_prompts", "strength", "cells")
CELL_FIELDS = ("k", "arm", "n", "share", "coherence")
"""What the page draws of an intervention."""


def analyse_folder(
    results: str | Path,
    *,
    vectors: str | Path | None = None,
    marks: str | Path | None = None,
    models: Mapping[str, LanguageModel] | None = None,
    rate: float = 0.05,
    seed: int = 0,
    title: str = "What the replies say",
    progress: bool = True,
) -> Findings:
    """Analyse all runs of a folder and write tables, detectors and the page.

    Args:
        results: with `data/*.parquet`.
        vectors: folder of the vectors: their cosines are the floor of couplings, and `onset.json` is written there as
            well, for alarms while a model writes.
        marks: file of marked sentences; None takes `analysis/marks.jsonl` if it is there. `judged.json` beside it says
            what was looked at.
        models, rate, seed, progress: as in `analyse`.
        title: heading of the page.

    Raises:
        NotFound: no run in the folder, or no such file of marks.
        CorruptFile: a file that does not hold what it must.
        SettingError: the rows were read with other vectors; and as `analyse`.
        NotCalibrated: as `analyse`.
    """
    path = Path(results)
    rows = {config: read_results(path / DATA / f"{config}.parquet") for config in configs_of(path)}
    rows = {config: own for config, own in rows.items() if own}
    if not rows:
        raise NotFound(f"{str(results)!r} holds no rows in {DATA}/*.parquet; name a folder that scripts.monitor wrote.")
    folder = path / ANALYSIS
    known = None if vectors is None else PersonaVectors.from_pretrained(vectors)
    read_with = {row["provenance"]["vectors"] for own in rows.values() for row in own}
    if known is not None and read_with != {known.fingerprint}:
        raise SettingError(
            f"The rows were read with vectors {', '.join(sorted(map(str, read_with)))}; those in {str(vectors)!r} are "
            f"{known.fingerprint}. Name the vectors that the rows were read with, or leave --vectors out."
        )
    marks_file = folder / MARKS if marks is None else Path(marks)
    judged = folder / JUDGED if marks is None else Path(marks).with_name(JUDGED)
    found = analyse(
        rows,
        marks=load_annotations(marks_file) if marks is not None or marks_file.is_file() else [],
        judged=load_judged_traits(judged) if judged.is_file() else None,
        vectors=None if known is None else directions(known),
        interventions=_interventions(path)[1],
        models=models,
        rate=rate,
        seed=seed,
        progress=progress,
    )
    page = report_page(found, rows, title)  # before anything is written: old tables go with the old page
    write_whole(folder / FINDINGS, plain(found.summary))
    write_tables(found, folder)
    (folder / DETECTORS_FILE).unlink(missing_ok=True)
    if found.detectors is not None:
        found.detectors.save(folder)
        if vectors is not None and Path(vectors).is_dir():
            found.detectors.save(vectors)
    write_whole(folder / REPORT, page)
    refresh_results_card(path)
    return found


def save_window(results: str | Path, config: str, window: InterventionWindow) -> Path:
    """Keep what holding a trait has changed in one run, for `analyse_folder`; other runs and traits stay."""
    path, kept = _interventions(results)
    kept.setdefault("window", {}).setdefault(config, {})[window.trait] = window.to_dict()
    write_whole(path, plain(kept))
    return path


def save_edges(results: str | Path, config: str, tables: Sequence[InterventionalEffects]) -> Path:
    """Keep what steering each trait of one run's model does to the others, for `analyse_folder`; other runs stay."""
    path, kept = _interventions(results)
    kept.setdefault("confirmed", {})[config] = [table.to_dict() for table in tables]
    write_whole(path, plain(kept))
    return path


def _interventions(results: str | Path) -> tuple[Path, dict[str, Any]]:
    """What is kept of interventions, and where.

    Raises:
        CorruptFile: something else than `save_window` and `save_edges` write.
    """
    path = Path(results) / ANALYSIS / INTERVENTIONS
    kept = read_json(path) if path.is_file() else {}
    try:
        for windows in kept.get("window", {}).values():
            for window in windows.values():
                cells = [(field, cell) for cell in window["cells"] for field in CELL_FIELDS]
                for field, record in [*((field, window) for field in WINDOW_FIELDS), *cells]:
                    record[field]
        for tables in kept.get("confirmed", {}).values():
            for table in tables:
                confirmation(table)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CorruptFile(
            f"{path}: not what scripts.intervene writes ({type(error).__name__}: {error}). Delete it, or run it again."
        ) from error
    return path, kept


def directions(vectors: PersonaVectors) -> dict[str, np.ndarray]:
    """Each trait's vector at the block at which most traits are read best, float32 `[d_model]`."""
    if not vectors.best_block:
        raise SettingError("The vectors name no best block, so their cosines belong nowhere. Leave --vectors out.")
    block = Counter(vectors.best_block.values()).most_common(1)[0][0]
    return {trait: vectors.tensor(trait)[block].numpy() for trait in vectors.traits}
