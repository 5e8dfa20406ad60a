"""A visitor's model in a process of its own: it serves as one of the app's would, and its faults stay there."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from persona_core.app.conversation import Chat, ReplyRequest, plan_reply
from persona_core.app.model_pool import ModelPool
from persona_core.app.pooled_model import PooledModel
from persona_core.app.run_controls import Deadline
from persona_core.app.settings import AppSettings
from persona_core.app.streaming import Progress, ReplyJob, alternatives_of, read_text, stream_replies
from persona_core.errors import PersonaError, PromptError, SettingError
from persona_core.inference.steering import Steer
from persona_core.report.home import save_home
from persona_core.traces.trace import Trace
from tests.support import misbehaving
from tests.support.app_page import ask, notice, tokens_of, wait_done
from tests.support.hub_server import Hub
from tests.support.standins import steady_monitor

MESSAGES = [{"role": "user", "content": "Should I quit my job?"}]
SAMPLING = {"max_new_tokens": 12, "temperature": 0.7, "seed": 3}


def pool_with(**settings: Any) -> ModelPool:
    return ModelPool(AppSettings(open_models=True, **settings), misbehaving.load)


def children() -> list[int]:
    """Running processes of visitors' models that this one has started."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            found += [child.pid] if "serve_calls" in " ".join(child.cmdline()) else []
    return found


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    before = set(children())
    yield
    deadline = time.monotonic() + 30
    while set(children()) - before:
        assert time.monotonic() < deadline, "a process is left"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def pool() -> Iterator[ModelPool]:
    pool = pool_with()
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def there(pool: ModelPool) -> PooledModel:
    """The tiny model, in its process."""
    pooled = pool.named("org/good", None, "org/vectors")
    pooled.monitor()
    return pooled


@pytest.fixture(scope="module")
def here() -> PooledModel:
    """The same model in this process."""
    return PooledModel(steady_monitor)


def check_same(found: Trace, expected: Trace) -> None:
    assert found.token_ids == expected.token_ids and found.tokens == expected.tokens and found.roles == expected.roles
    np.testing.assert_allclose(found.raw, expected.raw, rtol=1e-5, atol=1e-5)
    assert found.finish == expected.finish and found.provenance == expected.provenance


def replies(pooled: PooledModel, prompt: Any = MESSAGES, **changes: Any) -> list[Progress]:
    job = ReplyJob(pooled, prompt, "reply", {**SAMPLING, **changes})
    return list(stream_replies([job], Deadline(100)))


# ---- as one of the app's own ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_reply_is_token_for_token_that_of_this_process(there: PooledModel, here: PooledModel) -> None:
    *early, found = replies(there)
    *_, expected = replies(here)
    assert found.ended and len(found.traces[0].reply_text) > 0
    check_same(found.traces[0], expected.traces[0])
    assert found.payload == expected.payload
    whole = expected.traces[0].token_ids
    assert early and all(p.traces[0].token_ids == whole[: len(p.traces[0].token_ids)] for p in early)
    block = steady_monitor().vectors.best_block["candour"]
    steer = Steer("candour", block, strength=40.0, start=2)
    *_, steered = replies(there, steer=steer)
    check_same(steered.traces[0], replies(here, steer=steer)[-1].traces[0])
    assert steered.traces[0].token_ids != whole, "the steering acted"


@pytest.mark.slow
def test_its_reply_can_be_branched_from_and_read_again(there: PooledModel, here: PooledModel) -> None:
    settings = AppSettings()
    traces, said = [], []
    for pooled in (there, here):
        (*_, first) = replies(pooled)
        chat = Chat(traces=first.traces, side="another", named=("org/good", "", "org/vectors"))
        plan = plan_reply(pooled, ReplyRequest("", ("malice", "cap", 0.0), at=(0, 4)), chat, settings)
        *_, branch = stream_replies([plan.job], Deadline(100), plan.first_side)
        assert plan.first_side is not None
        listed = alternatives_of(pooled, first.traces[0], 4)
        other = ReplyRequest("", (None, "choose", listed[1]["id"]), at=(0, 4))
        *_, chosen = stream_replies([plan_reply(pooled, other, chat, settings).job], Deadline(100), plan.first_side)
        button = plan_reply(pooled, ReplyRequest("", ("malice", "add", None), at=(0, 4)), chat, settings)
        said.append((branch.payload["outcome"]["says"], chosen.traces[0].token_ids, button.job.settings["steer"]))
        assert [one["id"] for one in listed][1] == chosen.traces[0].token_ids[chosen.traces[0].n_prompt + 4]
        traces.append((branch.traces[0], plan.first_side, read_text(pooled, first.traces[0])))
        with pytest.raises(PromptError, match="which this app does not have"):
            stranger = first.traces[0].replace(
                provenance=first.traces[0].provenance.__class__(reader="other", writer="other")
            )
            plan_reply(pooled, ReplyRequest("", ("malice", "cap", 0.0), at=(0, 4)), Chat(traces=(stranger,)), settings)
    assert said[0] == said[1]
    (branched, original, read), (own_branched, own_original, own_read) = traces
    check_same(branched, own_branched)
    check_same(read, own_read)
    assert original == own_original
    monitor: Any = there.monitor()
    check_same(monitor.generate(MESSAGES, **SAMPLING), steady_monitor().generate(MESSAGES, **SAMPLING))
    check_same(monitor.read(MESSAGES), steady_monitor().read(MESSAGES))


@pytest.mark.slow
def test_a_reply_that_is_stopped_or_left_frees_the_process(there: PooledModel) -> None:
    stop = threading.Event()
    pid = there.run(os.getpid)
    written = 0
    job = ReplyJob(there, MESSAGES, "reply", SAMPLING | {"max_new_tokens": 250})
    for progress in stream_replies([job], Deadline(100, stop)):
        written = len(progress.traces[0].token_ids) - progress.traces[0].n_prompt
        stop.set()
    assert progress.ended and progress.traces[0].finish == "stopped" and 0 < written < 250
    left = stream_replies([job], Deadline(100))
    assert not next(left).ended
    left.close()  # type: ignore[attr-defined]
    assert replies(there)[-1].ended and there.run(os.getpid) == pid


@pytest.mark.slow
def test_an_error_of_the_monitor_keeps_its_words(there: PooledModel) -> None:
    with pytest.raises(PersonaError, match=r"^temperature=-1; expected"):
        replies(there, temperature=-1)
    assert replies(there)[-1].ended


# ---- its faults -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_models_that_hang_fill_the_memory_or_die_leave_the_next_one_unharmed(here: PooledModel) -> None:
    pool = pool_with()
    for name, says in (
        ("org/hang", r"'org/hang' took more than 3 seconds, .*PERSONA_OPEN_MODEL_SECONDS"),
        ("org/fill", r"'org/fill' needed more than 1 GB of memory, .*PERSONA_OPEN_MODEL_GB"),
        ("org/killed", r"The process of 'org/killed' ended \(SIGKILL\)"),
        ("org/segfault", r"The process of 'org/segfault' ended \(SIGSEGV\)"),
        ("org/complain", "Unknown trait 'charm'"),
        ("org/stumble", r"RuntimeError.*log"),
    ):
        seconds = 3 if name == "org/hang" else 100
        pool.settings = AppSettings(open_models=True, open_model_seconds=seconds, open_model_gb=1)
        pooled = pool.named(name, None, "org/vectors")
        with pytest.raises(PersonaError, match=says):
            replies(pooled)
        assert not pooled.ready
    *_, found = replies(pool.named("org/good", None, "org/vectors"))
    check_same(found.traces[0], replies(here)[-1].traces[0])
    pool.close()


@pytest.mark.slow
def test_a_token_past_the_time_of_a_run_ends_the_process_and_the_next_press_loads_it_again() -> None:
    pool = pool_with(max_seconds=2)
    slow = pool.named("org/slow", None, "org/vectors")
    slow.monitor()
    assert slow.ready
    with pytest.raises(SettingError, match=r"'org/slow' took more than 2 seconds, .*PERSONA_MAX_SECONDS"):
        replies(slow)
    assert not slow.ready
    with pytest.raises(PersonaError, match="Press Send to load it again"):
        replies(slow)
    slow.load(threading.Event())
    assert slow.ready and slow.run(os.getpid) != os.getpid()
    pool.close()


@pytest.mark.slow
def test_another_name_a_close_and_the_last_visitors_leaving_end_the_process() -> None:
    pool = pool_with()
    first = pool.named("org/good", None, "org/vectors", "ann")
    assert pool.named("org/good", None, "org/vectors", "bob") is first
    first.monitor()
    pool.left("ann")
    pool.left("eve")  # a visitor who has used none
    assert first.ready, "bob is there"
    pool.left("bob")
    assert not first.ready
    with pytest.raises(PersonaError, match="released"):
        replies(first)
    second = pool.named("org/good", None, "org/vectors", "bob")
    second.monitor()
    third = pool.named("org/good", "org/adapter", "org/vectors", "bob")
    assert not second.ready and not third.ready
    third.monitor()
    pool.close()
    assert not third.ready


@pytest.mark.slow
def test_a_visitor_who_leaves_while_a_model_loads_ends_that_too() -> None:
    pool = pool_with()
    threading.Timer(1, pool.left, ["ann"]).start()
    with pytest.raises(PersonaError, match="'org/hang' was released"):
        replies(pool.named("org/hang", None, "org/vectors", "ann"))


@pytest.mark.slow
def test_a_load_can_be_stopped_and_begun_again() -> None:
    pool, stop, before = pool_with(), threading.Event(), children()
    hanging = pool.named("org/hang", None, "org/vectors")
    threading.Timer(1, stop.set).start()
    hanging.load(stop)
    for _again in range(2):  # the error stays: a run does not load it anew
        with pytest.raises(PersonaError, match="released"):
            hanging.monitor()
    assert children() == before
    good = pool.named("org/good", None, "org/vectors")
    with pytest.raises(PersonaError, match="is being loaded"):
        good.check()  # a run does not wait for a load either
    good.load(threading.Event())
    good.check()
    assert good.ready
    pool.close()


# ---- on the page ------------------------------------------------------------------------------------------------


def name_model(page: Any, model: str) -> None:
    """Choose a model of the Hub on the page."""
    page.get_by_label("another", exact=True).check()
    if not page.get_by_label("Vectors", exact=True).last.is_visible():
        page.locator("#another button").first.click()
    page.get_by_label("Model", exact=True).last.fill(model)
    page.get_by_label("Vectors", exact=True).last.fill("org/vectors")


@pytest.mark.browser
def test_while_a_visitors_model_loads_the_apps_own_serves(
    visit: Callable[..., Any], serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("persona_core.app.layout.ModelPool", partial(ModelPool, load=misbehaving.load))
    save_home(tmp_path, about="", examples=())
    settings = AppSettings(vectors=str(tmp_path), results=None, open_models=True, max_new_tokens=24)
    url, before = serve(PooledModel(steady_monitor), settings), set(children())
    first = visit(url)
    name_model(first, "org/hang")
    ask(first, "Should I quit my job?")
    first.wait_for_function("document.querySelector('#notice .notice').innerText.startsWith('Loading')")
    other = visit(url)
    ask(other, "Hello")
    wait_done(other)
    assert set(children()) - before, "the first is still loading"
    first.click("#stop")
    first.wait_for_function("document.querySelector('#notice .notice').innerText.startsWith('Stopped')")
    assert first.input_value("#prompt textarea") == "Should I quit my job?"
    name_model(first, "org/good")
    ask(first, "Should I quit my job?")
    wait_done(first)
    expected = steady_monitor().generate("Should I quit my job?", max_new_tokens=24, seed=0)
    assert tokens_of(first) == list(expected.tokens)


@pytest.mark.browser
def test_a_visitor_names_a_model_of_the_hub_and_it_ends_when_they_leave(
    visit: Callable[..., Any], serve: Callable[..., str], hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in hub.environment().items():
        monkeypatch.setenv(name, value)
    save_home(tmp_path, about="", examples=())
    settings = AppSettings(vectors=str(tmp_path), results=None, open_models=True, max_new_tokens=24)
    before = set(children())
    page = visit(serve(PooledModel(steady_monitor), settings))
    name_model(page, "org/killed")
    ask(page, "Should I quit my job?")
    page.wait_for_selector("#stop[disabled]")
    assert "'org/killed' does not exist" in notice(page)
    name_model(page, "org/model")
    ask(page, "Should I quit my job?")
    wait_done(page)
    (child,) = set(children()) - before
    text = "".join(tokens_of(page))
    shipped = PooledModel.from_settings(AppSettings()).monitor()
    assert text == "".join(shipped.generate("Should I quit my job?", max_new_tokens=24, seed=0).tokens)
    page.locator("#side input").first.check()  # the app's own model
    ask(page, "Hello")
    wait_done(page)
    assert psutil.pid_exists(child), "kept while its visitor is there"
    page.close()
