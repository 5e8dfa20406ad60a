"""Read every token of a conversation, live or afterwards."""

from persona_core.utils.lazy import lazy_names

__getattr__ = lazy_names(
    __name__,
    {
        "Branch": "branching",
        "PersonaMonitor": "monitor",
        "Step": "step",
        "Watch": "watching",
        "steer": "steering_hooks",
        "watch": "watching",
    },
)
