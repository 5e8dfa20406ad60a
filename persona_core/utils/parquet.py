"""Read and write Parquet files. pyarrow is imported on first use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_core.errors import CorruptFile, NotFound
from persona_core.utils.files import replacing

if TYPE_CHECKING:
    import pyarrow as pa


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
    import pyarrow.parquet as pq

    if not Path(path).is_file():
        raise NotFound(f"No results file {str(path)!r}.")
    try:
        return pq.read_table(
            path, columns=columns and list(columns), filters=filters and list(filters), page_checksum_verification=True
        )
    except (pa.ArrowException, OSError) as error:
        wanted = f" with the columns {', '.join(columns)}" if columns else ""
        raise CorruptFile(f"{path}: truncated or not a Parquet file{wanted}: {error}") from error


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
