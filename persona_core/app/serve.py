"""Start the app: settings from the environment, everything that must be there checked first, then served."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Mapping
from typing import Any

import gradio as gr
from dotenv import find_dotenv, load_dotenv
from fastapi import Request, Response
from fastapi.middleware import Middleware
from fastapi.responses import HTMLResponse, JSONResponse

from persona_core.app.api import mcp_available
from persona_core.app.assets import page_head, page_styles
from persona_core.app.audience import HalfQueue
from persona_core.app.layout import build_app
from persona_core.app.page_meta import PageMeta
from persona_core.app.served_set import served_sets
from persona_core.app.settings import AppSettings, sets_from_environment
from persona_core.app.theme import theme
from persona_core.app.zero_gpu import zero_gpu
from persona_core.errors import PersonaError, SettingError
from persona_core.report.home import TITLE


def app_kwargs(settings: AppSettings) -> dict[str, Any]:
    """For the server below Gradio, which adds its own to it."""
    return {
        "exception_handlers": {404: _not_found},
        "middleware": [Middleware(HalfQueue, places=settings.max_queue), Middleware(PageMeta, title=TITLE)],
    }


async def _not_found(request: Request, error: Any) -> Response:
    """In words for a visitor whose link names a model that is not here; as JSON for programs."""
    if "text/html" in request.headers.get("accept", ""):
        return HTMLResponse(_NO_PAGE, 404)
    return JSONResponse({"detail": error.detail}, 404)


_NO_PAGE = f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{TITLE}</title>
<p style="font: 1rem system-ui; margin: 3rem">There is no page at this address: the link may name a model that this app
no longer has. <a href="./">Open the app</a>; its menu lists the models.</p></html>
"""

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
        sets = sets_from_environment()
        settings = next(iter(sets.values()))
        _check_host(settings.host)
        page = _page(sets)
    except PersonaError as error:
        raise SystemExit(str(error)) from error
    try:
        page.launch(server_name=settings.host, server_port=settings.port, app_kwargs=app_kwargs(settings), **LAUNCH)
    except OSError as error:
        raise SystemExit(_not_served(settings, error)) from error


def _page(settings: Mapping[str, AppSettings]) -> gr.Blocks:
    sets = served_sets(settings)
    page = build_app(*sets)
    if zero_gpu():  # a process forked for the GPU has only the models that its parent had loaded
        for one in sets:
            for model in one.models.values():
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
