"""A static cache gives the tokens and the numbers of the dynamic one. On a GPU its step is captured as a graph; here
it runs eagerly, so that all but the capture is tested."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from persona_core.app.pooled_model import PooledModel
from persona_core.app.settings import AppSettings
from persona_core.inference import batch as reply_batch
from persona_core.inference.decode import decode
from persona_core.inference.generation import GenerationRun
from persona_core.inference.pooled_states import PooledStates
from persona_core.inference.pooling import parse_position
from persona_core.inference.prefix import ReplyPrefix
from persona_core.inference.static_cache import StaticKVCache, supports
from persona_core.inference.steering import Intervention, Steer
from persona_core.models.loading import wrap_model
from persona_core.monitor.monitor import PersonaMonitor
from tests.inference.test_refilling import EVERY_TWELFTH, PROMPTS, SAMPLING, alone, monitor_of, same
from tests.support import oracle
from tests.support.families import BY_NAME
from tests.support.tiny import random_vectors, tiny_lm

# Families whose steps never wait for the host, by what transformers says of them.
SUPPORTED = (
    "falcon",
    "falcon-new",
    "gpt-neox",
    "gpt2",
    "gptj",
    "llama",
    "llama-lora",
    "llama-sdpa",
    "mixtral",
    "olmo2",
    "opt",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3-moe",
    "smollm3",
)


@pytest.fixture
def static_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each step that used the static cache."""
    steps: list[int] = []
    step = StaticKVCache.step

    def counted(self: StaticKVCache, *args: Any) -> Any:
        steps.append(self._n)
        return step(self, *args)

    monkeypatch.setattr(StaticKVCache, "step", counted)
    return steps


def ending(family: str, static_cache: bool = True) -> Any:
    return replace(tiny_lm(family, "chatml"), eos_ids=EVERY_TWELFTH, static_cache=static_cache)


def test_the_supported_families_are_those_that_are_tested() -> None:
    assert {name for name in BY_NAME if supports(tiny_lm(name, "chatml"), 8)} == set(SUPPORTED)
    assert {"llama", "llama-sdpa", "qwen2", "qwen3", "olmo2", "phi3"} <= set(SUPPORTED)
    assert not {"qwen3.5", "bloom", "falcon-alibi"} & set(SUPPORTED)


def test_the_static_cache_is_opt_in(static_steps: list[int]) -> None:
    monitor_of(ending("llama", static_cache=False)).generate(PROMPTS[0], seed=7, max_new_tokens=3)
    assert static_steps == []
    lm = tiny_lm("llama", "chatml")
    assert not wrap_model(lm.model, lm.tokenizer).static_cache
    assert wrap_model(lm.model, lm.tokenizer, static_cache=True).static_cache


@pytest.mark.parametrize("family", SUPPORTED)
def test_tokens_and_numbers_are_those_of_the_dynamic_cache(family: str, static_steps: list[int]) -> None:
    monitor = monitor_of(ending(family))
    prompts = [p for p in PROMPTS if len(p) < 60]
    settings = SAMPLING.to_dict() | {"max_new_tokens": 12}
    found = monitor.generate_batch(prompts, batch_size=3, seed=7, **settings)
    assert len(static_steps) > 12, "the static cache was used"
    plain = monitor_of(ending(family, static_cache=False))
    wanted = [plain.generate(p, seed=7 + i, **settings) for i, p in enumerate(prompts)]
    same(found, wanted)


@pytest.mark.parametrize("width", [1, 2, 3, 8])
def test_replies_move_and_columns_are_reused(static_steps: list[int], width: int) -> None:
    """Long prompts and short ones, in a cache just as wide as the longest needs: rows must move."""
    monitor = monitor_of(ending("llama-sdpa"))
    found = monitor.generate_batch(PROMPTS, batch_size=width, seed=7, **SAMPLING.to_dict())
    assert static_steps
    same(found, alone(monitor_of(ending("llama-sdpa", static_cache=False))))


def test_finished_rows_that_linger_are_harmless(static_steps: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply_batch, "REFILLED_SHARE", 1)  # slots stay empty until all are
    monitor = monitor_of(ending("llama"))
    found = monitor.generate_batch(PROMPTS, batch_size=4, seed=7, **SAMPLING.to_dict())
    same(found, alone(monitor_of(ending("llama", static_cache=False))))


def test_what_a_broken_row_leaves_behind_is_harmless(static_steps: list[int]) -> None:
    """NaN in a column that is masked is still NaN in the sum of a row."""
    lm = ending("llama")
    caches: list[StaticKVCache] = []
    with pytest.MonkeyPatch.context() as patched:
        add = StaticKVCache.add

        def spoiled(self: StaticKVCache, *args: Any) -> None:
            if self not in caches:
                caches.append(self)
            elif self._cache is not None:  # as finished rows may be
                for layer in self._cache.layers:
                    layer.keys[self._n :], layer.values[self._n :] = float("nan"), float("nan")
            add(self, *args)

        patched.setattr(StaticKVCache, "add", spoiled)
        found = monitor_of(lm).generate_batch(PROMPTS, batch_size=3, seed=7, **SAMPLING.to_dict())
    assert static_steps
    same(found, alone(monitor_of(ending("llama", static_cache=False))))


def test_the_memory_is_freed_with_the_run(static_steps: list[int]) -> None:
    """A cycle would hold it until the next collection, and a run that is out of memory could not start over."""
    made: list[Any] = []
    step = StaticKVCache.step

    def watched(self: StaticKVCache, *args: Any) -> Any:
        made.append(weakref.ref(self))
        return step(self, *args)

    gc.disable()
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(StaticKVCache, "step", watched)
            list(decode(ending("llama"), [[5, 6, 7], [8, 9]], SAMPLING, [0, 1]))
        assert static_steps and made and not [one for one in made if one() is not None]
    finally:
        gc.enable()


def test_steering_is_part_of_the_step(static_steps: list[int]) -> None:
    monitor = monitor_of(ending("qwen3"))
    steer = [Steer("malice", block=1, strength=-30.0, start=3), Steer.cap("candour", block=2, threshold=0.1, start=1)]
    found = monitor.generate_batch(PROMPTS, batch_size=3, seed=7, steer=steer, **SAMPLING.to_dict())
    assert static_steps
    same(found, alone(monitor_of(ending("qwen3", static_cache=False)), steer=steer))


@pytest.mark.parametrize("width", [1, 3])
def test_states_are_pooled_within_the_step(static_steps: list[int], width: int) -> None:
    pools = [parse_position(name) for name in ("prompt_mean", "reply_mean", "reply_first_4")]

    def means(lm: Any) -> Any:
        starts = [ReplyPrefix(lm.chat.render(prompt)) for prompt in PROMPTS]
        pooled = PooledStates(pools, len(lm.blocks), len(starts))
        run = GenerationRun(lm, {}, starts, SAMPLING, range(len(starts)), pooled=pooled, batch_size=width)
        run.finish()
        return pooled.means()

    found = means(ending("llama"))
    assert static_steps
    assert np.allclose(found, means(ending("llama", static_cache=False)), atol=1e-5, equal_nan=True)


def test_streaming_shows_each_step_as_it_is(static_steps: list[int]) -> None:
    monitor = monitor_of(ending("llama"))
    steps = []
    for step in monitor.stream(PROMPTS[1], seed=3, max_new_tokens=9, temperature=1.0):
        steps.append((step.token_id, step.raw.copy()))
    assert len(static_steps) == len(steps)
    trace = monitor.read(step.trace())
    assert list(trace.token_ids[trace.n_prompt :]) == [token for token, _ in steps]
    for at, (_, raw) in enumerate(steps, trace.n_prompt):
        assert oracle.relative_error(raw, trace.raw[..., at]) < 1e-4


def test_what_a_static_cache_cannot_do_uses_the_dynamic_one(static_steps: list[int]) -> None:
    """A narrow window needs another mask; a hybrid has a recurrent state; an alarm is set by the host."""
    for family in ("qwen3.5", "bloom", "mistral"):
        monitor_of(ending(family)).generate_batch(PROMPTS, batch_size=3, seed=7, **SAMPLING.to_dict())
        assert static_steps == [], family
    assert not supports(tiny_lm("mistral"), 4096)
    lm = ending("llama")
    starts = torch.full((1,), 4)
    change = Intervention(Steer("malice", block=1, strength=9.0), torch.ones(lm.blocks.d_model), 9.0, starts)
    GenerationRun(lm, {}, [ReplyPrefix(lm.chat.render("Hi"))], SAMPLING, [0], [change]).finish()
    assert static_steps == []


def test_bfloat16_steps_are_those_of_one_forward(static_steps: list[int]) -> None:
    torch.manual_seed(0)
    lm = tiny_lm("llama-sdpa", "chatml")
    half = replace(lm, model=type(lm.model)(lm.model.config))
    half.model.load_state_dict(lm.model.state_dict())
    half = replace(half, model=half.model.to(torch.bfloat16).eval())
    narrow = wrap_model(half.model, lm.tokenizer, static_cache=True)
    monitor = PersonaMonitor(narrow, random_vectors(len(narrow.blocks)), "all")
    trace = monitor.generate(PROMPTS[1], seed=3, max_new_tokens=20, temperature=1.0)
    assert static_steps
    again = monitor.read(trace)
    assert oracle.relative_error(trace.raw, again.raw) < 3e-2


@pytest.mark.parametrize("environment", [{}, {"PERSONA_STATIC_CACHE": "1"}])
def test_an_environment_variable_opts_the_app_in(environment: dict[str, str]) -> None:
    settings = AppSettings.from_environment(environment)
    monitor = PooledModel.from_settings(settings).monitor()
    assert monitor.lm.static_cache == settings.static_cache == bool(environment)
