"""Which sentences of the published replies show a trait: `datasets/marks`, for the replies that it was made on.

Another machine may write other replies. The marks then do not fit, and the runs are analysed without any.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from persona_core.judging.annotations import load_annotations, save_annotations, save_judged_traits
from persona_core.report.tables import ANNOTATIONS, JUDGED
from persona_core.utils.files import read_json

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).resolve().parent.parent / "datasets" / "marks"
Row = Mapping[str, Any]


def replies_digest(rows: Mapping[str, Sequence[Row]]) -> str:
    """What the marks depend on: the texts of all replies."""
    texts = {config: {row["id"]: row["response"] for row in own} for config, own in rows.items()}
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()[:16]


def place_marks(rows: Mapping[str, Sequence[Row]], folder: Path, marks: Path = FOLDER) -> bool:
    """Put the marks beside an analysis; False, and nothing is written, where they are of other replies.

    Args:
        rows: by config, the replies to mark.
        folder: of the analysis.
        marks: `about.json` with the digest of the replies and the traits that were looked for, and `marks.jsonl`.
    """
    about = read_json(marks / "about.json") if (marks / "about.json").is_file() else {}
    if about.get("replies") != replies_digest(rows):
        logger.warning("The marks in %s are of other replies; the runs are analysed without marks.", marks)
        return False
    folder.mkdir(parents=True, exist_ok=True)
    save_annotations(load_annotations(marks / "marks.jsonl"), folder / ANNOTATIONS)
    save_judged_traits({config: about["traits"] for config in rows}, folder / JUDGED)
    return True
