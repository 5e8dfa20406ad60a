"""The published analysis as content for static/report.js, in the app and on the static site."""

from __future__ import annotations

import logging
from typing import Any

from persona_core.errors import CorruptFile
from persona_core.report.content import report_content
from persona_core.report.results_folder import REPLAY, ResultsFolder
from persona_core.report.saved_runs import SavedRuns

logger = logging.getLogger(__name__)


def analysis_content(runs: SavedRuns) -> dict[str, Any]:
    """The content of the analysis that lies beside the runs; see `report_content`.

    Raises:
        NotFound: the results were not analysed.
        CorruptFile: an incomplete or unreadable analysis.
    """
    found = ResultsFolder(runs.source).findings()
    rows = {c: runs.rows(c) for c in (*runs.configs, REPLAY) if runs.rows(c)}
    try:
        return report_content(found, rows)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        logger.exception("The analysis could not be shown")
        raise CorruptFile(
            f"The analysis of these results cannot be shown ({type(error).__name__}). Analyse them again: "
            "persona analyse"
        ) from error
