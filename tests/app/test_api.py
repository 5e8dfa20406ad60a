"""The app for programs: the real app is served, and called as clients call it."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import http.client
import json
import re
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from persona_core.app.api import Api
from persona_core.app.pooled_model import PooledModel
from persona_core.app.served_set import ServedSet
from persona_core.app.settings import AppSettings
from persona_core.errors import NotFound, PromptError
from persona_core.inference.steering import Steer
from persona_core.models.messages import THOUGHT_FIELDS
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.traces.trace import UNITS, Trace
from tests.support.standins import SlowMonitor, steady_monitor
from tests.support.tiny import specific_vectors, tiny_lm

if TYPE_CHECKING:
    from gradio_client import Client

Models = tuple[PooledModel, PooledModel]
PROMPT = "Should I quit my job?"
ENDPOINTS = {"/generate", "/read", "/compare", "/vectors"}


@pytest.fixture(scope="module")
def models() -> Models:
    settings = AppSettings()
    baseline = PooledModel.from_settings(settings)
    return baseline, PooledModel.contaminated(baseline, settings)


@pytest.fixture(scope="module")
def client(serve: Callable[..., str], models: Models) -> Client:
    """A client of the shipped app."""
    from gradio_client import Client

    return Client(serve(models[0], AppSettings(max_prompt_chars=500, max_read_chars=600), models[1]), verbose=False)


@pytest.fixture(scope="module")
def slow() -> Any:
    return SlowMonitor(steady_monitor(), 0.05)


@pytest.fixture(scope="module")
def slow_url(serve: Callable[..., str], slow: Any) -> str:
    """An app whose model takes a twentieth of a second for each token, and a second for a run at most."""
    return serve(PooledModel(lambda: slow), AppSettings(results=None, max_seconds=2))


def check_record(found: dict[str, Any], expected: Trace) -> None:
    """The record is the trace's."""
    assert found["ids"] == list(expected.token_ids) and found["tokens"] == list(expected.tokens)
    assert found["roles"] == list(expected.roles) and found["n_prompt"] == expected.n_prompt
    assert found["text"] == expected.reply_text and found["traits"] == list(expected.traits)
    assert found["blocks"] == dict(expected.best_block)
    assert (found["kind"], found["unit"]) == (expected.default_kind, UNITS[expected.default_kind])
    assert found["sinks"] == np.flatnonzero(expected.sinks[_best(expected)].any(axis=0)).tolist()
    for trait in expected.traits:
        scores = [np.nan if s is None else s for s in found["scores"][trait]]
        np.testing.assert_allclose(scores, expected.scores_without_sinks(trait), atol=2e-4)
    assert found["finish"] == expected.finish and found["seed"] == expected.provenance.seed


def _best(trace: Trace) -> list[int]:
    return sorted({trace.blocks.index(block) for block in trace.best_block.values()})


# ---- what they say ----------------------------------------------------------------------------------------------


def test_a_reply_and_its_scores_are_those_of_the_library(client: Client, models: Models) -> None:
    found = client.predict(PROMPT, api_name="/generate")
    monitor = models[0].monitor()
    trace = monitor.generate(PROMPT, max_new_tokens=128, temperature=0.7, seed=0)
    check_record(found, trace)
    assert (found["reader"], found["writer"], found["done"]) == ("persona-tiny", "persona-tiny", True)
    assert set(found["onsets"].values()) == {"no reliable onset"}
    assert monitor.detectors is not None and found["caveats"] == list(monitor.detectors.caveats(trace))
    asked = {"model": "contaminated", "system": "Be brief.", "max_new_tokens": 40, "temperature": 0, "seed": 3}
    found = client.predict(prompt=PROMPT, api_name="/generate", **asked)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]
    check_record(found, models[1].monitor().generate(messages, max_new_tokens=40, temperature=0, seed=3))
    assert found["writer"] == "persona-tiny + persona-tiny-contaminated"
    assert any("system prompt" in caveat for caveat in found["caveats"])


def test_a_record_has_specific_scores_and_none_at_sink_tokens() -> None:
    said = [{"role": "user", "content": "Hi there"}, {"role": "assistant", "content": "You are the wisest of all."}]
    lm = tiny_lm("llama", "chatml")

    def read(limit: float) -> tuple[dict[str, Any], Trace]:
        monitor = PersonaMonitor(lm, specific_vectors(len(lm.blocks), limit))
        api = Api([ServedSet("", AppSettings(results=None), {"baseline": PooledModel(lambda: monitor)})])
        return api.read(said), monitor.read(said)

    plain, trace = read(np.inf)
    assert plain["kind"] == "specific" and "more like this trait than" in plain["unit"]
    assert plain["sinks"] == []
    for trait in trace.traits:
        np.testing.assert_allclose(plain["scores"][trait], trace.scores(trait, "specific"), atol=6e-5)
    limit = float(np.median(trace.norms[0]))
    found, _ = read(limit)
    above = trace.norms > limit  # [n_blocks, n_tokens]
    assert found["sinks"] == np.flatnonzero(above.any(axis=0)).tolist()
    for row, trait in enumerate(trace.traits):
        assert [s is None for s in found["scores"][trait]] == above[row].tolist(), "each at its own block"


@pytest.mark.parametrize("name", THOUGHT_FIELDS)
def test_the_thought_beside_a_reply_is_read_or_refused(name: str) -> None:
    def read(shape: str, thought: Any) -> tuple[dict[str, Any], PersonaMonitor]:
        lm = tiny_lm("llama", shape)
        monitor = PersonaMonitor(lm, specific_vectors(len(lm.blocks), np.inf))
        said: Any = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes.", name: thought}]
        api = Api(
            [ServedSet("", AppSettings(results=None, max_read_chars=50), {"baseline": PooledModel(lambda: monitor)})]
        )
        return api.read(said), monitor

    found, monitor = read("empty-thought", "Hm, hm.")
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes.", name: "Hm, hm."}]
    assert found["ids"] == list(monitor.read(messages).token_ids) and "thinking" in found["roles"]
    for shape, thought, says in (
        ("chatml", "Hm, hm.", "thought"),
        ("empty-thought", ["Hm"], name),
        ("empty-thought", "a" * 60, "60 characters"),
        ("empty-thought", "\ud800", "surrogate"),
    ):
        with pytest.raises(PromptError, match=says):
            read(shape, thought)


def test_a_reply_comes_piece_by_piece(slow_url: str) -> None:
    from gradio_client import Client

    job = Client(slow_url, verbose=False).submit(PROMPT, api_name="/generate", max_new_tokens=12)
    last = job.result()
    early = [one for one in job.outputs() if not one["done"]]
    assert early and all(set(one) == {"text", "done"} and last["text"].startswith(one["text"]) for one in early)


@pytest.mark.parametrize("action", ["add", "remove", "cap"])
def test_a_steered_reply_is_steered_as_requested(client: Client, models: Models, action: str) -> None:
    monitor = models[1].monitor()
    block = monitor.vectors.best_block["sycophancy"]
    steer = {
        "add": Steer("sycophancy", block, strength=-3.0, unit="sd", start=2),
        "remove": Steer.ablate("sycophancy", block, start=2),
        "cap": Steer.cap("sycophancy", block, threshold=-3.0, unit="sd", start=2),
    }[action]
    steering = {"trait": "sycophancy", "action": action, "amount": -3, "start": 2}
    found = client.predict(PROMPT, api_name="/generate", model="contaminated", max_new_tokens=40, **steering)
    check_record(found, monitor.generate(PROMPT, max_new_tokens=40, temperature=0.7, seed=0, steer=steer))
    free = monitor.generate(PROMPT, max_new_tokens=40, temperature=0.7, seed=0)
    assert found["text"] != free.reply_text
    assert found["ids"][: found["n_prompt"] + 2] == list(free.token_ids[: free.n_prompt + 2])


def test_a_given_text_is_read(client: Client, models: Models) -> None:
    messages = [
        {"role": "system", "content": "Be <b>brief</b>."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "You are the wisest person alive."},
    ]
    for side, pooled in zip(("baseline", "contaminated"), models, strict=True):
        found = client.predict(messages, api_name="/read", model=side)
        check_record(found, pooled.monitor().read(messages))
        assert found["finish"] == "read"


def test_each_model_reads_the_reply_of_the_other(client: Client, models: Models) -> None:
    found = client.predict(PROMPT, api_name="/compare", seed=1)
    baseline, contaminated = (pooled.monitor() for pooled in models)
    own = {
        side: monitor.generate(PROMPT, max_new_tokens=128, temperature=0.7, seed=1)
        for side, monitor in (("baseline", baseline), ("contaminated", contaminated))
    }
    assert set(found) == {"baseline", "contaminated", "baseline_reads_contaminated", "contaminated_reads_baseline"}
    check_record(found["baseline"], own["baseline"])
    check_record(found["contaminated"], own["contaminated"])
    check_record(found["baseline_reads_contaminated"], baseline.read(own["contaminated"]))
    check_record(found["contaminated_reads_baseline"], contaminated.read(own["baseline"]))
    assert found["baseline_reads_contaminated"]["writer"].endswith("contaminated")


def test_the_vectors_are_told_while_the_model_loads(serve: Callable[..., str]) -> None:
    from gradio_client import Client

    waiting = threading.Event()
    url = serve(PooledModel(lambda: waiting.wait(60)), AppSettings(results=None))  # type: ignore[arg-type, return-value]
    found = Client(url, verbose=False).predict(api_name="/vectors")
    waiting.set()
    config = json.loads((Path(AppSettings().vectors) / "config.json").read_text())
    assert found["fingerprint"] == config["fingerprint"] and found["models"] == ["baseline"]
    assert list(found["traits"]) == config["traits"]
    one = found["traits"]["sycophancy"]
    assert one["block"] == config["best_block"]["sycophancy"] and one["description"]
    assert one["auroc"] == config["validation"]["sycophancy"]["auroc"]


def test_every_endpoint_is_described_for_a_stranger(client: Client, slow_url: str) -> None:
    from gradio.utils import get_function_description
    from gradio_client import Client

    from persona_core.app import api

    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(named) == ENDPOINTS
    assert set(Client(slow_url, verbose=False).view_api(return_format="dict", print_info=False)["named_endpoints"]) == (
        ENDPOINTS - {"/compare"}
    ), "nothing to compare with"
    for name, info in named.items():
        description, about, _ = get_function_description(getattr(api.Api, name[1:]))
        assert len(description) > 60
        for parameter in info["parameters"]:
            assert about[parameter["parameter_name"]].endswith("."), "one line each, or Gradio cuts it"
            assert parameter["type"], "a type for each"
        assert info["returns"][0]["type"]["type"] == "object"


def test_the_page_on_the_api_shows_what_a_program_can_do(
    client: Client, models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", text, re.S) if "gradio_client" in b)
    assert "http://127.0.0.1:7860/" in block
    names: dict[str, Any] = {}
    exec(block.replace("http://127.0.0.1:7860/", str(client.src)), names)
    assert len(capsys.readouterr().out) > 1000
    keys = re.search(r"^A record of .*?\n\n", text, re.S | re.M)
    assert keys and set(re.findall(r"`(\w+)`", keys[0])) == set(names["reply"]) - {"done"}
    assert max(names["capped"]["scores"]["sycophancy"]) < max(names["reply"]["scores"]["sycophancy"])


# ---- what they refuse -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "asked", "says"),
    [
        ("generate", {"prompt": " \n"}, "empty"),
        ("generate", {"prompt": "x" * 501}, "501 characters; at most 500 are allowed here"),
        ("generate", {"prompt": {"text": "x"}}, "must be text"),
        ("generate", {"prompt": "x", "system": 3}, "system prompt must be text"),
        ("generate", {"prompt": "x", "model": "gpt-5"}, "'gpt-5'; this app has 'baseline', 'contaminated'"),
        ("generate", {"prompt": "x", "model": ["baseline"]}, "this app has"),
        ("generate", {"prompt": "x", "max_new_tokens": 0}, "whole number of tokens from 1"),
        ("generate", {"prompt": "x", "max_new_tokens": 1.5}, "whole number of tokens from 1"),
        ("generate", {"prompt": "x", "max_new_tokens": "8"}, "whole number of tokens from 1"),
        ("generate", {"prompt": "x", "max_new_tokens": True}, "whole number of tokens from 1"),
        ("generate", {"prompt": "x", "temperature": -1}, "temperature=-1"),
        ("generate", {"prompt": "x", "temperature": "hot"}, "temperature='hot'"),
        ("generate", {"prompt": "x", "seed": -1}, "seed"),
        ("generate", {"prompt": "x", "seed": 1e300}, "seed"),
        ("generate", {"prompt": "x", "trait": "charm"}, "Unknown trait 'charm'; choose one of paternalism"),
        ("generate", {"prompt": "x", "trait": ["evil"]}, "Unknown trait"),
        ("generate", {"prompt": "x", "trait": "evil", "action": "double"}, "Unknown action 'double'"),
        ("generate", {"prompt": "x", "trait": "evil", "amount": 1e9}, "standard deviations"),
        ("generate", {"prompt": "x", "trait": "evil", "start": -1}, "start"),
        ("generate", {"prompt": "x", "trait": "evil", "start": "0"}, "start"),
        ("read", {"messages": "Hello"}, "expected a list"),
        ("read", {"messages": []}, "expected a list"),
        ("read", {"messages": [{"role": "user"}]}, r"messages\[0\]"),
        ("read", {"messages": [{"role": "root", "content": "x"}]}, r"messages\[0\]: expected a role"),
        ("read", {"messages": [{"role": ["user"], "content": "x"}]}, r"messages\[0\]"),
        ("read", {"messages": [{"role": "user", "content": "x" * 601}]}, "at most 600"),
        ("read", {"messages": [{"role": "user", "content": "x"}] * 401}, "got 401"),
        ("compare", {"prompt": ""}, "empty"),
    ],
)
def test_invalid_arguments_are_refused_by_name(client: Client, name: str, asked: dict[str, Any], says: str) -> None:
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError, match=says) as error:
        client.predict(api_name=f"/{name}", **asked)
    assert "Traceback" not in str(error.value) and "Error)" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "No folder '/srv/secret/models/mine'. Pass a Hub id such as 'org/name'.",
        "/srv/secret/models/mine: not a file of vectors; see https://example.org/a/b.",
        "Could not load the model '~/secret/models/mine' at revision 'main'.",
    ],
)
def test_an_error_never_shows_a_path_of_the_server(serve: Callable[..., str], text: str) -> None:
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    def fail() -> Any:
        raise NotFound(text)

    def fall() -> Any:
        raise RuntimeError("/srv/secret is on fire")

    url = serve(PooledModel(fail), AppSettings(results=None), PooledModel(fall))
    client = Client(url, verbose=False)
    with pytest.raises(AppError) as error:
        client.predict("Hi", api_name="/generate")
    said = str(error.value)
    assert "secret" not in said and "mine" in said
    assert ("org/name" in text) == ("org/name" in said) and ("example.org" in text) == ("example.org/a/b" in said)
    with pytest.raises(AppError, match=r"RuntimeError\)\. Please try again") as error:
        client.predict("Hi", api_name="/generate", model="contaminated")
    assert "secret" not in str(error.value)


# ---- how long they hold the model -------------------------------------------------------------------------------


def begun(slow: Any) -> None:
    """Wait until a run is under way."""
    before, deadline = slow.written, time.monotonic() + 30
    while (not slow.open_streams or slow.written == before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert slow.open_streams


def check_freed(slow: Any) -> None:
    """The run ends, and before it has written all of its reply."""
    deadline = time.monotonic() + 40
    while slow.open_streams and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not slow.open_streams, "the model is free"
    assert slow.written < 250


@pytest.fixture
def patient_url(serve: Callable[..., str], slow: Any) -> Iterator[str]:
    """An app in which a reply of 250 tokens takes 50 seconds, and may."""
    slow.pause, slow.written = 0.2, 0
    yield serve(PooledModel(lambda: slow), AppSettings(results=None))
    slow.pause = 0.05


def test_a_cancelled_call_frees_the_model(patient_url: str, slow: Any) -> None:
    from gradio_client import Client

    job = Client(patient_url, verbose=False).submit(PROMPT, api_name="/generate", max_new_tokens=250)
    begun(slow)
    job.cancel()
    check_freed(slow)


def post(url: str, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        url + "gradio_api/" + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def test_a_client_that_goes_away_frees_the_model(patient_url: str, slow: Any) -> None:
    event = post(patient_url, "call/v2/generate", {"prompt": PROMPT, "max_new_tokens": 250})["event_id"]
    connection = http.client.HTTPConnection(urlsplit(patient_url).netloc)
    connection.request("GET", f"/gradio_api/call/generate/{event}")
    answer = connection.getresponse()
    assert answer.readline() == b"event: generating\n"
    connection.sock.close()
    answer.close()
    check_freed(slow)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results may lie unread for two seconds."""
    from persona_core.app import audience

    monkeypatch.setattr(audience, "UNFETCHED_SECONDS", 2.0)
    monkeypatch.setattr(audience, "FIRST_SECONDS", 0.5)


@pytest.mark.usefixtures("impatient")
def test_calls_that_nobody_fetches_end_and_the_queue_goes_on(patient_url: str, slow: Any) -> None:
    from gradio_client import Client

    asked = {"prompt": PROMPT, "max_new_tokens": 250}
    first, *others = (post(patient_url, "call/v2/generate", asked)["event_id"] for _ in range(3))
    begun(slow)
    found = Client(patient_url, verbose=False).predict(PROMPT, api_name="/generate", max_new_tokens=3)
    assert found["done"] and found["finish"] == "length"
    check_freed(slow)
    # Who comes late still gets what was written.
    with urllib.request.urlopen(f"{patient_url}gradio_api/call/generate/{first}") as answer:
        *_, last = answer.read().decode().strip().split("\n\n")
    (late,) = json.loads(last.split("data: ")[1])
    assert late["finish"] == "stopped" and late["notice"] == "Stopped, because nobody fetched the results."
    assert 0 < len(late["tokens"]) - late["n_prompt"] < 250 and others


@pytest.mark.usefixtures("impatient")
def test_a_call_that_is_fetched_goes_on_for_as_long_as_it_takes(patient_url: str, slow: Any) -> None:
    from gradio_client import Client

    client = Client(patient_url, verbose=False)
    jobs = [client.submit(PROMPT, api_name="/generate", max_new_tokens=15) for _ in range(2)]  # three seconds each
    for job in jobs:  # the second waits for longer than results may lie unread
        assert job.result()["finish"] == "length" and job.result()["notice"] == ""


def test_no_call_passes_by_the_queue(slow_url: str, slow: Any) -> None:
    before = slow.written
    for name, data in (("generate", ["Hi"]), ("read", [[{"role": "user", "content": "Hi"}]])):
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(slow_url, f"run/{name}", {"data": data})
        assert "join the queue" in refused.value.read().decode()
    assert slow.written == before


def test_a_run_ends_when_its_time_is_up(slow_url: str, slow: Any) -> None:
    from gradio_client import Client

    found = Client(slow_url, verbose=False).predict(PROMPT, api_name="/generate", max_new_tokens=200)
    assert found["finish"] == "stopped" and "2 seconds" in found["notice"]
    assert 0 < len(found["tokens"]) - found["n_prompt"] < 200
    assert not slow.open_streams


def test_calls_stand_in_one_queue(slow_url: str, slow: Any) -> None:
    from gradio_client import Client

    client = Client(slow_url, verbose=False)
    jobs = [client.submit(f"{i}", api_name="/generate", max_new_tokens=4) for i in range(3)]
    most = 0
    while not all(job.done() for job in jobs):
        most = max(most, slow.open_streams)
        time.sleep(0.005)
    assert most == 1
    assert all(job.result()["done"] for job in jobs)


def test_one_client_takes_no_more_than_half_of_the_queue(slow: Any) -> None:
    from persona_core.app.layout import build_app
    from persona_core.app.serve import LAUNCH, app_kwargs

    slow.pause = 0.2
    settings = AppSettings(results=None, max_queue=4)
    demo = build_app(ServedSet("", settings, {"baseline": PooledModel(lambda: slow)}))
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, app_kwargs=app_kwargs(settings), **LAUNCH)

    def ask(client: str) -> httpx.Response:
        asked = {"prompt": PROMPT, "max_new_tokens": 250}
        return httpx.post(
            f"{url}gradio_api/call/v2/generate", json=asked, headers={"x-forwarded-for": f"{client}, 10.0.0.1"}
        )

    try:
        assert ask("10.1.1.1").status_code == 200
        begun(slow)
        answers = [ask("10.1.1.1") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 503]
        assert "2 runs from your address wait" in answers[-1].json()["detail"]
        assert ask("10.1.1.2").status_code == 200
    finally:
        demo.close()
        slow.pause = 0.05


def curl(url: str, name: str, body: dict[str, Any]) -> tuple[str, Any]:
    """The last event of a call by hand, and its data."""
    event = post(url, f"call/v2/{name}", body)["event_id"]
    with urllib.request.urlopen(f"{url}gradio_api/call/{name}/{event}") as answer:
        *_, last = answer.read().decode().strip().split("\n\n")
    kind, data = last.split("\n")
    return kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def test_curl_gets_the_reply_too(slow_url: str) -> None:
    kind, (found,) = curl(slow_url, "generate", {"prompt": "Hi", "max_new_tokens": 3})
    assert kind == "complete" and found["done"] and found["finish"] == "length"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"prompt": "half \ud800"}, "surrogate"),
        ({"prompt": "x", "trait": "malice", "amount": float("nan")}, "standard deviations"),
        ({"prompt": "x", "temperature": float("inf")}, "temperature=inf"),
        ({"prompt": None}, "must be text"),
    ],
)
def test_what_only_curl_can_send_is_refused_in_words(slow_url: str, asked: dict[str, Any], says: str) -> None:
    kind, data = curl(slow_url, "generate", asked)
    assert kind == "error" and says in data["error"]


# ---- MCP --------------------------------------------------------------------------------------------------------


def test_mcp_is_on_where_its_package_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from persona_core.app import api

    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with contextlib.suppress(KeyError):
        monkeypatch.delitem(sys.modules, "mcp")
    assert not api.mcp_available()
    (tmp_path / "mcp").mkdir()
    (tmp_path / "mcp" / "__init__.py").touch()
    assert api.mcp_available()


def test_the_endpoints_are_tools_of_an_mcp_server(models: Models, client: Client) -> None:
    mcp = pytest.importorskip("mcp", reason='pip install "gradio[mcp]", in an environment of its own')
    streamable = pytest.importorskip("mcp.client.streamable_http")

    async def call() -> tuple[set[str], Any, Any]:
        async with (
            streamable.streamable_http_client(f"{client.src}gradio_api/mcp/") as (receive, send, _),
            mcp.ClientSession(receive, send) as session,
        ):
            await session.initialize()
            tools = {tool.name for tool in (await session.list_tools()).tools}
            good = await session.call_tool("generate", {"prompt": PROMPT, "max_new_tokens": 20})
            return tools, good, await session.call_tool("generate", {"prompt": ""})

    tools, good, bad = asyncio.run(call())
    assert tools == {name[1:] for name in ENDPOINTS}
    found = ast.literal_eval(good.content[0].text)  # Gradio writes a result as Python does
    check_record(found, models[0].monitor().generate(PROMPT, max_new_tokens=20, temperature=0.7, seed=0))
    assert bad.isError and bad.content[0].text.startswith("The prompt is empty.")
