"""Judges (an OpenAI-compatible server or a local model), scores of replies, and annotated sentences."""
