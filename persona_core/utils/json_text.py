"""JSON with the line of every value, for errors that say where a file is wrong."""

from __future__ import annotations

import json
import re
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

_SPACE = re.compile(r"[ \t\r\n]*")


def parse_with_lines(text: str) -> tuple[Any, dict[tuple[str | int, ...], int]]:
    """A JSON value, and the line on which each value in it begins.

    Returns:
        The value, and path -> line, counted from 1. The path of the whole is `()`, of `{"a": [5]}`'s 5 `("a", 0)`.

    Raises:
        ValueError: not valid JSON, with line and column.

    >>> value, lines = parse_with_lines('{"a":\\n [5,\\n 6]}')
    >>> value, lines[("a", 1)]
    ({'a': [5, 6]}, 3)
    """
    value = json.loads(text)  # the parser decides what is valid; the walk below only looks for lines
    lines: dict[tuple[str | int, ...], int] = {}
    _walk(text, _SPACE.match(text, 0).end(), (), lines)  # type: ignore[union-attr]
    return value, lines


def _walk(text: str, at: int, path: tuple[str | int, ...], lines: dict[tuple[str | int, ...], int]) -> int:
    """Note the lines of the value that begins at `at`; return where it ends."""
    lines[path] = text.count("\n", 0, at) + 1
    opening = text[at]
    if opening not in "{[":
        return json.JSONDecoder().raw_decode(text, at)[1]
    closing = "}" if opening == "{" else "]"
    number = 0
    at = _skip(text, at + 1)
    while text[at] != closing:
        key: str | int = number
        if opening == "{":
            key, at = scanstring(text, at + 1)
            at = _skip(text, _skip(text, at) + 1)  # over the colon
        at = _skip(text, _walk(text, at, (*path, key), lines))
        if text[at] == ",":
            at = _skip(text, at + 1)
        number += 1
    return at + 1


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at
