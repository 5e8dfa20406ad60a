"""Start the app: settings from the environment, everything that must be there checked first, then served."""

from __future__ import annotations

import socket
import warnings
from typing import Any

import gradio as gr
from dotenv import find_dotenv, load_dotenv

from persona_core.app.api import mcp_available
from persona_core.app.assets import page_head, page_styles
from persona_core.app.layout import build_app
from persona_core.app.pooled_model import PooledModel
from persona_core.app.settings import AppSettings
from persona_core.app.theme import theme
from persona_core.app.zero_gpu import zero_gpu
from persona_core.errors import PersonaError, SettingError
from persona_core.models.gguf import find_gguf
from persona_core.utils.hub import resolve_source, split_revision
from persona_core.vectors.vectors import PersonaVectors

# Every launch shares these, those in tests included: nothing is recorded, nothing is fetched from elsewhere.
LAUNCH: dict[str, Any] = {
    "theme": theme(),
    "css": page_styles(),
    "head": page_head(),
    "run_history": False,
    "enable_monitoring": False,
    "ssr_mode": False,
    "pwa": False,
    "max_file_size": "1kb",  # nothing here takes a file; an upload would only fill the disk
    "mcp_server": mcp_available(),
    "footer_links": ["api", "gradio", "settings"],
}


def main() -> None:
    """Serve the app. A model is loaded when a visitor first runs it."""
    # Gradio quotes the request of a program that sends too few values; what people type must not be logged.
    warnings.filterwarnings("ignore", message=r"(?s).*Received inputs")
    load_dotenv(find_dotenv(usecwd=True))
    try:
        settings = AppSettings.from_environment()
        _check_host(settings.host)
        page = _page(settings)
    except PersonaError as error:
        raise SystemExit(str(error)) from error
    try:
        page.launch(server_name=settings.host, server_port=settings.port, **LAUNCH)
    except OSError as error:
        raise SystemExit(_not_served(settings, error)) from error


def _page(settings: AppSettings) -> gr.Blocks:
    for name in ("model", "adapter", "results"):
        if source := getattr(settings, name):
            try:  # a mistyped folder is found now, not by the first visitor
                if not (name == "model" and find_gguf(*split_revision(source))):
                    resolve_source(*split_revision(source))
            except PersonaError as error:
                raise SettingError(f"PERSONA_{name.upper()}: {error}") from error
    try:
        PersonaVectors.from_pretrained(*split_revision(settings.vectors))
    except PersonaError as error:
        raise SettingError(f"No vectors to show (PERSONA_VECTORS): {error}") from error
    baseline = PooledModel.from_settings(settings)
    contaminated = PooledModel.from_settings(settings, contaminated=True) if settings.adapter else None
    page = build_app(settings, baseline, contaminated)
    if zero_gpu():  # a process forked for the GPU has only the models that its parent had loaded
        for model in filter(None, (baseline, contaminated)):
            model.monitor()
    return page


def _check_host(host: str | None) -> None:
    """Refuse an address that is not this machine's: Gradio would try a hundred of its ports."""
    if host is None:
        return
    try:
        family, *_, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind(address)
    except OSError as error:
        raise SettingError(f"PERSONA_HOST={host!r} is not an address of this machine: {error}") from error


def _not_served(settings: AppSettings, error: OSError) -> str:
    """Why the app could not be served. Gradio's message names its own environment variables; this one names ours."""
    if "empty port" not in str(error):
        return f"The app could not be served: {error}"
    if settings.port is None:
        return "No free port was found. Set PERSONA_PORT to a free one."
    return f"Port {settings.port} is in use. Set PERSONA_PORT to another port, such as {settings.port % 65535 + 1}."
