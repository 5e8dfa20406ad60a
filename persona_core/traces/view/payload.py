"""The payload: the JSON object between Python and the token view.

```
{"version": 2, "title": "…", "traits": ["deception", …], "best": {"deception": 4},
 "view": {"kind": "z", …}, "focus": 31,
 "sides": [{"name": "baseline", "tokens": ["…"], "ids": [1], "roles": ["template|system|user|thinking|assistant"],
            "special": [true], "n_prompt": 12, "blocks": [2, 4], "alignment": "at|before",
            "raw": "float32 [n_traits, n_blocks, n_tokens]", "norms": "float32 [n_blocks, n_tokens]",
            "null_mean": "float32 [n_traits, n_blocks]", "null_std": "…",
            "log_odds": "float32 [4, n_traits, n_blocks]" | null, "max_norm": "float32 [n_blocks]",
            "onsets": {"deception": {"onset": 31, "low": 29, "high": 33, "doubles": null, "falls": null,
                                     "says": "…", "kind": "specific"}},
            "caveats": ["…"],
            "done": true, "finish": "eos|length|context|thought|guard|stopped|read|null", "warnings": ["…"],
            "meta": {"reader": "…"}}, …],
 "outcome": {"says": "…", "detail": "…", "warning": "…"}}
```

"outcome", of a reply and its branch, has "says", "detail" and "warning": what the branch changed, as text. "view" has
the initial choices; "focus", if present, is the token of the reply where the cursor starts, counted from 0 behind the
prompt, as onsets are. There are one or two sides. Arrays are base64 of little-endian float32, exact: the view computes
specific scores, z, cosines, smoothing and other blocks from them without the server. "log_odds" holds slope, offset,
mean and sd of `LogOdds`; a token whose norm exceeds "max_norm" is a sink token, which the view does not score. Payloads
of older versions lack both. `tokens` joins to the exact decoded text. A missing number is NaN. Everything in a payload
is untrusted text: the view never puts it into markup.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, TypeAlias

import numpy as np

from persona_core.errors import SettingError
from persona_core.models.detokenize import well_formed
from persona_core.traces.provenance import short_name
from persona_core.traces.statements import with_not_neutral
from persona_core.traces.trace import UNITS, Alignment, Kind, Trace

Payload: TypeAlias = dict[str, Any]

VERSION = 2
ARRAYS = ("raw", "norms", "null_mean", "null_std", "max_norm")

# In what an onset says: "token 19 [17, 20]", "tokens 3 and 74".
_TOKENS_NAMED = re.compile(r"\btoken \d+( \[\d+, \d+\])?|\btokens \d+ and \d+")
_NUMBER = re.compile(r"\d+")


def trace_payload(
    trace: Trace,
    *,
    name: str = "",
    title: str | None = None,
    kind: Kind | None = None,
    alignment: Alignment = "at",
    block: int | None = None,
    done: bool = True,
    meta: Mapping[str, Any] | None = None,
    onsets: Mapping[str, Mapping[str, Any]] | None = None,
    caveats: Sequence[str] = (),
) -> Payload:
    """Build the view's payload from a trace.

    Args:
        trace: a complete one, or one that is still growing.
        name: of the side, shown if there are two.
        title: heading of the view; None takes the last user message.
        kind: the initial score, "specific", "z", "raw" or "cosine"; None takes the trace's default.
        alignment: the initial alignment, "at" (the state after reading the token) or "before" (the state that chose
            it).
        block: the initial block; None reads each trait at its best block.
        done: False while more tokens follow.
        meta: short facts shown under the title; None takes reader, writer and seed.
        onsets: trait -> "onset", "low", "high", "doubles" and "falls" (tokens of the reply, or None), "answer" and
            "says", as text; see `with_not_neutral` for what is made of them.
        caveats: why the onsets' stated error rate may not hold for this trace.

    Returns:
        A dict that `json.dumps(..., allow_nan=False)` accepts.

    Raises:
        SettingError: an unknown kind or alignment.
        UnknownBlock, NotCalibrated: as `Trace.scores`.

    Example:
        >>> payload = trace_payload(monitor.read("Hello"), title="Hello")  # doctest: +SKIP
    """
    if kind is not None and kind not in UNITS:
        raise SettingError(f"kind={kind!r}; expected {', '.join(map(repr, UNITS))}.")
    for trait in trace.traits:  # an error here rather than a blank page
        trace.scores(trait, kind or trace.default_kind, block, alignment)
    side = {
        "name": well_formed(name),
        "tokens": [well_formed(token) for token in trace.tokens],
        "ids": [int(i) for i in trace.token_ids],
        "roles": list(trace.roles),
        "special": [bool(flag) for flag in trace.special],
        "n_prompt": int(trace.n_prompt),
        "blocks": [int(b) for b in trace.blocks],
        "alignment": trace.alignment,
        **{array: _packed(getattr(trace, array)) for array in ARRAYS},
        "log_odds": None if trace.log_odds is None else _packed(np.stack(list(vars(trace.log_odds).values()))),
        "onsets": {
            well_formed(trait): _in_reply(trace, o) for trait, o in with_not_neutral(trace, onsets or {}).items()
        },
        "caveats": [well_formed(caveat) for caveat in caveats],
        "done": done,
        "finish": trace.finish if done else None,
        "warnings": [well_formed(warning) for warning in trace.warnings],
        "meta": {str(k): well_formed(str(v)) for k, v in (_facts(trace) if meta is None else meta).items()},
    }
    return {
        "version": VERSION,
        "title": well_formed(_last_user_text(trace) if title is None else title),
        "traits": [well_formed(trait) for trait in trace.traits],
        "best": {well_formed(t): int(trace.best_block.get(t, trace.blocks[0])) for t in trace.traits},
        "view": {
            "kind": kind or trace.default_kind,
            "alignment": alignment,
            "block": "best" if block is None else block,
        },
        "sides": [side],
    }


def pair_payload(first: Payload, second: Payload, *, title: str | None = None) -> Payload:
    """Two payloads of one side each as one of two sides on one cursor; `first` is the reference.

    Raises:
        SettingError: their traits differ.
    """
    if first["traits"] != second["traits"]:
        raise SettingError(f"Two sides need the same traits; got {first['traits']} and {second['traits']}.")
    return {
        **first,
        "title": first["title"] if title is None else well_formed(title),
        "sides": [*first["sides"], *second["sides"]],
    }


def _in_reply(trace: Trace, onset: Mapping[str, Any]) -> dict[str, Any]:
    """An onset with its tokens counted from the start of the reply; detectors count from the answer or the thought."""
    section = trace.thinking_positions if onset.get("section") == "thought" else trace.reply_positions
    shift = section[0] - trace.n_prompt if section else 0
    counted = {name: onset.get(name) for name in ("onset", "low", "high", "doubles", "falls")}
    found = {**onset, **{name: at + shift for name, at in counted.items() if at is not None}}
    if shift and onset.get("says"):
        found["says"] = _TOKENS_NAMED.sub(lambda m: _NUMBER.sub(lambda n: str(int(n[0]) + shift), m[0]), onset["says"])
    return found


def _packed(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode("ascii")


def _facts(trace: Trace) -> dict[str, Any]:
    known = trace.provenance
    facts = {"reader": known.reading_model, "writer": known.writer, "seed": known.seed}
    return {key: short_name(str(value)) for key, value in facts.items() if value is not None}


def _last_user_text(trace: Trace) -> str:
    """The last user message, cut to the length of a heading."""
    turns = groupby(zip(trace.roles, trace.tokens, strict=True), key=itemgetter(0))
    said = ["".join(token for _, token in turn) for role, turn in turns if role == "user"]
    text = said[-1].strip() if said else ""
    return text if len(text) <= 200 else text[:199] + "…"
