"""The app's parts without a browser: streaming, loading, settings, what the app opens on."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as settings_
from hypothesis import strategies as st

from persona_core import Branch, Steer
from persona_core.app.branch_buttons import suggested_amount
from persona_core.app.conversation import Chat, ReplyRequest, plan_reply, request_from_link
from persona_core.app.model_pool import ModelPool
from persona_core.app.pasted_text import parse_transcript
from persona_core.app.pooled_model import PooledModel
from persona_core.app.settings import AppSettings
from persona_core.app.streaming import COST, MEASURED_LATER, Pace, Progress, ReplyJob, stream_replies
from persona_core.errors import CorruptFile, NotFound, PromptError, SettingError
from persona_core.monitor.branch_outcome import branch_outcome
from persona_core.report.home import Example, FirstView, load_home, save_home
from persona_core.report.saved_runs import SavedRuns
from persona_core.traces.view.payload import trace_payload
from persona_core.vectors.vectors import PersonaVectors
from tests.support.app_page import ARTIFACTS
from tests.support.standins import SlowMonitor, hostile_tokens, hostile_trace, save_hostile_results, steady_monitor


def run_of(monitor: Any, *request: ReplyRequest, chat: Chat | None = None) -> list[tuple[Any, ...]]:
    """What one press on Send streams to the page: view, notice, chat, prompt, trait, what was sent, and the buttons."""
    import gradio as gr

    from persona_core.app.run_controls import Press
    from persona_core.app.tabs.live import LiveTab

    pooled = PooledModel(lambda: monitor)
    with gr.Blocks():
        settings = AppSettings(results=None)
        home = load_home("no-such-folder/at/all/here")
        page = LiveTab(settings, {"baseline": pooled}, ModelPool(settings), home)
    return list(page.run(1, Press(1, request[0]), chat or Chat()))


def test_a_failure_in_the_middle_keeps_the_trace() -> None:
    class Failing(SlowMonitor):
        def stream(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
            for step in super().stream(*args, **kwargs):
                if self.written > 5:
                    raise RuntimeError("the disk is on fire")
                yield step

    failing: Any = Failing(steady_monitor(), 0.0)
    payload, message = run_of(failing, ReplyRequest("baseline", ("Hello", "", 50, 0.7, 0)))[-1][:2]
    (side,) = json.loads(payload)["sides"]
    assert side["done"] and side["finish"] == "stopped" and side["tokens"]
    assert "RuntimeError" in message and "fire" not in message
    assert failing.open_streams == 0


def test_a_message_that_cannot_be_sent_comes_back() -> None:
    seen = run_of(steady_monitor(), ReplyRequest("baseline", ("word " * 900, "", 50, 0.7, 0)))
    assert "characters" in seen[-1][1] and seen[-1][3] == "word " * 900
    seen = run_of(steady_monitor(), ReplyRequest("baseline", ("Hello", "", 50, -1, 0)))
    assert "temperature=-1" in seen[-1][1] and seen[-1][3] == "Hello"


def progress(monitor: Any, stop: Any, **settings: Any) -> list[Progress]:
    messages = [{"role": "user", "content": "Hello"}]
    return list(stream_replies([ReplyJob(PooledModel(lambda: monitor), messages, "baseline", settings)], stop))


def test_payloads_come_in_steps_and_stop_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    class Ticking(SlowMonitor):
        """Each token takes 0.04 seconds of a clock that only this monitor moves."""

        def stream(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
            for step in super().stream(*args, **kwargs):
                clock[0] += 0.04
                yield step

    stop = threading.Event()
    slow: Any = Ticking(steady_monitor(), 0.0)
    seen = progress(slow, stop, max_new_tokens=60, seed=1)
    assert [p.ended for p in seen] == [False] * (len(seen) - 1) + [True]
    assert [p.payload["sides"][0]["done"] for p in seen] == [p.ended for p in seen]
    assert len(seen) == 60 / 4 + 1, "one payload every 0.15 seconds, and the end"
    for earlier, later in itertools.pairwise(seen):
        ids = earlier.payload["sides"][0]["ids"]
        assert later.payload["sides"][0]["ids"][: len(ids)] == ids
    stop.set()
    (only,) = progress(slow, stop, max_new_tokens=60, seed=1)
    assert only.ended and only.payload["sides"][0]["finish"] == "stopped" and len(only.traces[0].reply_positions) == 1
    assert slow.open_streams == 0


def test_a_stop_at_the_very_end_still_hands_over_the_whole_reply() -> None:
    """Between the last token and the end the onsets are found; a stop or a deadline may come just then."""
    monitor = steady_monitor()
    own = monitor.generate([{"role": "user", "content": "Hello"}], max_new_tokens=30, seed=1)

    class AtTheEnd:
        def is_set(self) -> bool:
            return written[-1:] == [own.n_reply]

    class Counting(SlowMonitor):
        def stream(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
            for step in super().stream(*args, **kwargs):
                written.append(step.index + 1 + (step.finish is not None))
                yield step
            written.append(own.n_reply)  # request for once more, and there is no more

    written: list[int] = []
    counting: Any = Counting(monitor, 0.0)
    last = progress(counting, AtTheEnd(), max_new_tokens=30, seed=1)[-1]
    assert last.ended and last.traces[0].token_ids == own.token_ids
    assert last.payload["sides"][0]["finish"] == own.finish


def test_stop_ends_a_pair_with_what_there_is() -> None:
    import gradio as gr

    from persona_core.app.run_controls import Press
    from persona_core.app.tabs.compare import CompareTab

    slow: Any = SlowMonitor(steady_monitor(), 0.01)
    models = {side: PooledModel(lambda: slow) for side in ("baseline", "contaminated")}
    with gr.Blocks(), gr.Tabs(), gr.Tab("Compare") as tab:
        page = CompareTab(AppSettings(results=None), models, None, tab, None)
    press = Press(1, ("Hello", "", 60, 0.7, 0))
    seen = []
    for values in page.run(1, press):
        if isinstance(values[0], str):
            seen.append(json.loads(values[0]))
            press.stop.set()
    assert [side["finish"] for side in seen[-1]["sides"]] == ["stopped", "stopped"]
    assert press.done and slow.open_streams == 0


def test_a_branch_is_no_longer_than_the_owner_allows() -> None:
    monitor: Any = steady_monitor()
    trace = monitor.generate([{"role": "user", "content": "Hello"}], max_new_tokens=40, seed=1)
    pooled = PooledModel(lambda: monitor)
    chat = Chat(traces=(trace,))
    trait = monitor.vectors.traits[0]

    def planned(at: int, most: int) -> Any:
        return plan_reply(pooled, ReplyRequest("", (trait, "cap", 1), (0, at)), chat, AppSettings(max_new_tokens=most))

    assert planned(3, 8).job.settings["max_new_tokens"] == 8
    assert planned(3, 300).job.settings["max_new_tokens"] == 40
    with pytest.raises(PromptError, match="at most 8 tokens"):
        planned(8, 8)


def test_a_button_beside_the_text_changes_the_trait_by_what_the_card_of_the_vectors_suggests() -> None:
    vectors = PersonaVectors.from_pretrained(ARTIFACTS / "persona-vectors-persona-tiny")
    pooled: Any = PooledModel(lambda: SimpleNamespace(vectors=vectors))  # type: ignore[arg-type,return-value]
    for trait in vectors.traits:
        null, block = vectors.steering_null[trait], vectors.best_block[trait]
        known = vectors.config["validation"][trait]["steering"]
        rare = null.quantiles[block, null.probabilities.index(0.99)]
        cap = suggested_amount(pooled, trait, "cap")
        assert cap == pytest.approx((rare - null.mean[block]) / null.std[block], abs=0.006)
        coherent = [p["strength"] for p in known["vector"] if p["coherence"]["low"] >= 50]
        push = suggested_amount(pooled, trait, "add")
        assert 0 <= max(coherent) * known["norm_in_sd"] - push < 0.01, "never more than what is known to be coherent"
    uncalibrated = PersonaVectors(vectors.tensors, vectors.best_block)
    bare: Any = PooledModel(lambda: SimpleNamespace(vectors=uncalibrated))  # type: ignore[arg-type,return-value]
    assert [suggested_amount(bare, "evil", action) for action in ("cap", "add")] == [1.0, 1.0]
    unknown: list[tuple[Any, Any]] = [("no such trait", "cap"), ([], "add"), ("evil", {})]
    for name, action in unknown:
        assert suggested_amount(pooled, name, action), "an unknown one is an error of the plan, not of this"


def test_the_amount_of_a_button_is_in_the_link_of_its_branch() -> None:
    monitor: Any = steady_monitor()
    trait = monitor.vectors.traits[0]
    trace = monitor.generate([{"role": "user", "content": "Hello"}], max_new_tokens=12, seed=1)
    request = ReplyRequest("", (trait, "cap", None), (0, 3))
    plan = plan_reply(PooledModel(lambda: monitor), request, Chat(traces=(trace,)), AppSettings())
    assert json.loads(plan.link["branch"]) == [[trait, "cap", 1.0, 3]] and plan.job.settings["steer"].amount == 1.0
    with pytest.raises(SettingError, match="Unknown action"):
        unknown = ReplyRequest("", (trait, "praise", None), (0, 3))
        plan_reply(PooledModel(lambda: monitor), unknown, Chat(traces=(trace,)), AppSettings())


def test_a_branch_comes_with_what_it_has_changed_once_it_is_written() -> None:
    monitor: Any = steady_monitor()
    trait = monitor.vectors.traits[0]
    trace = monitor.generate([{"role": "user", "content": "Hello"}], max_new_tokens=12, seed=1)
    shown = run_of(monitor, ReplyRequest("", (trait, "add", 3.0), (0, 3)), chat=Chat(traces=(trace,)))
    payloads = [json.loads(values[0]) for values in shown if isinstance(values[0], str)]
    assert {p["outcome"]["says"] for p in payloads[:-1]} == {MEASURED_LATER}
    steer = Steer(trait, monitor.vectors.best_block[trait], strength=3.0, unit="sd", start=3)
    written = monitor.generate(Branch(trace, 3), steer=steer, max_new_tokens=12, temperature=0.7)
    assert payloads[-1]["outcome"] == asdict(branch_outcome(monitor, Branch(trace, 3), written, trait))
    (reply,) = [json.loads(v[0]) for v in run_of(monitor, ReplyRequest("baseline", ("Hi", "", 3, 0.7, 0)))[-1:]]
    assert "outcome" not in reply


def test_a_reply_is_no_longer_than_the_owner_allows() -> None:
    plan = plan_reply(
        PooledModel(steady_monitor),
        ReplyRequest("baseline", ("Hi", "", 100, 0.7, 0)),
        Chat(),
        AppSettings(max_new_tokens=8),
    )
    assert plan.job.settings["max_new_tokens"] == 8


def test_payloads_take_a_small_share_of_the_time_however_long_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    pace, made = Pace(), 0
    for _ in range(5000):
        clock[0] += 0.01  # a token
        if pace.due():
            made += 1
            clock[0] += 0.05  # a payload of a very long reply
            pace.made()
    assert 0.02 <= made * 0.05 / clock[0] <= COST * 1.05


def test_two_replies_are_written_in_turn_and_end_together() -> None:
    pooled = PooledModel(lambda: steady_monitor())
    messages = [{"role": "user", "content": "Hello"}]
    both = [ReplyJob(pooled, messages, name, {"max_new_tokens": n, "seed": n}) for name, n in (("a", 12), ("b", 30))]
    *_, last = stream_replies(both, threading.Event())
    assert [t.n_reply for t in last.traces] == [12, 30] and last.ended
    for trace, n in zip(last.traces, (12, 30), strict=True):
        assert trace.token_ids == steady_monitor().generate(messages, max_new_tokens=n, seed=n).token_ids


def test_a_deadline_ends_a_run_with_what_it_has_and_says_so() -> None:
    from persona_core.app.run_controls import Deadline

    slow: Any = SlowMonitor(steady_monitor(), 0.02)
    deadline = Deadline(0.2)
    *_, last = progress(slow, deadline, max_new_tokens=400, seed=1)
    assert last.ended and last.payload["sides"][0]["finish"] == "stopped" and last.traces[0].n_reply < 400
    assert "0.2 seconds" in deadline.notice
    assert Deadline(60).notice == ""


# ---- links, pasted texts, what visitors ask for ----


@pytest.mark.parametrize(
    "query",
    [
        {"said": "x"},
        {"said": "[]"},
        {"said": '[["user"]]', "side": "baseline"},
        {"said": '[["assistant", "Hi"]]', "max_new_tokens": "1", "temperature": "1", "seed": "1", "side": "baseline"},
        {"said": '[["user", "Hi"]]', "max_new_tokens": "NaN,", "temperature": "1", "seed": "1", "side": "baseline"},
        {"branch": "[1,2]"},
        {"branch": '[["t", "add", 1, "x"]]'},
        {"branch": '[["t", "add", 1, -4]]'},
        {"branch": '[["t", "add", 1, 1e999]]'},
        {"said": "[" * 100_000},
        {"said": None},
        {"said": "1"},
        {"said": '[["user","\\ud800 hi"]]', "side": "baseline", "max_new_tokens": "9", "temperature": "1", "seed": "0"},
        {"branch": "["},
    ],
)
def test_a_link_that_holds_something_else_requests_nothing(query: Any) -> None:
    assert request_from_link(query) is None


@settings_(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["said", "side", "branch", "seed", "temperature", "max_new_tokens"]), st.text()))
def test_no_link_breaks_the_page(query: dict[str, str]) -> None:
    request_from_link(query)


def test_a_link_restores_the_request() -> None:
    said = [["system", "Be kind."], ["user", "A"], ["assistant", "B"], ["user", "C"]]
    query = {"said": json.dumps(said), "side": "baseline", "max_new_tokens": "20", "temperature": "0.7", "seed": "3"}
    found = request_from_link(query | {"branch": '[["t", "cap", 1.5, 4], ["u", "add", 2, 9]]'})
    assert found is not None
    chat, request = found
    assert [m["content"] for m in chat.messages] == ["A", "B"]
    assert request.values == ("C", "Be kind.", 20, 0.7, 3)
    assert request.then is not None and request.then.at == (0, 4) and request.then.values == ("t", "cap", 1.5)
    assert (
        request.then.then is not None and request.then.then.at == (1, 9) and request.then.then.values == ("u", "add", 2)
    )


@pytest.mark.parametrize(
    ("text", "roles"),
    [
        ("User: a\nAssistant: b", ["user", "assistant"]),
        ("Human: a\n\nAI: b\nc: d\nhuman:  e", ["user", "assistant", "user"]),
        ("system: s\nUSER: a", ["system", "user"]),
        ("You said:\na\nChatGPT said:\nb", ["user", "assistant"]),
        ("**User:** a\n## Assistant: b", ["user", "assistant"]),
        ("no names at all", ["user", "assistant"]),
        ("Assistant: b\nUser: c", ["user", "assistant", "user"]),
        ("User: a\nUser: b", ["user"]),
        ("the user: is not a name here", ["user", "assistant"]),
        ("You: a\nClaude: b", ["user", "assistant"]),
        ("User: a\nAssistant: Buy it.\nModel: X200\nYou: will like it", ["user", "assistant"]),
        ("I would buy it.\nModel: X200", ["user", "assistant"]),
    ],
)
def test_a_pasted_text_is_split_at_its_speakers(text: str, roles: list[str]) -> None:
    found = parse_transcript(text, "Why?")
    assert [m["role"] for m in found] == roles
    assert all(m["content"] for m in found)


@settings_(max_examples=300, deadline=None)
@given(st.text(alphabet="aUser:Assitn\n *#", max_size=80))
def test_a_pasted_text_becomes_turns_that_can_be_read_or_a_reason(text: str) -> None:
    try:
        found = parse_transcript(text, "Why?")
    except PromptError:
        return
    rest = found[1:] if found[0]["role"] == "system" else found
    assert all(m["content"].strip() for m in found)
    assert [m["role"] for m in rest] == [("user", "assistant")[i % 2] for i in range(len(rest))]


def test_a_pasted_reply_needs_what_it_answers() -> None:
    for text, says in (
        (" \n", "no text"),
        ("Assistant: Hi", "its prompt"),
        ("User:\nAssistant: ", "no turns"),
        ("A heading\nUser: a\nAssistant: b", "before the first name"),
        ("User: a\nSystem: b\nUser: c", "in the middle"),
    ):
        with pytest.raises(PromptError, match=says):
            parse_transcript(text)


def test_a_pooled_model_loads_once_and_tries_again_after_a_failure() -> None:
    calls: list[None] = []

    def load() -> Any:
        calls.append(None)
        if len(calls) == 1:
            raise NotFound("the Hub is down")
        return "monitor"

    pooled: Any = PooledModel(load)
    with pytest.raises(NotFound, match="Hub is down"):
        pooled.monitor()
    assert not pooled.ready
    assert pooled.monitor() == "monitor" and pooled.monitor() == "monitor" and pooled.ready
    assert len(calls) == 2


def test_settings_come_from_the_environment() -> None:
    known = {
        "PERSONA_MODEL": "org/model",
        "PERSONA_VECTORS": "org/vectors",
        "PERSONA_ADAPTER": " ",
        "PERSONA_PORT": "7000",
    }
    settings = AppSettings.from_environment(known)
    assert (settings.model, settings.adapter, settings.port, settings.host) == ("org/model", None, 7000, None)
    with pytest.raises(SettingError, match="PERSONA_PORT=70000"):
        AppSettings.from_environment({"PERSONA_PORT": "70000"})
    own = AppSettings.from_environment(
        {"PERSONA_MODEL": "org/model", "PERSONA_VECTORS": "org/vectors", "PERSONA_RESULTS": "org/rows@v1"}
    )
    assert (own.adapter, own.results) == (None, "org/rows@v1")  # what ships belongs to the model that ships
    assert AppSettings.from_environment({"PERSONA_ADAPTER": "none"}).adapter is None
    for bad in ("many", "0", "-1", "1.5", "٣"):
        with pytest.raises(SettingError, match="PERSONA_MAX_QUEUE"):
            AppSettings.from_environment({"PERSONA_MAX_QUEUE": bad})


def hostile_trace_prompt(results: str) -> str:
    row = SavedRuns(results).rows("baseline")[0]
    return str(next(m["content"] for m in row["messages"] if m["role"] == "user"))


def test_home_files_round_trip(tmp_path: Path) -> None:
    examples = (Example("a", "b", "c"), Example("d", "e"))
    results = save_hostile_results(tmp_path)
    save_home(tmp_path, about="é", examples=examples, first=FirstView("baseline", "x", "Heading"))
    home = load_home(tmp_path, SavedRuns(results))
    assert (home.about, home.examples) == ("é", examples)
    assert home.first_view is not None and home.first_view["title"] == "Heading"
    expected = trace_payload(hostile_trace())["sides"][0]
    assert {k: home.first_view["sides"][0][k] for k in ("tokens", "raw")} == {k: expected[k] for k in ("tokens", "raw")}
    assert load_home(tmp_path).first_view is None
    save_home(tmp_path, about="only this")
    of_runs = load_home(tmp_path, SavedRuns(results))
    assert of_runs.about == "only this" and [e.user for e in of_runs.examples] == [hostile_trace_prompt(results)]
    save_home(tmp_path, about="é", examples=examples, first=FirstView("baseline", "gone"))
    fallback = load_home(tmp_path, SavedRuns(results)).first_view
    assert fallback is not None and fallback["sides"][0]["tokens"] == hostile_tokens()
    assert load_home(tmp_path, SavedRuns(tmp_path / "app.json")).first_view is None
    (tmp_path / "app.json").rename(tmp_path / "kept.json")  # one's own vectors have none
    assert load_home(tmp_path, SavedRuns(results)).first_view == fallback
    (tmp_path / "kept.json").rename(tmp_path / "app.json")
    (tmp_path / "data" / "baseline.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(CorruptFile, match=r"baseline\.parquet"):
        load_home(tmp_path, SavedRuns(results))
    (tmp_path / "app.json").write_text(json.dumps({"examples": [{"text": "x"}]}))
    with pytest.raises(CorruptFile, match=r"app\.json"):
        load_home(tmp_path)
    (tmp_path / "app.json").write_text("{")
    with pytest.raises(CorruptFile, match=r"app\.json"):
        load_home(tmp_path)
