"""The server's paths."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from persona_core.app.server.access import check_host, check_key, read_body
from persona_core.app.server.api_errors import (
    ApiError,
    AsciiJSONResponse,
    as_api_error,
    on_api_error,
    on_http_error,
    respond,
)
from persona_core.app.server.chat_completions import ChatCompletion
from persona_core.app.server.chat_request import ChatRequest, read_chat_request
from persona_core.app.server.persona_record import Record, kind_of
from persona_core.app.server.reply_request import ReplyRequest
from persona_core.app.server.responses_api import ResponseObject, ResponsesRequest, read_responses_request
from persona_core.app.server.settings import ServeSettings
from persona_core.app.server.streaming import ReplyStream, unless_gone
from persona_core.app.server.watching import stated_rate
from persona_core.app.server.writer import ReplyWriter
from persona_core.errors import PersonaError
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.traces.trace import UNITS
from persona_core.utils.version import __version__

CLIENT_GONE = 499
"""The status of a request whose client has left; nobody reads it."""

Protocol = type[ChatCompletion] | type[ResponseObject]


def build_application(monitor: PersonaMonitor, settings: ServeSettings) -> FastAPI:
    """The server for one model, as an ASGI application.

    Args:
        monitor: of the model, with the detectors that watch its replies, if there are any.
        settings: its names, keys and limits.
    """
    writer = ReplyWriter(monitor, settings)
    card = _card(monitor, writer)
    began = int(time.time())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        writer.start()
        yield
        await asyncio.to_thread(writer.stop)

    app = FastAPI(title="persona serve", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.writer = writer
    for kind, handler in ((ApiError, on_api_error), (HTTPException, on_http_error), (Exception, on_api_error)):
        app.add_exception_handler(kind, handler)

    def check(request: Request) -> None:
        check_key(request, settings.keys) if settings.keys else check_host(request)

    def listed(name: str) -> Record:
        return {"id": name, "object": "model", "created": began, "owned_by": "persona-trace", "persona": card}

    async def answer(request: Request, read: Callable[..., tuple[str, ReplyRequest]], as_: Protocol) -> Response:
        check(request)
        body = await read_body(request, settings.max_body_bytes)
        try:
            name, wanted = read(body, settings)
            if name not in settings.names:
                raise _no_model(name, settings)
            reply = await writer.begin(wanted)
        except PersonaError as error:
            return respond(as_api_error(error))
        written = as_(reply, name)
        if wanted.stream:
            return ReplyStream(reply, written.chunks(), "[DONE]" if as_ is ChatCompletion else "")
        try:
            whole = await unless_gone(request, written.whole())
            return Response(status_code=CLIENT_GONE) if whole is None else AsciiJSONResponse(whole)
        except PersonaError as error:
            return respond(as_api_error(error))
        finally:
            reply.close()

    @app.get("/health")
    async def health() -> Response:
        """Whether replies are written; needs no key."""
        return AsciiJSONResponse(
            {"status": "ok" if writer.alive else "failed", "requests": writer.n_requests},
            200 if writer.alive else 503,
        )

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        """The model, under each of its names."""
        check(request)
        return AsciiJSONResponse({"object": "list", "data": [listed(name) for name in settings.names]})

    @app.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> Response:
        """The model under one of its names."""
        check(request)
        if name not in settings.names:
            raise _no_model(name, settings)
        return AsciiJSONResponse(listed(name))

    @app.post("/v1/chat/completions", openapi_extra=_body_of(ChatRequest, settings.names))
    async def chat_completions(request: Request) -> Response:
        """A reply to a conversation, whole or as server-sent events, with each token's trait scores."""
        return await answer(request, read_chat_request, ChatCompletion)

    @app.post("/v1/responses", openapi_extra=_body_of(ResponsesRequest, settings.names))
    async def responses(request: Request) -> Response:
        """The same in OpenAI's newer protocol: text in, text out, nothing stored."""
        return await answer(request, read_responses_request, ResponseObject)

    return app


def _no_model(name: str, settings: ServeSettings) -> ApiError:
    return ApiError(
        f"There is no model {name[:80]!r} here; this server has {', '.join(map(repr, settings.names))}.",
        404,
        param="model",
        code="model_not_found",
    )


def _card(monitor: PersonaMonitor, writer: ReplyWriter) -> Record:
    """What is read of the model, for /v1/models."""
    vectors = monitor.vectors
    kind, settings = kind_of(vectors), writer.settings
    described = vectors.config.get("descriptions", {})
    traits = {
        trait: {"block": int(vectors.best_block[trait]), "description": described.get(trait, "")}
        for trait in vectors.traits
        if trait in vectors.best_block
    }
    limits = {name: getattr(settings, name) for name in ("max_new_tokens", "max_prompt_tokens", "max_seconds")}
    return {
        "kind": kind,
        "unit": UNITS[kind],
        "traits": traits,
        "rate": None if monitor.detectors is None else stated_rate(monitor.detectors),
        "default_sampling": writer.default_sampling,
        "limits": limits,
    }


def _body_of(model: type[BaseModel], names: tuple[str, ...]) -> Record:
    """A request's schema. The body is read here and not by FastAPI: after its key, and up to a limit."""
    schema: dict[str, Any] = model.model_json_schema()
    schema["properties"]["model"]["enum"] = list(names)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _inlined(schema)}}}}


def _inlined(schema: dict[str, Any]) -> Any:
    """The schema with its definitions where they are used."""
    known = schema.pop("$defs", {})

    def inline(part: Any) -> Any:
        if isinstance(part, list):
            return [inline(one) for one in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return inline(known[part["$ref"].rsplit("/", 1)[-1]])
        return {key: inline(value) for key, value in part.items()}

    return inline(schema)
