"""A Parquet file is read as it was written, or refused."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

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


@pytest.mark.parametrize("stored", [True, False])  # whether the file says that its texts are a dictionary
@pytest.mark.parametrize("kind", ["one text named 100,000 times", "one list of ten million numbers"])
def test_a_small_file_that_unpacks_to_far_more_is_refused(
    tmp_path: Path, kind: str, stored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("persona_core.utils.parquet.MAX_UNPACKED", 10_000_000)
    path = tmp_path / "bomb.parquet"
    if kind.startswith("one text"):
        texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10**5, "i4")), pa.array(["x" * 1000]))
        columns: dict[str, Any] = {"id": texts}
    else:
        columns = {"id": pa.ListArray.from_arrays([0, 10**7], pa.array(np.zeros(10**7, "i1")))}
    pq.write_table(pa.table(columns), path, compression="zstd", store_schema=stored)
    assert path.stat().st_size < 10**5
    for filters in (None, [("id", "==", "y")]):
        with pytest.raises(CorruptFile, match="bytes in memory"):
            read_table(path, filters=filters)


def test_columns_and_rows_are_chosen_as_they_are_named(tmp_path: Path) -> None:
    path = write_table(ROWS, tmp_path / "a.parquet", SCHEMA, row_group_size=7)
    wanted = [{"n": row["n"], "id": row["id"]} for row in ROWS]
    assert read_table(path, columns=["n", "id"]).to_pylist() == wanted
    assert read_table(path, columns=["n"], filters=[("id", "==", "reply 9")]).to_pylist() == [{"n": 9}]
    assert read_table(path, filters=[("id", "==", "none")]).to_pylist() == []
    assert read_table(write_table([], tmp_path / "b.parquet", SCHEMA)).schema.equals(SCHEMA)
    with pytest.raises(CorruptFile, match="with the columns nowhere"):
        read_table(path, columns=["nowhere"])
