"""More replies than fit in a batch: each is what it would be alone, whatever it is batched with."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from persona_core.elicitation.elicit import write_replies
from persona_core.inference import batch as reply_batch
from persona_core.inference import dynamic_cache
from persona_core.inference.decode import decode
from persona_core.inference.dynamic_cache import has_only_attention, new_cache
from persona_core.inference.generation import GenerationRun
from persona_core.inference.hooks import Reading
from persona_core.inference.memory import out_of_memory
from persona_core.inference.pooled_states import PooledStates
from persona_core.inference.pooling import parse_position
from persona_core.inference.prefix import ReplyPrefix
from persona_core.inference.readings import Readings
from persona_core.inference.sampling import Sampling
from persona_core.inference.steering import Steer
from persona_core.monitor.branching import Branch
from persona_core.monitor.monitor import PersonaMonitor
from tests.support import oracle
from tests.support.families import BY_NAME, SLIDING_WINDOW
from tests.support.tiny import random_vectors, tiny_lm

# From a few tokens to several windows of sliding attention.
PROMPTS = [("Hi there, " * n + "how are you today?").strip() for n in (0, 9, 1, 0, 14, 2, 0, 5, 3, 0, 1)]
SAMPLING = Sampling(max_new_tokens=3 * SLIDING_WINDOW, temperature=1.0, repetition_penalty=1.1)
EVERY_TWELFTH = frozenset(range(0, 2000, 12))  # ids that end a reply, so that lengths differ widely


@pytest.fixture(autouse=True)
def few_spare_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allocate every few tokens, where 64 columns would be more than any reply here has."""
    monkeypatch.setattr(dynamic_cache, "SPARE_COLUMNS", 3)


QUICK = ("gemma3", "gpt2", "llama", "llama-lora", "qwen3.5")
"""Families in `make test-fast`: a second for each of all adds up."""


def ending(family: str = "llama") -> Any:
    return replace(tiny_lm(family, "chatml"), eos_ids=EVERY_TWELFTH)


def monitor_of(lm: Any) -> PersonaMonitor:
    return PersonaMonitor(lm, random_vectors(len(lm.blocks)), blocks="all")


def alone(monitor: PersonaMonitor, **more: Any) -> list[Any]:
    return [monitor.generate(p, seed=7 + i, **(SAMPLING.to_dict() | more)) for i, p in enumerate(PROMPTS)]


def same(traces: list[Any], wanted: list[Any]) -> None:
    assert [t.token_ids for t in traces] == [t.token_ids for t in wanted]
    assert [t.finish for t in traces] == [t.finish for t in wanted]
    for one, other in zip(traces, wanted, strict=True):
        assert oracle.relative_error(one.raw, other.raw) < 1e-4
        assert oracle.relative_error(one.norms, other.norms) < 1e-4


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in sorted(BY_NAME)]
)
def test_a_reply_is_the_same_alone_and_in_a_batch_that_is_refilled(family: str) -> None:
    monitor = monitor_of(ending(family))
    wanted = alone(monitor)
    assert len({t.n_reply for t in wanted}) > 4, "the lengths must differ for slots to come free"
    for width in (2, 3, 8):
        same(monitor.generate_batch(PROMPTS, batch_size=width, seed=7, **SAMPLING.to_dict()), wanted)


def test_slots_are_refilled_as_soon_as_they_come_free() -> None:
    lm = ending()
    prompts = [lm.chat.render(p).token_ids for p in PROMPTS]
    lengths = [t.n_reply for t in alone(monitor_of(lm))]
    sampling = replace(SAMPLING, repetition_penalty=1.1)
    forwards = list(decode(lm, prompts, sampling, range(7, 7 + len(prompts)), batch_size=3))
    steps = [f for f in forwards if f.token_ids is not None]
    assert sum(len(f.rows) for f in steps) == sum(lengths)
    assert all(len(f.rows) <= 3 for f in steps)
    # While prompts wait, every step has three replies in it.
    last_prefill = max(i for i, f in enumerate(forwards) if f.token_ids is None)
    assert {len(f.rows) for f in forwards[:last_prefill] if f.token_ids is not None} == {3}
    static = sum(max(lengths[i : i + 3]) for i in range(0, len(lengths), 3))
    assert len(steps) < static


def test_a_long_queue_of_prompts_is_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply_batch, "PREFILL_TOKENS", 120)
    lm = ending()
    prompts = [lm.chat.render(p).token_ids for p in PROMPTS]
    prefills = [f.rows for f in decode(lm, prompts, SAMPLING, range(len(prompts))) if f.token_ids is None]
    assert len(prefills) > 2 and sum(prefills, ()) == tuple(range(len(prompts)))
    assert all(len(rows) == 1 or len(rows) * max(len(prompts[r]) for r in rows) <= 120 for rows in prefills)
    monitor = monitor_of(lm)
    same(monitor.generate_batch(PROMPTS, batch_size=16, seed=7, **SAMPLING.to_dict()), alone(monitor))


def test_a_hybrid_models_batches_are_not_refilled_and_not_wrong() -> None:
    """A recurrent state cannot be moved along with keys and values."""
    lm = ending("qwen3.5")
    prompts = [lm.chat.render(p).token_ids for p in PROMPTS]
    forwards = list(decode(lm, prompts, SAMPLING, range(len(prompts)), batch_size=4))
    assert [len(f.rows) for f in forwards if f.token_ids is None] == [4, 4, 3]

    assert not has_only_attention(new_cache(lm.model.config))
    assert has_only_attention(new_cache(tiny_lm("gemma3").model.config))


def test_steering_reaches_the_replies_that_it_is_for() -> None:
    monitor = monitor_of(ending())
    steer = [Steer("malice", block=1, strength=-30.0, start=3), Steer.cap("candour", block=2, threshold=0.1, start=1)]
    wanted = alone(monitor, steer=steer)
    assert [t.token_ids for t in wanted] != [t.token_ids for t in alone(monitor)]
    same(monitor.generate_batch(PROMPTS, batch_size=3, seed=7, steer=steer, **SAMPLING.to_dict()), wanted)


def test_each_reply_has_its_own_start_of_an_intervention() -> None:
    from persona_core.inference.steering import Intervention

    monitor = monitor_of(ending())
    direction = monitor.vectors.direction("malice", 1)
    starts = [0, 5, 2, 9, 1, 0, 3, 4, 0, 7, 2]

    def run(rows: list[int], width: int) -> GenerationRun:
        change = Intervention(
            Steer("malice", block=1, strength=9.0), direction, 9.0, torch.tensor([starts[r] for r in rows])
        )
        begun = [ReplyPrefix(monitor.lm.chat.render(PROMPTS[r])) for r in rows]
        made = GenerationRun(
            monitor.lm, monitor._directions, begun, SAMPLING, [7 + r for r in rows], [change], batch_size=width
        )
        made.finish()
        return made

    together = run(list(range(len(PROMPTS))), 3)
    for row in range(len(PROMPTS)):
        single = run([row], 1)
        assert single.replies[0] == together.replies[row]
        assert oracle.relative_error(single.readings(0)[0], together.readings(row)[0]) < 1e-4


@pytest.mark.parametrize("position", ["reply_mean", "reply_first_4", "prompt_mean", "prompt_last"])
def test_pooled_states_are_those_of_the_reply_alone(position: str) -> None:
    lm = ending("gemma3")
    pools = [parse_position(position)]

    def means(rows: list[int], width: int) -> np.ndarray:
        begun = [ReplyPrefix(lm.chat.render(PROMPTS[r])) for r in rows]
        pooled = PooledStates(pools, len(lm.blocks), len(rows))
        run = GenerationRun(lm, {}, begun, SAMPLING, [7 + r for r in rows], pooled=pooled, batch_size=width)
        run.finish()
        return pooled.means()

    together = means(list(range(len(PROMPTS))), 3)
    for row in range(len(PROMPTS)):
        single = means([row], 1)[0]
        assert np.isnan(single).any() == np.isnan(together[row]).any()  # a reply that ended at once has no state
        if not np.isnan(single).any():
            assert oracle.relative_error(together[row], single) < 1e-4


def test_branches_are_refilled_like_prompts() -> None:
    monitor = monitor_of(ending())
    longer = [t for t in alone(monitor) if t.n_reply > 4]
    branches = [Branch(t, at=2) for t in longer]
    again = monitor.generate_batch(branches, batch_size=2, **SAMPLING.to_dict())
    assert [t.token_ids for t in again] == [t.token_ids for t in longer]


class Small:
    """A model whose memory holds a limited number of rows."""

    def __init__(self, model: Any, rows: int) -> None:
        self._model, self._rows, self.ran = model, rows, []  # type: ignore[var-annotated]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, **inputs: Any) -> Any:
        self.ran.append(len(inputs["input_ids"]))
        if self.ran[-1] > self._rows:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self._model(**inputs)


def test_when_memory_runs_out_the_batch_size_is_halved(caplog: pytest.LogCaptureFixture) -> None:
    lm = ending()
    small = Small(lm.model, 3)
    monitor = monitor_of(lm)
    wanted = alone(monitor)
    tight = monitor_of(replace(lm, model=small))
    small.ran.clear()
    with caplog.at_level(logging.WARNING):
        traces = tight.generate_batch(PROMPTS, batch_size=10, seed=7, **SAMPLING.to_dict())
    same(traces, wanted)
    assert [n for n in small.ran if n > 3] == [10, 5]  # tried twice, and never again
    assert "continuing with a batch size of 3" in caplog.text
    plain = [r.mean_state for r in write_replies(lm, PROMPTS, SAMPLING, 7)]
    pooled = [r.mean_state for r in write_replies(tight.lm, PROMPTS, SAMPLING, 7, batch_size=11)]
    for one, other in zip(plain, pooled, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


class Once(Small):
    """Runs out of memory at one forward."""

    def __call__(self, **inputs: Any) -> Any:
        self.ran.append(len(inputs["input_ids"]))
        if len(self.ran) == self._rows:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self._model(**inputs)


@pytest.mark.parametrize("pooled", [False, True])
def test_memory_that_runs_out_later_loses_no_finished_reply(pooled: bool) -> None:
    """The 20th forward fails: finished replies stay, the others start over."""
    lm = ending()
    plain = monitor_of(lm)
    starts = [ReplyPrefix(lm.chat.render(p)) for p in PROMPTS]
    pools = [parse_position("reply_mean"), parse_position("prompt_mean")]
    states = [PooledStates(pools, len(lm.blocks), len(starts), n_sampled=4) if pooled else None for _ in range(2)]

    def run_of(model: Any, pool: PooledStates | None) -> GenerationRun:
        other, seeds = replace(lm, model=model), range(7, 7 + len(starts))
        return GenerationRun(other, plain._directions, starts, SAMPLING, seeds, pooled=pool, batch_size=4)

    wanted, found, begun = run_of(lm.model, states[0]), run_of(Once(lm.model, 20), states[1]), []
    wanted.finish()
    forwards, ended = found.steps(), set[int]()
    with pytest.raises(torch.OutOfMemoryError):
        for forward in forwards:
            ended |= {row for row, why in zip(forward.rows, forward.finished, strict=True) if why}
    assert 1 < len(ended) < len(PROMPTS)
    for forward in found.steps():
        begun += list(forward.rows) if forward.token_ids is None else []
    assert sorted(begun) == sorted(set(range(len(PROMPTS))) - ended)
    for row in range(len(PROMPTS)):
        assert found.replies[row] == wanted.replies[row]
        assert oracle.relative_error(found.readings(row)[0], wanted.readings(row)[0]) < 1e-4
    if states[0] is not None and states[1] is not None:
        np.testing.assert_allclose(states[1].means(), states[0].means(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(states[1].samples(), states[0].samples(), rtol=1e-2, atol=1e-3)


def test_replies_that_start_over_are_read_into_new_slots() -> None:
    """Three of eight are unfinished when memory runs out; the same three start over with half the slots."""
    readings = Readings(8, 5)

    def reading(rows: Sequence[int], tokens: int, value: float) -> Reading:
        return Reading(torch.full((len(rows), tokens, 1, 1), value), torch.full((len(rows), tokens, 1), value))

    readings.begin(range(8), [2] * 8, reading(range(8), 2, 0.0))
    for row in range(5):
        readings.end(row)
    left = (5, 6, 7)
    readings.add(left, reading(left, 1, 1.0))
    readings.restart(left, 4)
    readings.begin(left, [2] * 3, reading(left, 2, 2.0))
    for value in (3.0, 4.0):
        readings.add(left, reading(left, 1, value))
    for row in left:
        assert readings.of(row)[0].ravel().tolist() == [2.0, 2.0, 3.0, 4.0]
    assert readings.of(0)[0].ravel().tolist() == [0.0, 0.0]


def test_an_interrupted_run_can_be_finished() -> None:
    lm = ending()
    monitor = monitor_of(lm)
    starts = [ReplyPrefix(lm.chat.render(p)) for p in PROMPTS]
    run, wanted = (
        GenerationRun(lm, monitor._directions, starts, SAMPLING, range(len(starts)), batch_size=3) for _ in range(2)
    )
    wanted.finish()
    forwards = run.steps()
    for _ in range(20):
        next(forwards)
    forwards.close()
    run.finish()
    run.finish()  # nothing is left to do
    assert run.replies == wanted.replies
    for row in range(len(starts)):
        assert oracle.relative_error(run.readings(row)[0], wanted.readings(row)[0]) < 1e-4


def test_out_of_memory_errors_are_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert out_of_memory(caught.value)
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_every_finished_reply_is_reported_once() -> None:
    monitor, told = monitor_of(ending()), []  # type: ignore[var-annotated]
    starts = [ReplyPrefix(monitor.lm.chat.render(p)) for p in PROMPTS]
    GenerationRun(monitor.lm, monitor._directions, starts, SAMPLING, range(len(PROMPTS)), batch_size=3).finish(
        told.append
    )
    assert sum(told) == len(PROMPTS)
