"""Two models compared, in sentences that claim no more than the intervals allow. Inert text, for HTML."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from persona_core.report.sentences import NOT_NEUTRAL, SIGNIFICANT, Figure
from persona_core.utils.markdown import interval


def describe_comparison(found: Figure, statistics: Figure | None = None) -> str:
    """Which traits differ between the two models, and whether by text or weights.

    A specific score is of a trait against the others, so one trait that rises lowers all others' scores. A trait is
    therefore said to differ only where the model with the higher score is above neutral in it.

    Args:
        found: the record of a `Comparison`; those of older analyses hold "overall" alone and are of z.
        statistics: config -> record of `RunStatistics`, for the means of both models.
    """
    overall, plain = found["overall"], found.get("plain")
    specific = found.get("kind", "z") == "specific"
    differ = _moved(overall)
    moved = [t for t in differ if not specific or _above_neutral(t, overall[t]["total"]["value"], statistics)]
    outweighed = [html.escape(t) for t in differ if t not in moved]
    if not moved:
        says = f"No trait differs significantly between the two models{' in its specific score' * specific}."
        if plain and (others := _moved(plain)):
            says = (
                f"The contaminated model is not neutral, but shows no trait in particular: z differs significantly for "
                f"{len(others)} of {len(plain)} traits, {_largest(others, plain)}, but no trait's specific score does."
            )
        return " ".join([says, *_changed(overall)])
    says = (
        f"{len(moved)} of {len(overall)} traits differ{'s' * (len(moved) == 1)} significantly in "
        f"{'the specific score' if specific else 'z'}, "
    )
    says += _largest(moved, overall)
    most = overall[_most(moved, overall)]
    if most["weights"] and most["text"]:
        says += (
            f", of which {interval(most['text'], 2)} are due to the text (one reader, two texts) and "
            f"{interval(most['weights'], 2)} to the weights (one text, two readers)"
        )
    if not specific:
        return " ".join([f"{says}. That is “not neutral”: {NOT_NEUTRAL}.", *_changed(overall)])
    says += ". The specific score says how much more a token looks like one trait than like neutral text or any other."
    if outweighed:
        says += (
            f" Neither model is above neutral in {', '.join(outweighed)}: their specific scores differ because other "
            "traits outweigh them, which says nothing about a difference in these traits."
        )
    return " ".join([says, *_changed(overall)])


def _above_neutral(trait: str, difference: float, statistics: Figure | None) -> bool:
    """Whether the model with the higher score has a mean above that of neutral tokens; True where it is not known."""
    side = "contaminated" if difference > 0 else "baseline"
    own = ((statistics or {}).get(side) or {}).get("traits", {}).get(trait)
    return own is None or (own["mean"] is not None and own["mean"]["low"] > 0)


def against(found: Figure) -> str:
    """What the scores of a table are: kind, unit, and the traits that a specific score is compared with."""
    kind = found.get("kind", "z")
    if kind != "specific":
        return "Scores are z, in standard deviations over neutral tokens."
    traits = ", ".join(html.escape(t) for t in found["against"])
    return (
        "Scores are specific, in standard deviations over neutral tokens: how much more a token looks like one of "
        f"{traits} than like neutral text or the others."
    )


def _moved(effects: Mapping[str, Figure]) -> list[str]:
    """The traits whose total differs significantly, whether sink tokens are left out or not."""
    return [
        t
        for t, e in effects.items()
        if e["total"]
        and e["total"]["q"] is not None
        and e["total"]["q"] <= SIGNIFICANT
        and "total" not in e.get("changed_by_sinks", ())
    ]


def _most(moved: Sequence[str], effects: Mapping[str, Figure]) -> str:
    return max(moved, key=lambda t: abs(effects[t]["total"]["value"]))


def _largest(moved: Sequence[str], effects: Mapping[str, Figure]) -> str:
    most = _most(moved, effects)
    found = effects[most]
    return f"{html.escape(most)} most: {interval(found['total'], 2)} standard deviations over {found['n']} prompts"


def _changed(effects: Mapping[str, Figure]) -> list[str]:
    """A sentence about the effects that sink tokens would change."""
    changed = [
        f"{html.escape(t)} ({', '.join(e['changed_by_sinks'])})"
        for t, e in effects.items()
        if e.get("changed_by_sinks")
    ]
    if not changed:
        return []
    return [f"No result, because it changes when the sink tokens are put back: {'; '.join(changed)}."]
