"""The counts in a GGUF file's header, checked against its size.

The package gguf believes them: it would loop over an array of 2**45 texts in a file of 100 bytes.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from persona_core.errors import CorruptFile

TEXT, ARRAY = 8, 9
WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value of each other type."""
MAX_DEPTH = 4
"""Arrays of arrays; published files have none."""


def check_header(path: Path) -> None:
    """Walk through the metadata without keeping it.

    Raises:
        CorruptFile: a text, an array or a number of tensors for which the file has no room.
    """
    try:
        with path.open("rb") as file:
            _Walk(file, path.stat().st_size).run()
    except (struct.error, ValueError) as error:
        raise CorruptFile(f"{path}: truncated or not a GGUF file: {error}. Download it again.") from error


class _Walk:
    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size, self._order = file, size, "<"

    def run(self) -> None:
        self._file.seek(4)
        if not self._number("I") & 0xFFFF:  # the version, in the other byte order
            self._order = ">"
        for what in ("tensors", "fields"):
            n = self._number("Q")
            self._check_room(n, what)
        for _ in range(n):
            self._skip_text()
            self._skip_value(self._number("I"))

    def _number(self, form: str) -> int:
        return int(struct.unpack(self._order + form, self._file.read(struct.calcsize("=" + form)))[0])

    def _skip_text(self) -> None:
        self._skip(self._number("Q"), "characters")

    def _skip_value(self, kind: int, depth: int = 0) -> None:
        if kind in WIDTHS:
            self._skip(WIDTHS[kind], "bytes")
        elif kind == TEXT:
            self._skip_text()
        elif kind == ARRAY and depth < MAX_DEPTH:
            inner, n = self._number("I"), self._number("Q")
            self._check_room(n, "values")
            if inner in WIDTHS:
                self._skip(n * WIDTHS[inner], "bytes")
            else:
                for _ in range(n):
                    self._skip_value(inner, depth + 1)
        else:
            raise ValueError(f"a value of the type {kind}" if kind != ARRAY else "arrays nested too deeply")

    def _skip(self, n: int, what: str) -> None:
        self._check_room(n, what)
        self._file.seek(n, 1)

    def _check_room(self, n: int, what: str) -> None:
        if n > self._size - self._file.tell():
            raise ValueError(f"it announces {n:,} {what} in a file of {self._size:,} bytes")
