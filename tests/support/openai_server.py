"""A local server that speaks the chat-completions protocol, for the real client to talk to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.support.local_server import listening

Answer = tuple[int, Any]  # status, JSON body; a body of bytes is sent as it is


def completion(text: str | None, top: list[list[tuple[str, float]]] | None = None, **message: Any) -> Answer:
    """A chat completion.

    Args:
        top: for each token of the answer its alternatives with log probabilities; the first is the one that was taken.
    """
    choice: dict[str, Any] = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text, **message},
    }
    if top is not None:
        content = [
            {
                "token": first[0][0],
                "logprob": first[0][1],
                "bytes": None,
                "top_logprobs": [{"token": t, "logprob": p, "bytes": None} for t, p in first],
            }
            for first in top
        ]
        choice["logprobs"] = {"content": content, "refusal": None}
    usage = {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102}
    body = {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    return 200, body


def error(status: int, message: str) -> Answer:
    return status, {"error": {"message": message, "type": "error", "code": None, "param": None}}


class Server:
    """What was asked, and how many requests were under way at once."""

    def __init__(self, answer: Callable[[dict[str, Any], int], Answer], pause: float) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.most_at_once = 0
        self.url = ""
        self._answer, self._pause, self._now, self._lock = answer, pause, 0, threading.Lock()

    def take(self, body: dict[str, Any], key: str | None) -> Answer:
        with self._lock:
            self.requests.append(body)
            self.keys.append(key)
            number = len(self.requests)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            time.sleep(self._pause)
            return self._answer(body, number)
        finally:
            with self._lock:
                self._now -= 1


@contextmanager
def serving(answer: Callable[[dict[str, Any], int], Answer], pause: float = 0.0) -> Iterator[Server]:
    """Serve on a free port; `answer` gets each request's body and its number, counted from 1."""
    server = Server(answer, pause)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, reply = server.take(body, self.headers.get("Authorization"))
            data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", "0")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    with listening(Handler) as address:
        server.url = f"{address}/v1"
        yield server
