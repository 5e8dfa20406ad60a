"""A process of its own: what it returns, the limits that end it, and that nothing is left of it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from persona_core.app import limited_process
from persona_core.app.limited_process import LimitedProcess, TimeLimit
from persona_core.errors import PersonaError, ServerError, SettingError
from tests.support import misbehaving

ROOT = Path(__file__).resolve().parents[2]
LONG = TimeLimit(120, "PERSONA_LONG")
SHORT = TimeLimit(0.5, "PERSONA_SHORT")


@pytest.fixture
def process() -> Iterator[LimitedProcess]:
    process = LimitedProcess("'org/model'", 4, "PERSONA_GB")
    yield process
    process.end()


def check_gone(pid: int) -> None:
    """The process is not there any more, soon."""
    deadline = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the process is left"
        time.sleep(0.05)


# ---- what comes back --------------------------------------------------------------------------------------------


def test_results_and_items_come_back_from_one_other_process(process: LimitedProcess, tmp_path: Path) -> None:
    assert process.call(LONG, os.getpid) == process.call(LONG, os.getpid) == process.pid != os.getpid()
    log = str(tmp_path / "log")
    assert list(process.stream(LONG, misbehaving.count, log, 5)) == [0, 1, 2, 3, 4]
    assert list(process.stream(LONG, misbehaving.count, log, 0)) == []


def test_a_generator_waits_for_its_caller(process: LimitedProcess, tmp_path: Path) -> None:
    log = tmp_path / "log"
    items = process.stream(LONG, misbehaving.count, str(log), 100)
    assert [next(items), next(items)] == [0, 1]
    time.sleep(0.3)
    assert log.read_text().split() == ["0", "1"]


def test_a_closed_generator_ends_in_the_process_which_takes_the_next_call(
    process: LimitedProcess, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    items = process.stream(LONG, misbehaving.count, str(log), 100)
    assert next(items) == 0
    items.close()  # type: ignore[attr-defined]
    assert log.read_text().split() == ["0", "closed"]
    assert process.call(LONG, os.getpid) == process.pid


def test_a_generator_that_nobody_closes_does_not_hold_the_process(process: LimitedProcess, tmp_path: Path) -> None:
    log = tmp_path / "log"
    left = process.stream(LONG, misbehaving.count, str(log), 100)
    assert next(left) == 0
    assert list(process.stream(LONG, misbehaving.count, str(tmp_path / "other"), 2)) == [0, 1]
    assert log.read_text().split() == ["0", "closed"]
    with pytest.raises(ServerError, match="later run"):
        next(left)
    assert process.call(LONG, sum, [1, 2]) == 3


def test_errors_keep_their_words_if_they_are_ours(process: LimitedProcess, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(PersonaError, match=r"^Unknown trait 'charm'. Known traits: evil.$"):
        process.call(LONG, misbehaving.complain)
    with pytest.raises(PersonaError, match="RuntimeError") as error:
        process.call(LONG, misbehaving.stumble)
    assert "secret" not in str(error.value) and "the secret of /srv/models" in caplog.text
    with pytest.raises(PersonaError, match="log"):
        process.call(LONG, misbehaving.unsendable)
    items = process.stream(LONG, misbehaving.count_then, 2, "complain")
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(PersonaError, match="charm"):
        next(items)
    assert process.call(LONG, sum, [1, 2]) == 3


def test_its_log_is_the_apps(process: LimitedProcess, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        process.call(LONG, misbehaving.say, "a warning")
    assert ("persona_core.said", logging.WARNING, "a warning") in caplog.record_tuples
    caplog.clear()
    quiet = logging.getLogger("persona_core.said")
    quiet.setLevel(logging.ERROR)
    process.call(LONG, misbehaving.say, "a warning")
    quiet.setLevel(logging.NOTSET)
    assert not caplog.records


def test_it_has_no_token_or_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secrets = (
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "OPENAI_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "password",
        "SERVED_API_KEY",
    )
    for name in secrets:
        monkeypatch.setenv(name, "hf_mine")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    (tmp_path / "token").write_text("hf_mine")  # what `hf auth login` saves
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    process = LimitedProcess("'org/model'", 4, "PERSONA_GB")
    found = process.call(LONG, misbehaving.environment)
    assert "hf_mine" not in found.values() and "hf_mine" not in psutil.Process(process.pid).environ().values()
    assert process.call(LONG, misbehaving.saved_token) is None
    assert found["TOKENIZERS_PARALLELISM"] == "false" and found["HF_HOME"] == str(tmp_path)
    process.end()


# ---- limits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("busy", [misbehaving.hang, misbehaving.chatter])
def test_a_call_past_its_time_ends_the_process(process: LimitedProcess, busy: Callable[..., Any]) -> None:
    with pytest.raises(SettingError, match=r"'org/model' took more than 0.5 seconds, .*PERSONA_SHORT"):
        process.call(SHORT, busy)
    assert not process.alive
    check_gone(process.pid)


def test_an_item_past_its_time_ends_the_process(process: LimitedProcess) -> None:
    process.call(LONG, misbehaving.environment)  # started, and the module imported
    items = process.stream(TimeLimit(3, "PERSONA_ITEM"), misbehaving.count_then, 1, "hang")
    assert next(items) == 0
    with pytest.raises(SettingError, match="PERSONA_ITEM"):
        next(items)
    assert not process.alive


@pytest.mark.parametrize("streamed", [False, True])
def test_memory_past_its_limit_ends_the_process(streamed: bool) -> None:
    process = LimitedProcess("'org/model'", 0.5, "PERSONA_GB")
    with pytest.raises(SettingError, match=r"'org/model' needed more than 0.5 GB of memory, .*PERSONA_GB"):
        if streamed:
            list(process.stream(LONG, misbehaving.count_then, 3, "fill"))
        process.call(LONG, misbehaving.fill)
    assert not process.alive
    check_gone(process.pid)


@pytest.mark.parametrize(
    ("dies", "how"),
    [
        (misbehaving.exit_at_once, "exit status 3"),
        (misbehaving.segfault, "SIGSEGV"),
        (misbehaving.killed, "SIGKILL"),
    ],
)
def test_a_crash_is_an_error_that_says_so(process: LimitedProcess, dies: Callable[..., Any], how: str) -> None:
    with pytest.raises(ServerError, match=rf"The process of 'org/model' ended \({how}\)"):
        process.call(LONG, dies)
    assert not process.alive
    with pytest.raises(ServerError, match="released"):
        process.call(LONG, os.getpid)


def test_a_crash_between_items_is_one_too(process: LimitedProcess) -> None:
    items = process.stream(LONG, misbehaving.count_then, 2, "segfault")
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ServerError, match="SIGSEGV"):
        next(items)


def test_a_result_that_would_fill_the_apps_memory_is_refused(
    process: LimitedProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limited_process, "MAX_BYTES", 1000)
    assert len(process.call(LONG, bytes, 900)) == 900
    with pytest.raises(ServerError, match="result could not be read"):
        process.call(LONG, bytes, 1100)
    assert not process.alive


# ---- its end ----------------------------------------------------------------------------------------------------


def test_it_can_be_ended_during_a_call(process: LimitedProcess) -> None:
    said: list[Exception] = []

    def wait() -> None:
        try:
            process.call(LONG, misbehaving.hang)
        except PersonaError as error:
            said.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.3)
    process.end()
    waiting.join(30)
    assert [str(error) for error in said] == ["'org/model' was released."]
    check_gone(process.pid)


def test_it_ends_with_the_object() -> None:
    process = LimitedProcess("'org/model'", 4, "PERSONA_GB")
    pid = process.pid
    assert process.call(LONG, os.getpid) == pid
    del process
    check_gone(pid)


def test_it_ends_by_itself_when_nobody_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing sets the child's own limit from outside: this one starts with another.
    monkeypatch.setattr(limited_process, "_START", "from persona_core.app import limited_process as here; "
                        "here.IDLE_SECONDS = 0.3; here.serve_calls({fd}, {parent}, {level})")  # fmt: skip
    process = LimitedProcess("'org/model'", 4, "PERSONA_GB")
    assert process.call(LONG, sum, [1, 2]) == 3
    check_gone(process.pid)
    assert not process.alive


OWNER = """
import sys, threading, time
from persona_core.app.limited_process import LimitedProcess, TimeLimit
from tests.support import misbehaving
process = LimitedProcess("'org/model'", 4, "PERSONA_GB")
process.call(TimeLimit(60, ""), sum, [1])
if sys.argv[1] == "busy":
    threading.Thread(target=process.call, args=(TimeLimit(600, ""), misbehaving.hang), daemon=True).start()
    time.sleep(0.3)
print(process.pid, flush=True)
if sys.argv[2] == "killed":
    time.sleep(600)
"""


@pytest.mark.parametrize("work", ["idle", "busy"])
@pytest.mark.parametrize("end", ["exits", "killed"])
def test_it_ends_with_the_app(work: str, end: str) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, work, end], cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    if end == "killed":
        owner.kill()
    owner.stdout.close()
    assert owner.wait(30) in (0, -9)
    check_gone(pid)


def test_what_the_child_sends_runs_nothing_here(process: LimitedProcess, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="its result could not be read"):
        process.call(LONG, misbehaving.set_a_trap, str(tmp_path / "ran"))
    assert not (tmp_path / "ran").exists() and not process.alive
