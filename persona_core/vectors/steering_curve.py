"""Steering curves from judged replies, and the comparison with random directions at equal coherence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from persona_core.analysis.bounded import Statistic
from persona_core.analysis.statistics import bounded, bounded_difference, jackknifed
from persona_core.judging.judge import MIN_SCORE
from persona_core.vectors.held_out import figure

Scores = dict[tuple[str, float, str], np.ndarray]
"""Arm, strength, and "trait" or "coherence" -> a judge's scores `[questions, seeds]`, NaN for none."""

MATCH_STEPS = 7
"""Strengths of the random arm that are tried at most to match the vector arm's coherence."""
MATCH_TOLERANCE = 5.0
"""Points of coherence, of 100, by which a match may differ; the intervals of the arms are about twice as wide."""
MIN_DIFFERING = 6
"""Questions. Simulated with 20 questions and 3 replies, the interval then covers in 93 to 99 % of the data sets."""
MAX_FACTOR = 16.0
"""The random arm is pushed up to this many times the vector arm's strength."""


def steering_curve(scores: Scores, strengths: Sequence[float]) -> dict[str, Any]:
    """Both arms by strength, and the effect at the largest strength at which the vector arm is coherent."""
    strengths = sorted({0.0, *strengths})

    def of(arm: str, strength: float, what: str) -> np.ndarray:
        return scores["none" if strength == 0 else arm, strength, what]

    arms = {
        arm: [
            {"strength": strength, **{what: _figure(of(arm, strength, what)) for what in ("trait", "coherence")}}
            for strength in strengths
        ]
        for arm in ("vector", "random")
    }
    positive = [s for s in strengths if s > 0]
    coherent = [s for s in positive if _level(of("vector", s, "coherence")) >= MIN_SCORE]
    at = max(coherent, default=positive[0])
    return {
        **arms,
        "effect": _difference(of("vector", at, "trait"), of("random", at, "trait")) if coherent else None,
        "effect_at": at,
        "matched": None,
    }


def matched_on_coherence(scores: Scores, at: float, more: Callable[[float], Scores]) -> dict[str, Any]:
    """The vector arm at strength `at` against the random arm at the strength where its coherence is nearest.

    The random arm's strength is doubled until it is less coherent than the vector arm, then halved in between.

    Args:
        scores: of the strengths that were planned.
        at: strength of the vector arm.
        more: writes and judges the random arm at another strength.
    """
    goal = _level(scores["vector", at, "coherence"])
    tried = {s: found for (arm, s, what), found in scores.items() if arm == "random" and what == "coherence" and s > 0}
    found = dict(scores)

    def distance(strength: float) -> float:
        return abs(_level(tried[strength]) - goal)

    for _ in range(MATCH_STEPS):
        if min(map(distance, tried)) <= MATCH_TOLERANCE:
            break
        above = [s for s in tried if _level(tried[s]) > goal]  # still too coherent
        below = [s for s in tried if _level(tried[s]) <= goal]
        low = max(above, default=0.0)
        higher = [s for s in below if s > low]
        # The middle of two strengths on a log scale; below the smallest of them, half of it.
        strength = (float(np.sqrt(low * min(higher))) if low else min(higher) / 2) if higher else 2 * low
        if strength > MAX_FACTOR * at:
            break
        found.update(more(strength))
        tried[strength] = found["random", strength, "coherence"]
    best = min(tried, key=lambda s: (distance(s), s))
    near = distance(best) <= MATCH_TOLERANCE
    return {
        "strength": round(best, 5),
        "coherence_vector": _figure(scores["vector", at, "coherence"]),
        "coherence_random": _figure(tried[best]),
        "trait_random": _figure(found["random", best, "trait"]),
        "effect": _difference(scores["vector", at, "trait"], found["random", best, "trait"]) if near else None,
    }


def _level(values: np.ndarray) -> float:
    """The mean of the known scores; -1 without any."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else -1.0


def _figure(values: np.ndarray) -> dict[str, Any] | None:
    """Mean of the known scores, with an interval over questions; None where there is none."""
    known = np.isfinite(values)
    return figure(bounded(_mean(values[known]), np.nonzero(known)[0], 0, 100))


def _difference(first: np.ndarray, second: np.ndarray) -> dict[str, Any] | None:
    """Mean difference where both scores are known, with an interval over questions; None where there is none.

    Student's t over the questions' own differences where `MIN_DIFFERING` of them differ: an arm that never shows the
    trait has no spread, and the interval of a share alone would hide effects of up to 17 points of 100.
    """
    known = np.isfinite(first) & np.isfinite(second)
    of = np.nonzero(known)[0]
    change = (first - second)[known]
    if len(np.unique(of[change != 0])) >= MIN_DIFFERING:
        return figure(jackknifed(_mean(change), of))
    return figure(bounded_difference(_mean(first[known]), _mean(second[known]), of, 0, 100))


def _mean(values: np.ndarray) -> Statistic:
    return lambda w: float(w @ values / w.sum()) if w.sum() else float("nan")
