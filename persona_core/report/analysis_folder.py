"""Analyse a results folder in place: read all that it holds, write `analysis/` beside the data."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from persona_core.analysis.detectors import DETECTORS_FILE, Detectors
from persona_core.errors import CorruptFile, NotFound
from persona_core.judging.annotations import load_annotations, load_judged_traits
from persona_core.report.analyse import analyse
from persona_core.report.analysed_runs import without_broken
from persona_core.report.card import refresh_results_card
from persona_core.report.findings import Findings
from persona_core.report.interventions import load_interventions
from persona_core.report.page import report_page
from persona_core.report.results_folder import BRANCHES, check_read_with
from persona_core.report.tables import ANNOTATIONS, FINDINGS, JUDGED, REPORT, to_json, write_tables
from persona_core.traces.dataset import ANALYSIS, DATA, configs_of, read_results
from persona_core.utils.files import write_atomically
from persona_core.vectors.vectors import PersonaVectors

if TYPE_CHECKING:
    from persona_core.models.loading import LanguageModel

logger = logging.getLogger(__name__)


def analyse_folder(
    results: str | Path,
    *,
    vectors: str | Path | None = None,
    annotations: str | Path | None = None,
    models: Mapping[str, LanguageModel] | None = None,
    rate: float = 0.05,
    seed: int = 0,
    title: str = "What the replies say",
    progress: bool = True,
) -> Findings:
    """Analyse all runs of a folder and write tables, detectors and the page.

    Args:
        results: with `data/*.parquet`.
        vectors: folder of the vectors: `onset.json` is written there as well, for alarms during generation, unless the
            one there was calibrated for these vectors on more prompts.
        annotations: file of annotated sentences; None: `analysis/marks.jsonl`, if it exists. `judged.json` beside it
            names the traits that were annotated.
        models, rate, seed, progress: as in `analyse`.
        title: heading of the report.

    Raises:
        NotFound: no run in the folder, or no such file of annotations.
        CorruptFile: a file in another format.
        SettingError: the rows were read with other vectors; and as `analyse`.
        NotCalibrated: as `analyse`.
    """
    path = Path(results)
    configs = [config for config in configs_of(path) if config != BRANCHES]  # of the same prompts, and steered
    rows = {config: read_results(path / DATA / f"{config}.parquet") for config in configs}
    if not any(rows.values()):
        raise NotFound(f"No rows in {str(results)!r}, {DATA}/*.parquet; give a folder that persona monitor wrote.")
    rows, left_out = without_broken(rows)
    for says in left_out:
        logger.warning(says)
    folder = path / ANALYSIS
    known = None if vectors is None else PersonaVectors.from_pretrained(vectors)
    if known is not None:
        check_read_with((row for own in rows.values() for row in own), known, str(vectors), "rows")
    annotations_file = folder / ANNOTATIONS if annotations is None else Path(annotations)
    judged = annotations_file.with_name(JUDGED)
    found = analyse(
        rows,
        annotations=load_annotations(annotations_file) if annotations or annotations_file.is_file() else [],
        judged=load_judged_traits(judged) if judged.is_file() else None,
        interventions=load_interventions(path),
        models=models,
        rate=rate,
        seed=seed,
        progress=progress,
    )
    missing = (*left_out, *found.missing)
    summary = {**found.summary, "about": {**found.summary["about"], "missing": list(missing)}}
    found = replace(found, summary=summary, missing=missing, left_out=left_out)
    page = report_page(found, rows, title)  # may raise, so before anything is written
    write_atomically(folder / FINDINGS, to_json(found.summary))
    write_tables(found, folder)
    (folder / DETECTORS_FILE).unlink(missing_ok=True)
    if found.detectors is not None:
        found.detectors.save(folder)
        if vectors is not None and Path(vectors).is_dir():
            _save_beside(found.detectors, Path(vectors))
    write_atomically(folder / REPORT, page)
    refresh_results_card(path)
    return found


def _save_beside(detectors: Detectors, vectors: Path) -> None:
    """Write the detectors into the folder of the vectors, unless those there know more prompts."""
    path = vectors / DETECTORS_FILE
    with suppress(NotFound, CorruptFile):
        there = Detectors.from_pretrained(vectors)
        before, now = (int(d.rests_on.get("n_prompts") or 0) for d in (there, detectors))
        if there.vectors == detectors.vectors and before > now:
            logger.warning("%s is kept: it rests on %d neutral prompts, this analysis on %d", path, before, now)
            return
    detectors.save(vectors)
    logger.info("wrote %s", path)
