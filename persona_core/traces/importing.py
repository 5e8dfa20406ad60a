"""Import per-token results of other tools as rows of our schema; missing information is marked as unknown.

The older form is a JSON list of `{prompt, response, tokens, projections: {trait: [...]}, metadata}`, one value per
token of the reply. Its values come from a hook that sees the token before: value i is the state that chose token i, and
the last token was never read. So `alignment` is "before". Ids, norms, null and vectors are not in the file; a layer
number, if any, follows an unknown convention. Running averages are dropped: they can be recomputed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from persona_core.errors import CorruptFile, NotFound
from persona_core.traces.provenance import Provenance
from persona_core.traces.trace import Trace
from persona_core.utils.files import parse_json

UNKNOWN = -1
"""A token id or a block that is not in the file."""

FORM = "a per-token result file of the older form"
Row = dict[str, Any]


def import_results(path: str | Path) -> list[Row]:
    """The rows of one file.

    Raises:
        NotFound, CorruptFile: the message names the entry and the field.
    """
    file = Path(path)
    if not file.is_file():
        raise NotFound(f"No file {str(file)!r}.")
    entries = parse_json(file)
    if isinstance(entries, Mapping):  # one conversation, or a list under a key
        lists = [value for value in entries.values() if isinstance(value, list) and value and _is_entry(value[0])]
        entries = [entries] if _is_entry(entries) else lists[0] if len(lists) == 1 else entries
    if not isinstance(entries, list) or not entries:
        raise CorruptFile(f"{file}: expected a list of {{prompt, response, tokens, projections}}.")
    rows = [_row(entry, number, file) for number, entry in enumerate(entries, 1)]
    traits = {tuple(row["traits"]) for row in rows}
    if len(traits) > 1:
        raise CorruptFile(f"{file}: the entries hold different traits: {sorted(traits)[:2]}. Split the file by them.")
    return rows


def _is_entry(value: Any) -> bool:
    return isinstance(value, Mapping) and "projections" in value and "tokens" in value


def _row(entry: Any, number: int, file: Path) -> Row:
    where = f"{file}, entry {number}"
    if not isinstance(entry, Mapping):
        raise CorruptFile(f"{where}: expected an object, got a {type(entry).__name__}.")
    tokens, projections = entry.get("tokens"), entry.get("projections")
    if not isinstance(tokens, list) or not all(isinstance(t, str) for t in tokens):
        raise CorruptFile(f"{where}: the field 'tokens' must be a list of texts.")
    if not isinstance(projections, Mapping) or not projections:
        raise CorruptFile(f"{where}: the field 'projections' must map each trait to a list of numbers.")
    prompt = entry.get("prompt", "")
    if not isinstance(prompt, str):
        raise CorruptFile(f"{where}: the field 'prompt' is a {type(prompt).__name__}, expected a text.")
    values = {str(trait): _series(series, len(tokens), f"{where}, {trait}") for trait, series in projections.items()}
    metadata = entry.get("metadata")
    known = metadata if isinstance(metadata, Mapping) else {}
    n = len(tokens)
    missing = np.full((len(values), 1), np.nan, np.float32)
    trace = Trace(
        token_ids=(UNKNOWN,) * n,
        tokens=tuple(tokens),
        roles=("assistant",) * n,
        n_prompt=0,  # the prompt's tokens are not in the file
        traits=tuple(values),
        blocks=(UNKNOWN,),
        raw=np.array(list(values.values()), np.float32).reshape(len(values), 1, n),
        norms=np.full((1, n), np.nan, np.float32),
        best_block=dict.fromkeys(values, UNKNOWN),
        null_mean=missing,
        null_std=missing,
        special=(False,) * n,
        finish="read",
        provenance=Provenance(
            reader=_text(known.get("model")),
            writer=_text(known.get("model")),
            written={"metadata": dict(known)},
            imported=FORM,
        ),
        alignment="before",
    )
    category = entry.get("category", known.get("category", ""))
    return trace.to_row(
        id=str(entry.get("id", f"{file.stem}-{number:04d}")),
        messages=[{"role": "user", "content": prompt}],
        category=category if isinstance(category, str) else "",
    )


def _series(series: Any, n: int, where: str) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):
            values = np.array([np.nan if v is None else v for v in series], np.float32)  # [n]
    except (TypeError, ValueError, OverflowError) as error:
        raise CorruptFile(f"{where}: not a list of numbers: {error}") from error
    if values.shape != (n,):
        raise CorruptFile(f"{where}: {n} tokens but values of shape {values.shape}; expected one number per token.")
    if np.isinf(values).any():
        raise CorruptFile(
            f"{where}: not a list of numbers: token {int(np.isinf(values).argmax())} has an infinite one."
        )
    return values


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
