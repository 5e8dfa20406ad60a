"""The rows of two runs, read for a comparison: one reply to a prompt, of one reader, in one unit of z."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from persona_core.analysis.series import checked
from persona_core.errors import SettingError
from persona_core.traces.trace import Trace

Row = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class ReplyReading:
    """One reply as one model read it: its ids, and z of its reply tokens, `[n_reply_tokens]`."""

    ids: tuple[int, ...]
    z: np.ndarray
    category: str
    prompt: str | None


def by_prompt(rows: Sequence[Row], trait: str) -> dict[str, ReplyReading]:
    """Prompt id -> reading; empty replies and rows without a null are left out."""
    found = {}
    for row in one_per_prompt(rows, trait):
        positions = [t for t in range(row["n_prompt"], len(row["roles"])) if row["roles"][t] == "assistant"]
        values = row["projections"][trait]
        if values is None or not positions:
            continue
        z = checked(np.asarray(values, float)[positions], f"The reply to {row['id']!r}")
        found[row["id"]] = ReplyReading(tuple(row["token_ids"]), z, row.get("category") or "", row.get("prompt"))
    return found


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


def refuse_mixed_rows(rows: Sequence[Row], trait: str) -> None:
    kinds = set()
    for row in rows:
        if trait not in row["traits"] or row["projections"][trait] is None:
            continue  # `one_per_prompt` reports the first case; the second is left out
        block, blocks = row["best_block"][trait], list(row["blocks"])
        null = None
        if block in blocks:
            null = tuple(row[name][trait][blocks.index(block)] for name in ("null_mean", "null_std"))
        kinds.add((row["provenance"]["vectors"], block, null))
    refuse_mixed(kinds)


def null_of(trace: Trace, trait: str) -> tuple[float, float]:
    row, column = trace.traits.index(trait), trace.blocks.index(trace.best_block[trait])
    return float(trace.null_mean[row, column]), float(trace.null_std[row, column])


def refuse_mixed(kinds: set[Any]) -> None:
    """Each is (vectors, block, null)."""
    for index, what in enumerate(("vectors", "blocks", "nulls")):
        values = {kind[index] for kind in kinds}
        if len(values) > 1:
            listed = ", ".join(sorted(map(str, values))[:3])
            raise SettingError(f"The readings have different {what} ({listed}); their z scores cannot be compared.")
