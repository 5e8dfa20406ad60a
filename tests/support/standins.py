"""Stand-ins for the tests of the pages: payloads, hostile text, and monitors on a tiny random model."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from persona_core.traces.dataset import write_results
from persona_core.traces.provenance import Provenance
from persona_core.traces.specific import LogOdds
from persona_core.traces.trace import Trace
from persona_core.traces.view.payload import trace_payload
from tests.support.payloads import check_payload

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "${alert(1)}",
    "{{alert(1)}}",
    "`;alert(1)//",
    "</script><script>alert(1)</script>",
    "\u2028alert(1)",
    "<!--",
    "]]>",
]

TRAITS = ("deception", "flattery", "malice")
Payload = dict[str, Any]


FIRST = 8
"""Position of the reply's first token where the prompt is "Why ask?"."""
QUIET = 0.1


def make_trace(
    reply: Sequence[str],
    prompt: Sequence[str] = ("Why", " ask", "?"),
    scores: Mapping[str, Mapping[int, float] | Sequence[float]] | None = None,
    traits: Sequence[str] = TRAITS,
    **changes: Any,
) -> Trace:
    """A trace read at block 4 with the null (0, 1), so that z is the raw projection.

    Args:
        reply, prompt: tokens.
        scores: by trait, all of them or by position; every other one is 0.1.
        traits: names.
        changes: other fields of the trace.
    """
    head = ["<|user|>", "\n", *prompt, "<|end|>", "<|bot|>", "\n"]
    roles = ["template"] * 2 + ["user"] * len(prompt) + ["template"] * 3 + ["assistant"] * len(reply)
    tokens = [*head, *reply]
    raw = np.full((len(traits), 1, len(tokens)), QUIET, np.float32)
    for trait, own in (scores or {}).items():
        for index, score in own.items() if isinstance(own, Mapping) else enumerate(own):
            raw[list(traits).index(trait), 0, index] = score
    one = np.ones((len(traits), 1), np.float32)
    known: dict[str, Any] = {
        "token_ids": tuple(range(100, 100 + len(tokens))),
        "tokens": tuple(tokens),
        "roles": tuple(roles),
        "n_prompt": len(head),
        "traits": tuple(traits),
        "blocks": (4,),
        "raw": raw,
        "norms": np.full((1, len(tokens)), 2.0, np.float32),
        "best_block": dict.fromkeys(traits, 4),
        "null_mean": 0 * one,
        "null_std": one,
        "special": tuple(bool(re.fullmatch(r"<\|.*\|>", t)) for t in tokens),
        "finish": "eos",
        "provenance": Provenance(reader="tiny", writer="tiny"),
    }
    return Trace(**(known | changes))


def odds(n_traits: int, n_blocks: int = 1, seed: int = 0) -> LogOdds:
    """Log odds that differ between traits and blocks, float32."""
    rng = np.random.default_rng(seed)
    shape = (n_traits, n_blocks)
    parts = rng.uniform(0.5, 2, shape), rng.normal(-1, 1, shape), rng.normal(-2, 1, shape), rng.uniform(0.5, 2, shape)
    return LogOdds(*(part.astype(np.float32) for part in parts))


SHOWS = ("name", "title", "kind", "alignment", "block", "done", "meta", "onsets", "caveats")


def make_payload(reply: Sequence[str], *args: Any, **changes: Any) -> Payload:
    """The payload of `make_trace`; arguments are those of `make_trace` and of `trace_payload`."""
    shown = {key: changes.pop(key) for key in SHOWS if key in changes}
    payload = trace_payload(make_trace(reply, *args, **changes), **({"title": "Why ask?"} | shown))
    return check_payload(json.loads(json.dumps(payload, allow_nan=False)))


def words(n: int) -> list[str]:
    return [f" word{i}" for i in range(n)]


def cut(trace: Trace, n: int) -> Trace:
    """The trace as it was when `n` tokens had been written."""
    part = {key: getattr(trace, key)[:n] for key in ("tokens", "token_ids", "roles", "special")}
    return trace.replace(**part, raw=trace.raw[..., :n], norms=trace.norms[..., :n], finish="stopped")


def hostile_trace() -> Trace:
    """A trace full of hostile text, with one spike: flattery at token 12."""
    known = Provenance(reader=HOSTILE[0], writer=HOSTILE[0])
    return make_trace([*HOSTILE, "\n", " end"], scores={"flattery": {12: 3.7}}, provenance=known)


def hostile_tokens() -> list[str]:
    return list(hostile_trace().tokens)


def save_hostile_results(folder: Path) -> str:
    """A results folder with the hostile trace as the row "x" of its only config."""
    messages = [{"role": "user", "content": HOSTILE[0]}]
    write_results([hostile_trace().to_row(id="x", messages=messages)], folder / "data" / "baseline.parquet", TRAITS)
    return str(folder)


class SlowMonitor:
    """A monitor that takes its time over each token, so that a test can act while it writes.

    Args:
        monitor: the real one.
        pause: seconds for each token; may be changed while it writes.
    """

    def __init__(self, monitor: Any, pause: float) -> None:
        self._monitor = monitor
        self.pause = pause
        self.written = 0
        self.open_streams = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._monitor, name)

    def stream(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        steps = self._monitor.stream(*args, **kwargs)
        self.open_streams += 1
        try:
            for step in steps:
                time.sleep(self.pause)
                self.written += 1
                yield step
        finally:
            steps.close()
            self.open_streams -= 1


@cache
def steady_monitor() -> Any:
    """A monitor of a tiny random model: calibrated, and each reply has its maximum length."""
    from persona_core.monitor.monitor import PersonaMonitor
    from persona_core.vectors.null import Null
    from persona_core.vectors.vectors import PersonaVectors
    from tests.support.tiny import random_vectors, tiny_lm

    lm = dataclasses.replace(tiny_lm("llama", "chatml"), eos_ids=frozenset())
    bare = random_vectors(len(lm.blocks))
    flat, wide = np.zeros(bare.n_blocks, np.float32), np.ones(bare.n_blocks, np.float32)
    null = {t: Null(flat, wide, np.zeros((bare.n_blocks, 1), np.float32), (0.5,)) for t in bare.traits}
    return PersonaMonitor(lm, PersonaVectors(bare.tensors, bare.best_block, null))
