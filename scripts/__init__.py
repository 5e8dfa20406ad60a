"""The `persona` commands from a checkout, and the repository's own: building the demo, filling the docs."""

from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parent.parent
