"""The app's parts without a browser: streaming, loading, settings, welcome files."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from persona_core.errors import CorruptFile, NotFound, SettingError
from persona_core.pages.desk import ModelDesk
from persona_core.pages.live import Ticket, _generator, stream_payloads
from persona_core.pages.settings import AppSettings
from persona_core.welcome import Example, First, load_welcome, save_welcome
from tests.standins import SlowMonitor, hostile_view, save_hostile_results, steady_monitor


def test_a_failure_in_the_middle_keeps_the_trace() -> None:
    class Failing(SlowMonitor):
        def stream(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
            for step in super().stream(*args, **kwargs):
                if self.written > 5:
                    raise RuntimeError("the disk is on fire")
                yield step

    failing: Any = Failing(steady_monitor(), 0.0)
    generate = _generator(AppSettings(), ModelDesk(lambda: failing))
    seen = list(generate("Hello", "", 50, 0.7, 0, 1, Ticket()))
    payload, message = seen[-1][:2]
    assert payload["done"] and payload["finish_reason"] == "stopped" and payload["tokens"]
    assert "RuntimeError" in message and "fire" not in message


def test_payloads_come_in_steps_and_stop_at_once() -> None:
    stopped = threading.Event()
    slow: Any = SlowMonitor(steady_monitor(), 0.01)
    messages = [{"role": "user", "content": "Hello"}]
    payloads = list(stream_payloads(slow, messages, stopped, max_new_tokens=60, seed=1))
    assert [p["done"] for p in payloads] == [False] * (len(payloads) - 1) + [True]
    assert 3 <= len(payloads) <= 0.01 * 60 / 0.1 * 3 + 3, "about ten a second, not one a token"
    for earlier, later in itertools.pairwise(payloads):
        assert later["ids"][: len(earlier["ids"])] == earlier["ids"]
    stopped.set()
    (only,) = stream_payloads(slow, messages, stopped, max_new_tokens=60, seed=1)
    assert only["done"] and only["finish_reason"] == "stopped"
    assert slow.open_streams == 0


def test_the_desk_loads_once_and_tries_again_after_a_failure() -> None:
    calls: list[None] = []

    def load() -> Any:
        calls.append(None)
        if len(calls) == 1:
            raise NotFound("the Hub is down")
        return "monitor"

    desk: Any = ModelDesk(load)
    with pytest.raises(NotFound, match="Hub is down"):
        desk.monitor()
    assert not desk.ready
    desk.start_loading()
    assert desk.monitor() == "monitor" and desk.monitor() == "monitor" and desk.ready
    assert len(calls) == 2


def test_settings_come_from_the_environment() -> None:
    known = {"PERSONA_MODEL": "org/model", "PERSONA_ADAPTER": " ", "PERSONA_PORT": "7000"}
    settings = AppSettings.from_environment(known)
    assert (settings.model, settings.adapter, settings.port, settings.host) == ("org/model", None, 7000, None)
    with pytest.raises(SettingError, match="PERSONA_PORT=70000"):
        AppSettings.from_environment({"PERSONA_PORT": "70000"})
    own = AppSettings.from_environment({"PERSONA_MODEL": "org/model", "PERSONA_RESULTS": "org/rows@v1"})
    assert (own.adapter, own.results) == (None, "org/rows@v1")  # what ships belongs to the model that ships
    assert AppSettings.from_environment({"PERSONA_ADAPTER": "none"}).adapter is None
    for bad in ("many", "0", "-1", "1.5", "٣"):
        with pytest.raises(SettingError, match="PERSONA_MAX_QUEUE"):
            AppSettings.from_environment({"PERSONA_MAX_QUEUE": bad})


def test_welcome_files_round_trip(tmp_path: Path) -> None:
    examples = (Example("a", "b", "c"), Example("d", "e"))
    results = save_hostile_results(tmp_path)
    save_welcome(tmp_path, about="é", examples=examples, first=First("baseline", "x", "Heading"))
    welcome = load_welcome(tmp_path, results)
    assert (welcome.about, welcome.examples) == ("é", examples)
    assert welcome.first_view is not None and welcome.first_view["title"] == "Heading"
    assert {k: welcome.first_view[k] for k in ("tokens", "scores")} == {
        k: hostile_view()[k] for k in ("tokens", "scores")
    }
    assert load_welcome(tmp_path).first_view is None
    save_welcome(tmp_path, about="é", examples=examples, first=First("baseline", "gone"))
    fallback = load_welcome(tmp_path, results).first_view
    assert fallback is not None and fallback["tokens"] == hostile_view()["tokens"]
    assert load_welcome(tmp_path, tmp_path / "app.json").first_view is None
    (tmp_path / "data" / "baseline.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(CorruptFile, match=r"baseline\.parquet"):
        load_welcome(tmp_path, results)
    (tmp_path / "app.json").write_text(json.dumps({"examples": [{"text": "x"}]}))
    with pytest.raises(CorruptFile, match=r"app\.json"):
        load_welcome(tmp_path)
    (tmp_path / "app.json").write_text("{")
    with pytest.raises(CorruptFile, match=r"app\.json"):
        load_welcome(tmp_path)
