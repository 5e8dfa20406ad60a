"""The demo model behind a running server, and what clients need of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import openai
import pytest

from persona_core.analysis.detectors import Detectors
from persona_core.app.server.application import build_application
from persona_core.app.server.settings import ServeSettings
from persona_core.app.server.writer import ReplyWriter
from persona_core.models.loading import load_model
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.vectors.vectors import PersonaVectors
from tests.support.asgi_server import serving
from tests.traces.test_dataset import SHIPPED

SETTINGS = ServeSettings(("tiny", "persona-tiny", "gpt-5.5"), batch_size=4, max_new_tokens=256, max_prompt_tokens=400)


@dataclass(frozen=True)
class Running:
    """A server on this machine."""

    url: str
    writer: ReplyWriter

    @property
    def monitor(self) -> PersonaMonitor:
        return self.writer.monitor

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)


@contextmanager
def running(monitor: PersonaMonitor, send_buffer: int | None = None, **changes: Any) -> Iterator[Running]:
    application = build_application(monitor, replace(SETTINGS, **changes))
    with serving(application, send_buffer) as url:
        yield Running(url, application.state.writer)


@pytest.fixture(scope="session")
def monitor() -> PersonaMonitor:
    folder = SHIPPED.parent / "persona-vectors-persona-tiny"
    lm = load_model(SHIPPED.parent / "persona-tiny", device="cpu")
    return PersonaMonitor(lm, PersonaVectors.from_pretrained(folder), detectors=Detectors.from_pretrained(folder))


@pytest.fixture(scope="session")
def server(monitor: PersonaMonitor) -> Iterator[Running]:
    with running(monitor, max_new_tokens=128) as one:
        yield one


@pytest.fixture
def serve(monitor: PersonaMonitor) -> Iterator[Callable[..., Running]]:
    """Starts a server of its own, with other settings."""
    from contextlib import ExitStack

    with ExitStack() as opened:
        yield lambda **changes: opened.enter_context(running(monitor, **changes))


@pytest.fixture(scope="session")
def client(server: Running) -> openai.OpenAI:
    return server.client()
