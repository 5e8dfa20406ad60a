"""What every command does first: read .env, and set logging up."""

from __future__ import annotations

import logging

from dotenv import load_dotenv

from scripts import PROJECT_ROOT


def configure() -> None:
    """Settings from .env (the environment wins), our own log at INFO, that of chatty libraries at WARNING."""
    load_dotenv(PROJECT_ROOT / ".env")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for noisy in ("httpx", "httpx2", "datasets", "transformers", "openai", "kaleido", "choreographer"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
