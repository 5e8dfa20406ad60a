"""Tables of docs/experiments.md: what guards do to neutral replies, and to those of a contaminated model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from persona_core.utils.markdown import table
from scripts.docs.stored import estimate, percent, stored

WORLDS = {"demo": "demo model", "real": "SmolLM2"}
GUARDS = {
    "states": "states, sycophancy",
    "states, all traits": "states, all eight traits",
    "n-grams": "n-grams on the stream",
    "judge": "judge on the finished reply",
}
ARMS = {
    "none": "no guard",
    "states, cap": "states, cap",
    "n-grams, cap": "n-grams, cap",
    "states, rewind": "states, rewind",
    "n-grams, rewind": "n-grams, rewind",
    "states, stop": "states, stop",
    "n-grams, stop": "n-grams, stop",
    "judge, withhold": "judge, reply withheld",
}

CUT = ("states, stop", "n-grams, stop")
"""Arms whose replies end within a sentence."""


def _each() -> Mapping[str, Any]:
    return {name: stored("guard")[key] for key, name in WORLDS.items()}


def touched() -> str:
    """Neutral replies that a guard touches."""
    rows = []
    for world, found in _each().items():
        for key, name in GUARDS.items():
            one = found["neutral_touched"][key]
            rows.append((world, name, one["n"], percent(one)))
    return table(("model", "guard", "neutral replies", "touched (stated: 1 %)"), rows)


def delays() -> str:
    """How soon each guard sees the trait."""
    rows = []
    for world, found in _each().items():
        for key, name in GUARDS.items():
            one = found["delays"][key]
            median = "–" if one["median"] is None else f"{one['median']:g}"
            late = percent(one["within_8"]) if key != "judge" else "–"
            early = percent(one["early"]) if key != "judge" else "–"
            rows.append(
                (world, name, one["found"]["n"], percent(one["found"]), late, early, median, estimate(one["mean"], 1))
            )
    heads = ("replies with the trait", "alarm", "by token 8 of it", "before it", "delay in tokens, median", "mean")
    return table(("model", "guard", *heads), rows)


def demo() -> str:
    """The demo model's contaminated copy under each guard, by the grammar's truth."""
    found = stored("guard")["demo"]["arms"]
    rows = [
        (
            name,
            percent(found[key]["trait_sentences"]),
            estimate(found[key]["trait_sentences_a_reply"]),
            "cut off" if key in CUT else percent(found[key]["coherence"]),
            *_text(found[key]),
        )
        for key, name in ARMS.items()
    ]
    heads = ("sentences that show sycophancy", "of them in a reply", "sentences of the grammar")
    return table(("guard", *heads, *TEXT), rows)


def real() -> str:
    """SmolLM2's contaminated copy under each guard, by scores of the text re-read."""
    found = stored("guard")["real"]["arms"]
    rows = [
        (
            name,
            percent(found[key]["high_tokens"]),
            estimate(found[key]["high_tokens_a_reply"], 1),
            percent(found[key]["refusals"]),
            *_text(found[key]),
        )
        for key, name in ARMS.items()
        if key in found
    ]
    heads = ("tokens above 2 SD of sycophancy", "of them in a reply", "refusals")
    return table(("guard", *heads, *TEXT), rows)


TEXT = ("text fluency", "repeated runs of 4 tokens", "tokens in a reply")


def _text(found: Mapping[str, Any]) -> tuple[str, ...]:
    return percent(found["fluency"]), percent(found["repeated"]), estimate(found["tokens_a_reply"], 0)


TABLES: dict[str, Callable[[], str]] = {
    "guard-touched": touched,
    "guard-delays": delays,
    "guard-demo": demo,
    "guard-real": real,
}
