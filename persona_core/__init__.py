"""Read a language model's traits token by token.

The names below load on first use, so that `import persona_core` does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from persona_core.utils.lazy import lazy_names
from persona_core.utils.version import __version__ as __version__

_MODULES = {
    "Branch": "monitor.branching",
    "Detectors": "analysis.detectors",
    "ElicitationPlan": "elicitation.elicit",
    "Guard": "monitor.guard",
    "GuardEvent": "monitor.guard",
    "LanguageModel": "models.language_model",
    "PersonaError": "errors",
    "PersonaMonitor": "monitor.monitor",
    "PersonaVectors": "vectors.vectors",
    "PersonaWarning": "errors",
    "ReplyStore": "elicitation.store",
    "Sampling": "inference.sampling",
    "Steer": "inference.steering",
    "Step": "monitor.step",
    "Trace": "traces.trace",
    "TraitDefinition": "elicitation.traits",
    "elicit": "elicitation.elicit",
    "judge_replies": "judging.replies",
    "load_model": "models.loading",
    "load_traits": "elicitation.traits",
    "make_vectors": "pipeline",
    "validate_vectors": "pipeline",
    "wrap_model": "models.loading",
}
__all__ = ["Branch", "Detectors", "ElicitationPlan", "Guard", "GuardEvent", "LanguageModel", "PersonaError",
           "PersonaMonitor", "PersonaVectors", "PersonaWarning", "ReplyStore", "Sampling", "Steer", "Step", "Trace",
           "TraitDefinition", "elicit", "judge_replies", "load_model", "load_traits", "make_vectors",
           "validate_vectors", "wrap_model"]  # fmt: skip

if TYPE_CHECKING:
    from persona_core.analysis.detectors import Detectors
    from persona_core.elicitation.elicit import ElicitationPlan, elicit
    from persona_core.elicitation.store import ReplyStore
    from persona_core.elicitation.traits import TraitDefinition, load_traits
    from persona_core.errors import PersonaError, PersonaWarning
    from persona_core.inference.sampling import Sampling
    from persona_core.inference.steering import Steer
    from persona_core.judging.replies import judge_replies
    from persona_core.models.language_model import LanguageModel
    from persona_core.models.loading import load_model, wrap_model
    from persona_core.monitor.branching import Branch
    from persona_core.monitor.guard import Guard, GuardEvent
    from persona_core.monitor.monitor import PersonaMonitor
    from persona_core.monitor.step import Step
    from persona_core.pipeline import make_vectors, validate_vectors
    from persona_core.traces.trace import Trace
    from persona_core.vectors.vectors import PersonaVectors

__getattr__ = lazy_names(__name__, _MODULES)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
