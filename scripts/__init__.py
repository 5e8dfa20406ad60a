"""The commands: one thin module each, run as `python -m scripts.NAME --help` from the project's root."""

from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parent.parent
