"""The contract, clause 8: a run sees and changes only itself, and leaves the model as it was found."""

from __future__ import annotations

import dataclasses
import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from persona_core.inference import hooks
from persona_core.inference.steering import Steer
from persona_core.models.loading import load_model
from persona_core.monitor.monitor import PersonaMonitor
from tests.support import contract_checks as checks
from tests.support.tiny import Maker, hooks_on, random_vectors, tiny_lm
from tests.traces.test_dataset import SHIPPED

PUSH = Steer("malice", 1, strength=30.0)
PULL = Steer("malice", 0, strength=-30.0)
SETTINGS: dict[str, Any] = dict(max_new_tokens=6, temperature=0)


@pytest.fixture(params=["llama", "gptj"])
def monitor(request: pytest.FixtureRequest) -> Any:
    lm = dataclasses.replace(tiny_lm(request.param), eos_ids=frozenset())  # every run makes the same forwards
    return PersonaMonitor(lm, random_vectors(len(lm.blocks)), blocks="all")


def same(found: Any, wanted: Any) -> None:
    assert found.token_ids == wanted.token_ids
    checks.close(found.raw, wanted.raw)


@contextmanager
def in_step(modules: list[torch.nn.Module], parties: int) -> Iterator[threading.Barrier]:
    """Make `parties` threads enter every block together, so that all their hooks interleave."""
    barrier = threading.Barrier(parties, timeout=20)

    def wait(*_: Any) -> None:
        barrier.wait()

    handles = [module.register_forward_pre_hook(wait) for module in modules]
    try:
        yield barrier
    finally:
        for handle in handles:
            handle.remove()


def check_two_threads(monitor: Any) -> None:
    """Two threads generate on one model at once, steered differently: each as when alone."""
    jobs = [(checks.LONG, PUSH), ("Hi", PULL), ("Should I quit my job?", None)]
    wanted = [monitor.generate(prompt, steer=steer, **SETTINGS) for prompt, steer in jobs]
    found: list[Any] = [None] * len(jobs)
    with in_step(checks.modules_of(monitor), len(jobs)) as barrier:

        def work(index: int) -> None:
            prompt, steer = jobs[index]
            try:
                found[index] = monitor.generate(prompt, steer=steer, **SETTINGS)
            except BaseException as error:
                found[index] = error
                barrier.abort()

        threads = [threading.Thread(target=work, args=(index,)) for index in range(len(jobs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for one, own in zip(found, wanted, strict=True):
        assert not isinstance(one, BaseException), repr(one)
        same(one, own)


def test_clause_8_two_threads_see_neither_states_nor_steering_of_each_other(monitor: Any) -> None:
    check_two_threads(monitor)


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
def test_mutation_one_run_for_all_threads(monitor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain global instead of a context variable."""

    class Plain:
        value: Any = None

        def get(self) -> Any:
            return self.value

        def set(self, value: Any) -> Any:
            before, self.value = self.value, value
            return before

        def reset(self, before: Any) -> None:
            self.value = before

    monkeypatch.setattr(hooks, "_running", Plain())
    with pytest.raises(AssertionError):
        check_two_threads(monitor)


def test_clause_8_interleaved_streams_are_independent(monitor: Any) -> None:
    jobs = [(checks.LONG, PUSH), ("Hi", PULL), ("Hi", None)]
    wanted = [monitor.generate(prompt, steer=steer, **SETTINGS) for prompt, steer in jobs]
    streams = [monitor.stream(prompt, steer=steer, **SETTINGS) for prompt, steer in jobs]
    last = [None] * len(jobs)
    for steps in zip(*streams, strict=True):
        last = list(steps)
    for step, own in zip(last, wanted, strict=True):
        same(step.trace(), own)  # type: ignore[attr-defined]


def test_clause_8_steering_does_not_reach_the_models_other_users(monitor: Any) -> None:
    ids = torch.tensor([monitor.lm.chat.render("Hi").token_ids])
    with torch.no_grad():
        before = monitor.lm.model(ids).logits
    for _ in monitor.stream("Hi", steer=dataclasses.replace(PUSH, start=None), **SETTINGS):
        with torch.no_grad():
            assert torch.equal(monitor.lm.model(ids).logits, before)
    with torch.no_grad():
        assert torch.equal(monitor.lm.model(ids).logits, before)


def test_clause_8_a_stream_may_be_continued_from_other_threads(monitor: Any) -> None:
    """As web servers do: each step is requested by another worker."""
    before = hooks_on(monitor.lm.model)
    wanted = monitor.generate("Hi", steer=PUSH, **SETTINGS)
    stream, steps = monitor.stream("Hi", steer=PUSH, **SETTINGS), []
    for _ in range(SETTINGS["max_new_tokens"]):
        thread = threading.Thread(target=lambda: steps.append(next(stream)))
        thread.start()
        thread.join()
    same(steps[-1].trace(), wanted)
    stream.close()
    assert hooks_on(monitor.lm.model) == before


def test_clause_8_the_callers_torch_modes_are_left_alone(monitor: Any) -> None:
    for _ in monitor.stream("Hi", **SETTINGS):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    trace = monitor.read("Hi")
    assert isinstance(trace.raw, np.ndarray) and torch.is_grad_enabled()
    weight = next(monitor.lm.model.parameters())
    assert weight.requires_grad and weight.grad is None and not weight.is_inference()


def snapshot(model: torch.nn.Module) -> tuple[Any, ...]:
    weights = sum(float(p.detach().double().abs().sum()) for p in model.parameters())
    config = model.config.to_json_string()  # type: ignore[operator,union-attr]
    return hooks_on(model), model.training, weights, config, sorted(model.__dict__)


def test_clause_8_the_model_is_left_as_it_was_found(monitor: Any) -> None:
    model = monitor.lm.model
    before = snapshot(model)
    monitor.generate("Hi", steer=[PUSH, Steer.ablate("candour", 0), Steer.cap("malice", 2, 0.5)], **SETTINGS)
    monitor.generate_batch(checks.PROMPTS, **SETTINGS)
    monitor.read_batch(checks.PROMPTS)
    assert snapshot(model) == before


def test_clause_8_also_after_a_closed_stream(monitor: Any) -> None:
    before = snapshot(monitor.lm.model)
    wanted = monitor.generate("Hi", **SETTINGS)
    stream = monitor.stream("Hi", steer=PUSH, **SETTINGS)
    step = next(stream)
    assert hooks_on(monitor.lm.model) > before[0]
    stream.close()
    assert snapshot(monitor.lm.model) == before
    trace = step.trace()  # what was written until then stays readable
    assert trace.n_reply == 1 and trace.raw.shape[-1] == trace.n_tokens
    stream = monitor.stream("Hi", **SETTINGS)  # never begun
    stream.close()
    assert snapshot(monitor.lm.model) == before
    same(monitor.generate("Hi", **SETTINGS), wanted)


def test_clause_8_also_after_a_forgotten_stream(monitor: Any) -> None:
    before = snapshot(monitor.lm.model)
    stream = monitor.stream("Hi", **SETTINGS)
    step = next(stream)
    del stream
    gc.collect()
    assert snapshot(monitor.lm.model) == before
    assert step.trace().n_reply == 1


@pytest.mark.parametrize("forward", [1, 3])
def test_clause_8_also_after_an_error_in_the_middle(monitor: Any, forward: int) -> None:
    model, calls = monitor.lm.model, 0
    before = snapshot(model)
    wanted = monitor.generate("Hi", **SETTINGS)

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == forward:
            raise RuntimeError("out of memory, say")

    handle = checks.modules_of(monitor)[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        monitor.generate("Hi", steer=PUSH, **SETTINGS)
    handle.remove()
    assert hooks._running.get() is None
    assert snapshot(model) == before
    same(monitor.generate("Hi", **SETTINGS), wanted)


def test_clause_8_steering_changes_what_it_says_and_no_more(make_monitor: Maker) -> None:
    """Adding strength s moves the raw projection by s from the token before `start` on; the rest follows the model."""
    monitor = make_monitor("llama")
    block, strength, start = 1, 5.0, 2
    steer = Steer("malice", block, strength=strength, start=start)
    trace = monitor.generate(checks.LONG, steer=steer, **SETTINGS)
    unit = monitor.vectors.direction("malice", block)
    first = trace.n_prompt + start - 1

    def change(b: int, h: torch.Tensor) -> torch.Tensor:  # h: [n_tokens, d_model]
        if b != block:
            return h
        h = h.clone()
        h[first:] += strength * unit
        return h

    checks.close(trace.raw, checks.wanted_raw(monitor, trace.token_ids, change))
    plain = checks.wanted_raw(monitor, trace.token_ids)
    moved = trace.raw[1, block, first:] - plain[1, block, first:]
    assert np.allclose(moved, strength, rtol=1e-4)


def test_two_threads_may_load_at_once() -> None:
    folder = SHIPPED.parent / "persona-tiny"
    with ThreadPoolExecutor(3) as pool:
        loaded = list(pool.map(lambda _: load_model(folder, device="cpu"), range(3)))
    head = loaded[0].model.get_output_embeddings().weight
    for lm in loaded:
        assert torch.equal(lm.model.get_output_embeddings().weight, head)
        assert lm.model.get_output_embeddings().weight is lm.model.get_input_embeddings().weight
