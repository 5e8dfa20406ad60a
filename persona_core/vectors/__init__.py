"""Persona vectors: extraction, calibration, validation, the card."""

from persona_core.utils.lazy import lazy_names

__getattr__ = lazy_names(__name__, {"PersonaVectors": "vectors", "push_vectors": "publish"})
