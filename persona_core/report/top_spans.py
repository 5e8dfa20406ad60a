"""The sentences and windows in which a trait is strongest, by run and by the difference between two readers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from persona_core.analysis.spans import Span, difference_series, score_series, top_sentences, top_windows
from persona_core.report.analysed_runs import AnalysedRuns, read_by_both
from persona_core.report.results_folder import SIDES

WIDTHS = (5, 20)
"""Widths in tokens of the windows that are searched, beside sentences."""
N_SPANS = 12
N_SEARCHED = 120
"""The highest of each search; the first `N_SPANS` with different texts are kept."""


def find_top_spans(runs: AnalysedRuns) -> list[dict[str, Any]]:
    """The highest windows and sentences of each run by its score, and of each text by the difference of its readers."""
    found: list[dict[str, Any]] = []
    kind = str(runs.kind)
    for trait in runs.traits:
        null = score_series({f"{k}": t for k, t in enumerate(runs.neutral)}, trait) if runs.neutral else []
        searched = {
            (config, kind): score_series(dict(zip(runs.ids(config), runs.traces[config], strict=True)), trait)
            for config in runs.configs
        }
        texts = list(read_by_both(runs))
        for config in SIDES if texts else ():
            writer = runs.rows[config][0]["writer"]
            own = [(row["id"], a, b) for row, a, b in texts if row["writer"] == writer]
            firsts, seconds = {i: a for i, a, _ in own}, {i: b for i, _, b in own}
            searched[config, "difference"] = difference_series(firsts, seconds, trait)
        for (config, of), series in searched.items():
            against = null if of == kind else []
            tops = {"sentence": top_sentences(series, N_SEARCHED, against)}
            tops |= {f"{width} tokens": top_windows(series, width, N_SEARCHED, against) for width in WIDTHS}
            for unit, top in tops.items():
                texts_of = [s.trace.reply_text for s in series]
                for rank, span in enumerate(_each_text_once(top.spans), 1):
                    same = sum(span.text.strip() in text for text in texts_of)
                    record = {"config": config, "of": of, "unit": unit, "rank": rank, "replies": same}
                    found.append({**record, **span.to_dict()})
    return found


def _each_text_once(spans: Sequence[Span]) -> list[Span]:
    """The first `N_SPANS` with different texts: otherwise one frequent phrase would fill the list."""
    first: dict[str, Span] = {}
    for span in spans:
        first.setdefault(span.text.strip(), span)
    return list(first.values())[:N_SPANS]
