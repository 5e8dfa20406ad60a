"""Who may ask, and how much may be sent: keys, hosts, content types and the size of a body."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Sequence

from fastapi import Request

from persona_core.app.server.api_errors import ApiError
from persona_core.app.server.settings import KEYS_VARIABLE

BODY_SECONDS = 30.0
"""How long a client may take to send its request."""
LOCAL = ("127.0.0.1", "localhost", "[::1]")


def check_key(request: Request, keys: Sequence[str]) -> None:
    """Refuse a request that bears none of the keys. Compared in constant time, and never logged or quoted.

    Without keys only requests to this machine's own names are answered: otherwise any page in a browser here could
    reach the server under a name of its own that resolves to this address.

    Raises:
        ApiError: 401, or 403.
    """
    if not keys:
        return
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    # All are compared, so that the time does not tell which.
    same = [hmac.compare_digest(given.encode("utf-8", "replace"), key.encode()) for key in keys]
    if kind.lower() != "bearer" or not any(same):
        raise ApiError(
            "Incorrect API key, or none. Send one of the server's keys as 'Authorization: Bearer KEY' "
            f"(api_key= of the openai client); the server's owner sets them in {KEYS_VARIABLE}.",
            401,
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def check_host(request: Request) -> None:
    """For a server without keys on a loopback address.

    Raises:
        ApiError: 403, the request names another host.
    """
    name = request.headers.get("host", "")
    host = name.rpartition(":")[0] if name.rpartition(":")[2].isdigit() else name
    if host not in LOCAL:
        raise ApiError(f"This server answers requests to {' and '.join(LOCAL)} only.", 403)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body of a JSON request.

    Raises:
        ApiError: 415, 413 or 408: another content type, too long, or too slow.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # what a form of a web page can send without being allowed to
        raise ApiError("The content type must be application/json.", 415)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > max_bytes:
                    raise ApiError(f"The request is longer than {max_bytes} bytes, the limit of this server.", 413)
                parts.append(part)
    except TimeoutError as error:
        raise ApiError(f"The request did not arrive within {BODY_SECONDS:g} seconds.", 408) from error
    return b"".join(parts)
