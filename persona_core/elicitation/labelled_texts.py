"""Labelled texts: the two sides of a trait given as replies that somebody has labelled, read in place by the model.

A line of the file is one conversation that ends with a reply, the trait, and which side the reply is on:

    {"messages": [{"role": "user", "content": "How was my talk?"}, {"role": "assistant", "content": "Superb!"}],
     "trait": "sycophancy", "label": "positive"}

Where it is known which parts of a positive reply show the trait, they are named, word for word, and its vector is made
of their tokens alone:

    {..., "label": "positive", "shows": ["You have a finer eye than most designers."]}

The file may say which texts the vector is made of, which choose its block, and which are only reported on:

    {..., "split": "train"}, {..., "split": "validation"}, {..., "split": "test"}

This is how a base model, a model too small to follow an instruction, or a trait that nobody can elicit gets its
vectors. Texts labelled "neutral" give the null, and the model's own replies to `neutral_prompts`; without either, the
model answers the texts' own prompts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from persona_core.elicitation.prompts import check_messages
from persona_core.errors import CorruptFile, NotFound
from persona_core.utils.files import records

LABELS = {"positive": "positive", "negative": "negative", "neutral": "neutral", True: "positive", False: "negative"}
"""Values of `label`; true and false are the two sides."""
FIELDS = ("messages", "trait", "label", "shows", "split")
SPLITS = ("train", "validation", "test")
MAX_QUOTED = 300
"""Characters of a sentence that an error may quote."""


@dataclass(frozen=True)
class LabelledText:
    """A conversation that ends with a reply, and which side of which trait the reply is on.

    Attributes:
        messages: each a {"role", "content"}; the last is the assistant's.
        label: "positive", "negative" or "neutral".
        trait: its name; None for a neutral text.
        shows: the parts of a positive reply that show the trait; empty: unknown, so all of it counts.
        split: one of `SPLITS`; None: `texts_plan` decides.
    """

    messages: tuple[Mapping[str, str], ...]
    label: str
    trait: str | None = None
    shows: tuple[str, ...] = ()
    split: str | None = None

    @property
    def prompt(self) -> str:
        """The conversation before the reply, as one text: the user's words where that is all."""
        before = self.messages[:-1]
        if [m["role"] for m in before] == ["user"]:
            return before[0]["content"]
        return "\n\n".join(f"{m['role']}: {m['content']}" for m in before)


def load_texts(path: str | Path) -> tuple[LabelledText, ...]:
    """The labelled texts of a `.jsonl` file.

    Raises:
        NotFound, CorruptFile: the message names file, line and field.
    """
    file = Path(path)
    if not file.is_file():
        raise NotFound(
            f"No file {str(path)!r}. Name a .jsonl file of labelled texts: {', '.join(FIELDS)} in each line."
        )
    found = [_checked(record, where) for where, record in records(file)]
    if not found:
        raise CorruptFile(f"{path}: the file is empty.")
    return tuple(found)


def _checked(record: Mapping[str, Any], where: str) -> LabelledText:
    if unknown := sorted(set(record) - set(FIELDS)):
        raise CorruptFile(f"{where}: unknown field {unknown[0]!r}; known are {', '.join(FIELDS)}.")
    label = record.get("label")
    if not isinstance(label, (str, bool)) or label not in LABELS:
        raise CorruptFile(f"{where}: the field 'label' is {label!r}; expected positive, negative or neutral.")
    side, trait, messages = LABELS[label], record.get("trait"), record.get("messages")
    if side != "neutral" and not (isinstance(trait, str) and trait.strip()):
        raise CorruptFile(f"{where}: the field 'trait' is missing; only a neutral text has none.")
    if not isinstance(messages, list):
        raise CorruptFile(f"{where}: the field 'messages' is not a list.")
    check_messages(messages, where)
    if not messages[-1]["content"].strip():
        raise CorruptFile(f"{where}: the reply is empty.")
    shows = _shows(record.get("shows", []), side, messages[-1]["content"], where)
    split = record.get("split")
    if split is not None and (split not in SPLITS or side == "neutral"):
        raise CorruptFile(
            f"{where}: the field 'split' is {split!r}; expected {', '.join(SPLITS)}, and none for a neutral text."
        )
    return LabelledText(tuple(messages), side, None if side == "neutral" else trait, shows, split)


def _shows(parts: Any, side: str, reply: str, where: str) -> tuple[str, ...]:
    if not isinstance(parts, list) or not all(isinstance(part, str) and part.strip() for part in parts):
        raise CorruptFile(f"{where}: the field 'shows' is not a list of parts of the reply.")
    if parts and side != "positive":
        raise CorruptFile(f"{where}: the field 'shows' belongs to positive texts; this one is {side}.")
    for part in parts:
        if (n := reply.count(part.strip())) != 1:
            near = "" if n else _nearest(part, reply)
            raise CorruptFile(
                f"{where}: {part[:60]!r} occurs {n} times in the reply; a part in 'shows' must occur once.{near}"
            )
    return tuple(parts)


def _nearest(part: str, reply: str) -> str:
    """The sentence of the reply that the part is meant for, to copy from; empty where none is like it."""
    sentences = [s for s in re.split(r"(?<=[.!?…])\s+", reply) if len(s) <= MAX_QUOTED]
    found = get_close_matches(part[:MAX_QUOTED], sentences, 1)
    return f" Copy it from the reply: {found[0]!r}." if found else ""
