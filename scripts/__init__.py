"""The commands: one thin module each, run as `python -m scripts.NAME --help` from the project's root."""

from pathlib import Path

from dotenv import load_dotenv

PROJECT_ROOT = Path(__file__).resolve().parent.parent


def load_environment() -> None:
    """Take settings from the project's `.env`, where there is one; variables that are already set win.

    A command calls this first in its `main`, so that importing a command (as tests do) changes nothing.
    """
    load_dotenv(PROJECT_ROOT / ".env", override=False)
