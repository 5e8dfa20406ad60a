"""How often couplings are claimed where there is none: neutral texts, and random directions in place of traits.

`rates` takes any model with its vectors; `benchmarks.interaction` measures the demo model with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.common import share
from persona_core.analysis.coupling_controls import edges_on_neutral
from persona_core.analysis.couplings import CONTROL_QUANTILE, Coupling, Couplings
from persona_core.analysis.interaction import measure_couplings, trait_series
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.vectors.random_directions import random_vectors
from persona_core.vectors.vectors import PersonaVectors

BARS = tuple(round(0.02 * k, 2) for k in range(8))
N_DIRECTIONS = 16

Texts = Sequence[tuple[str, str]]
"""Question and reply."""


def rates(
    monitor: PersonaMonitor, neutral: Texts, texts: Mapping[str, Texts], chosen_on: str | None = None
) -> dict[str, Any]:
    """Edges among random directions and among the traits, in each set of texts, against the same neutral texts.

    Args:
        monitor: model and vectors.
        neutral: the null; halved by question for the rate on neutral text.
        texts: name -> texts.
        chosen_on: the set on which the bar is chosen: the smallest of `BARS` that no pair of random directions exceeds.
    """
    vectors, random = monitor.vectors, random_vectors(monitor.vectors, N_DIRECTIONS)
    together = PersonaVectors(
        {**{t: vectors.reading(t) for t in vectors.traits}, **random.tensors},
        {**vectors.best_block, **random.best_block},
        absent_blocks=vectors.absent_blocks,
        max_norm=vectors.max_norm,
    )
    reader, names = PersonaMonitor(monitor.lm, together), together.traits

    def read(some: Texts) -> list[np.ndarray]:
        conversations = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in some]
        return trait_series(reader.read_batch(conversations), names, "raw")  # a coupling is the same for z

    null, questions = read(neutral), [q for q, _ in neutral]
    n = len(vectors.traits)
    found: dict[str, Any] = {"n_neutral": len(neutral), "n_directions": N_DIRECTIONS, "sets": {}}
    for part, names_of, own in (
        ("traits", vectors.traits, [z[:n] for z in null]),
        ("random", random.traits, [z[n:] for z in null]),
    ):
        found.setdefault("neutral_halves", {})[part] = edges_on_neutral(names_of, own, questions).to_dict()
    for name, some in texts.items():
        measured = measure_couplings(
            names, read(some), [q for q, _ in some], neutral=null, neutral_groups=questions, control=random.traits
        )
        found["sets"][name] = {"n_texts": len(some), **_of(measured)}
    if chosen_on is not None:
        grid = found["sets"][chosen_on]["random_at_bar"]
        found |= {"chosen_on": chosen_on, "bar": min(bar for bar in BARS if not grid[f"{bar:g}"]["value"])}
    return found


def _of(couplings: Couplings) -> dict[str, Any]:
    same = [c for c in couplings.control if not c.lag]

    def at(bar: float) -> dict[str, Any]:
        return share(sum(c.exceeds(bar) for c in same), len(same))

    lagged = couplings.control_share(lagged=True)
    own = couplings.control_share()
    assert own is not None and lagged is not None
    return {
        "random_at_bar": {f"{bar:g}": at(bar) for bar in BARS},
        "random": own.to_dict(),
        "random_lagged": lagged.to_dict(),
        "random_excess": round(float(np.quantile([_size(c) for c in same], CONTROL_QUANTILE)), 4),
        "traits": share(sum(c.claimed for c in couplings.together), len(couplings.together)),
        "traits_lagged": share(sum(c.claimed for c in couplings.lagged), len(couplings.lagged)),
        "traits_differ": share(sum(c.significant for c in couplings.together), len(couplings.together)),
        "largest": round(max(_size(c) for c in couplings.together), 4),
        "edges": [
            [c.source, c.target, c.lag, c.excess.to_dict()]
            for c in (*couplings.together, *couplings.lagged)
            if c.claimed and c.excess
        ],
    }


def _size(coupling: Coupling) -> float:
    return abs(coupling.excess.value) if coupling.excess else 0.0
