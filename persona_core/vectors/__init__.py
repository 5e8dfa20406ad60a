"""Persona vectors: extraction, calibration, validation, the card."""
