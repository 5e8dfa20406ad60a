"""A guard: each action against plain branches of unguarded replies, the rate, the record, and bad input."""

from __future__ import annotations

import functools
import json
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from persona_core.analysis.detectors import Detectors, calibrate_detectors
from persona_core.errors import PersonaWarning, SettingError, UnknownTrait
from persona_core.inference.steering import Steer
from persona_core.monitor.alarms import LATENCY, Alarm
from persona_core.monitor.branching import Branch
from persona_core.monitor.guard import Guard, held_after
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.monitor.step import Step
from persona_core.traces.dataset import read_results, write_results
from persona_core.traces.trace import Trace
from persona_core.vectors.card_steering import suggested_amount
from tests.analysis.test_null_card import read
from tests.monitor.test_alarms import ARTIFACTS, FLATTER, monitor  # noqa: F401 (a fixture)

TRAIT, N = "sycophancy", 5
SETTINGS: dict[str, Any] = {"temperature": 0.7, "max_new_tokens": 64}


@functools.cache
def unguarded(monitor: PersonaMonitor) -> list[Trace]:  # noqa: F811
    return monitor.generate_batch([FLATTER] * N, seed=1, batch_size=N, **SETTINGS)


def guarded(monitor: PersonaMonitor, guard: Guard, batch_size: int = 3) -> list[Trace]:  # noqa: F811
    return monitor.generate_batch([FLATTER] * N, seed=1, batch_size=batch_size, guard=guard, **SETTINGS)


def alarm_in(monitor: PersonaMonitor, trace: Trace, rate: float = 0.01) -> int | None:  # noqa: F811
    """The alarm that the finished reply gives at the guard's rate."""
    assert monitor.detectors is not None
    return monitor.detectors.select([TRAIT], rate).find(trace, TRAIT).alarm


def capped_from(monitor: PersonaMonitor, trace: Trace, at: int) -> Trace:  # noqa: F811
    amount = suggested_amount(monitor.vectors, TRAIT, "cap")
    assert amount is not None
    cap = Steer.cap(TRAIT, monitor.vectors.best_block[TRAIT], amount, start=at, unit="sd")
    return monitor.generate(Branch(trace, at), steer=cap, **SETTINGS)


def events(trace: Trace) -> list[dict[str, Any]]:
    assert trace.provenance.guard is not None
    found: list[dict[str, Any]] = trace.provenance.guard["events"]
    return found


def check_same(one: Trace, other: Trace) -> None:
    assert one.token_ids == other.token_ids and one.tokens == other.tokens and one.roles == other.roles
    assert one.finish == other.finish
    np.testing.assert_allclose(one.raw, other.raw, rtol=1e-4, atol=1e-3)


def test_cap_is_a_branch_capped_from_the_alarm(monitor: PersonaMonitor) -> None:  # noqa: F811
    changed = 0
    for plain, trace in zip(unguarded(monitor), guarded(monitor, Guard(TRAIT)), strict=True):
        alarm = alarm_in(monitor, plain)
        if alarm is None:
            check_same(trace, plain)
            assert events(trace) == [] and trace.provenance.steering == ()
            continue
        start = alarm + LATENCY
        assert [(e["trait"], e["token"], e["action"], e["start"]) for e in events(trace)] == [
            (TRAIT, alarm, "cap", start)
        ]
        oracle = capped_from(monitor, plain, start)
        check_same(trace, oracle)
        assert trace.provenance.steering == oracle.provenance.steering
        changed += trace.token_ids != plain.token_ids
    assert changed >= 3


def test_rewind_is_a_branch_capped_before_the_alarm_and_again_further_back(
    monitor: PersonaMonitor,  # noqa: F811
) -> None:
    guard, twice = Guard(TRAIT, action="rewind", back=6, max_rewinds=2), 0
    for plain, trace in zip(unguarded(monitor), guarded(monitor, guard), strict=True):
        at, expected = 10**6, plain
        told: list[tuple[int, str, int, list[int]]] = []
        while len(told) < 2 and (alarm := alarm_in(monitor, expected)) is not None and at > 0:
            at = max(min(alarm + 1, at) - 6, 0)
            reply = expected.token_ids[expected.n_prompt :]
            told.append((alarm, "rewind", at, list(reply[at : alarm + 1])))
            expected = capped_from(monitor, expected, at)
        check_same(trace, expected)
        found = [(e["token"], e["action"], e["start"], e["discarded_ids"]) for e in events(trace)]
        assert [e for e in found if e[1] != "none"] == told
        for e in events(trace):
            assert "".join(e["discarded"]) in monitor.lm.tokenizer.decode(e["discarded_ids"])
        twice += len(told) == 2
    assert twice >= 1


def test_stop_ends_the_reply_with_the_alarm_and_not_its_neighbours(monitor: PersonaMonitor) -> None:  # noqa: F811
    stopped = 0
    for plain, trace in zip(unguarded(monitor), guarded(monitor, Guard(TRAIT, action="stop")), strict=True):
        alarm = alarm_in(monitor, plain)
        if alarm is None:
            check_same(trace, plain)
            continue
        assert trace.token_ids == plain.token_ids[: plain.n_prompt + alarm + 1]
        assert trace.finish == "guard" and events(trace)[0]["action"] == "stop"
        stopped += 1
    assert stopped >= 3


@pytest.mark.parametrize("action", ["cap", "rewind", "stop"])
def test_a_stream_hands_out_the_reply_of_generate_and_each_event_with_its_token(
    monitor: PersonaMonitor,  # noqa: F811
    action: Any,
) -> None:
    guard = Guard(TRAIT, action=action, back=6)
    row = next(i for i, plain in enumerate(unguarded(monitor)) if (alarm_in(monitor, plain) or 0) > 2)
    whole = monitor.generate(FLATTER, seed=1 + row, guard=guard, **SETTINGS)
    shown: list[Step] = []
    told = []
    for step in monitor.stream(FLATTER, seed=1 + row, guard=guard, **SETTINGS):
        shown[step.index :] = [step]  # after a rewind the index goes back
        told += [event.to_dict() for event in step.events]
        assert all(event.token == step.index for event in step.events)
    assert told == events(whole) != []
    assert tuple(step.token_id for step in shown) == whole.token_ids[whole.n_prompt :]
    assert "".join(step.text for step in shown) == "".join(whole.tokens[whole.n_prompt :])
    assert shown[-1].finish == whole.finish and [s.finish for s in shown[:-1]] == [None] * (len(shown) - 1)
    last = shown[-1].trace()
    check_same(last, whole)
    assert last.provenance.guard == whole.provenance.guard
    early = shown[0].trace()
    assert early.finish == "stopped"
    assert all(e["token"] == 0 or e["action"] == "rewind" for e in events(early))


def test_a_function_decides_at_each_alarm(monitor: PersonaMonitor) -> None:  # noqa: F811
    told: list[Alarm] = []

    def decide(alarm: Alarm) -> Any:
        told.append(alarm)
        return None if alarm.row % 2 else "stop"

    traces = guarded(monitor, Guard(TRAIT, action=decide), batch_size=N)
    assert told
    for row, (plain, trace) in enumerate(zip(unguarded(monitor), traces, strict=True)):
        alarm = alarm_in(monitor, plain)
        assert [a.token for a in told if a.row == row] == ([] if alarm is None else [alarm])
        if alarm is not None and not row % 2:
            assert trace.finish == "guard"
        else:
            check_same(trace, plain)
            assert [e["action"] for e in events(trace)] == ([] if alarm is None else ["none"])
    assert traces[0].provenance.guard is not None and traces[0].provenance.guard["action"] == "callback"
    with pytest.raises(SettingError, match="'stay'"):
        guarded(monitor, Guard(TRAIT, action=lambda _: "stay"))  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("action", ["cap", "rewind", "stop"])
def test_the_tokens_that_a_branch_keeps_are_watched_and_never_discarded(
    monitor: PersonaMonitor,  # noqa: F811
    action: Any,
) -> None:
    plain, alarm = next((t, a) for t in unguarded(monitor) if (a := alarm_in(monitor, t)) is not None and a < 60)
    at = alarm + 4
    trace = monitor.generate(Branch(plain, at), guard=Guard(TRAIT, action=action), **SETTINGS)
    assert trace.token_ids[: plain.n_prompt + at] == plain.token_ids[: plain.n_prompt + at]
    assert events(trace)[0]["token"] == alarm and events(trace)[0]["action"] == ("stop" if action == "stop" else "cap")
    assert (trace.n_tokens == plain.n_prompt + at + 1) == (action == "stop")
    assert not any(e["discarded_ids"] for e in events(trace))


def test_a_rewind_stops_at_the_tokens_that_a_branch_keeps(monitor: PersonaMonitor) -> None:  # noqa: F811
    plain, alarm = next((t, a) for t in unguarded(monitor) if (a := alarm_in(monitor, t)) is not None and a > 2)
    trace = monitor.generate(Branch(plain, alarm - 1), guard=Guard(TRAIT, action="rewind"), **SETTINGS)
    assert (events(trace)[0]["action"], events(trace)[0]["start"]) == ("rewind", alarm - 1)
    check_same(trace, capped_from(monitor, plain, alarm - 1))


def test_what_the_guard_did_comes_back_from_a_file(monitor: PersonaMonitor, tmp_path: Path) -> None:  # noqa: F811
    trace = monitor.generate(FLATTER, seed=1, guard=Guard(TRAIT, action="rewind"), **SETTINGS)
    record = trace.provenance.guard
    assert record is not None and record["rate"] == 0.01 and record["events"]
    assert "a system prompt" in record["no_rate"]  # the null has none: no rate is known here
    file = write_results([trace.to_row(id="a", messages=FLATTER)], tmp_path / "a.parquet", trace.traits)
    (row,) = read_results(file)
    for again in (Trace.from_row(row), Trace.from_dict(json.loads(json.dumps(trace.to_dict())))):
        assert again.provenance.guard == json.loads(json.dumps(record))


def test_the_thresholds_are_those_of_the_stated_rate_over_the_watched_traits(
    monitor: PersonaMonitor,  # noqa: F811
) -> None:
    """At most 1 % of the neutral replies' own peaks lie above, of any watched trait; more do at 5 %."""
    detectors = monitor.detectors
    assert detectors is not None and detectors.peaks is not None
    for traits in (["sycophancy"], ["sycophancy", "deception"]):
        strict, usual = detectors.select(traits, 0.01), detectors.select(traits, 0.05)
        assert strict.rate_any == 0.01
        columns = [detectors.peaks.traits.index(t) for t in traits]
        largest = detectors.peaks.peaks[:, columns, -1].max(1)
        above = [float((largest > d.of(traits[0]).threshold).mean()) for d in (strict, usual)]
        assert above[0] <= 0.01 < above[1] <= 0.05


def test_bad_guards_are_refused_with_the_remedy(monitor: PersonaMonitor) -> None:  # noqa: F811
    for bad, says in (
        ({"action": "x"}, "'cap', 'rewind', 'stop'"),
        ({"rate": "often"}, "share of neutral replies"),
        ({"traits": ()}, "at least one trait"),
        ({"back": 0}, "back"),
        ({"max_rewinds": 9}, "1 to 8"),
        ({"amounts": {"evil": 2.0}}, "watched trait"),
    ):
        with pytest.raises(SettingError, match=says):
            Guard(**{"traits": TRAIT, **bad})  # type: ignore[arg-type]
    with pytest.raises(UnknownTrait, match="kindness"):
        monitor.generate("Hi", guard=Guard("kindness"))
    with pytest.raises(SettingError, match=r"up to 0\.2"):
        monitor.generate("Hi", guard=Guard(TRAIT, rate=0.5))
    with pytest.raises(SettingError, match="expected Guard"):
        monitor.generate("Hi", guard=TRAIT)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="a guard has another"):
        monitor.generate("Hi", guard=Guard(TRAIT), on_alarm=print)
    with pytest.raises(SettingError, match="need detectors"):
        PersonaMonitor(monitor.lm, monitor.vectors).generate("Hi", guard=Guard(TRAIT))
    elsewhere = PersonaMonitor(monitor.lm, monitor.vectors, detectors=monitor.detectors)
    elsewhere.lm = replace(monitor.lm, engine=SimpleNamespace(name="vllm"))
    with pytest.raises(SettingError, match="engine='transformers'"):
        elsewhere.generate("Hi", guard=Guard(TRAIT))
    unknown = replace(monitor.vectors, steering_null={})
    with pytest.raises(SettingError, match="suggest no cap"):
        Guard(TRAIT).prepared_caps(unknown, monitor.lm.blocks)


def test_a_rate_that_too_few_prompts_support_names_the_smallest_possible(monitor: PersonaMonitor) -> None:  # noqa: F811
    rng = np.random.default_rng(0)
    few = calibrate_detectors([read(rng, i, 40) for i in range(80)])
    with pytest.raises(SettingError, match=r"needs 199; the smallest rate that they support is 0\.0247"):
        few.select(few.traits, 0.01)
    few.select(few.traits, 0.0247)
    old = replace(few, peaks=None, rate_any=None)
    assert isinstance(old.select(few.traits), Detectors)
    with pytest.raises(SettingError, match="calibrate again"):
        old.select(few.traits, 0.01)
    assert monitor.detectors is not None and monitor.detectors.peaks is not None
    with pytest.raises(SettingError, match=r"smallest rate that they support is 0\.0054"):
        monitor.generate("Hi", guard=Guard(TRAIT, rate=0.005))


def test_a_guard_that_neutral_replies_with_the_trait_would_blind_warns(monitor: PersonaMonitor) -> None:  # noqa: F811
    """Five of the demo's 370 neutral replies do hallucinate: at 1 % the threshold lies above them."""
    published = Detectors.from_pretrained(ARTIFACTS / "persona-vectors-persona-tiny")
    with pytest.warns(PersonaWarning, match="of 370 neutral replies show .* of them hallucination"):
        Guard(("sycophancy", "hallucination")).thresholds(published)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Guard(("sycophancy", "evil")).thresholds(published)
        Guard(("sycophancy", "hallucination"), rate=0.05).thresholds(published)


def test_what_a_rewind_discards_stays_held_from_there() -> None:
    from persona_core.monitor.guard import GuardEvent

    told = [
        GuardEvent("a", 30, "cap", start=32),
        GuardEvent("b", 40, "rewind", start=25),
        GuardEvent("a", 60, "none"),
        GuardEvent("b", 50, "rewind", start=9),
    ]
    assert [held_after(told[:n]) for n in range(5)] == [
        {},
        {"a": 32},
        {"a": 25, "b": 25},
        {"a": 25, "b": 25},
        {"a": 9, "b": 9},
    ]
