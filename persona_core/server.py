"""The client of OpenAI-compatible servers: how it is opened, and what its errors mean to a user."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from persona_core.errors import ServerError

if TYPE_CHECKING:
    from openai import AsyncOpenAI


def is_fatal(error: Exception) -> bool:
    """Whether asking again cannot help: a bad key, an unknown model, a request that the server does not take."""
    import openai

    kinds = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError, openai.BadRequestError)
    return isinstance(error, kinds)


def open_client(
    *, base_url: str | None, api_key: str | None, timeout: float = 60.0, max_retries: int = 5
) -> AsyncOpenAI:
    """A client with the given or the environment's key and server.

    Raises:
        ServerError: the package is missing, or OpenAI's own server is meant and there is no key.
    """
    try:
        from openai import AsyncOpenAI
    except ImportError as error:
        raise ServerError("This needs the openai package: pip install 'persona-core[judge]'.") from error
    key = api_key or os.environ.get("OPENAI_API_KEY")
    server = base_url or os.environ.get("OPENAI_BASE_URL")
    if not key and not server:
        raise ServerError(
            "No API key. Set OPENAI_API_KEY (in the environment or in .env), or name a server of your own with "
            "--base-url or OPENAI_BASE_URL."
        )
    return AsyncOpenAI(base_url=server, api_key=key or "none", timeout=timeout, max_retries=max_retries)


def explain(error: Exception, base_url: str | None, model: str) -> str:
    """One sentence on what went wrong and what to do; never holds a key."""
    import openai

    server = base_url or os.environ.get("OPENAI_BASE_URL") or "OpenAI"
    if isinstance(error, openai.APITimeoutError):
        return f"{server} did not answer in time. Try again later, or allow a longer --timeout."
    if isinstance(error, openai.APIConnectionError):
        return f"{server} cannot be reached. Check the address (--base-url, OPENAI_BASE_URL) and that it is running."
    if isinstance(error, (openai.AuthenticationError, openai.PermissionDeniedError)):
        return f"{server} refused the API key (status {error.status_code}). Check OPENAI_API_KEY."
    if isinstance(error, openai.NotFoundError):
        return f"{server} knows no model {model!r} (status 404). Check the name and the address."
    if isinstance(error, openai.RateLimitError):
        return f"{server} turned requests away for their rate (status 429). Lower --concurrency, or try again later."
    if isinstance(error, openai.BadRequestError):
        return f"{server} refused a request to {model!r} (status 400): {_message(error)}"
    if isinstance(error, openai.APIStatusError):
        return f"{server} failed (status {error.status_code}). Try again later."
    return f"{server} answered with something that is not a chat completion ({type(error).__name__})."


def without_refused_parameter(error: Exception, sent: dict[str, Any]) -> dict[str, Any] | None:
    """The parameters without the one that a server refuses with status 400; None where it is about none of them."""
    import openai

    if not isinstance(error, (openai.BadRequestError, openai.UnprocessableEntityError)):
        return None
    says = _message(error)
    if "max_tokens" in sent and "max_completion_tokens" in says:
        rest = {k: v for k, v in sent.items() if k != "max_tokens"}
        return {**rest, "max_completion_tokens": sent["max_tokens"]}
    if "logprobs" in sent and "logprobs" in says:
        return {k: v for k, v in sent.items() if "logprobs" not in k}
    refused = [name for name in sent if name in says]
    return {k: v for k, v in sent.items() if k not in refused} if refused else None


def _message(error: Any) -> str:
    body = getattr(error, "body", None)
    text = str(body.get("message") or body) if isinstance(body, dict) else str(getattr(error, "message", error))
    return " ".join(text.split())[:300]
