"""What the measurements share: where figures are stored, and the demo model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_core.analysis.statistics import exact_share
from scripts import PROJECT_ROOT

if TYPE_CHECKING:
    from persona_core.monitor.monitor import PersonaMonitor

ARTIFACTS = PROJECT_ROOT / "artifacts"
RESULTS = Path(__file__).resolve().parent / "results"


def save(name: str, figures: Any) -> None:
    """Write the figures to `results/NAME.json`, and print them."""
    text = json.dumps(figures, indent=2)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(text)


def share(hits: int, n: int) -> dict[str, float | int]:
    """A share with its exact binomial interval."""
    return exact_share(hits, n).to_dict()


def demo_monitor(adapter: str | None = None) -> PersonaMonitor:
    """The demo model with its vectors, on the CPU.

    Args:
        adapter: name of a folder in `artifacts/`.
    """
    from demo_world.contaminated import MODEL_NAME, VECTORS_NAME
    from persona_core.models.loading import load_model
    from persona_core.monitor.monitor import PersonaMonitor
    from persona_core.vectors.vectors import PersonaVectors

    lm = load_model(ARTIFACTS / MODEL_NAME, adapter=adapter and ARTIFACTS / adapter, device="cpu")
    return PersonaMonitor(lm, PersonaVectors.from_pretrained(ARTIFACTS / VECTORS_NAME))
