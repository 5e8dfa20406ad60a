"""The fields of stored records: what each may hold, and a message that names the one that holds something else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from persona_core.errors import CorruptFile
from persona_core.utils.checks import MAX_INTEGER, is_integer, is_number

ROUNDING = 1e-3
"""A score is an expectation, so it may exceed its range by the rounding of float32."""


@dataclass(frozen=True)
class Field:
    """What a field may hold.

    Attributes:
        holds: whether it may hold this value.
        expected: the same in words, after "expected".
        needed: whether a record without it is faulty.
    """

    holds: Callable[[Any], bool]
    expected: str
    needed: bool = True


def is_score(value: object) -> bool:
    """Whether a value is a judge's score: a number from 0 to 100, or None.

    >>> is_score(85.0), is_score(None), is_score(101), is_score(float("nan")), is_score("85")
    (True, True, False, False, False)
    """
    return value is None or (is_number(value) and -ROUNDING <= value <= 100 + ROUNDING)


def is_count(value: object) -> bool:
    return is_integer(value, minimum=0) and value <= MAX_INTEGER


def is_text(value: object) -> bool:
    return isinstance(value, str)


AGAIN = "Delete the line to have it made again."
SCORE = Field(is_score, "a number from 0 to 100, or null")
COUNT = Field(is_count, "an integer of at least 0")
COUNT_OR_NULL = Field(lambda value: value is None or is_count(value), "an integer of at least 0, or null")
TEXT = Field(is_text, "a text")
TEXT_OR_NULL = Field(lambda value: value is None or is_text(value), "a text, or null")


def check_fields(
    record: object, fields: Mapping[str, Field], where: str, inside: str = "", remedy: str = AGAIN
) -> None:
    """Refuse a record with a field that is missing, unknown or of another kind.

    Args:
        record: as JSON gives it.
        fields: name -> what it may hold.
        where: "file, line k", for the message.
        inside: the name of the field that the record is the value of, followed by a dot.
        remedy: the end of the message.

    Raises:
        CorruptFile: with file, line, field and value.

    >>> check_fields({"index": 3}, {"index": COUNT, "of": TEXT}, "scores.jsonl, line 1")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    persona_core.errors.CorruptFile: scores.jsonl, line 1: the field 'of' is missing. Delete the line ...
    """
    if not isinstance(record, dict):
        raise CorruptFile(f"{where}: the field {inside[:-1]!r} is {_short(record)}; expected an object. {remedy}")
    for name, field in fields.items():
        if name not in record:
            if field.needed:
                raise CorruptFile(f"{where}: the field {inside + name!r} is missing. {remedy}")
        elif not field.holds(record[name]):
            raise CorruptFile(
                f"{where}: the field {inside + name!r} is {_short(record[name])}; expected {field.expected}. {remedy}"
            )
    if unknown := [name for name in record if name not in fields]:
        raise CorruptFile(f"{where}: unknown field {_short(inside + unknown[0])}. {remedy}")


def _short(value: object, longest: int = 60) -> str:
    text = ascii(value)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
