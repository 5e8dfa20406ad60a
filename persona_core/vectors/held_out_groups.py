"""Instruction wordings and reply styles held out: directions from the other wordings, tried on the one left out.

All replies of an evaluation answer new questions, but under the instructions that extraction used, and in the style
that goes with them. Here each group of replies (an instruction pair, short or long replies, lists or prose) is scored
along a direction made of extraction replies of the other groups only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from persona_core.analysis.bounded import Statistic
from persona_core.analysis.statistics import bounded, rank_auroc
from persona_core.vectors.controls import ExtractionReplies, one_block
from persona_core.vectors.extraction import MIN_REPLIES, Method, Sides
from persona_core.vectors.held_out import HeldOut, figure, project_rows

ToReading = Callable[[np.ndarray], np.ndarray]
"""From a steering direction `[d_model]` at the chosen block to the reading direction there."""

_LAYOUT = re.compile(r"^\s*(?:[-*•+]\s|\d{1,2}[.)]\s|#{1,6}\s|```|\|)|\*\*", re.MULTILINE)


def has_layout(text: str) -> bool:
    """Whether a reply uses Markdown layout: a list, a heading, a table, a code block or bold type.

    >>> has_layout("First:\\n- salt\\n- flour"), has_layout("It is 5 - 3 of them, and that is fine.")
    (True, False)
    """
    return bool(_LAYOUT.search(text))


def wordings(
    extracted: ExtractionReplies, report: HeldOut, block: int, method: Method, to_reading: ToReading | None = None
) -> dict[str, Any] | None:
    """Each instruction pair left out of the direction and tried; None where the pairs are unknown, or there is one.

    Args:
        extracted: the extraction replies; `to_reading` may rest on all of them.
        report: held-out replies.
        block: the chosen block.
        method: makes a direction from the extraction replies of the other pairs.
        to_reading: None: the steering direction is read along as it is.
    """
    positive, negative, own = extracted.positive_pairs, extracted.negative_pairs, report.pair
    if positive is None or negative is None or own is None:
        return None
    return _left_out(extracted, (positive, negative), report, own, block, method, to_reading)


def styles(
    extracted: ExtractionReplies, report: HeldOut, block: int, method: Method, to_reading: ToReading | None = None
) -> dict[str, dict[str, Any] | None]:
    """Reply styles left out of the direction and tried: "length" (by the median of the words) and "layout".

    A style is None where the replies do not have both kinds. Arguments as in `wordings`.
    """
    texts = (extracted.positive_texts, extracted.negative_texts, report.texts)
    words = [np.array([len(text.split()) for text in of]) for of in texts]
    middle = np.median(np.concatenate(words[:2])) if len(words[0]) + len(words[1]) else 0
    kinds: dict[str, Sequence[np.ndarray]] = {
        "length": [np.where(n > middle, "long", "short") for n in words],
        "layout": [np.array(["layout" if has_layout(text) else "prose" for text in of], str) for of in texts],
    }
    return {
        name: _left_out(extracted, (positive, negative), report, own, block, method, to_reading)
        for name, (positive, negative, own) in kinds.items()
    }


def _left_out(
    extracted: ExtractionReplies,
    groups: tuple[np.ndarray, np.ndarray],
    report: HeldOut,
    group: np.ndarray,
    block: int,
    method: Method,
    to_reading: ToReading | None,
) -> dict[str, Any] | None:
    """AUROC over pairs of replies of the same group, each scored without its group; and of each group.

    None where no group can be left out: another is needed with `MIN_REPLIES` on both sides.
    """
    if not len(report):
        return None
    sides, states = one_block(extracted, block), report.states.block(block)  # [n, d_model]
    shows, parts = report.shows, []
    found: dict[str, Any] = {}
    for name in np.unique(group):
        rows = np.flatnonzero(group == name)
        positive, negative = (np.flatnonzero(of != name) for of in groups)
        seen = min(len(positive), len(negative)) >= MIN_REPLIES
        if not seen or not shows[rows].any() or shows[rows].all():
            continue
        direction = method(Sides(sides.positive.take(positive), sides.negative.take(negative), sides.neutral))[0]
        scores = project_rows(states[rows], (to_reading or np.asarray)(direction))
        parts.append((rows, rank_auroc(scores, shows[rows])))
        auroc = bounded(parts[-1][1], report.question[rows])
        found[str(name)] = {"replies": len(rows), "auroc": figure(auroc)}
    if not parts:
        return None
    pooled = bounded(_within_groups(parts, shows), report.question)
    return {"auroc": figure(pooled), "groups": found}


def _within_groups(parts: Sequence[tuple[np.ndarray, Statistic]], shows: np.ndarray) -> Statistic:
    """The share of pairs of one group, a reply with the trait and one without, that are ordered rightly."""

    def auroc(weights: np.ndarray) -> float:
        right = pairs = 0.0
        for rows, within in parts:
            w = weights[rows]
            n = float(w[shows[rows]].sum() * w[~shows[rows]].sum())
            if n:
                right += n * within(w)
                pairs += n
        return right / pairs if pairs else float("nan")

    return auroc
