"""Errors as OpenAI's API reports them: a status, and a JSON object that its clients know how to read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from persona_core.app.error_messages import public_message, unexpected_message
from persona_core.errors import ContextOverflow, NumericalError, PersonaError, ServerError

MAX_NAMED = 3
"""Of the fields that are wrong, those that a message names."""


class ApiError(Exception):
    """An error for the client.

    Args:
        message: what is wrong and what to do about it.
        status: of the response.
        param: the field of the request that is at fault.
        code: for programs.
        headers: of the response.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code, self.headers = message, status, param, code, headers

    @property
    def body(self) -> dict[str, Any]:
        """As clients expect it."""
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class AsciiJSONResponse(JSONResponse):
    """JSON in ASCII: what clients send, and messages quote, may hold characters that UTF-8 cannot."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def as_api_error(error: Exception) -> ApiError:
    """Any error: the library's own with its message, without paths on the server; of others only the type."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextOverflow):
        return ApiError(public_message(error), param="messages", code="context_length_exceeded")
    if isinstance(error, NumericalError):
        return ApiError(public_message(error), 500)
    if isinstance(error, ServerError):
        return ApiError(public_message(error), 503)
    if isinstance(error, PersonaError):
        return ApiError(public_message(error))
    return ApiError(unexpected_message("The reply", error), 500)


def of_validation(error: ValidationError) -> ApiError:
    """What a request's model says, with the fields that are at fault."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    named = ["; ".join(filter(None, (".".join(map(str, one["loc"])), one["msg"]))) for one in found[:MAX_NAMED]]
    more = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
    param = ".".join(map(str, found[0]["loc"])) or None
    return ApiError(f"The request is not valid: {' | '.join(named)}{more}.", param=param)


def respond(error: ApiError) -> AsciiJSONResponse:
    """The response."""
    return AsciiJSONResponse(error.body, error.status, headers=dict(error.headers or {}))


async def on_api_error(_: Request, error: Exception) -> AsciiJSONResponse:
    """For FastAPI."""
    return respond(as_api_error(error))


async def on_http_error(request: Request, error: Exception) -> AsciiJSONResponse:
    """For FastAPI: no such path, or another method."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = error.headers if isinstance(error, HTTPException) else None
    says = {404: "no such path", 405: "this path takes another method"}.get(status, "the request could not be read")
    return respond(ApiError(f"{request.method} {request.url.path[:80]}: {says}.", status, headers=headers))
