"""What else could tell replies with the trait from others: length, refusals, token positions, token identity."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from persona_core.analysis.statistics import auroc, bounded, bounded_difference, pearson, rank_auroc
from persona_core.vectors.controls import TokenTables
from persona_core.vectors.held_out import HeldOut, figure

REFUSALS = (
    # "I can't help with that", "I cannot in good conscience provide"; not "I can't help but smile", "I can't wait"
    r"\bi(?:'m| am)? ?(?:cannot|can ?not|can't|couldn't|not able to|unable to|won't|will not)(?: be able to)?"
    r"(?: \w+ly| in good conscience)? (?:assist|provide|comply|fulfil|discuss|generate|participate|take part|engage in|"
    r"(?:answer|do|support) (?:that|this)|offer advice|help(?: you)? (?:with|to|do))\b",
    # "Sorry, can't help with that"; not "You cannot help with everything"
    r"(?:^|[.,!:;] ?|\bbut |\bwe )(?:cannot|can't|unable to|not able to) (?:help|assist)(?: you)? with\b",
    r"\bi (?:must|have to|need to|will have to) (?:\w+ly )?(?:decline|refuse)\b",
    r"\bi(?:'m| am) not (?:comfortable|willing|allowed|permitted)\b",
    r"\bi (?:do not|don't) feel comfortable\b",
    r"\bas an ai(?: language)?(?: model| assistant)?,? i (?:cannot|can ?not|can't|am (?:not able|unable)|won't|must)\b",
)
"""Phrases that decline, searched in the first 200 characters, ignoring case and the kind of apostrophe."""
_REFUSAL = re.compile("|".join(REFUSALS), re.IGNORECASE)


def refuses(text: str) -> bool:
    """Whether a reply begins by declining, with one of the phrases in `REFUSALS`.

    English only, and few phrases: indirect refusals are missed, so that idioms are not taken for refusals.

    >>> refuses("I'm sorry, but I can't help with that."), refuses("I can't help but smile. You cannot lose.")
    (True, False)
    """
    return bool(_REFUSAL.search(text[:200].replace("’", "'")))


def confounds(
    projections: np.ndarray, choice: HeldOut, report: HeldOut, tables: TokenTables
) -> dict[str, dict[str, Any]]:
    """The AUROC of each confound alone, and the vector's lead over it.

    Args:
        projections: of the replies of `report` on the vector, `[n]`.
        choice, report: the two splits.
        tables: mean projections by position and token over neutral replies.
    """
    vector_auroc = rank_auroc(projections, report.shows)
    length = report.n_tokens.astype(np.float64)
    declines = np.array([refuses(text) for text in report.texts], float)
    # The sign of these two is chosen on the choice split: short replies, or replies that do not decline, may be those
    # that show the trait.
    longer = _sign(choice.n_tokens, choice.shows)
    declining = _sign(np.array([refuses(text) for text in choice.texts], float), choice.shows)

    def within_sides(weights: np.ndarray) -> float:
        """Correlation of projection and length, each centred within its side."""
        x, y = projections.copy(), length.copy()
        for side in (report.positive, ~report.positive):
            total = weights[side].sum()
            if total:
                x[side] -= weights[side] @ x[side] / total
                y[side] -= weights[side] @ y[side] / total
        return pearson(x, y, weights)

    def ahead(scores: np.ndarray) -> dict[str, Any]:
        alone = rank_auroc(scores, report.shows)
        return {
            "auroc": figure(bounded(alone, report.question)),
            "vector_ahead": figure(bounded_difference(vector_auroc, alone, report.question)),
        }

    at = report.pooled_positions
    by_position = np.array([tables.from_positions(positions) for positions in at])
    by_token = np.array(
        [tables.from_tokens([ids[t] for t in positions]) for ids, positions in zip(report.token_ids, at, strict=True)]
    )
    return {
        "length": {
            **ahead(longer * length),
            "sign": longer,
            "correlation": figure(bounded(within_sides, report.question, -1, 1)),
        },
        "refusal": {
            **ahead(declining * declines),
            "sign": declining,
            "share_high": _share(declines[report.positive]),
            "share_low": _share(declines[~report.positive]),
        },
        "position": {"r2": round(tables.position_r2, 5), **ahead(by_position)},
        "token_identity": {"r2": round(tables.token_r2, 5), **ahead(by_token)},
    }


def _sign(values: np.ndarray, shows: np.ndarray) -> int:
    """-1 where smaller values go with the trait, otherwise 1."""
    return -1 if auroc(values.astype(np.float64), shows) < 0.5 else 1


def _share(values: np.ndarray) -> float | None:
    return round(float(values.mean()), 5) if len(values) else None
