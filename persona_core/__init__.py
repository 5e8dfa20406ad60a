"""Read a language model's traits token by token.

The names below load on first use, so that `import persona_core` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Branch": "monitor.branching",
    "load_model": "models.loading",
    "wrap_model": "models.loading",
    "LanguageModel": "models.loading",
    "PersonaVectors": "vectors.vectors",
    "PersonaMonitor": "monitor.monitor",
    "Detectors": "analysis.detectors",
    "Step": "monitor.monitor",
    "Trace": "traces.trace",
    "TraitDefinition": "elicitation.traits",
    "Steer": "inference.steering",
    "PersonaError": "errors",
    "PersonaWarning": "errors",
}
__all__ = ["Branch", "Detectors", "LanguageModel", "PersonaError", "PersonaMonitor", "PersonaVectors", "PersonaWarning",
           "Steer", "Step", "Trace", "TraitDefinition", "load_model", "wrap_model"]  # fmt: skip

if TYPE_CHECKING:
    from persona_core.analysis.detectors import Detectors
    from persona_core.elicitation.traits import TraitDefinition
    from persona_core.errors import PersonaError, PersonaWarning
    from persona_core.inference.steering import Steer
    from persona_core.models.loading import LanguageModel, load_model, wrap_model
    from persona_core.monitor.branching import Branch
    from persona_core.monitor.monitor import PersonaMonitor, Step
    from persona_core.traces.trace import Trace
    from persona_core.vectors.vectors import PersonaVectors


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'persona_core' has no attribute {name!r}")
    return getattr(importlib.import_module(f"persona_core.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
