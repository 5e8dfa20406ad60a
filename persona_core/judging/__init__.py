"""Judges: an OpenAI-compatible server, or a local model."""
