"""What the measurements share: where figures are stored, and the models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_core.analysis.statistics import Estimate, bounded, exact_share
from persona_core.models import wheel_weights

if TYPE_CHECKING:
    from persona_core.monitor.monitor import PersonaMonitor

ROOT = Path(__file__).resolve().parent.parent
ARTIFACTS = ROOT / "artifacts"
RESULTS = ROOT / "benchmarks" / "results"


def save(name: str, figures: Any) -> None:
    """Write the figures to `results/NAME.json`, and print them."""
    text = json.dumps(figures, indent=2)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(text)


def share(hits: int, n: int) -> dict[str, float | int]:
    """A share with its exact binomial interval."""
    return exact_share(hits, n).to_dict()


def share_by_cluster(hits: np.ndarray, clusters: np.ndarray) -> dict[str, float | int]:
    """A share of trials `[n]` of which those of one cluster go together, with its interval over clusters.

    >>> share_by_cluster(np.arange(180) < 10, np.arange(180) // 10)["high"] > share(10, 180)["high"]
    True
    """
    weight = np.asarray(hits, float)
    found = bounded(lambda w: float(w @ weight / w.sum()), clusters) if len(weight) else None
    value = float(weight.mean()) if len(weight) else 0.0
    return (found or Estimate(value, 0.0, 1.0, len(np.unique(clusters)))).to_dict()


def real_weights() -> Path:
    """The file of SmolLM2-135M-Instruct; without it the measurement ends, and says how to get it."""
    path, why = wheel_weights.find()
    if path is None:
        raise SystemExit(why)
    return path


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
