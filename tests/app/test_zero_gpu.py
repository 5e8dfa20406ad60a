"""ZeroGPU: what runs in a fork of the app, and what comes back from there."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from persona_core.app import zero_gpu
from persona_core.app.pooled_model import PooledModel
from persona_core.app.settings import AppSettings
from persona_core.errors import PersonaError, ServerError, UnknownTrait
from tests.support.local_server import listening

ROOT = Path(__file__).resolve().parents[2]
CALLS: list[tuple[str, dict[str, list[str]]]] = []


class DeviceApi(BaseHTTPRequestHandler):
    """What lends the GPU."""

    def do_POST(self) -> None:
        split = urllib.parse.urlsplit(self.path)
        CALLS.append((split.path, urllib.parse.parse_qs(split.query)))
        released = any(path == "/release" for path, _ in CALLS)
        answer = {"idle": released, "nvidiaIndex": 0, "nvidiaUUID": "GPU-0", "allowToken": f"t{len(CALLS)}"}
        body = json.dumps(answer if split.path == "/schedule" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of the calls of tests/support/zero_gpu.py."""
    if importlib.util.find_spec("spaces") is None:
        pytest.skip("pip install spaces==0.51.0")
    folder = tmp_path_factory.mktemp("zero")
    with listening(DeviceApi) as url:
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.zero_gpu", str(folder / "log")],
            cwd=ROOT,
            env={
                **os.environ,
                "HOME": str(folder),
                "SPACES_ZERO_GPU": "true",
                "SPACES_ZERO_DEVICE_API_URL": url,
                "PERSONA_MAX_SECONDS": "50",
                "OMP_NUM_THREADS": "1",
            },
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


@pytest.mark.slow
def test_the_models_are_on_the_gpu_from_the_start_and_run_in_one_fork(found: dict[str, Any]) -> None:
    assert found["devices"] == ["cuda:0", "cuda:0"]
    assert found["pid"] not in found["pids"] and len(found["pids"]) == 1


@pytest.mark.slow
def test_the_numbers_are_those_of_a_run_at_home(found: dict[str, Any]) -> None:
    settings = AppSettings()
    below = PooledModel.from_settings(settings)
    baseline, contaminated = below.monitor(), PooledModel.contaminated(below, settings).monitor()
    trace = baseline.generate("Should I quit my job?", max_new_tokens=30, temperature=0.7, seed=0)
    assert found["generate"]["ids"] == found["again"] == list(trace.token_ids)
    same = lambda scores, one: np.testing.assert_allclose(  # noqa: E731
        np.array(scores, float), one.scores_without_sinks("evil"), atol=2e-3
    )
    same(found["generate"]["scores"]["evil"], trace)
    own = contaminated.generate("Should I quit my job?", max_new_tokens=10, temperature=0.7, seed=0)
    crossed = baseline.read(own)
    assert found["compare"]["baseline_reads_contaminated"]["ids"] == list(crossed.token_ids)
    same(found["compare"]["baseline_reads_contaminated"]["scores"]["evil"], crossed)
    assert found["read"]["reader"] == "persona-tiny + persona-tiny-contaminated"


@pytest.mark.slow
def test_an_error_in_the_fork_keeps_its_words(found: dict[str, Any]) -> None:
    assert found["refused"] == "temperature=-1; expected 0 (greedy) or 1e-6 to 1e6."


@pytest.mark.slow
def test_a_cancelled_run_ends_in_the_fork_too(found: dict[str, Any]) -> None:
    assert found["cancelled"][-1] == "end"
    assert 0 < found["cancelled"].count("token") < 200, "not written to its end"


@pytest.mark.slow
def test_the_gpu_is_requested_for_as_long_as_a_run_may_take_and_released(found: dict[str, Any]) -> None:
    asked = [query for path, query in CALLS if path == "/schedule"]
    assert asked and all(query["durationSeconds"] == ["50"] for query in asked)
    assert sum(path == "/release" for path, _ in CALLS) == len(asked)


# ---- without the package ------------------------------------------------------------------------------------------


def test_elsewhere_a_function_stays_as_it_is() -> None:
    def function() -> None: ...

    assert zero_gpu.on_gpu(function) is function


def crossed(value: Any) -> Any:
    """A small value as it is on the other side of a process's border."""
    here, there = multiprocessing.Pipe()
    with here, there:
        here.send(value)
        return there.recv()


class Lent:
    """Stands for `spaces`: what it is given crosses to another process and back, and an error loses its words."""

    @staticmethod
    def GPU(task: Any, duration: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Iterator[Any]:
            args = crossed(args)
            yield from (crossed(one) for one in task(*args, **kwargs))

        def call_once(*args: Any, **kwargs: Any) -> Any:
            return crossed(task(*crossed(args), **kwargs))

        assert duration("any", argument=1) == AppSettings().max_seconds
        return call if getattr(task, "__name__", "") == "numbers" else call_once


@pytest.fixture
def lent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setitem(sys.modules, "spaces", Lent)


def test_the_librarys_errors_cross_and_are_raised_again(lent: None) -> None:
    def numbers(most: int) -> Iterator[int]:
        for number in range(most):
            if number == 2:
                raise UnknownTrait("charm", ["evil"])  # does not survive pickle by itself
            yield number

    def once() -> int:
        raise UnknownTrait("charm", ["evil"])

    seen = []
    with pytest.raises(PersonaError, match=r"Unknown trait 'charm'\. Known traits: evil\."):
        for number in zero_gpu.on_gpu(numbers)(5):
            seen.append(number)
    assert seen == [0, 1]
    with pytest.raises(PersonaError, match="charm"):
        zero_gpu.on_gpu(once)()


def test_zerogpus_errors_become_ours(lent: None) -> None:
    import gradio as gr

    def once() -> int:
        raise gr.Error("You have exceeded your ZeroGPU quota.")

    with pytest.raises(ServerError, match="quota"):
        zero_gpu.on_gpu(once)()


def test_on_zerogpu_a_model_loads_in_the_callers_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    pooled: Any = PooledModel(threading.get_ident)  # type: ignore[arg-type]
    assert pooled.monitor() == threading.get_ident() and pooled.ready


def test_a_pooled_model_crosses_as_its_number() -> None:
    pooled: Any = PooledModel(lambda: "monitor")  # type: ignore[arg-type, return-value]
    pooled.monitor()
    assert crossed(pooled) is pooled
