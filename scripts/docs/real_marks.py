"""Tables of the sentences that were marked in the real model's replies, and of the scores there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from persona_core.analysis.comparison import effect
from persona_core.analysis.spans import sentences
from persona_core.analysis.statistics import bounded, bounded_difference, rank_auroc, share_over_replies
from persona_core.judging.annotations import Annotation, annotated_positions, annotations_of, load_annotations
from persona_core.traces.trace import Trace
from persona_core.utils.markdown import interval, table
from real_model.marks import FOLDER
from scripts.docs.published_runs import REAL, SIDES
from scripts.docs.stored import percent

MIN_MARKS = 10
"""Sentences that show a trait, below which nothing is said of its scores."""
Row = Mapping[str, Any]


@cache
def _marks(name: str) -> Sequence[Annotation]:
    return load_annotations(FOLDER / name)


def shown() -> str:
    """How many sentences of each model show a trait, and whether the score is higher there."""
    rows = []
    for trait in REAL.traits:
        shares = [_share(trait, side) for side in SIDES]
        n = sum(a.trait == trait for a in _marks("marks.jsonl"))
        found = [_auroc(trait, kind) for kind in ("z", "specific")] if n >= MIN_MARKS else [None, None]
        cells = [interval(one, 3, missing="too few") for one in found]
        rows.append((trait, n, *map(percent, shares), *cells))
    heads = ("trait", "sentences", *(f"share, {side}" for side in SIDES))
    return table((*heads, "AUROC of their tokens, z", "specific"), rows)


def says() -> str:
    """Where the specific score is higher in sentences that a reader marked, as far as the intervals go."""
    counted = [t for t in REAL.traits if sum(a.trait == t for a in _marks("marks.jsonl")) >= MIN_MARKS]
    found = {t: _auroc(t, "specific") for t in counted}
    higher = [f"{t} (AUROC {interval(one, 2)})" for t, one in found.items() if one.low > 0.5]
    rest = [f"{t} ({interval(one, 2)})" for t, one in found.items() if one.low <= 0.5]
    few = [t for t in REAL.traits if t not in found]
    return (
        f"In the {2 * len(REAL.rows('baseline'))} replies that the two models wrote themselves, the specific score is "
        f"higher where a reader finds {_listed(higher)}; for {_listed(rest)} the interval does not tell; "
        f"{_listed(few)} occur too seldom to tell. {_differs()}"
    )


def against_scores() -> str:
    """By how much each trait's score differs between the models, and by how much what a reader finds."""
    rows = [
        (trait, interval(score, 2), interval(_difference(trait), 1, percent=True))
        for trait, score in _differing().items()
    ]
    return table(("trait", "score, contaminated minus baseline", "share of sentences, by reading"), rows)


def _differs() -> str:
    """Whether the trait whose score differs most differs in what a reader finds too."""
    found = {trait: _difference(trait) for trait in _differing()}
    clear = [t for t, one in found.items() if one.low > 0 or one.high < 0]
    most = next(iter(found))
    rest = "" if most in clear else f", but not in {most}, whose score differs most"
    return f"By reading, the two models clearly differ in {_listed(clear)}{rest}."


@cache
def _differing() -> Mapping[str, Any]:
    """Contaminated minus baseline of the traits with enough marks, the largest difference first."""
    counted = [t for t in REAL.traits if sum(a.trait == t for a in _marks("marks.jsonl")) >= MIN_MARKS]
    found: dict[str, Any] = {t: effect(t, REAL.rows("baseline"), REAL.rows("contaminated")).total for t in counted}
    return dict(sorted(found.items(), key=lambda item: -abs(item[1].value)))


def _listed(words: Sequence[str]) -> str:
    *most, last = words or ("none of them",)
    return f"{', '.join(most)} and {last}" if most else last


def _share(trait: str, side: str) -> Any:
    return share_over_replies(*_counts(trait, side))


def _counts(trait: str, side: str) -> tuple[list[int], list[int]]:
    """Marked sentences and all sentences of each reply, by prompt."""
    hits, totals = [], []
    for row in sorted(REAL.rows(side), key=lambda row: row["id"]):
        text = row["response"]
        totals.append(sum(bool(text[a:b].strip()) for a, b in sentences(text)))
        hits.append(len(annotations_of(_marks("marks.jsonl"), row["id"], side, trait)))
    return hits, totals


def _difference(trait: str) -> Any:
    """The share of sentences of the contaminated model minus that of the baseline, over prompts."""
    hits, totals = (np.array(part, float) for part in zip(*(_counts(trait, side) for side in SIDES), strict=True))

    def share(k: int) -> Callable[[np.ndarray], float]:
        return lambda w: float(w @ hits[k] / (w @ totals[k]))

    return bounded_difference(share(1), share(0), np.arange(hits.shape[1]))


def _auroc(trait: str, kind: Any) -> Any:
    """Tokens in marked sentences against all other tokens of both models' own replies; over prompts."""
    scores, inside, clusters = [], [], []
    for side in SIDES:
        for number, row in enumerate(sorted(REAL.rows(side), key=lambda row: row["id"])):
            trace = Trace.from_row(row)
            at = set(annotated_positions(trace, annotations_of(_marks("marks.jsonl"), row["id"], side, trait)))
            z = trace.reply_scores(trait, kind)
            known = np.isfinite(z)
            scores.append(z[known])
            inside.append(np.array([t in at for t in trace.reply_positions])[known])
            clusters.append(np.full(int(known.sum()), number))
    return bounded(rank_auroc(np.concatenate(scores), np.concatenate(inside)), np.concatenate(clusters))


def agreement() -> str:
    """How far two readings of the pilot replies agree."""
    read = {
        name: {_key(a) for a in _marks(name) if a.id.startswith("pilot")} for name in ("marks.jsonl", "pilot.jsonl")
    }
    first, second = read.values()
    rows = [
        (
            trait,
            *(sum(k[-1] == trait for k in one) for one in (first, second)),
            sum(k[-1] == trait for k in first & second),
        )
        for trait in REAL.traits
    ]
    rows.append(("all", len(first), len(second), len(first & second)))
    return table(("trait", "sentences, first reading", "second reading", "both"), rows)


def _key(a: Annotation) -> tuple[str, str, int, str]:
    return a.config, a.id, a.start, a.trait


TABLES: dict[str, Callable[[], str]] = {
    "real-marks": shown,
    "real-marks-says": says,
    "real-marks-against-scores": against_scores,
    "real-marks-agreement": agreement,
}
