"""Files of JSON Lines that only grow: what is kept where the last line lacks its line break."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from persona_core.utils.files import append_lines, read_lines

RECORDS: list[dict[str, Any]] = [{"n": 1}, {"n": 2, "text": "zwölf } \n"}]


@pytest.mark.parametrize("n", [1, 2])
def test_a_whole_last_line_without_a_line_break_is_kept_and_what_follows_has_a_line_of_its_own(
    tmp_path: Path, n: int
) -> None:
    path = tmp_path / "lines.jsonl"
    append_lines(path, RECORDS[:n])
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert [record for _, record in read_lines(path)] == RECORDS[:n]
    append_lines(path, [{"n": 3}])
    assert list(read_lines(path)) == list(enumerate([*RECORDS[:n], {"n": 3}], 1))


def test_a_last_line_that_was_cut_off_anywhere_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_lines(path, RECORDS)
    data = path.read_bytes()
    first = data.index(b"\n") + 1
    for end in range(first + 1, len(data) - 1):
        path.write_bytes(data[:end])
        assert list(read_lines(path)) == [(1, RECORDS[0])], end
        assert path.read_bytes() == data[:first]
