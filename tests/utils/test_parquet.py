"""A Parquet file is read as it was written, or refused."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa

from persona_core.errors import CorruptFile
from persona_core.utils.parquet import read_table, write_table

SCHEMA = pa.schema([("id", pa.string()), ("scores", pa.list_(pa.float32())), ("n", pa.int64())])
ROWS: list[dict[str, Any]] = [
    {"id": f"reply {i}", "scores": [i / 7 + k / 3 for k in range(200)], "n": i} for i in range(40)
]


def test_a_flipped_bit_never_gives_other_numbers(tmp_path: Path) -> None:
    """Anywhere in the pages: 400 flips. Without checksums, dozens of them read as other numbers."""
    path = write_table(ROWS, tmp_path / "a.parquet", SCHEMA)
    data, expected = path.read_bytes(), read_table(path).to_pylist()
    footer = int.from_bytes(data[-8:-4], "little") + 8
    rng, refused = random.Random(0), 0
    for _ in range(400):
        flipped = bytearray(data)
        flipped[rng.randrange(4, len(data) - footer)] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(flipped))
        try:
            assert read_table(path).to_pylist() == expected
        except CorruptFile:
            refused += 1
    assert refused > 100
