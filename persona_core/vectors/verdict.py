"""The verdict on a vector: which controls it failed, and what else a reader should know, in plain sentences.

Everything is derived from the figures of `persona_core.vectors.validation`. Intervals decide, not values. A control
whose figure was measured but cannot be determined is failed; one that was not measured is named, and a vector passes
every control only where each was measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from persona_core.analysis.bounded import MIN_CLUSTERS
from persona_core.utils.markdown import interval

MIN_SPLIT_HALF = 0.9
MAX_EXPLAINED = 0.5
"""Share of the variance over neutral tokens; a vector explained to this degree by position follows the position."""
MAX_TAKEN = 0.1
"""Share of other traits' replies above the level that 5 % of neutral replies pass."""
FEW_QUESTIONS = 10
"""With fewer, intervals are honest but wide: without a single error, an AUROC over 5 questions may be 0.48."""

Figures = Mapping[str, Any]
"""A trait's validation, or a part of it, as stored in `config.json`."""


def control_words(control: str) -> str:
    """A control's name in figures and tables.

    >>> control_words("token_identity"), control_words("split_half")
    ('tokens without context', 'split half')
    """
    said = {
        "token_identity": "tokens without context",
        "text_baseline": "words alone",
        "refusal": "declining",
        "best_other_vector": "another trait's vector",
        "other_traits": "other traits' replies",
        "wordings": "wordings held out",
        "styles": "styles held out",
        "sinks": "sink tokens",
    }
    return said.get(control, control.replace("_", " "))


@dataclass(frozen=True)
class ControlVerdict:
    """Which controls a vector failed, and which were not measured.

    >>> print(ControlVerdict(("length", "text_baseline"), ("steering",)))
    fails 2 controls: length, words alone; not measured: steering
    >>> print(ControlVerdict((), ())), print(ControlVerdict((), ("steering",)))
    passes every control
    fails no control that was measured; not measured: steering
    (None, None)
    """

    failed: tuple[str, ...]
    not_measured: tuple[str, ...]

    @property
    def passes(self) -> bool:
        """Whether every control was measured, and none failed."""
        return not self.failed and not self.not_measured

    def __str__(self) -> str:
        if self.passes:
            return "passes every control"
        failed, unknown = (", ".join(map(control_words, names)) for names in (self.failed, self.not_measured))
        n = len(self.failed)
        head = f"fails {n} control{'s' * (n != 1)}: {failed}" if failed else "fails no control that was measured"
        return f"{head}; not measured: {unknown}" if unknown else head


def verdict(figures: Figures) -> ControlVerdict:
    """The verdict on a trait's vector, from its validation as stored in `config.json`.

    Figures of older versions lack controls; those count as not measured.
    """
    stored = figures.get("flags")
    failed = flags(figures) if stored is None else stored
    names = tuple(flag["control"] for flag in failed)
    return ControlVerdict(names, tuple(name for name in not_measured(figures) if name not in names))


def not_measured(figures: Figures) -> list[str]:
    """Controls for which something was missing: other traits, scikit-learn, instruction pairs, a judge for steering."""
    optional = (
        "best_other_vector", "own_minus_best_other", "other_traits", "text_baseline", "wordings", "sinks", "steering"
    )  # fmt: skip
    styles = figures.get("styles") or {}
    every = styles and all(group is not None for group in styles.values())
    words = figures.get("text_baseline")
    unknown = words is not None and words.get("vector_minus_text") is None
    missing = [name for name in optional if figures.get(name) is None or (name == "text_baseline" and unknown)]
    return missing + ([] if every else ["styles"])


def flags(figures: Figures) -> list[dict[str, str]]:
    """The controls that failed: `control`, its name, and `says`, a sentence with the numbers."""
    found = (
        *_detection(figures),
        *_specificity(figures),
        *_direction(figures),
        *_groups(figures),
        *_confounds(figures),
        *steering_flags(figures.get("steering")),
    )
    return [{"control": control, "says": says} for control, says in found]


def _detection(f: Figures) -> Iterator[tuple[str, str]]:
    auroc, held_out = f["auroc"], f["held_out"]
    if auroc is None:
        n = held_out["replies"]
        why = f"of {n} held-out replies to {held_out['questions']} questions {held_out['show']} show the trait"
        if held_out["questions"] < MIN_CLUSTERS:
            why += f", and {MIN_CLUSTERS} questions are needed for an interval"
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


def _specificity(f: Figures) -> Iterator[tuple[str, str]]:
    other = f.get("best_other_vector")
    if other is not None and (other["own_minus_other"] is None or other["own_minus_other"]["low"] <= 0):
        lead = interval(other["own_minus_other"], 3, missing="unknown")
        yield (
            "best_other_vector",
            f"On this trait's own replies the vector of {other['other']!r} reaches an AUROC of "
            f"{interval(other['auroc'], 3)}; own minus other {lead}.",
        )
    theirs = f.get("other_traits")
    if theirs is not None:
        by = theirs.get("specific") or theirs  # statements are made on the specific score, where there is one
        auroc, taken = by["auroc"], by["taken"]
        if auroc is None or auroc["low"] <= 0.5:
            says = interval(auroc, 3, missing="unknown")
            yield "other_traits", f"It does not tell its own trait's replies from those of other traits: AUROC {says}."
        elif taken is not None and taken["low"] > MAX_TAKEN:
            share = interval(taken, 0, percent=True)
            yield (
                "other_traits",
                f"{share} of the replies that show another trait score above 95 % of the neutral ones: the score says "
                "that a reply is not neutral, rather than which trait it shows.",
            )
    text = f["text_baseline"]
    if text is not None and text["vector_minus_text"] is not None and text["vector_minus_text"]["low"] <= 0:
        lead = interval(text["vector_minus_text"], 3, missing="unknown")
        yield (
            "text_baseline",
            f"Words alone do as well: counting words reaches an AUROC of {interval(text['auroc'], 3)}; vector minus "
            f"words {lead}. The AUROC does not show that more than the words is read.",
        )


def _groups(f: Figures) -> Iterator[tuple[str, str]]:
    """Wordings and styles held out, and sink tokens put back."""
    for control, group, what in (
        ("wordings", f.get("wordings"), "On instruction wordings that the direction was made without"),
        *(
            ("styles", group, f"On replies of another {style} than those that the direction was made from")
            for style, group in (f.get("styles") or {}).items()
        ),
    ):
        if group is not None and (group["auroc"] is None or group["auroc"]["low"] <= 0.5):
            yield control, f"{what}, the AUROC is {interval(group['auroc'], 3, missing='unknown')}: not above chance."
    change = (f.get("sinks") or {}).get("with_minus_without")
    if change is not None and not change["low"] <= 0 <= change["high"]:
        yield "sinks", f"Sink tokens change the AUROC: with minus without {interval(change, 3)}."


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
    effect, matched = steering["effect"], steering.get("matched")
    if effect is None or effect["low"] <= 0:
        n_questions = steering.get("n_questions", MIN_CLUSTERS)
        unknown = (
            "is unknown (at no strength were the steered replies coherent and scored)"
            if n_questions >= MIN_CLUSTERS
            else f"is unknown ({n_questions} questions are too few for an interval; {MIN_CLUSTERS} are needed)"
        )
        says = unknown if effect is None else f"is {interval(effect, 1)} points"
        yield (
            "steering",
            f"The effect of steering along the vector, over a random direction of the same norm, {says}: nothing "
            "shows that the direction causes the trait.",
        )
    elif matched is not None and (matched["effect"] is None or matched["effect"]["low"] <= 0):
        says = (
            "at no strength tried were replies along random directions as incoherent"
            if matched["effect"] is None
            else f"over random directions at equal coherence the effect is {interval(matched['effect'], 1)} points"
        )
        yield "steering", f"Steering along the vector costs coherence, and {says}."


def notes(figures: Figures) -> list[str]:
    """Remarks that are not failures."""
    return list(_notes(figures))


def _notes(f: Figures) -> Iterator[str]:
    questions = f["held_out"]["questions"]
    if questions < FEW_QUESTIONS:
        yield (
            f"The figures rest on {questions} held-out questions; below {FEW_QUESTIONS} the intervals are wide. "
            "Add evaluation questions."
        )
    high = f["correlation"]["high"]
    if high is None or high["low"] <= 0:
        says = "is unknown" if high is None else f"is {interval(high, 3)}"
        yield (
            f"Among replies on the positive side, the correlation of projection and judge score {says}: the "
            "vector may read the instruction rather than the degree."
        )
    if f["text_baseline"] is None:
        yield "There is no baseline of words alone: it needs scikit-learn (pip install scikit-learn)."
    random, auroc = f["nulls"]["random_directions"]["auroc_95"], f["auroc"]
    if random is not None and auroc is not None and auroc["value"] <= random:
        yield (
            f"5 % of random directions reach an AUROC of {random:.3f} on these replies, and the vector "
            f"{auroc['value']:.3f}: the AUROC says nothing about this direction in particular."
        )


def number(value: float | None) -> str:
    """Three significant digits, or "an unknown distance"."""
    return "an unknown distance" if value is None else f"{value:.3g}"
