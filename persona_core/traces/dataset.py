"""Per-token results as a dataset: one row per reply, one Parquet file per config.

    monitoring-repo/
      README.md                     the card; its header lists the configs and their features
      data/baseline.parquet         the default config
      data/contaminated.parquet
      data/replay.parquet           each model reading the other's replies

A row is self-contained: ids, text, projections, the null, and the provenance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_core.errors import CorruptFile, NotFound, SettingError
from persona_core.traces.records import JSON_FIELDS, LATER
from persona_core.utils.hub import fetch
from persona_core.utils.parquet import read_table, rows_of, write_table

if TYPE_CHECKING:
    import datasets

DATA = "data"
ANALYSIS = "analysis"
"""The folder of `persona analyse`, beside the data."""
REPLIES = "replies.parquet"
"""In that folder: the findings for each reply and trait."""
ROWS_A_GROUP = 100
"""The Hub's viewer reads whole row groups; 100 replies of 500 tokens, 8 traits and 32 blocks are 50 MB."""

COLUMNS = (
    "id", "set", "category", "messages", "prompt", "response", "reader", "writer", "n_prompt", "n_reply", "finish",
    "tokens", "roles", "token_ids", "special", "projections", "specific", "summary", "traits", "blocks", "best_block",
    "raw", "norms", "null_mean", "null_std", "max_norm", "log_odds", "alignment", "provenance",
)  # fmt: skip
"""The names in `features`: reading a file must not take the second that importing `datasets` takes."""

_TEXTS = (
    "reader",
    "reader_revision",
    "reader_adapter",
    "reader_adapter_revision",
    "writer",
    "dtype",
    "vectors",
    "template",
    "imported",
)


def features(traits: Sequence[str]) -> datasets.Features:
    """The declared columns of a results dataset for these traits."""
    from datasets import Features, List, Value

    text, number, real = Value("string"), Value("int32"), Value("float32")
    series = List(real)
    message = {"role": text, "content": text}
    summary = {"mean": real, "max": real, "at": number}
    provenance = {name: text for name in (*_TEXTS, *JSON_FIELDS)}
    return Features(
        {
            "id": text,
            "set": text,
            "category": text,
            "messages": List(message),
            "prompt": text,
            "response": text,
            "reader": text,
            "writer": text,
            "n_prompt": number,
            "n_reply": number,
            "finish": text,
            "tokens": List(text),
            "roles": List(text),
            "token_ids": List(number),
            "special": List(Value("bool")),
            "projections": {trait: series for trait in traits},
            "specific": {trait: series for trait in traits},
            "summary": {trait: summary for trait in traits},
            "traits": List(text),
            "blocks": List(number),
            "best_block": {trait: number for trait in traits},
            "raw": {trait: List(series) for trait in traits},
            "norms": List(series),
            "null_mean": {trait: series for trait in traits},
            "null_std": {trait: series for trait in traits},
            "max_norm": series,
            "log_odds": {trait: List(series) for trait in traits},
            "alignment": text,
            "provenance": {**provenance, "seed": Value("int64")},
        }
    )


def write_results(rows: Iterable[Mapping[str, Any]], path: str | Path, traits: Sequence[str]) -> Path:
    """Write rows as one Parquet file that `load_dataset` reads with its declared features; atomically.

    The same rows give the same bytes.
    """
    schema = features(traits).arrow_schema
    # With a page index the viewer finds single rows without reading a whole group.
    return write_table(rows, path, schema, row_group_size=ROWS_A_GROUP, write_page_index=True)


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """The rows of one Parquet file.

    Raises:
        NotFound.
        CorruptFile: not a Parquet file, or one with other columns.
    """
    table = read_table(path)
    if lacking := [name for name in COLUMNS if name not in (*LATER, *table.column_names)]:
        raise CorruptFile(f"{path}: no column {lacking[0]!r}; not results that persona monitor wrote.")
    return rows_of(table, path)


def read_ids(path: str | Path) -> list[str]:
    """The ids of the rows of one Parquet file; no other column is read.

    Raises:
        NotFound, CorruptFile.
    """
    return [row["id"] for row in rows_of(read_table(path, columns=["id"]), path)]


def load_results(source: str | Path, config: str = "baseline", revision: str | None = None) -> list[dict[str, Any]]:
    """The rows of one config of a results folder or Hub repository.

    The same as `datasets.load_dataset(source, config, split="train")`, without its cache of converted files.

    Raises:
        NotFound: no such folder, repository, revision or config.
        CorruptFile: not a Parquet file.

    >>> from persona_core import Trace
    >>> rows = load_results("artifacts/persona-monitoring-persona-tiny")
    >>> Trace.from_row(rows[0]).n_prompt == rows[0]["n_prompt"]
    True
    """
    return read_results(fetch(source, f"{DATA}/{config}.parquet", revision, repo_type="dataset"))


def load_row(
    source: str | Path, config: str = "baseline", id: str | None = None, revision: str | None = None
) -> dict[str, Any]:
    """One row of a results folder or Hub repository, by the id of its prompt; None takes the first row.

    Raises:
        NotFound: as `load_results`, or no row of that id.
        CorruptFile: not a Parquet file of results.
    """
    path = fetch(source, f"{DATA}/{config}.parquet", revision, repo_type="dataset")
    table = read_table(path, filters=None if id is None else [("id", "==", id)])
    if not table.num_rows:
        raise NotFound(f"No row {id!r} in the config {config!r} of {str(source)!r}.")
    return rows_of(table.slice(0, 1), path)[0]


def configs_of(folder: str | Path) -> tuple[str, ...]:
    """The configs of a local results folder, the default first."""
    order = {"baseline": 0, "contaminated": 1, "replay": 2, "neutral": 3}
    found = (p.stem for p in (Path(folder) / DATA).glob("*.parquet"))
    return tuple(sorted(found, key=lambda name: (order.get(name, 9), name)))


def traits_of(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The traits of all rows, in order.

    Raises:
        SettingError: rows of different traits, or none.
    """
    found = {tuple(row["traits"]) for row in rows}
    if len(found) != 1:
        raise SettingError(f"Expected rows of the same traits; got {sorted(found)}.")
    return next(iter(found))
