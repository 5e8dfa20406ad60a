"""What else could tell replies with the trait from others: length, refusals, where tokens stand, which they are."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_core.analysis.statistics import auroc, pearson, rank_auroc
from persona_core.vectors.controls import TokenTables

if TYPE_CHECKING:
    from persona_core.vectors.held_out import HeldOut

Statistic = Callable[[np.ndarray], float]

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
"""What counts as declining, looked for in the first 200 characters; case and kind of apostrophe do not matter."""
_REFUSAL = re.compile("|".join(REFUSALS), re.IGNORECASE)


def refuses(text: str) -> bool:
    """Whether a reply begins by declining: one of the phrases of `REFUSALS`.

    English phrases only, and few: it misses polite detours, and rather misses a refusal than takes a turn of phrase
    for one.

    >>> refuses("I'm sorry, but I can't help with that."), refuses("I can't help but smile. You cannot lose.")
    (True, False)
    """
    return bool(_REFUSAL.search(text[:200].replace("’", "'")))


def confounds(
    own: np.ndarray, choice: HeldOut, report: HeldOut, tables: TokenTables, estimate: Callable[[Statistic], Any]
) -> dict[str, dict[str, Any]]:
    """What each confound tells about the trait by itself, and how far the vector is ahead of it.

    Args:
        own: the vector's projections of the replies of `report`, `[n]`.
        choice, report: the two splits.
        tables: what position and token say over neutral replies.
        estimate: a figure with its interval, from a statistic of weights `[n]`.
    """
    own_auroc = rank_auroc(own, report.shows)
    length = report.n_tokens.astype(np.float64)
    declines = np.array([refuses(text) for text in report.texts], float)
    # Which way round these two speak is decided on the choice split, like everything else that is chosen: short replies
    # or replies that do not decline may be the ones that show the trait.
    longer = _sign(choice.n_tokens, choice.shows)
    declining = _sign(np.array([refuses(text) for text in choice.texts], float), choice.shows)

    def within_sides(weights: np.ndarray) -> float:
        """Correlation of projection and length, each without the mean of its side."""
        x, y = own.copy(), length.copy()
        for side in (report.asked, ~report.asked):
            total = weights[side].sum()
            if total:
                x[side] -= weights[side] @ x[side] / total
                y[side] -= weights[side] @ y[side] / total
        return pearson(x, y, weights)

    def ahead(scores: np.ndarray) -> dict[str, Any]:
        alone = rank_auroc(scores, report.shows)
        return {"auroc": estimate(alone), "vector_ahead": estimate(lambda w: own_auroc(w) - alone(w))}

    by_position = np.array([tables.from_positions(int(n)) for n in report.n_tokens])
    by_token = np.array([tables.from_tokens(ids) for ids in report.token_ids])
    return {
        "length": {**ahead(longer * length), "sign": longer, "correlation": estimate(within_sides)},
        "refusal": {
            **ahead(declining * declines),
            "sign": declining,
            "share_high": _share(declines[report.asked]),
            "share_low": _share(declines[~report.asked]),
        },
        "position": {"r2": round(tables.position_r2, 5), **ahead(by_position)},
        "token_identity": {"r2": round(tables.token_r2, 5), **ahead(by_token)},
    }


def _sign(values: np.ndarray, shows: np.ndarray) -> int:
    """1 where larger values go with the trait or nothing can be told, -1 where smaller ones do."""
    return -1 if auroc(values.astype(np.float64), shows) < 0.5 else 1


def _share(values: np.ndarray) -> float | None:
    return round(float(values.mean()), 5) if len(values) else None
