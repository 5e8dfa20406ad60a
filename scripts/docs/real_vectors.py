"""Tables of the real model's published vectors: what they read on texts that they were not made from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from persona_core.utils.markdown import interval, table
from persona_core.vectors.verdict import verdict
from scripts.docs.stored import stored


def vectors() -> str:
    """By trait: tokens, sentences, what words reach, and the card's verdict."""
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
                interval(sentences["question"], 3),
                len(verdict(found).failed),
            )
        )
    heads = ("trait", "tokens against ordinary replies, z", "tokens against all else, specific")
    return table((*heads, "sentences, specific", "sentences, words", "... and the question's", "controls failed"), rows)


def against_words() -> str:
    """Which traits the state tells better than the words do, as far as the intervals go."""
    leads = {t: [found["labelled_sentences"][f"over {name}"] for name in KNOWN] for t, found in _validation().items()}
    better = [trait for trait, one in leads.items() if all(lead["low"] > 0 for lead in one)]
    worse = [trait for trait, one in leads.items() if any(lead["high"] < 0 for lead in one)]
    rest = [trait for trait in leads if trait not in (*better, *worse)]
    says = [
        f"{len(better)} of {len(leads)} traits are told from everything else better by the model's state than by words "
        f"alone, those of the sentence or of the question too{_listed(better)}"
    ]
    if worse:
        says.append(f"{len(worse)} worse{_listed(worse)}")
    if rest:
        says.append(f"for {len(rest)} the intervals do not tell{_listed(rest)}")
    return "; ".join(says) + "."


KNOWN = ("words", "question")
"""What the two classifiers know."""


def _listed(traits: list[str]) -> str:
    return f" ({', '.join(traits)})" if traits else ""


def _validation() -> dict[str, Any]:
    found: dict[str, Any] = stored("real_vectors")["validation"]
    return found


TABLES: dict[str, Callable[[], str]] = {"real-vectors": vectors, "real-vectors-words": against_words}
