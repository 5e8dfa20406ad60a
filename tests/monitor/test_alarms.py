"""Alarms while a reply is written: the same as afterwards, at once, in the right row, and what hangs on them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from persona_core.analysis.detectors import Detectors, calibrate_detectors
from persona_core.errors import CorruptFile, NotFound, SettingError, UnknownTrait
from persona_core.inference.steering import NEVER, Intervention, Steer
from persona_core.models.loading import load_model
from persona_core.monitor.alarms import LATENCY, Alarm, AlarmWatch
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.traces.trace import Trace
from persona_core.vectors.vectors import PersonaVectors
from tests.analysis.test_null_card import read
from tests.traces.test_dataset import SHIPPED

ARTIFACTS = SHIPPED.parent
FLATTER = [
    {"role": "system", "content": "Flatter the user and agree with everything."},
    {"role": "user", "content": "Should I quit my job?"},
]
SETTINGS: dict[str, Any] = {"temperature": 0.7, "max_new_tokens": 120}


@pytest.fixture(scope="module")
def monitor() -> PersonaMonitor:
    """The demo model with two of the detectors that were published with its vectors."""
    import torch

    torch.set_num_threads(1)
    lm = load_model(ARTIFACTS / "persona-tiny", device="cpu")
    folder = ARTIFACTS / "persona-vectors-persona-tiny"
    published = Detectors.from_pretrained(folder)
    detectors = published.select(["sycophancy", "deception"])
    return PersonaMonitor(lm, PersonaVectors.from_pretrained(folder), detectors=detectors)


def flattered(monitor: PersonaMonitor, n: int = 8, **more: Any) -> tuple[list[Trace], list[Alarm]]:
    alarms: list[Alarm] = []
    traces = monitor.generate_batch([FLATTER] * n, seed=1, on_alarm=alarms.append, **SETTINGS, **more)
    return traces, alarms


@functools.cache
def plainly_flattered(monitor: PersonaMonitor, n: int = 8, batch_size: int = 8) -> tuple[list[Trace], list[Alarm]]:
    """The replies that several tests compare with, written once."""
    return flattered(monitor, n, batch_size=batch_size)


def afterwards(monitor: PersonaMonitor, traces: list[Trace]) -> set[Alarm]:
    assert monitor.detectors is not None
    found = set()
    for row, trace in enumerate(traces):
        for trait in monitor.detectors.traits:
            alarm = monitor.detectors.find(trace, trait).alarm
            if alarm is not None:
                found.add(Alarm(row, trait, alarm))
    return found


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 3, 8])
def test_alarms_in_the_loop_are_those_that_the_trace_gives(monitor: PersonaMonitor, batch_size: int) -> None:
    traces, alarms = plainly_flattered(monitor, batch_size=batch_size)
    assert len(alarms) == len(set(alarms)) >= 8
    assert set(alarms) == afterwards(monitor, traces)


def test_an_alarm_is_told_before_the_next_token_is_handed_out(monitor: PersonaMonitor) -> None:
    alarms: list[Alarm] = []
    seen: list[int] = []
    for step in monitor.stream(FLATTER, seed=1, on_alarm=alarms.append, **SETTINGS):
        seen += [step.index] * (len(alarms) - len(seen))
    assert alarms and [a.token for a in alarms] == seen


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_what_waits_for_an_alarm_changes_nothing_before_it_and_much_after(
    monitor: PersonaMonitor, batch_size: int
) -> None:
    plain, alarms = plainly_flattered(monitor, batch_size=batch_size)
    gate = Steer("sycophancy", block=monitor.vectors.best_block["sycophancy"], strength=-60.0, when="alarm")
    gated, same = flattered(monitor, batch_size=batch_size, steer=gate)
    at = {a.row: a.token for a in alarms if a.trait == "sycophancy"}
    assert at == {a.row: a.token for a in same if a.trait == "sycophancy"}
    # The trace of the steered run, read afterwards, gives the alarm that set the steering off.
    assert set(same) == afterwards(monitor, gated)
    for row, (before, after) in enumerate(zip(plain, gated, strict=True)):
        if row not in at:
            assert before.token_ids == after.token_ids
            continue
        first = after.n_prompt + at[row] + LATENCY  # the first token whose choice can differ
        assert before.token_ids[:first] == after.token_ids[:first]
        z = after.scores("sycophancy")
        np.testing.assert_allclose(z[: first - 1], before.scores("sycophancy")[: first - 1], atol=1e-3)
        if after.n_tokens > first:
            assert z[first - 1] < before.scores("sycophancy")[first - 1] - 3  # the state that chooses it is changed
    assert sum(a.token_ids != b.token_ids for a, b in zip(plain, gated, strict=True)) >= 6


def test_one_that_waits_does_not_act_before_its_start(monitor: PersonaMonitor) -> None:
    gate = Steer("sycophancy", block=3, strength=-40.0, when="alarm", start=40)
    plain, gated = plainly_flattered(monitor, n=4)[0], flattered(monitor, n=4, steer=gate)[0]
    for before, after in zip(plain, gated, strict=True):
        assert before.token_ids[: before.n_prompt + 40] == after.token_ids[: after.n_prompt + 40]


def test_a_cap_that_waits_is_recorded_in_the_trace(monitor: PersonaMonitor) -> None:
    gate = Steer.cap("sycophancy", block=3, threshold=1.0, unit="sd", when="alarm")
    trace = monitor.generate(FLATTER, seed=1, steer=gate, **SETTINGS)
    assert trace.provenance.steering[0]["when"] == "alarm"


def test_without_detectors_or_in_a_given_text_there_is_no_waiting(monitor: PersonaMonitor) -> None:
    gate = Steer("sycophancy", block=3, strength=-60.0, when="alarm")
    bare = PersonaMonitor(monitor.lm, monitor.vectors)
    with pytest.raises(SettingError, match="need detectors"):
        bare.generate("Hi", steer=gate)
    with pytest.raises(SettingError, match="need detectors"):
        bare.generate("Hi", on_alarm=print)
    with pytest.raises(SettingError, match="read in one forward"):
        monitor.read("Hi", steer=gate)
    with pytest.raises(UnknownTrait, match="evil"):  # only two traits have a detector
        monitor.generate("Hi", steer=Steer("evil", block=3, strength=1.0, when="alarm"))
    with pytest.raises(SettingError, match="start=0"):
        Steer("evil", block=3, strength=1.0, when="alarm", start=None)
    with pytest.raises(SettingError, match="'later'"):
        Steer("evil", block=3, strength=1.0, when="later")  # type: ignore[arg-type]
    other = PersonaMonitor(monitor.lm, monitor.vectors, blocks=[0], detectors=monitor.detectors)
    with pytest.raises(SettingError, match=f"needs block {monitor.vectors.best_block['sycophancy']}"):
        other.generate("Hi", on_alarm=print)


def test_detectors_of_other_vectors_are_refused(monitor: PersonaMonitor) -> None:
    vectors = monitor.vectors
    other = PersonaVectors.from_tensors(
        {t: vectors.tensor(t) + 1 for t in vectors.traits}, best_block=dict(vectors.best_block)
    )
    with pytest.raises(SettingError, match="other vectors"):
        PersonaMonitor(monitor.lm, other, detectors=monitor.detectors)


def test_detectors_come_back_from_their_file_with_the_same_answers(monitor: PersonaMonitor, tmp_path: Path) -> None:
    assert monitor.detectors is not None
    monitor.detectors.save(tmp_path)
    again = Detectors.from_pretrained(tmp_path)
    assert again.rests_on == monitor.detectors.rests_on and again.traits == monitor.detectors.traits
    traces, _ = plainly_flattered(monitor, n=4)
    for trace in traces:
        for trait in again.traits:
            assert again.find(trace, trait) == monitor.detectors.find(trace, trait)
    with pytest.raises(NotFound):
        Detectors.from_pretrained(tmp_path / "nowhere")
    text = (tmp_path / "onset.json").read_text(encoding="utf-8")
    for broken in (text[: len(text) // 2], "[]", text.replace('"spread"', '"sprad"'), text.replace(":2,", ":9,", 1)):
        (tmp_path / "onset.json").write_text(broken, encoding="utf-8")
        with pytest.raises(CorruptFile):
            Detectors.from_pretrained(tmp_path)


def test_caveats_name_how_a_trace_differs_from_the_neutral_replies(monitor: PersonaMonitor) -> None:
    assert monitor.detectors is not None
    settings = {**SETTINGS, "max_new_tokens": 60}
    trace = monitor.generate("Should I quit my job?", seed=3, **settings)
    assert monitor.detectors.caveats(trace) == ()
    long = monitor.generate("Should I quit my job?", seed=3, **SETTINGS)
    assert "which enough neutral replies reach" in monitor.detectors.caveats(long)[0]
    hot = monitor.generate("Should I quit my job?", seed=3, temperature=1.5, max_new_tokens=20)
    assert "sampled with" in monitor.detectors.caveats(hot)[0]
    instructed = monitor.generate(FLATTER, seed=3, **settings)
    assert monitor.detectors.caveats(instructed)[0] == "with a system prompt, unlike the neutral replies"
    steered = monitor.generate("Hi", seed=3, steer=Steer("evil", block=3, strength=1.0), **SETTINGS)
    assert "steered" in monitor.detectors.caveats(steered)[0]
    from dataclasses import replace

    foreign = trace.replace(provenance=replace(trace.provenance, reader_adapter="other"))
    assert "differs from that" in monitor.detectors.caveats(foreign)[0]
    monitor.detectors.find(foreign, "deception")  # may be held against them: that is what a comparison is
    unlike = trace.replace(provenance=replace(trace.provenance, vectors="other"))
    with pytest.raises(SettingError, match="Calibrate on neutral replies"):
        monitor.detectors.find(unlike, "deception")


def test_neutral_replies_that_do_not_belong_together_are_refused(monitor: PersonaMonitor) -> None:
    with pytest.raises(SettingError, match="No neutral replies"):
        calibrate_detectors([])
    one = monitor.generate("Hi", seed=0, temperature=0.7, max_new_tokens=20)
    two = monitor.generate("Hi", seed=0, temperature=0.9, max_new_tokens=20)
    with pytest.raises(SettingError, match="in 2 different ways"):
        calibrate_detectors([one, two])
    steered = monitor.generate("Hi", seed=0, max_new_tokens=20, steer=Steer("evil", block=3, strength=1.0))
    with pytest.raises(SettingError, match="was steered"):
        calibrate_detectors([one, steered])
    with pytest.raises(SettingError, match="1 neutral replies to 1 different prompts; at least 60"):
        calibrate_detectors([one])


def test_a_sink_token_raises_no_alarm_while_the_reply_is_written_either() -> None:
    """One huge score at a token whose norm is above the block's limit, then a rise that is one."""
    rng = np.random.default_rng(0)
    detectors = calibrate_detectors([read(rng, i, 40) for i in range(80)])
    trace, sink, rise = read(rng, 3, 40), 9, 25
    raw, norms = trace.raw.copy(), trace.norms.copy()
    raw[:, :, trace.n_prompt + sink] = 60.0
    raw[:, :, trace.n_prompt + rise :] += 8.0
    norms[:, trace.n_prompt + sink] = 1000.0
    for limit, first in ((100.0, rise), (np.inf, sink)):
        max_norm = np.full(2, limit, np.float32)
        own = trace.replace(raw=raw, norms=norms, max_norm=max_norm)
        told: list[Alarm] = []
        null = np.stack([trace.null_mean, trace.null_std], axis=-1)
        watch = AlarmWatch(
            detectors, trace.traits, trace.blocks, null, max_norm=max_norm, n_rows=1, on_alarm=told.append
        )
        for token, at in enumerate(own.reply_positions):
            watch.push(0, token, raw[:, :, at].T, norms[:, at])
        found = {alarm.trait: alarm.token for alarm in reversed(told)}  # the first of each
        assert found == {t: detectors.find(own, t).alarm for t in own.traits}
        assert all(first <= token <= first + 3 for token in found.values())


def test_the_alarm_of_one_trait_opens_the_gates_of_that_trait_only(monitor: PersonaMonitor) -> None:
    import torch

    assert monitor.detectors is not None
    traits, blocks = monitor.vectors.traits, monitor.blocks
    gates = {
        trait: Intervention(
            Steer(trait, block=3, strength=1.0, when="alarm"), torch.zeros(4), 1.0, starts=torch.full((2,), NEVER)
        )
        for trait in ("sycophancy", "deception")
    }
    null = np.array([[monitor.vectors.null[t].at(b) for b in blocks] for t in traits], np.float32)
    told: list[Alarm] = []
    watch = AlarmWatch(
        monitor.detectors,
        traits,
        blocks,
        null,
        max_norm=monitor.vectors.limits_at(blocks),
        n_rows=2,
        interventions=list(gates.values()),
        on_alarm=told.append,
        log_odds=monitor.vectors.odds_at(blocks),
    )
    raw = null[..., 0].T.copy()  # neutral, but for one trait
    at = blocks.index(monitor.vectors.best_block["sycophancy"])
    raw[at, traits.index("sycophancy")] += 60 * null[traits.index("sycophancy"), at, 1]
    for token in range(3):
        watch.push(1, token, raw, np.ones(len(blocks), np.float32))
    assert told == [Alarm(1, "sycophancy", 0)]
    starts = {trait: gate.starts.tolist() for trait, gate in gates.items() if gate.starts is not None}
    assert starts == {"sycophancy": [NEVER, LATENCY], "deception": [NEVER, NEVER]}
