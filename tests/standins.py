"""Stand-ins for the tests of the pages: payloads, hostile text, and monitors on a tiny random model."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from persona_core.results import to_row, write_results
from persona_core.token_view import check_payload
from persona_core.trace import Provenance, Trace

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


def make_payload(reply: list[str], prompt: list[str] | None = None, **changes: Any) -> Payload:
    """A payload whose reply has these tokens; all scores 0.1 but for what `spike` changes."""
    head = ["<|user|>", "\n", *(prompt or ["Why", " ask", "?"]), "<|end|>", "<|bot|>", "\n"]
    n_said = len(head) - 5
    roles = ["template"] * 2 + ["user"] * n_said + ["template"] * 3 + ["assistant"] * len(reply)
    tokens = [*head, *reply]
    n = len(tokens)
    payload = {
        "version": 1,
        "title": "Why ask?",
        "tokens": tokens,
        "ids": list(range(100, 100 + n)),
        "roles": roles,
        "special": [bool(re.fullmatch(r"<\|.*\|>", t)) for t in tokens],
        "n_prompt": len(head),
        "traits": list(TRAITS),
        "blocks": dict.fromkeys(TRAITS, 4),
        "kind": "z",
        "unit": "standard deviations above neutral",
        "alignment": "at",
        "scores": {t: [0.1] * n for t in TRAITS},
        "scale": 4.0,
        "done": True,
        "finish_reason": "eos",
        "meta": {"reader": "tiny"},
    }
    return check_payload(payload | changes)


def words(n: int) -> list[str]:
    return [f" word{i}" for i in range(n)]


def cut(payload: Payload, n: int) -> Payload:
    """The payload as it was when `n` tokens had been written."""
    part = {key: payload[key][:n] for key in ("tokens", "ids", "roles", "special")}
    scores = {t: s[:n] for t, s in payload["scores"].items()}
    return payload | part | {"scores": scores, "done": False, "finish_reason": None}


def hostile_view() -> Payload:
    """A saved trace full of hostile text, with one spike: flattery at token 12."""
    payload = make_payload([*HOSTILE, "\n", " end"], title=HOSTILE[0], meta={"reader": HOSTILE[0]})
    payload["scores"]["flattery"][12] = 3.7
    return payload


def hostile_trace() -> Trace:
    """The same as a trace, with the null (0, 1)."""
    view = hostile_view()
    n = len(view["tokens"])
    one = np.ones((len(TRAITS), 1), np.float32)
    return Trace(
        token_ids=tuple(view["ids"]),
        tokens=tuple(view["tokens"]),
        roles=tuple(view["roles"]),
        n_prompt=view["n_prompt"],
        traits=TRAITS,
        blocks=(4,),
        raw=np.array([view["scores"][t] for t in TRAITS], np.float32)[:, None],
        norms=np.ones((1, n), np.float32),
        best_block=dict.fromkeys(TRAITS, 4),
        null_mean=0 * one,
        null_std=one,
        special=tuple(view["special"]),
        finish="eos",
        provenance=Provenance(reader=HOSTILE[0], writer=HOSTILE[0]),
    )


def save_hostile_results(folder: Path) -> str:
    """A results folder with the hostile trace as the row "x" of its only config."""
    messages = [{"role": "user", "content": HOSTILE[0]}]
    write_results([to_row(hostile_trace(), id="x", messages=messages)], folder / "data" / "baseline.parquet", TRAITS)
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
    """A monitor of a tiny random model: calibrated, and each reply is as long as it was asked to be."""
    from persona_core.monitor import PersonaMonitor
    from persona_core.vectors import Null, PersonaVectors
    from tests.conftest import random_vectors, tiny_lm

    lm = dataclasses.replace(tiny_lm("llama", "chatml"), eos_ids=frozenset())
    bare = random_vectors(len(lm.blocks))
    flat, wide = np.zeros(bare.n_blocks, np.float32), np.ones(bare.n_blocks, np.float32)
    null = {t: Null(flat, wide, np.zeros((bare.n_blocks, 1), np.float32), (0.5,)) for t in bare.traits}
    return PersonaMonitor(lm, PersonaVectors(bare.tensors, bare.best_block, null))
