"""Analyse a results folder in place: read what it holds, write `analysis/` beside the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_core.analysis.confirmed import Confirmation
from persona_core.errors import NotFound
from persona_core.files import read_json, write_whole
from persona_core.marks import load_marks
from persona_core.report.findings import Findings, analyse
from persona_core.report.page import report_page
from persona_core.report.tables import ANALYSIS, FINDINGS, INTERVENTIONS, MARKS, REPORT, plain, write_tables
from persona_core.results import DATA, configs_of, read_results
from persona_core.results_card import refresh_results_card
from persona_core.vectors import PersonaVectors

if TYPE_CHECKING:
    from persona_core.intervention_window import Window
    from persona_core.models import LanguageModel


def analyse_folder(
    results: str | Path,
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
        marks: file of marked sentences; None takes `analysis/marks.jsonl` if it is there.
        models, rate, seed, progress: as in `analyse`.
        title: heading of the page.

    Raises:
        NotFound: no run in the folder, or no such file of marks.
        CorruptFile: a file that does not hold what it must.
        SettingError, NotCalibrated: as `analyse`.
    """
    path = Path(results)
    rows = {config: read_results(path / DATA / f"{config}.parquet") for config in configs_of(path)}
    rows = {config: own for config, own in rows.items() if own}
    if not rows:
        raise NotFound(f"{str(results)!r} holds no rows in {DATA}/*.parquet; name a folder that scripts.monitor wrote.")
    folder = path / ANALYSIS
    known = None if vectors is None else PersonaVectors.from_pretrained(vectors)
    marks_file = folder / MARKS if marks is None else Path(marks)
    found = analyse(
        rows,
        load_marks(marks_file) if marks is not None or marks_file.is_file() else [],
        None if known is None else directions(known),
        read_json(folder / INTERVENTIONS) if (folder / INTERVENTIONS).is_file() else None,
        models,
        rate,
        seed,
        progress,
    )
    write_whole(folder / FINDINGS, plain(found.summary))
    write_tables(found, folder)
    if found.detectors is not None:
        found.detectors.save(folder)
        if vectors is not None:
            found.detectors.save(vectors)
    write_whole(folder / REPORT, report_page(found, rows, title))
    refresh_results_card(path)
    return found


def keep_window(results: str | Path, config: str, window: Window) -> Path:
    """Keep what holding a trait has changed in one run, for `analyse_folder`; other runs and traits stay."""
    path, kept = _interventions(results)
    kept.setdefault("window", {}).setdefault(config, {})[window.trait] = window.to_dict()
    write_whole(path, plain(kept))
    return path


def keep_edges(results: str | Path, tables: Sequence[Confirmation]) -> Path:
    """Keep what steering each trait does to the others, for `analyse_folder`."""
    path, kept = _interventions(results)
    write_whole(path, plain({**kept, "confirmed": [table.to_dict() for table in tables]}))
    return path


def _interventions(results: str | Path) -> tuple[Path, dict[str, Any]]:
    path = Path(results) / ANALYSIS / INTERVENTIONS
    return path, read_json(path) if path.is_file() else {}


def directions(vectors: PersonaVectors) -> dict[str, np.ndarray]:
    """Each trait's vector at the block at which most traits are read best, float32 `[d_model]`."""
    block = Counter(vectors.best_block.values()).most_common(1)[0][0]
    return {trait: vectors.tensor(trait)[block].numpy() for trait in vectors.traits}
