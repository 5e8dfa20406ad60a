"""Per-token results as a dataset: one row a reply, one Parquet file a config, a trace to a row and back.

    monitoring-repo/
      README.md                     the card; its header names the configs and their features
      data/baseline.parquet         the default config
      data/contaminated.parquet
      data/replay.parquet           each model reading the other's replies

A row needs nothing beside itself: ids, text, projections, the null, and where all of it comes from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_core.errors import CorruptFile, NotFound, SettingError
from persona_core.models.detokenize import well_formed
from persona_core.traces.trace import Provenance, Trace
from persona_core.utils.files import replacing
from persona_core.utils.hub import fetch

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

DATA = "data"
ANALYSIS = "analysis"
"""The folder of `scripts.analyse`, beside the data."""
REPLIES = "replies.parquet"
"""In there: what is said of each reply and trait."""
ROWS_A_GROUP = 100
"""The Hub's viewer reads whole row groups; 100 replies of 500 tokens, 8 traits and 32 blocks are 50 MB."""

COLUMNS = (
    "id", "set", "category", "messages", "prompt", "response", "reader", "writer", "n_prompt", "n_reply", "finish",
    "tokens", "roles", "token_ids", "special", "projections", "summary", "traits", "blocks", "best_block", "raw",
    "norms", "null_mean", "null_std", "alignment", "provenance",
)  # fmt: skip
"""Those of `features`, by name: reading a file must not take the second that importing `datasets` takes."""

_AS_JSON = ("sampling", "steering", "written", "versions")  # of any shape, so they are kept as JSON texts
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
    provenance = {name: text for name in (*_TEXTS, *_AS_JSON)}
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
            "summary": {trait: summary for trait in traits},
            "traits": List(text),
            "blocks": List(number),
            "best_block": {trait: number for trait in traits},
            "raw": {trait: List(series) for trait in traits},
            "norms": List(series),
            "null_mean": {trait: series for trait in traits},
            "null_std": {trait: series for trait in traits},
            "alignment": text,
            "provenance": {**provenance, "seed": Value("int64")},
        }
    )


def to_row(
    trace: Trace, *, id: str, messages: Sequence[Mapping[str, str]], set: str = "", category: str = ""
) -> dict[str, Any]:
    """A trace as a row.

    Args:
        trace: the reply as read.
        id: of the prompt.
        messages: the conversation before the reply.
        set, category: what the prompt belongs to.
    """
    known = asdict(trace.provenance)
    z = {t: _z(trace, t) for t in trace.traits}
    return {
        "id": id,
        "set": set,
        "category": category,
        "messages": [{k: well_formed(v) for k, v in m.items()} for m in messages],
        "prompt": well_formed(messages[-1]["content"]) if messages else "",
        "response": well_formed(trace.reply_text),
        "reader": trace.provenance.reading_model,
        "writer": trace.provenance.writer,
        "n_prompt": trace.n_prompt,
        "n_reply": len(trace.own),
        "finish": trace.finish,
        "tokens": [well_formed(t) for t in trace.tokens],
        "roles": list(trace.roles),
        "token_ids": list(trace.token_ids),
        "special": list(trace.special),
        "projections": {t: None if v is None else v.tolist() for t, v in z.items()},
        "summary": {t: _summary(trace, v) for t, v in z.items()},
        "traits": list(trace.traits),
        "blocks": list(trace.blocks),
        "best_block": {t: trace.best_block.get(t) for t in trace.traits},
        "raw": {t: trace.raw[i].tolist() for i, t in enumerate(trace.traits)},
        "norms": trace.norms.tolist(),
        "null_mean": {t: trace.null_mean[i].tolist() for i, t in enumerate(trace.traits)},
        "null_std": {t: trace.null_std[i].tolist() for i, t in enumerate(trace.traits)},
        "alignment": trace.alignment,
        "provenance": {k: json.dumps(v, sort_keys=True) if k in _AS_JSON else v for k, v in known.items()},
    }


def to_trace(row: Mapping[str, Any]) -> Trace:
    """The very trace that a row was made of, float for float.

    Raises:
        CorruptFile: a column is missing, or lengths do not fit.
    """
    try:
        known = {k: json.loads(v) if k in _AS_JSON and v is not None else v for k, v in row["provenance"].items()}
        known["steering"] = tuple(known.get("steering") or ())
        known["versions"] = known.get("versions") or {}
        traits, blocks, n = tuple(row["traits"]), tuple(row["blocks"]), len(row["tokens"])
        shape = (len(traits), len(blocks))

        def null(name: str) -> np.ndarray:
            return np.array([row[name][t] for t in traits], np.float32).reshape(shape)

        return Trace(
            token_ids=tuple(row["token_ids"]),
            tokens=tuple(row["tokens"]),
            roles=tuple(row["roles"]),
            n_prompt=int(row["n_prompt"]),
            traits=traits,
            blocks=blocks,
            raw=np.array([row["raw"][t] for t in traits], np.float32).reshape(*shape, n),
            norms=np.array(row["norms"], np.float32).reshape(len(blocks), n),
            best_block={t: b for t, b in row["best_block"].items() if b is not None},
            null_mean=null("null_mean"),
            null_std=null("null_std"),
            special=tuple(row["special"]),
            finish=row["finish"],
            provenance=Provenance(**known),
            alignment=row["alignment"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptFile(f"Not a row of a results dataset: {type(error).__name__}: {error}") from error


def write_results(rows: Iterable[Mapping[str, Any]], path: str | Path, traits: Sequence[str]) -> Path:
    """Write rows as one Parquet file that `load_dataset` reads with its declared features; the old file or the new.

    The same rows give the same bytes.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([dict(row) for row in rows], schema=features(traits).arrow_schema)
    with replacing(Path(path)) as beside:
        # With a page index the viewer finds single rows without reading a whole group.
        pq.write_table(table, beside, row_group_size=ROWS_A_GROUP, compression="zstd", write_page_index=True)
    return Path(path)


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """The rows of one Parquet file.

    Raises:
        NotFound.
        CorruptFile: not a Parquet file, or one with other columns.
    """
    table = _table(Path(path))
    if lacking := [name for name in COLUMNS if name not in table.column_names]:
        raise CorruptFile(f"{path}: no column {lacking[0]!r}; not results that scripts.monitor wrote.")
    return table.to_pylist()


def read_ids(path: str | Path) -> list[str]:
    """The ids of the rows of one Parquet file; nothing else of it is read.

    Raises:
        NotFound, CorruptFile.
    """
    return _table(Path(path), columns=["id"])["id"].to_pylist()


def load_results(source: str | Path, config: str = "baseline", revision: str | None = None) -> list[dict[str, Any]]:
    """The rows of one config of a results folder or Hub repository.

    The same as `datasets.load_dataset(source, config, split="train")`, without its cache of converted files.

    Raises:
        NotFound: no such folder, repository, revision or config.
        CorruptFile: not a Parquet file.

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
    table = _table(path, None if id is None else [("id", "==", id)])
    if not table.num_rows:
        raise NotFound(f"No row {id!r} in the config {config!r} of {str(source)!r}.")
    return table.slice(0, 1).to_pylist()[0]


def configs_of(folder: str | Path) -> tuple[str, ...]:
    """The configs that a local results folder holds, the default one first."""
    order = {"baseline": 0, "contaminated": 1, "replay": 2, "neutral": 3}
    found = (p.stem for p in (Path(folder) / DATA).glob("*.parquet"))
    return tuple(sorted(found, key=lambda name: (order.get(name, 9), name)))


def traits_of(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The traits that all rows hold, in order.

    Raises:
        SettingError: rows of different traits, or none.
    """
    found = {tuple(row["traits"]) for row in rows}
    if len(found) != 1:
        raise SettingError(f"Expected rows of the same traits; got {sorted(found)}.")
    return next(iter(found))


def _table(path: Path, filters: list[tuple[str, str, str]] | None = None, columns: list[str] | None = None) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise NotFound(f"No results file {str(path)!r}.")
    try:
        return pq.read_table(path, filters=filters, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise CorruptFile(f"{path}: truncated or not a Parquet file: {error}") from error


def _z(trace: Trace, trait: str) -> np.ndarray | None:
    """z at the trait's best block, float32 `[n_tokens]`; None where there is no null or the block was not read."""
    block = trace.best_block.get(trait)
    if block not in trace.blocks or not trace.calibrated:
        return None
    return trace.scores(trait, alignment=trace.alignment)


def _summary(trace: Trace, z: np.ndarray | None) -> dict[str, Any]:
    """Mean and maximum of z over the reply's own tokens, and the place of the maximum in the reply."""
    own = trace.own
    if z is None or not own:
        return {"mean": None, "max": None, "at": None}
    values = z[own]
    if not np.isfinite(values).any():
        return {"mean": None, "max": None, "at": None}
    top = int(np.nanargmax(values))
    return {"mean": float(np.nanmean(values)), "max": float(values[top]), "at": own[top] - trace.n_prompt}
