"""Tables of the real model's published vectors: what they read on texts that they were not made from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from persona_core.utils.markdown import interval, table
from persona_core.vectors.verdict import verdict
from scripts.docs.stored import stored


def vectors() -> str:
    """By trait: tokens, sentences, what words alone reach, and the card's verdict."""
    rows = []
    for trait, found in _validation().items():
        tokens, sentences = found["labelled_texts"], found["labelled_sentences"]
        rows.append(
            (
                trait,
                interval(tokens["z"]["neutral"], 3),
                interval(tokens["specific"]["else"], 3),
                interval(sentences["specific"], 3),
                interval(sentences["words"], 3),
                len(verdict(found).failed),
            )
        )
    heads = ("trait", "tokens against ordinary replies, z", "tokens against all else, specific")
    return table((*heads, "sentences, specific", "sentences, words alone", "controls failed"), rows)


def against_words() -> str:
    """Which traits the state tells better than the words do, as far as the intervals go."""
    lead = {trait: found["labelled_sentences"]["over words"] for trait, found in _validation().items()}
    better = [trait for trait, one in lead.items() if one["low"] > 0]
    worse = [trait for trait, one in lead.items() if one["high"] < 0]
    rest = [trait for trait in lead if trait not in (*better, *worse)]
    says = [
        f"{len(better)} of {len(lead)} traits are told from everything else better by the model's state than by the "
        f"words of the sentence alone{_listed(better)}"
    ]
    if worse:
        says.append(f"{len(worse)} worse{_listed(worse)}")
    if rest:
        says.append(f"for {len(rest)} the intervals do not tell{_listed(rest)}")
    return "; ".join(says) + "."


def _listed(traits: list[str]) -> str:
    return f" ({', '.join(traits)})" if traits else ""


def _validation() -> dict[str, Any]:
    found: dict[str, Any] = stored("real_vectors")["validation"]
    return found


TABLES: dict[str, Callable[[], str]] = {"real-vectors": vectors, "real-vectors-words": against_words}
