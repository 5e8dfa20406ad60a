"""The rows of two runs, read for a comparison: one reply to a prompt, of one reader, in one unit of the score."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from persona_core.analysis.series import checked
from persona_core.errors import SettingError
from persona_core.traces.sinks import is_sink, read_limits
from persona_core.traces.trace import Kind, Trace

Row = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class ReplyReading:
    """One reply as one model read it.

    Attributes:
        ids: of prompt and reply.
        scores: of its reply tokens, sink tokens among them, `[n_reply_tokens]`.
        sinks: which of them are sink tokens, bool `[n_reply_tokens]`.
        category, prompt: of the row.
    """

    ids: tuple[int, ...]
    scores: np.ndarray
    sinks: np.ndarray
    category: str
    prompt: str | None


def kind_of_rows(rows: Iterable[Row], traits: Sequence[str]) -> Kind:
    """The score that all rows have: "specific" where it is there for all traits, else "z"."""
    specific = all((row.get("specific") or {}).get(trait) is not None for row in rows for trait in traits)
    return "specific" if specific else "z"


def by_prompt(rows: Sequence[Row], trait: str, kind: Kind) -> dict[str, ReplyReading]:
    """Prompt id -> reading; empty replies and rows without a null are left out."""
    found = {}
    for row in one_per_prompt(rows, trait):
        positions = [t for t in range(row["n_prompt"], len(row["roles"])) if row["roles"][t] == "assistant"]
        values = row["specific" if kind == "specific" else "projections"][trait]
        if values is None or not positions:
            continue
        scores = checked(np.asarray(values, float)[positions], f"The reply to {row['id']!r}")
        found[row["id"]] = ReplyReading(
            tuple(row["token_ids"]),
            scores,
            _sinks(row, trait)[positions],
            row.get("category") or "",
            row.get("prompt"),
        )
    return found


def _sinks(row: Row, trait: str) -> np.ndarray:
    """Sink tokens at the trait's best block, bool `[n_tokens]`; none where no limit was stored."""
    blocks, block, stored = list(row["blocks"]), row["best_block"][trait], row.get("max_norm")
    if block not in blocks or stored is None:
        return np.zeros(len(row["roles"]), bool)
    column, limits = blocks.index(block), read_limits(stored, len(blocks))
    return is_sink(np.array(row["norms"][column], np.float32), limits[column])


def one_per_prompt(rows: Sequence[Row], trait: str) -> Iterable[Row]:
    seen = set()
    for row in rows:
        if trait not in row["traits"]:
            raise SettingError(f"No trait {trait!r} in the row {row['id']!r}; it has {', '.join(row['traits'])}.")
        if row["id"] in seen:
            raise SettingError(f"The prompt {row['id']!r} occurs twice; compare single runs.")
        seen.add(row["id"])
        yield row


def reader_of(rows: Sequence[Row]) -> tuple[str | None, str | None, str | None]:
    """The one reader of a run: its name, and the revisions of the model and of its adapter.

    Raises:
        SettingError: several.
    """
    known = {
        (row["reader"], *(row["provenance"].get(k) for k in ("reader_revision", "reader_adapter_revision")))
        for row in rows
    }
    if len(known) > 1:
        raise SettingError(f"A run has rows of {len(known)} readers: {', '.join(sorted(str(k[0]) for k in known))}.")
    return next(iter(known), (None, None, None))


def refuse_mixed_rows(rows: Sequence[Row], trait: str, kind: Kind) -> None:
    kinds = set()
    for row in rows:
        if trait not in row["traits"] or row["projections"][trait] is None:
            continue  # `one_per_prompt` reports the first case; the second is left out
        block, blocks = row["best_block"][trait], list(row["blocks"])
        null: tuple[Any, ...] | None = None
        if block in blocks:
            column = blocks.index(block)
            null = tuple(row[name][trait][column] for name in ("null_mean", "null_std"))
            if kind == "specific":
                null += tuple(part[column] for t in row["traits"] for part in row["log_odds"][t])
        kinds.add((row["provenance"]["vectors"], block, null))
    refuse_mixed(kinds)


def null_of(trace: Trace, trait: str, kind: Kind) -> tuple[float, ...]:
    """What turns projections into scores, at the trait's best block."""
    row, column = trace.traits.index(trait), trace.blocks.index(trace.best_block[trait])
    null = float(trace.null_mean[row, column]), float(trace.null_std[row, column])
    if kind != "specific" or trace.log_odds is None:
        return null
    return (*null, *(float(x) for part in vars(trace.log_odds.at(column)).values() for x in part))


def refuse_mixed(kinds: set[Any]) -> None:
    """Each is (vectors, block, null)."""
    for index, what in enumerate(("vectors", "blocks", "nulls")):
        values = {kind[index] for kind in kinds}
        if len(values) > 1:
            listed = ", ".join(sorted(str(v if index < 2 or v is None else v[:2]) for v in values)[:3])
            raise SettingError(f"The readings have different {what} ({listed}); their scores cannot be compared.")
