"""What the server refuses, what it ends, and that nothing stays behind."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persona_core.app.server.settings import ServeSettings, keys_from_environment
from persona_core.app.server.writer import Reply
from persona_core.cli import serve as command
from persona_core.errors import SettingError
from persona_core.inference.sampling import Sampling
from persona_core.monitor.monitor import PersonaMonitor
from tests.app.server.conftest import Running, running
from tests.app.server.test_replies import QUESTION, ask
from tests.support.tiny import hooks_on

KEY = "a-key-of-the-tests-1"
LONG = {"model": "tiny", "messages": QUESTION, "max_tokens": 250, "seed": 0, "temperature": 1.5, "stream": True}


def post(url: str, body: Any, path: str = "/v1/chat/completions", **headers: str) -> tuple[int, dict[str, Any], Any]:
    """Status, headers and JSON of a request that no client would make."""
    host = urlsplit(url).netloc
    connection = http.client.HTTPConnection(host, timeout=60)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    known = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
    connection.request("POST", path, data, known)
    response = connection.getresponse()
    found = response.status, {k.lower(): v for k, v in response.getheaders()}, json.loads(response.read())
    connection.close()
    return found


def check_error(status: int, body: Any) -> str:
    assert 400 <= status < 500, body
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    return str(body["error"]["message"])


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(2000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("It never came about.")


@contextmanager
def begun(url: str, body: Any = LONG) -> Iterator[socket.socket]:
    """A connection on which a stream has begun and nothing more is read."""
    host, port = urlsplit(url).netloc.split(":")
    data = json.dumps(body).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        assert connection.recv(64).startswith(b"HTTP/1.1 200")
        yield connection


BAD: list[tuple[Any, str]] = [
    (b"", "not valid"),
    (b"{", "not valid"),
    (b"[" * 100_000, "not valid"),
    (b"\xff\xfe{}", "not valid"),
    (b'{"model": "tiny", "messages": NaN}', "not valid"),
    ([], "not valid"),
    (b'{"messages": [{"role": "user", "content": "x"}]}', "model"),
    (b'{"model": "tiny"}', "messages"),
    ({"messages": []}, "messages"),
    ({"messages": [7]}, "messages.0"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "role"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "role"),
    ({"messages": [{"role": "user", "content": None}]}, "expected text"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "no images"),
    ({"messages": [{"role": "user", "content": "x " * 5000}]}, "characters"),
    ({"messages": [{"role": "user", "content": "bread " * 900}]}, "at most 400"),
    ({"messages": [{"role": "user", "content": "x" * 200_000}]}, "bytes"),
    ({"n": 2}, "'n'"),
    ({"tools": [{"type": "function"}]}, "'tools'"),
    ({"response_format": {"type": "json_object"}}, "'response_format'"),
    ({"logit_bias": {"5": 1}}, "'logit_bias'"),
    ({"stop": ["x"]}, "'stop'"),
    ({"presence_penalty": 0.5}, "'presence_penalty'"),
    ({"surprise": 1}, "'surprise'"),
    ({"max_tokens": 10_000}, "at most"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_logprobs": 2}, "logprobs=true"),
    ({"logprobs": True, "top_logprobs": 50}, "top_logprobs"),
    ({"seed": -1}, "seed"),
    ({"seed": 10**30}, "seed"),
    ({"persona": {"trait": ["evil"]}}, "persona.trait"),
    ({"persona": {"traits": ["\ud800"]}}, ""),
    ({"persona": {"traits": ["kindness"]}}, "Unknown trait 'kindness'"),
    ({"persona": {"cap": {"kindness": 1}}}, "Unknown trait 'kindness'"),
    ({"persona": {"cap": {"evil": 1000}}}, "amount"),
    ({"persona": {"traits": ["evil"], "cap_on_alarm": {"sycophancy": 1}}}, "sycophancy"),
    ({"persona": {"steer": [{"trait": "evil", "amount": 1, "start": -1}]}}, "start"),
    ({"persona": {"steer": [{"trait": "evil", "amount": 1}] * 33}}, "persona.steer"),
    ({"model": "gpt-4"}, "There is no model 'gpt-4'"),
    ({"model": "\ud800"}, ""),
]


@pytest.mark.parametrize(("body", "says"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_a_request_that_cannot_be_answered_is_refused_in_words(server: Running, body: Any, says: str) -> None:
    whole = {"model": "tiny", "messages": QUESTION, **body} if isinstance(body, dict) else body
    status, _, answer = post(server.url, whole)
    assert says in check_error(status, answer)
    assert server.writer.n_requests == 0


def test_fields_that_change_nothing_are_taken(client: openai.OpenAI) -> None:
    reply = ask(client, max_tokens=2, n=1, user="u", store=False, metadata={"a": "b"}, frequency_penalty=0, stop=[])
    assert reply.choices[0].message.content


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ("model", "messages", "input", "stream", "stream_options", "max_tokens", "temperature", "top_p", "top_k", "seed",
     "logprobs", "top_logprobs", "persona", "instructions", "include", "tools", "n", "stop", "repetition_penalty")
)  # fmt: skip
SENSIBLE: dict[str, Any] = {
    "model": "tiny",
    "messages": QUESTION,
    "input": "x",
    "max_tokens": 1,
    "max_output_tokens": 1,
}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    path=st.sampled_from(("/v1/chat/completions", "/v1/responses")),
    body=st.binary(max_size=40) | JSON | st.dictionaries(FIELDS, JSON, max_size=4).map(lambda made: SENSIBLE | made),
)
def test_garbage_is_answered_with_a_reply_or_an_error_and_never_breaks(server: Running, path: str, body: Any) -> None:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, data, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    if response.status != 200:
        check_error(response.status, json.loads(answer))


def test_other_paths_methods_hosts_and_types_are_refused_in_words(server: Running) -> None:
    assert "no such path" in check_error(*post(server.url, {}, "/v1/embeddings")[::2])
    assert "another method" in check_error(*post(server.url, {}, "/v1/models")[::2])
    good = {"model": "tiny", "messages": QUESTION, "max_tokens": 1}
    # What a page in a browser on this machine can send: a form, or a request to a name that resolves to this address.
    status, _, body = post(server.url, good, Content_Type="text/plain")
    assert status == 415 and "application/json" in check_error(status, body)
    status, _, body = post(server.url, good, Host="evil.example:8000")
    assert status == 403 and "localhost" in check_error(status, body)
    assert post(server.url, good, Host="[::1]:8000")[0] == post(server.url, good, Host="localhost")[0] == 200


def test_a_key_is_needed_where_keys_are_set_and_never_logged(
    serve: Callable[..., Running], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = serve(keys=("another-key-of-tests", KEY))
    for wrong in ("none", KEY[:-1], KEY + "x", "", "ключ"):
        status, headers, body = post(server.url, {}, Authorization=f"Bearer {wrong}".encode().decode("latin-1"))
        assert status == 401 and headers["www-authenticate"] == "Bearer"
        assert "PERSONA_API_KEYS" in check_error(status, body)
    with pytest.raises(openai.AuthenticationError):
        server.client("none").models.list()
    assert ask(server.client(KEY), max_tokens=2).choices[0].message.content
    assert post(server.url, {}, Authorization=f"Basic {KEY}")[0] == 401
    assert KEY not in caplog.text and KEY not in repr(ServeSettings(("tiny",), (KEY,)))


def test_an_address_that_cannot_be_served_on_is_refused_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERSONA_API_KEYS", "")
    assert command.main(["--model", "none", "--vectors", "none", "--host", "0.0.0.0"]) == 1
    assert "set PERSONA_API_KEYS" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert command.main(["--model", "none", "--vectors", "none", "--port", port]) == 1
    assert f"--port {port} cannot be served on" in capsys.readouterr().err
    with pytest.raises(SettingError, match="key 2 must have at least 16") as refused:
        keys_from_environment({"PERSONA_API_KEYS": f"{KEY},secret"})
    assert "secret" not in str(refused.value).split("python")[0]


def test_a_client_that_leaves_frees_the_model(serve: Callable[..., Running]) -> None:
    server = serve(batch_size=1)
    seen: list[Reply] = []
    with begun(server.url):
        wait_until(lambda: bool(server.writer._active))
        seen += server.writer._active.values()
    wait_until(lambda: server.writer.n_requests == 0)
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc)
    body = json.dumps({**LONG, "stream": False})
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    wait_until(lambda: bool(server.writer._active))
    seen += server.writer._active.values()
    connection.close()
    wait_until(lambda: server.writer.n_requests == 0)
    assert ask(server.client(), max_tokens=2).choices[0].finish_reason == "length"
    assert not server.writer._active
    assert [reply.live.run.finished[0] for reply in seen] == [None, None]  # neither came to its own end


def test_a_server_that_has_stopped_leaves_the_model_as_it_was(monitor: PersonaMonitor) -> None:
    n_hooks = hooks_on(monitor.lm.model)
    with running(monitor) as server:
        ask(server.client(), max_tokens=2)
        assert hooks_on(monitor.lm.model) > n_hooks
    wait_until(lambda: not server.writer.alive)
    assert hooks_on(monitor.lm.model) == n_hooks


def test_a_full_queue_says_when_to_come_again(serve: Callable[..., Running]) -> None:
    server = serve(batch_size=1, max_queue=1)
    with begun(server.url), begun_waiting(server):
        status, headers, body = post(server.url, LONG)
        assert status == 429 and 1 <= int(headers["retry-after"]) <= 60
        assert "try again" in check_error(status, body)
    wait_until(lambda: server.writer.n_requests == 0)
    assert ask(server.client(), max_tokens=2).choices[0].message.content


@contextmanager
def begun_waiting(server: Running) -> Iterator[None]:
    """A second request, which waits."""
    host, port = urlsplit(server.url).netloc.split(":")
    data = json.dumps(LONG).encode()
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        wait_until(lambda: server.writer.n_requests == 2)
        yield


def test_a_reply_ends_at_the_time_limit_with_what_it_has(serve: Callable[..., Running]) -> None:
    reply = ask(serve(max_seconds=1e-9).client(), max_tokens=100)
    assert reply.choices[0].finish_reason == "length" and reply.usage.completion_tokens < 100
    assert "time limit" in reply.persona["notice"] and reply.persona["finish"] == "stopped"


def test_a_client_that_reads_nothing_is_dropped(serve: Callable[..., Running]) -> None:
    server = serve(send_buffer=4096, unread_seconds=0.2)
    with begun(server.url, {**LONG, "logprobs": True, "top_logprobs": 20}):
        wait_until(lambda: server.writer.n_requests == 0)


def test_a_reply_that_breaks_ends_alone(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scores are not finite; the one beside it goes on, and the server too."""
    usual = Sampling.processors

    def processors(self: Sampling) -> Any:
        broken = self.temperature == 1.25
        return (lambda _, scores: scores * float("nan")) if broken else usual(self)

    monkeypatch.setattr(Sampling, "processors", processors)
    few = {**LONG, "max_tokens": 60}
    with begun(server.url, few) as beside, begun(server.url, {**few, "temperature": 1.25}) as broken:
        text = _all_of(broken)
        assert '"error":{"message":"The model\'s scores hold NaN' in text and '"server_error"' in text
        assert "[DONE]" in _all_of(beside)
    assert post(server.url, {**few, "temperature": 1.25, "stream": False})[0] == 500
    assert ask(server.client(), max_tokens=2).choices[0].message.content


def _all_of(connection: socket.socket) -> str:
    """What is sent up to the end of the response."""
    text = b""
    while not text.endswith(b"0\r\n\r\n"):
        part = connection.recv(65536)
        if not part:
            break
        text += part
    return text.decode()


def test_health_needs_no_key_and_says_whether_replies_are_written(serve: Callable[..., Running]) -> None:
    server = serve(keys=(KEY,))
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc)
    connection.request("GET", "/health")
    assert json.loads(connection.getresponse().read()) == {"status": "ok", "requests": 0}
    server.writer.stop()
    wait_until(lambda: not server.writer.alive)
    connection.request("GET", "/health")
    response = connection.getresponse()
    assert response.status == 503 and json.loads(response.read())["status"] == "failed"
    connection.close()
