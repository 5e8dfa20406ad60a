"""A trace as plain values: a JSON record, and a row of a results dataset. Both restore it bit for bit.

`Trace` is built on these functions, so they do not import it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from persona_core.errors import CorruptFile, NotCalibrated, UnknownBlock
from persona_core.models.detokenize import well_formed
from persona_core.traces.provenance import Provenance
from persona_core.traces.sinks import read_limits, stored_limits
from persona_core.traces.specific import LogOdds

FORMAT_VERSION = 1
JSON_FIELDS = ("sampling", "steering", "written", "guard", "versions")
"""Fields of a provenance that a row stores as JSON texts, because their shape varies."""
LATER = ("specific", "max_norm", "log_odds")
"""Fields that older records and rows lack."""


def record_of(trace: Any) -> dict[str, Any]:
    """A JSON-ready record."""
    record = {f.name: getattr(trace, f.name) for f in fields(trace)}
    record |= {name: _nested(record[name]) for name in ("raw", "norms", "null_mean", "null_std")}
    record["max_norm"] = stored_limits(trace.max_norm)
    record["log_odds"] = trace.log_odds and {k: _nested(v) for k, v in vars(trace.log_odds).items()}
    record |= {"best_block": dict(trace.best_block), "provenance": asdict(trace.provenance)}
    return {"format_version": FORMAT_VERSION, **record}


def fields_of_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the trace that `record_of` made a record of.

    Raises:
        CorruptFile: another format version, a missing field, lengths that do not fit.
    """
    version = record.get("format_version") if isinstance(record, Mapping) else None
    if version != FORMAT_VERSION:
        raise CorruptFile(f"Trace format_version is {version!r}; this library reads {FORMAT_VERSION}.")
    try:
        n_traits, n_blocks, n = (len(record[k]) for k in ("traits", "blocks", "token_ids"))
        provenance = dict(record["provenance"])
        provenance["steering"] = tuple(provenance.get("steering", ()))
        return dict(
            **{k: tuple(record[k]) for k in ("token_ids", "tokens", "roles", "traits", "blocks", "special")},
            n_prompt=int(record["n_prompt"]),
            raw=_array(record["raw"], (n_traits, n_blocks, n)),
            norms=_array(record["norms"], (n_blocks, n)),
            best_block=dict(record["best_block"]),
            null_mean=_array(record["null_mean"], (n_traits, n_blocks)),
            null_std=_array(record["null_std"], (n_traits, n_blocks)),
            finish=str(record["finish"]),
            provenance=Provenance(**provenance),
            alignment=record["alignment"],
            max_norm=read_limits(record.get("max_norm"), n_blocks),
            log_odds=_log_odds(record.get("log_odds"), (n_traits, n_blocks)),
        )
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, RecursionError) as error:
        raise CorruptFile(f"Not a trace: {type(error).__name__}: {error}") from error


def row_of(trace: Any, id: str, messages: Sequence[Mapping[str, str]], set: str, category: str) -> dict[str, Any]:
    """A row of a results dataset; arguments as for `Trace.to_row`."""
    known = asdict(trace.provenance)
    z, specific = ({t: _stored(trace, t, kind) for t in trace.traits} for kind in ("z", "specific"))
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
        "n_reply": len(trace.reply_positions),
        "finish": trace.finish,
        "tokens": [well_formed(t) for t in trace.tokens],
        "roles": list(trace.roles),
        "token_ids": list(trace.token_ids),
        "special": list(trace.special),
        "projections": {t: None if v is None else v.tolist() for t, v in z.items()},
        "specific": {t: None if v is None else v.tolist() for t, v in specific.items()},
        "summary": {t: _summary(trace, t) for t in trace.traits},
        "traits": list(trace.traits),
        "blocks": list(trace.blocks),
        "best_block": {t: trace.best_block.get(t) for t in trace.traits},
        "raw": {t: trace.raw[i].tolist() for i, t in enumerate(trace.traits)},
        "norms": trace.norms.tolist(),
        "null_mean": {t: trace.null_mean[i].tolist() for i, t in enumerate(trace.traits)},
        "null_std": {t: trace.null_std[i].tolist() for i, t in enumerate(trace.traits)},
        "max_norm": stored_limits(trace.max_norm),
        "log_odds": None
        if trace.log_odds is None
        else {t: [part[i].tolist() for part in vars(trace.log_odds).values()] for i, t in enumerate(trace.traits)},
        "alignment": trace.alignment,
        "provenance": {k: json.dumps(v, sort_keys=True) if k in JSON_FIELDS else v for k, v in known.items()},
    }


def fields_of_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the trace of a row of a results dataset.

    Raises:
        CorruptFile: a column is missing, or lengths do not fit.
    """
    try:
        known = {k: json.loads(v) if k in JSON_FIELDS and v is not None else v for k, v in row["provenance"].items()}
        known["steering"] = tuple(known.get("steering") or ())
        known["versions"] = known.get("versions") or {}
        traits, blocks, n = tuple(row["traits"]), tuple(row["blocks"]), len(row["tokens"])
        shape = (len(traits), len(blocks))

        def null(name: str) -> np.ndarray:
            return np.array([row[name][t] for t in traits], np.float32).reshape(shape)

        return dict(
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
            max_norm=read_limits(row.get("max_norm"), len(blocks)),
            log_odds=_log_odds_of_row(row.get("log_odds"), traits, shape),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise CorruptFile(f"Not a row of a results dataset: {type(error).__name__}: {error}") from error


def _nested(array: np.ndarray) -> Any:
    """Nested lists with None for NaN, which JSON lacks."""
    nested = array.astype(object)
    nested[np.isnan(array)] = None
    return nested.tolist()


def _array(nested: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(nested, dtype=np.float32)
    if 0 in shape:  # nested lists lose the length behind an empty axis
        array = array.reshape(shape)
    if array.shape != shape:
        raise ValueError(f"expected numbers of shape {shape}, got {array.shape}")
    return array


def _log_odds(record: Mapping[str, Any] | None, shape: tuple[int, int]) -> LogOdds | None:
    return None if record is None else LogOdds(**{k: _array(v, shape) for k, v in record.items()})


def _log_odds_of_row(row: Mapping[str, Any] | None, traits: Sequence[str], shape: tuple[int, int]) -> LogOdds | None:
    if row is None or any(row.get(t) is None for t in traits):
        return None
    parts = np.array([row[t] for t in traits], np.float32).reshape(shape[0], 4, shape[1])
    return LogOdds(*(parts[:, i] for i in range(4)))


def _stored(trace: Any, trait: str, kind: str) -> np.ndarray | None:
    """A score at the trait's best block, float32 `[n_tokens]`; None without what it needs."""
    try:
        return trace.scores(trait, kind, alignment=trace.alignment)
    except (NotCalibrated, UnknownBlock):
        return None


def _summary(trace: Any, trait: str) -> dict[str, Any]:
    """Mean and maximum of the default score over the reply's tokens, sinks left out, and where the maximum is."""
    nothing = {"mean": None, "max": None, "at": None}
    if _stored(trace, trait, "z") is None:
        return nothing
    values = trace.reply_scores(trait)
    if not np.isfinite(values).any():
        return nothing
    top = int(np.nanargmax(values))
    return {
        "mean": float(np.nanmean(values)),
        "max": float(values[top]),
        "at": trace.reply_positions[top] - trace.n_prompt,
    }
