"""The client of OpenAI-compatible servers: how it is opened, how many questions are asked at once, what errors mean."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from persona_core.errors import PersonaError, ServerError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

logger = logging.getLogger(__name__)

JUDGE_KEY, WRITER_KEY = "OPENAI_API_KEY", "SERVED_API_KEY"
GIVE_UP_AFTER, GIVE_UP_LATER = 8, 32
"""Failures in a row before any success, and after one. At 60 s and six tries each, 32 take about 12 minutes."""
ROOM_TO_REASON = 2048
"""Tokens for a model that counts its hidden reasoning as part of the answer (`max_completion_tokens`)."""

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def address(base_url: str | None) -> str | None:
    """The server that is meant: the given one, else `OPENAI_BASE_URL`; None is OpenAI's own.

    Raises:
        ServerError: the address holds a user name or password, which would be written into files and messages.
    """
    url = base_url or os.environ.get("OPENAI_BASE_URL") or None
    if url and (urlsplit(url).username or urlsplit(url).password):
        raise ServerError(
            "The server's address holds a user name or password. Take it out, and put the key into the environment "
            f"({JUDGE_KEY} for the judge, {WRITER_KEY} for the server that writes)."
        )
    return url


def open_client(
    *, base_url: str | None, api_key: str | None, timeout: float = 60.0, max_retries: int = 5, key: str = JUDGE_KEY
) -> AsyncOpenAI:
    """A client of one server.

    Args:
        base_url: as `address` gives it.
        api_key: None takes the environment's.
        key: the environment variable that holds it. Each server has its own: a key never goes to another one.

    Raises:
        ServerError: the package is missing, or OpenAI's own server is meant and there is no key.
    """
    try:
        from openai import AsyncOpenAI
    except ImportError as error:
        raise ServerError("This needs the openai package: pip install openai.") from error
    secret = api_key or os.environ.get(key)
    if not secret and not base_url:
        raise ServerError(
            f"No API key. Set {key} (in the environment or in .env), or name a server of your own with "
            "--judge-url, --base-url or OPENAI_BASE_URL."
        )

    return AsyncOpenAI(base_url=base_url, api_key=secret or "none", timeout=timeout, max_retries=max_retries)


def ask_all(
    client: AsyncOpenAI,
    items: Sequence[Item],
    ask: Callable[[Item], Awaitable[Answer]],
    describe: Callable[[Exception], str],
    concurrency: int,
    answered_before: bool = False,
) -> Generator[tuple[Item, Answer | None, str], None, None]:
    """Ask many questions at once and hand out answers as they arrive.

    The work is done in a loop in a thread of its own, so that this can be used inside a running loop (a notebook) too.
    A caller that stops early drops the requests under way.

    Args:
        ask: puts one question; what it raises is a failure of that question.
        describe: what a failure means, in a sentence.
        concurrency: requests under way at once.
        answered_before: an earlier run had answers from this server, so that it is known to work.

    Yields:
        Each item with its answer; or with None and the reason.

    Raises:
        ServerError: asking on is pointless: a bad key, no such model, or too many failures in a row.
    """
    if concurrency < 1:
        raise ServerError(f"concurrency={concurrency!r}; expected a whole number from 1.")
    arrived: queue.Queue[Any] = queue.Queue()
    loop = asyncio.new_event_loop()
    todo = iter(items)
    known, in_a_row, given_up = answered_before, 0, False

    async def worker() -> None:
        nonlocal known, in_a_row, given_up
        for item in todo:
            if given_up:
                return
            try:
                answer = await ask(item)
            except Exception as error:  # handed out with the item; what ends the run is decided here
                reason = str(error) if isinstance(error, PersonaError) else describe(error)
                # A request that a working server does not take says nothing about the next one.
                in_a_row += not (known and _about_the_question(error))
                if is_fatal(error) or in_a_row >= (GIVE_UP_LATER if known else GIVE_UP_AFTER):
                    given_up = True
                    raise ServerError(reason) from None
                arrived.put((item, None, reason))
            else:
                known, in_a_row = True, 0
                arrived.put((item, answer, ""))

    async def everything() -> None:
        async with client:
            results = await asyncio.gather(*(worker() for _ in range(concurrency)), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    task = loop.create_task(everything())

    def work() -> None:
        try:
            loop.run_until_complete(task)
            arrived.put(None)
        except BaseException as error:  # handed over to the caller's thread
            arrived.put(error)
        finally:
            loop.close()

    thread = threading.Thread(target=work, name="ask-server", daemon=True)
    thread.start()
    try:
        while (one := arrived.get()) is not None:
            if isinstance(one, BaseException):
                raise one
            yield one
    finally:
        if not task.done():
            loop.call_soon_threadsafe(task.cancel)
        thread.join()


def is_fatal(error: Exception) -> bool:
    """Whether no question can be answered: a bad key, or an unknown model."""
    import openai

    return isinstance(error, (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError))


def _about_the_question(error: Exception) -> bool:
    """Whether this one request was at fault (too long, filtered), or its answer could not be used."""
    import openai

    return isinstance(error, (openai.BadRequestError, openai.UnprocessableEntityError, PersonaError))


def explain(error: Exception, base_url: str | None, model: str, key: str = JUDGE_KEY) -> str:
    """One sentence on what went wrong and what to do; never holds a key.

    Args:
        base_url: as `address` gives it.
        key: the environment variable that the server's key is taken from.
    """
    import openai

    server = base_url or "OpenAI"
    if isinstance(error, openai.APITimeoutError):
        return f"{server} did not answer in time. Try again later, or allow a longer --timeout."
    if isinstance(error, openai.APIConnectionError):
        return f"{server} cannot be reached. Check the address (--base-url, OPENAI_BASE_URL) and that it is running."
    if isinstance(error, (openai.AuthenticationError, openai.PermissionDeniedError)):
        other = f" ({JUDGE_KEY} goes to the judge only)" if key != JUDGE_KEY else ""
        return f"{server} refused the API key (status {error.status_code}). Check {key}{other}."
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
        return {**rest, "max_completion_tokens": max(ROOM_TO_REASON, sent["max_tokens"])}
    if "logprobs" in sent and "logprobs" in says:
        return {k: v for k, v in sent.items() if "logprobs" not in k}
    refused = [name for name in sent if name in says]
    return {k: v for k, v in sent.items() if k not in refused} if refused else None


def _message(error: Any) -> str:
    body = getattr(error, "body", None)
    text = str(body.get("message") or body) if isinstance(body, dict) else str(getattr(error, "message", error))
    return " ".join(text.split())[:300]
