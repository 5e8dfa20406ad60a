"""A trait: a named behaviour with what is needed to elicit it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_core.errors import CorruptFile, NotFound, SettingError

LISTS = ("positive", "negative", "questions", "held_out")


@dataclass(frozen=True)
class TraitDefinition:
    """A named behaviour, the instructions that bring it out and hold it back, and questions to try them on.

    Attributes:
        name: a short lower-case word.
        description: one sentence that says what the trait is.
        positive, negative: system prompts that ask for the trait and against it; the i-th of each make a pair.
        questions: prompts for extraction.
        held_out: prompts for validation, none of them among `questions`.

    >>> TraitDefinition("candour", "Says what it thinks.", ("Be frank.",), ("Be guarded.",), ("Hi?",), ("Well?",)).name
    'candour'
    """

    name: str
    description: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    questions: tuple[str, ...]
    held_out: tuple[str, ...]

    def __post_init__(self) -> None:
        empty = [
            f for f in ("name", "description", "positive", "negative", "questions", "held_out") if not getattr(self, f)
        ]
        if empty:
            raise SettingError(f"Trait {self.name!r}: {', '.join(empty)} must not be empty.")
        if len(self.positive) != len(self.negative):
            raise SettingError(
                f"Trait {self.name!r}: {len(self.positive)} positive and {len(self.negative)} negative instructions; "
                "they come in pairs."
            )
        shared = set(self.questions) & set(self.held_out)
        if shared:
            raise SettingError(f"Trait {self.name!r}: {sorted(shared)[0]!r} is both a question and held out.")

    @classmethod
    def load(cls, path: str | Path) -> TraitDefinition:
        """Read a definition from a JSON file.

        Raises:
            NotFound, CorruptFile: with the file and the field.
        """
        file = Path(path)
        if not file.is_file():
            raise NotFound(f"No trait file {str(file)!r}.")
        try:
            record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise CorruptFile(f"{file}: not valid JSON: {error}") from error
        if not isinstance(record, dict):
            raise CorruptFile(f"{file}: a trait is a JSON object, not a {type(record).__name__}.")
        for field in ("name", "description"):
            if not isinstance(record.get(field), str):
                raise CorruptFile(f"{file}: {field} is missing or not a string.")
        for field in LISTS:
            value = record.get(field)
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise CorruptFile(f"{file}: {field} is missing or not a list of strings.")
        try:
            return cls(record["name"], record["description"], **{field: tuple(record[field]) for field in LISTS})
        except SettingError as error:
            raise CorruptFile(f"{file}: {error}") from error
