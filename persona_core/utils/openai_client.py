"""A client for OpenAI-compatible servers: opening it, asking many questions at once, and what its errors mean."""

from __future__ import annotations

import html
import json
import logging
import os
import queue
import re
import threading
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from persona_core.errors import PersonaError, ServerError, SettingError
from persona_core.utils.checks import check_integer, is_number

if TYPE_CHECKING:
    from openai import OpenAI

logger = logging.getLogger(__name__)

JUDGE_KEY, WRITER_KEY = "OPENAI_API_KEY", "SERVED_API_KEY"
GIVE_UP_AFTER, GIVE_UP_LATER = 8, 32
"""Failures in a row before any success, and after one. At 60 s and six tries each, 32 take about 12 minutes."""
REASONING_TOKENS = 2048
"""Tokens for a model that counts its hidden reasoning as part of the answer (`max_completion_tokens`)."""
NO_CREDIT = 402
BUSY = (401, NO_CREDIT, 408, 409, 429)
"""Statuses that say nothing about the parameters, whatever the message names."""
NO_COMPLETION = "no_completion"
"""Marks a response of status 200 that holds neither a completion nor an error."""
MIN_KEY = 8
"""Shorter keys are placeholders, such as "none", and may be words of a message."""
MAX_PAGE = 20_000
"""Characters of a page that are searched for its text."""
_MARKUP = re.compile(r"<(script|style)\b.*?(?:</\1\s*>|\Z)|<!--.*?(?:-->|\Z)|<[^<>]*>?", re.DOTALL | re.IGNORECASE)

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def address(base_url: str | None) -> str | None:
    """The address of the server: `base_url`, else `OPENAI_BASE_URL`; None is OpenAI's own.

    Raises:
        ServerError: the address holds a user name or password, which would end up in files and messages.
    """
    url = base_url or os.environ.get("OPENAI_BASE_URL") or None
    if url and (urlsplit(url).username or urlsplit(url).password):
        raise ServerError(
            "The server's address holds a user name or password. Remove it, and set the key in the environment "
            f"({JUDGE_KEY} for the judge, {WRITER_KEY} for the server that writes)."
        )
    return url


def open_client(
    *, base_url: str | None, api_key: str | None, timeout: float = 60.0, max_retries: int = 5, key: str = JUDGE_KEY
) -> OpenAI:
    """A client for one server.

    Args:
        base_url: from `address`.
        api_key: None takes it from the environment.
        key: the environment variable that holds it. Each server has its own: a key is never sent to another.

    Raises:
        ServerError: the openai package is missing, there is no key for OpenAI's own server, or no header can hold it.
        SettingError: a timeout that is not above 0.
    """
    if not is_number(timeout) or timeout <= 0:
        raise SettingError(f"timeout={timeout!r}; expected a number of seconds above 0.")
    try:
        from openai import OpenAI
    except ImportError as error:
        raise ServerError("This needs the openai package: pip install openai.") from error
    secret = api_key or os.environ.get(key)
    if not secret and not base_url:
        raise ServerError(
            f"No API key. Set {key} (in the environment or in .env), or name your own server with "
            "--judge-url, --base-url or OPENAI_BASE_URL."
        )
    if secret and not (secret.isascii() and secret.isprintable() and " " not in secret):
        raise ServerError(f"The API key ({key}) holds a space, a line break or a letter outside ASCII. Copy it again.")
    return OpenAI(
        base_url=base_url,
        api_key=secret or "none",
        timeout=timeout,
        max_retries=max_retries,
        http_client=_http_client(min(timeout, threading.TIMEOUT_MAX)),
    )


def _http_client(timeout: float) -> Any:
    """The HTTP client of `OpenAI`, with a limit on a whole request: httpx's limit starts again with every byte, and a
    server that sends a space now and then would never time out."""
    import httpx2  # of openai
    from openai import DefaultHttpxClient

    class Client(DefaultHttpxClient):
        def send(self, request: httpx2.Request, **kwargs: Any) -> httpx2.Response:
            ended: queue.SimpleQueue[httpx2.Response | BaseException] = queue.SimpleQueue()
            send = super().send

            def work() -> None:
                try:
                    ended.put(send(request, **kwargs))
                except BaseException as error:
                    ended.put(error)

            # A thread of a request that was given up ends when the client is closed.
            threading.Thread(target=work, name="ask-server-request", daemon=True).start()
            try:
                result = ended.get(timeout=timeout)
            except queue.Empty:
                raise httpx2.ReadTimeout(f"no whole answer within {timeout:g} s", request=request) from None
            if isinstance(result, BaseException):
                raise result
            return result

    return Client(event_hooks={"response": [_with_status_of_error]})


def _with_status_of_error(response: Any) -> None:
    """Give an error inside status 200, as gateways send it, the status that it names, and anything else that is no
    completion, such as a login page, 502: it is tried again or explained as any other."""
    if response.status_code != 200:
        return
    try:
        body = json.loads(response.read())
    except (ValueError, RecursionError):
        body = None
    error = body.get("error") or (body.get("object") == "error" and body) if isinstance(body, dict) else None
    if not isinstance(body, dict) or not (error or "choices" in body):
        response.status_code, response.extensions[NO_COMPLETION] = 502, True
    elif error and not body.get("choices"):
        code = str(error.get("code") or error.get("status") or "") if isinstance(error, dict) else ""
        response.status_code = int(code) if re.fullmatch(r"[45]\d\d", code) else 502


def ask_all(
    client: OpenAI,
    items: Sequence[Item],
    ask: Callable[[Item], Answer],
    describe: Callable[[Exception], str],
    concurrency: int,
    answered_before: bool = False,
) -> Generator[tuple[Item, Answer | None, str], None, None]:
    """Ask many questions at once and yield answers as they arrive.

    Threads rather than an executor: an executor is joined when Python exits, so Ctrl-C would wait for every
    request in flight. A caller that stops early starts no further request.

    Args:
        client: closed at the end.
        ask: asks one question, in a thread; an exception is a failure of that question.
        describe: one sentence on what an exception means.
        concurrency: requests in flight at once.
        answered_before: whether an earlier run had answers from this server, so it is known to work.

    Yields:
        Each item with its answer; or with None and the reason.

    Raises:
        SettingError: no concurrency.
        ServerError: no further request can succeed: a bad key, no such model, or too many failures in a row.
    """
    check_integer("concurrency", concurrency)
    todo: queue.SimpleQueue[Item] = queue.SimpleQueue()
    arrived: queue.SimpleQueue[tuple[Item, Answer | None, str] | ServerError | None] = queue.SimpleQueue()
    for item in items:
        todo.put(item)
    failures, stopped = _Failures(answered_before), threading.Event()

    def work() -> None:
        try:
            while not stopped.is_set():
                try:
                    item = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    answer = ask(item)
                except Exception as error:
                    reason = str(error) if isinstance(error, PersonaError) else describe(error)
                    if failures.are_final(error):
                        stopped.set()
                        arrived.put(ServerError(reason))
                    else:
                        arrived.put((item, None, reason))
                else:
                    failures.end()
                    arrived.put((item, answer, ""))
        finally:
            arrived.put(None)

    threads = [
        threading.Thread(target=work, name="ask-server", daemon=True) for _ in range(min(concurrency, len(items)))
    ]
    final: ServerError | None = None
    try:
        for thread in threads:
            thread.start()
        working = len(threads)
        while working:
            result = arrived.get()
            if result is None:
                working -= 1
            elif isinstance(result, ServerError):
                final = final or result  # raised once the requests in flight have ended: their answers count
            else:
                yield result
    finally:
        stopped.set()
        client.close()
    if final is not None:
        raise final


class _Failures:
    """Consecutive failures over all threads, and whether to give up."""

    def __init__(self, answered_before: bool) -> None:
        self._known, self._in_a_row, self._lock = answered_before, 0, threading.Lock()

    def end(self) -> None:
        """An answer has arrived."""
        with self._lock:
            self._known, self._in_a_row = True, 0

    def are_final(self, error: Exception) -> bool:
        """Count one more failure; True means give up."""
        with self._lock:
            # A request that a working server rejects says nothing about the next one.
            self._in_a_row += not (self._known and _about_the_question(error))
            return is_fatal(error) or self._in_a_row >= (GIVE_UP_LATER if self._known else GIVE_UP_AFTER)


def is_fatal(error: Exception) -> bool:
    """Whether no question can be answered: a bad key, no credit, no such model, or a disk that keeps no answer."""
    import openai

    return getattr(error, "status_code", None) == NO_CREDIT or isinstance(
        error, (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError, OSError)
    )


def _about_the_question(error: Exception) -> bool:
    """Whether only this request was at fault (too long, filtered), or its answer was unusable."""
    import openai

    return isinstance(error, (openai.BadRequestError, openai.UnprocessableEntityError, PersonaError))


def explain(error: Exception, base_url: str | None, model: str, key: str = JUDGE_KEY) -> str:
    """One sentence on what went wrong and what to do about it, without the key.

    Args:
        base_url: from `address`.
        key: the environment variable that holds the server's key.
    """
    import openai

    server = base_url or "OpenAI"
    if isinstance(error, openai.APITimeoutError):
        return f"{server} timed out. Try again later, or raise --timeout."
    if isinstance(error, openai.APIConnectionError):
        return f"{server} cannot be reached. Check the address (--base-url, OPENAI_BASE_URL) and that it is running."
    if isinstance(error, openai.PermissionDeniedError):
        return f"{server} does not allow {key} to use {model!r} (status 403): {_message(error)}"
    if getattr(error, "status_code", None) == NO_CREDIT:
        return f"{server} wants to be paid first (status 402): {_message(error)}"
    if isinstance(error, openai.AuthenticationError):
        other = f" ({JUDGE_KEY} is sent to the judge only)" if key != JUDGE_KEY else ""
        return f"{server} refused the API key (status {error.status_code}). Check {key}{other}."
    if isinstance(error, openai.NotFoundError):
        return f"{server} has no model {model!r} (status 404). Check the name and the address."
    if isinstance(error, openai.RateLimitError):
        return f"{server} is rate-limiting requests (status 429). Lower --concurrency, or try again later."
    if isinstance(error, openai.BadRequestError):
        return f"{server} refused a request to {model!r} (status 400): {_message(error)}"
    if isinstance(error, openai.APIStatusError) and NO_COMPLETION in error.response.extensions:
        return f"{server} sent something that is not a chat completion: {_message(error)!r}. Check the address."
    if isinstance(error, openai.APIStatusError):
        return f"{server} failed (status {error.status_code}). Try again later."
    if isinstance(error, OSError):  # the client wraps those of the connection
        return f"An answer could not be stored: {error}. Free some space or correct the folder, and run it again."
    return f"{server} returned something that is not a chat completion ({type(error).__name__})."


def without_rejected_parameter(error: Exception, sent: dict[str, Any]) -> dict[str, Any] | None:
    """The parameters without the one that a server rejects; None if the error is about something else.

    The status is 400 or 422; OpenAI answers requests for logprobs with 403, others with 404, 405, 500 or 501.
    """
    import openai

    if not isinstance(error, openai.APIStatusError) or error.status_code in BUSY:
        return None
    says = _whole_message(error)
    if "max_tokens" in sent and "max_completion_tokens" in says:
        rest = {k: v for k, v in sent.items() if k != "max_tokens"}
        return {**rest, "max_completion_tokens": max(REASONING_TOKENS, sent["max_tokens"])}
    if "logprobs" in sent and re.search("log_?prob", says, re.IGNORECASE):
        return {k: v for k, v in sent.items() if "logprobs" not in k}
    if error.status_code >= 500:
        return None
    refused = [name for name in sent if name in says]
    return {k: v for k, v in sent.items() if k not in refused} if refused else None


def _whole_message(error: Any) -> str:
    body = getattr(error, "body", None)
    text = str(body.get("message") or body) if isinstance(body, dict) else str(getattr(error, "message", error))
    return f"{text} {body.get('param') or ''}".rstrip() if isinstance(body, dict) and body.get("message") else text


def _message(error: Any) -> str:
    """What the server says, without the key and a page's markup, shortened."""
    text = error.response.text if NO_COMPLETION in error.response.extensions else _whole_message(error)
    if text.lstrip().startswith("<"):
        text = html.unescape(_MARKUP.sub(" ", text[:MAX_PAGE]))
    sent = error.request.headers.get("authorization", "").removeprefix("Bearer ")
    if len(sent) >= MIN_KEY:  # some servers quote the request
        text = text.replace(sent, "[key]")
    return " ".join(text.split())[:300]
