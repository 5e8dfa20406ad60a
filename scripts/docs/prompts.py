"""The table of the kinds of prompts in the neutral set."""

from __future__ import annotations

from collections.abc import Callable

from persona_core.elicitation.prompts import EVERYDAY, NEUTRAL, load_prompts
from persona_core.utils.markdown import table


def kinds() -> str:
    """How many prompts of each kind there are, and how long they are."""
    lengths: dict[str, list[int]] = {}
    for prompt in load_prompts([NEUTRAL]):
        lengths.setdefault(prompt.category, []).append(len(prompt.prompt.split()))
    rows = [
        (kind, "yes" if kind in EVERYDAY else "", len(words), f"{min(words)} to {max(words)}")
        for kind, words in lengths.items()
    ]
    every = [n for words in lengths.values() for n in words]
    total = (f"all {len(lengths)}", len(EVERYDAY), len(every), f"{min(every)} to {max(every)}")
    return table(("kind", "everyday", "prompts", "words"), [*rows, total])


TABLES: dict[str, Callable[[], str]] = {"neutral-kinds": kinds}
