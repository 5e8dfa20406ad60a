"""The verdict on a vector: which controls it failed, and what else a reader should know, in plain sentences.

Everything is derived from the figures of `persona_core.vectors.validation`. Intervals decide, not values, and where a
figure cannot be determined the vector fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from persona_core.utils.markdown import interval

MIN_SPLIT_HALF = 0.9
MAX_EXPLAINED = 0.5
"""Share of the variance over neutral tokens; a vector explained to this degree by position follows the position."""
FEW_QUESTIONS = 5
"""With fewer, intervals are too narrow by any method: with 3 they cover the truth in 70 to 80 % of samples."""

Figures = Mapping[str, Any]
"""A trait's validation, or a part of it, as stored in `config.json`."""


def control_words(control: str) -> str:
    """A control's name in figures and tables.

    >>> control_words("token_identity"), control_words("split_half")
    ('tokens without context', 'split half')
    """
    said = {"token_identity": "tokens without context", "text_baseline": "words alone", "refusal": "declining"}
    return said.get(control, control.replace("_", " "))


def flags(figures: Figures) -> list[dict[str, str]]:
    """The controls that failed: `control`, its name, and `says`, a sentence with the numbers."""
    found = (*_detection(figures), *_direction(figures), *_confounds(figures), *steering_flags(figures.get("steering")))
    return [{"control": control, "says": says} for control, says in found]


def _detection(f: Figures) -> Iterator[tuple[str, str]]:
    auroc, held_out = f["auroc"], f["held_out"]
    if auroc is None:
        n = held_out["replies"]
        why = f"of {n} held-out replies to {held_out['questions']} questions {held_out['show']} show the trait"
        if held_out["not_finite"]:
            why = f"the states of {held_out['not_finite']} of {n} held-out replies are NaN or infinite"
        yield "auroc", f"There is no AUROC to report: {why}."
        return
    if auroc["low"] <= 0.5:
        yield "auroc", f"The held-out AUROC {interval(auroc, 3)} is not above chance (0.5)."
    random, own = f["nulls"]["random_directions"], f["correlation"]["all"]
    by_rank = random["auroc_95"] is not None and auroc["value"] > random["auroc_95"]
    # Where both reach an AUROC of 1, the correlation with the score still tells them apart.
    by_score = random["correlation_95"] is not None and own is not None and own["value"] > random["correlation_95"]
    if not by_rank and not by_score:
        says = "unknown size" if random["auroc_95"] is None else f"{random['auroc_95']:.3f}"
        yield (
            "random_directions",
            f"5 % of random directions reach an AUROC of {says}, and the vector's is {auroc['value']:.3f}; its "
            "correlation with the score is not above theirs either.",
        )


def _direction(f: Figures) -> Iterator[tuple[str, str]]:
    shuffled = f["nulls"]["shuffled_labels"]
    if shuffled["gap"] is None or shuffled["gap_95"] is None or shuffled["gap"] <= shuffled["gap_95"]:
        yield (
            "shuffled_labels",
            f"The two sides are {number(shuffled['gap'])} apart along the vector; with shuffled labels 5 % of vectors "
            f"reach {number(shuffled['gap_95'])}.",
        )
    half = f["split_half_cosine"]
    if half is None or half["value"] < MIN_SPLIT_HALF:
        says = "cannot be compared" if half is None else f"has a cosine of {half['value']:.2f}"
        yield (
            "split_half",
            f"The vector of one half of the questions {says} with that of the other; at least {MIN_SPLIT_HALF} is "
            "required.",
        )
    other = f["own_minus_best_other"]
    if other is not None and other["low"] <= 0:
        yield (
            "own_minus_best_other",
            f"The vector of {other['other']!r} correlates with this trait's scores about as well: own minus other "
            f"correlation {interval(other, 3)}.",
        )


def _confounds(f: Figures) -> Iterator[tuple[str, str]]:
    signs = {name: f["confounds"][name].get("sign", 1) for name in f["confounds"]}
    for name, what in (
        ("length", "Reply length alone (longer)" if signs["length"] > 0 else "Reply length alone (shorter)"),
        ("refusal", "Declining alone" if signs["refusal"] > 0 else "The absence of refusals alone"),
        ("position", "Token position alone"),
        ("token_identity", "Token identity alone, without context,"),
    ):
        confound = f["confounds"][name]
        alone, ahead = confound["auroc"], confound["vector_ahead"]
        tells = alone is not None and alone["low"] > 0.5
        if tells and (ahead is None or ahead["low"] <= 0):
            gap = "is unknown" if ahead is None else f"is {interval(ahead, 3)}"
            yield (
                name,
                f"{what} predicts the trait with an AUROC of {interval(alone, 3)}; the vector's lead {gap}.",
            )
        elif name == "position" and confound["r2"] >= MAX_EXPLAINED:
            share = 100 * confound["r2"]
            yield name, f"The position in the reply explains {share:.0f} % of the score's variance over neutral tokens."


def steering_flags(steering: Figures | None) -> Iterator[tuple[str, str]]:
    """A failure where steering was tried and had no more effect than random directions of the same norm."""
    if steering is None:
        return
    effect = steering["effect"]
    if effect is None or effect["low"] <= 0:
        unknown = "is unknown (at no strength were the steered replies coherent and scored)"
        says = unknown if effect is None else f"is {interval(effect, 1)} points"
        yield (
            "steering",
            f"The effect of steering along the vector, over a random direction of the same norm, {says}: nothing "
            "shows that the direction causes the trait.",
        )


def notes(figures: Figures) -> list[str]:
    """Remarks that are not failures."""
    return list(_notes(figures))


def _notes(f: Figures) -> Iterator[str]:
    questions = f["held_out"]["questions"]
    if questions < FEW_QUESTIONS:
        yield (
            f"The figures rest on {questions} held-out questions; below {FEW_QUESTIONS} the intervals are too narrow. "
            "Add evaluation questions."
        )
    high = f["correlation"]["high"]
    if high is None or high["low"] <= 0:
        says = "is unknown" if high is None else f"is {interval(high, 3)}"
        yield (
            f"Among replies on the positive side, the correlation of projection and judge score {says}: the "
            "vector may read the instruction rather than the degree."
        )
    text = f["text_baseline"]
    if text is None:
        yield "There is no baseline of words alone: it needs scikit-learn (pip install scikit-learn)."
    elif text["vector_minus_text"] is not None and text["vector_minus_text"]["low"] <= 0:
        yield (
            f"Counting words does as well on these replies (AUROC {interval(text['auroc'], 3)}): the AUROC does not "
            "show that more than the words is read."
        )


def number(value: float | None) -> str:
    """Three significant digits, or "an unknown distance"."""
    return "an unknown distance" if value is None else f"{value:.3g}"
