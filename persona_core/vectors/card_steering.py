"""What to steer with: strengths that left the replies coherent, and where a cap leaves neutral text alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from persona_core.judging.judge import MIN_SCORE
from persona_core.utils.markdown import escape, interval, table
from persona_core.vectors.verdict import Figures

if TYPE_CHECKING:
    from persona_core.vectors.vectors import PersonaVectors

RARE = 0.99
"""Share of neutral tokens that a suggested cap leaves as they are."""


def steering_section(vectors: PersonaVectors) -> str:
    """Strengths and caps to begin with, as Markdown; "" for vectors without a null along the steering direction."""
    validation = vectors.config.get("validation", {})
    caps = {trait: cap_threshold(vectors, trait) for trait in vectors.traits}
    if all(cap is None for cap in caps.values()):
        return ""
    curves = {trait: validation.get(trait, {}).get("steering") for trait in vectors.traits}
    rows = [
        (
            escape(trait),
            vectors.best_block.get(trait),
            *_coherent(curves[trait]),
            "not measured" if caps[trait] is None else f"{caps[trait]:.2f}",
        )
        for trait in vectors.traits
    ]
    measured = (
        f"""Strengths are in norms of the vector. **Coherent**: those tried at which the interval of the mean coherence
lies above {MIN_SCORE:g} of 100, with the trait score and the coherence at the last of them. Where that is the largest
tried, a larger one may be coherent too."""
        if any(curves.values())
        else "Steering was not measured for these vectors."
    )
    return f"""## Strengths and caps to begin with

{measured}

**Cap**: the {100 * RARE:g}th percentile of neutral tokens, in standard deviations along the steering direction.
`Steer.cap(trait, block=block, threshold=cap, unit="sd")` changes one neutral token in a hundred.

{table(["trait", "block", "coherent strengths", "trait score at the last", "coherence there", "cap (sd)"], rows)}
"""


def cap_threshold(vectors: PersonaVectors, trait: str) -> float | None:
    """The `RARE` quantile of neutral tokens along the steering direction at the trait's best block, as a z score.

    None where the vectors do not hold it.
    """
    null, block = vectors.null_of_steering(trait), vectors.best_block.get(trait)
    if null is None or block is None or RARE not in null.probabilities:
        return None
    mean, std = null.at(block)
    cap = (float(null.quantiles[block, null.probabilities.index(RARE)]) - mean) / std if std > 0 else math.nan
    return cap if math.isfinite(cap) else None


def coherent_push(vectors: PersonaVectors, trait: str) -> float | None:
    """The largest strength tried that left the replies coherent, in standard deviations of neutral text.

    None where none did, where none was tried, or where that unit is not known.
    """
    curve = vectors.config.get("validation", {}).get(trait, {}).get("steering")
    kept = _kept(curve)
    if not kept or curve.get("norm_in_sd") is None:
        return None
    return float(max(p["strength"] for p in kept) * curve["norm_in_sd"])


def suggested_amount(vectors: PersonaVectors, trait: str, mode: Literal["add", "cap"]) -> float | None:
    """How far to push a trait, or where to cap it, in standard deviations rounded to 0.01: what the card suggests.

    A cap leaves all but one neutral token in a hundred as it is; a push is the strongest that left replies coherent,
    rounded down, since a stronger one may not be. None where the vectors hold no such figure.
    """
    known = (coherent_push if mode == "add" else cap_threshold)(vectors, trait)
    if known is None:
        return None
    return math.floor(100 * known) / 100 if mode == "add" else round(known, 2)


def _kept(curve: Figures | None) -> list[Figures]:
    """The strengths above 0 at which the interval of the mean coherence lies above what counts as coherent."""
    tried = [] if curve is None else [p for p in curve["vector"] if p["strength"] > 0]
    return [p for p in tried if p["coherence"] and p["coherence"]["low"] >= MIN_SCORE]


def _coherent(curve: Figures | None) -> tuple[str, str, str]:
    """The strengths, and trait score and coherence at the largest of them."""
    if curve is None:
        return ("not measured",) * 3
    kept = _kept(curve)
    if not kept:
        tried = ", ".join(f"{p['strength']:g}" for p in curve["vector"] if p["strength"] > 0)
        return f"none of {tried}", "", ""
    last = max(kept, key=lambda p: p["strength"])
    strengths = ", ".join(f"{p['strength']:g}" for p in kept)
    return strengths, interval(last["trait"], 1), interval(last["coherence"], 1)
