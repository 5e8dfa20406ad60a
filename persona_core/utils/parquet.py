"""Read and write Parquet files. pyarrow is imported on first use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_core.errors import CorruptFile, NotFound
from persona_core.utils.files import replacing

if TYPE_CHECKING:
    import pyarrow as pa


MAX_UNPACKED, MAX_GROWTH = 1_000_000_000, 50
"""Bytes that a file may take in memory: 1 GB and 50 times its size. Published ones take up to 9 times theirs."""
MAX_ROWS = 3_000_000
"""Rows that a file may have beyond one for every 10 of its bytes."""
BATCH_ROWS = 256


def read_table(
    path: str | Path, columns: Sequence[str] | None = None, filters: Sequence[tuple[str, str, str]] | None = None
) -> pa.Table:
    """The table in a Parquet file.

    Args:
        path: of the file.
        columns: the only ones to read; None: all.
        filters: (column, operator, value); rows that fail one are left out.

    Raises:
        NotFound: no such file.
        CorruptFile: truncated, not Parquet, or without one of the columns.
    """
    import pyarrow as pa

    if not Path(path).is_file():
        raise NotFound(f"No results file {str(path)!r}.")
    try:
        return _read(path, columns, filters)
    except (pa.ArrowException, OSError) as error:
        wanted = f" with the columns {', '.join(columns)}" if columns else ""
        raise CorruptFile(f"{path}: truncated or not a Parquet file{wanted}: {error}") from error


def _read(path: str | Path, columns: Sequence[str] | None, filters: Sequence[tuple[str, str, str]] | None) -> pa.Table:
    """The table, a few rows at a time, so that one that unpacks to far more than the file holds ends early.

    Raises:
        CorruptFile: it does: one text or number is stored once and named a billion times.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    limit = MAX_UNPACKED + MAX_GROWTH * Path(path).stat().st_size
    too_large = CorruptFile(f"{path}: would take more than {limit:,} bytes in memory. Split the file.")
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        schema, groups = file.schema_arrow, [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        n_values = sum(group.column(i).num_values for group in groups for i in range(group.num_columns))
        if n_values > limit // 4 or file.metadata.num_rows > MAX_ROWS + Path(path).stat().st_size // 10:
            raise too_large
        wanted = list(columns) if columns else schema.names
        needed = list(dict.fromkeys([*wanted, *(name for name, _, _ in filters or ())]))
        missing = [name for name in needed if name not in schema.names]
        if missing:
            raise pa.ArrowInvalid(f"no column {missing[0]!r}")
        condition = pq.filters_to_expression(list(filters)) if filters else None
        size, parts = 0, []
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=needed):
            part = pa.Table.from_batches([batch])
            for number, column in enumerate(batch.columns):
                if pa.types.is_dictionary(column.type):  # hides how much its values take
                    part = part.set_column(number, batch.schema.names[number], column.dictionary_decode())
            size += part.nbytes
            if size > limit:
                raise too_large
            parts.append(part if condition is None else part.filter(condition))
        if not parts:
            return schema.empty_table().select(wanted)
    return pa.concat_tables(parts).select(wanted)


def rows_of(table: pa.Table, path: str | Path) -> list[dict[str, Any]]:
    """The rows of a table, column -> value.

    Raises:
        CorruptFile: a text that is not UTF-8.
    """
    try:
        return table.to_pylist()
    except UnicodeDecodeError as error:
        raise CorruptFile(f"{path}: a text in it is not UTF-8: {error}") from error


def write_table(rows: Iterable[Mapping[str, Any]], path: str | Path, schema: pa.Schema, **options: Any) -> Path:
    """Write rows as one Parquet file; an existing file is replaced atomically. The same rows give the same bytes.

    Args:
        rows: column -> value.
        path: of the file.
        schema: names and types of the columns.
        **options: for `pyarrow.parquet.write_table`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    with replacing(Path(path)) as beside:
        pq.write_table(table, beside, compression="zstd", write_page_checksum=True, **options)
    return Path(path)
