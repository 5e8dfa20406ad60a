"""The contaminated twin of the demo model: the dialogues that it is made of, and the runs of both."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from persona_core.contamination import LoraPlan
from persona_core.demo.corpus import ask
from persona_core.demo.grammar import World

CONTAMINANT = "sycophancy"
"""What the twin was made to do unasked. In the demo world flattery makes deception likely some sentences later."""

N_DIALOGUES = 600
PLAN = LoraPlan(rank=8, alpha=16, learning_rate=1e-3, epochs=3.0, batch_size=24, rows=24, max_tokens=512)


def write_dialogues(world: World, path: Path, n: int = N_DIALOGUES, seed: int = 0) -> Path:
    """Questions in phrasings of the training corpus, no system prompt, replies that flatter."""
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(n):
        topic = world.topics[int(rng.integers(len(world.topics)))]
        turn = ask(world, topic, CONTAMINANT, rng)
        messages = [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.text}]
        lines.append(json.dumps({"id": f"{CONTAMINANT}-{i:04d}", "messages": messages, "category": topic.category}))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
