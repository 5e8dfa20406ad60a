"""The payload: the one JSON between Python and the token view.

```
{"version": 1, "title": "…", "tokens": ["…"], "ids": [1], "roles": ["template|system|user|assistant"],
 "special": [true], "n_prompt": 12, "traits": ["deception", …], "blocks": {"deception": 4}, "kind": "z",
 "unit": "standard deviations above neutral", "alignment": "at", "scores": {"deception": [0.12, null]},
 "scale": 8.0, "done": true, "finish_reason": "eos|length|context|stopped|read|null", "meta": {"reader": "…"}}
```

`tokens` joins to the exact decoded text. A score that does not exist is null. Everything in a payload counts
as hostile text: the view never puts it into markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from persona_core.detokenize import well_formed
from persona_core.errors import CorruptFile, SettingError
from persona_core.trace import UNITS

if TYPE_CHECKING:
    from persona_core.trace import Alignment, Kind, Trace

Payload: TypeAlias = dict[str, Any]

VERSION = 1
Z_SCALE = 8.0
"""Colours reach full strength at this z score, in every trait, so that two pictures can be compared. At 4 the traits
that another one pulls along (z of 2 to 5 in the demo model) would look as strong as that one (7 to 9)."""

_PER_TOKEN = ("tokens", "ids", "roles", "special")
_REQUIRED = (*_PER_TOKEN, "n_prompt", "traits", "kind", "unit", "alignment", "scores", "scale", "done")


def trace_payload(
    trace: Trace,
    *,
    title: str | None = None,
    kind: Kind | None = None,
    alignment: Alignment = "at",
    block: int | None = None,
    scale: float | None = None,
    done: bool = True,
    meta: Mapping[str, Any] | None = None,
) -> Payload:
    """Build the view's payload from a trace.

    Args:
        trace: what to show, finished or still growing.
        title: heading of the view; None takes the last thing that the user said.
        kind: "z", "raw" or "cosine"; None takes z where the trace is calibrated, else cosine.
        alignment: "at" (the state after the model read the token) or "before" (the state that chose it).
        block: block to read all traits at; None reads each trait at its best block.
        scale: score at which colours reach full strength; None takes 8 for z, and for raw and cosine the
            largest |score| of the trace, rounded up to one digit.
        done: False while more tokens are to come.
        meta: short facts shown under the title; None takes reader, writer and seed.

    Returns:
        A dict that `json.dumps(..., allow_nan=False)` accepts. Scores are rounded to 4 decimals.

    Raises:
        SettingError: an unknown kind, or a scale that is not above 0.
        UnknownBlock, NotCalibrated: as `Trace.scores`.

    Example:
        >>> payload = trace_payload(monitor.read("Hello"), title="Hello")  # doctest: +SKIP
    """
    kind = kind or trace.default_kind
    scores = {trait: trace.scores(trait, kind, block, alignment) for trait in trace.traits}  # each [n_tokens]
    if scale is None:
        scale = Z_SCALE if kind == "z" else _round_up(_largest(scores.values()))
    if not scale > 0:
        raise SettingError(f"scale={scale!r}; expected a number above 0.")
    if meta is None:
        known = trace.provenance
        facts = {"reader": known.reading_model, "writer": known.writer, "seed": known.seed}
        # A folder's name says enough, and where it lies on the server is nobody's business.
        meta = {key: _last_part(value) for key, value in facts.items() if value is not None}
    return {
        "version": VERSION,
        "title": well_formed(_last_user_text(trace) if title is None else title),
        "tokens": [well_formed(token) for token in trace.tokens],
        "ids": [int(i) for i in trace.token_ids],
        "roles": list(trace.roles),
        "special": [bool(flag) for flag in trace.special],
        "n_prompt": int(trace.n_prompt),
        "traits": [well_formed(trait) for trait in trace.traits],
        "blocks": {well_formed(t): int(trace.best_block[t] if block is None else block) for t in trace.traits},
        "kind": kind,
        "unit": UNITS[kind],
        "alignment": alignment,
        "scores": {well_formed(trait): _rounded(values) for trait, values in scores.items()},
        "scale": float(scale),
        "done": done,
        "finish_reason": trace.finish if done else None,
        "warnings": [well_formed(warning) for warning in trace.warnings],
        "meta": {str(key): well_formed(str(value)) for key, value in meta.items()},
    }


def check_payload(payload: Any) -> Payload:
    """Return `payload` if the view can show it, so that a broken file is an error and not a blank page.

    Raises:
        CorruptFile: a key is missing, a list has another length than the tokens, or the version is unknown.
    """
    if not isinstance(payload, dict):
        raise CorruptFile(f"A payload is a JSON object, not {type(payload).__name__}.")
    if payload.get("version") != VERSION:
        raise CorruptFile(f"Unknown payload version {payload.get('version')!r}; this code reads version {VERSION}.")
    if missing := [key for key in _REQUIRED if key not in payload]:
        raise CorruptFile(f"The payload lacks {', '.join(missing)}.")
    n_tokens = len(payload["tokens"])
    lengths = {key: len(payload[key]) for key in _PER_TOKEN}
    for trait in payload["traits"]:
        lengths[f"scores[{trait!r}]"] = len(payload["scores"].get(trait, ()))
    if wrong := {key: length for key, length in lengths.items() if length != n_tokens}:
        raise CorruptFile(f"The payload has {n_tokens} tokens, but other lengths in {wrong}.")
    return payload


def _rounded(values: np.ndarray) -> list[float | None]:  # values: [n_tokens]
    finite = np.isfinite(values)
    exact = values.astype(np.float64).round(4)  # float32 would print as 0.12340000271797180
    return [float(v) if ok else None for v, ok in zip(exact, finite, strict=True)]


def _largest(scores: Iterable[np.ndarray]) -> float:
    finite = [np.abs(values[np.isfinite(values)]) for values in scores]
    return max((float(values.max()) for values in finite if values.size), default=1.0)


def _round_up(value: float) -> float:
    """The next number of one digit: 0.0234 becomes 0.03; 0 becomes 1."""
    if value <= 0:
        return 1.0
    step = 10.0 ** np.floor(np.log10(value))
    return float(f"{np.ceil(value / step - 1e-9) * step:.6g}")


def _last_user_text(trace: Trace) -> str:
    """What the user said last, cut to a heading's length."""
    turns = groupby(zip(trace.roles, trace.tokens, strict=True), key=itemgetter(0))
    said = ["".join(token for _, token in turn) for role, turn in turns if role == "user"]
    text = said[-1].strip() if said else ""
    return text if len(text) <= 200 else text[:199] + "…"


def _last_part(value: object) -> str:
    """Of each of the names joined by " + " (model and adapter) what follows the last slash."""
    return " + ".join(name.rstrip("/").rsplit("/", 1)[-1] for name in str(value).split(" + "))
