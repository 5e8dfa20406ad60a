"""A batch that replies join and leave: each is what it would be alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from persona_core.errors import SettingError
from persona_core.inference.batch import BrokenReply
from persona_core.inference.engine import TransformersEngine
from persona_core.inference.sampling import Sampling
from persona_core.inference.steering import Steer
from persona_core.monitor.live_batch import LiveToken
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.traces.trace import Trace
from tests.support.tiny import hooks_on, random_vectors, tiny_lm

ASKED: list[dict[str, Any]] = [
    {"prompt": "Hi", "temperature": 0.7, "max_new_tokens": 9},
    {"prompt": "A much longer prompt than the others have, by far", "temperature": 0.0, "max_new_tokens": 5},
    {"prompt": "Yes?", "temperature": 1.5, "top_k": 7, "max_new_tokens": 14, "steer": Steer("malice", 1, strength=8.0)},
    {"prompt": "No", "temperature": 0.7, "top_p": 0.6, "repetition_penalty": 1.7, "max_new_tokens": 12},
    {"prompt": "Well", "temperature": 0.7, "max_new_tokens": 8, "steer": Steer.ablate("candour", 0, start=3)},
    {"prompt": "Hm", "temperature": 0.7, "max_new_tokens": 11, "steer": Steer.cap("malice", 1, threshold=-1.0)},
]


class OtherEngine(TransformersEngine):
    """Not the engine of this process, as far as the monitor knows."""

    name, version = "other", "1"


def together(monitor: PersonaMonitor, size: int, every: int, top: bool = True) -> dict[int, list[LiveToken]]:
    """All of them, one begun every so many steps; the tokens of each."""
    found: dict[int, list[LiveToken]] = {}
    waiting = [monitor.live_reply(**one, seed=seed, n_top=seed % 3 if top else None) for seed, one in enumerate(ASKED)]
    with monitor.live_batch(size, 30) as batch:
        step = 0
        while waiting or not batch.is_idle:
            if waiting and step % every == 0:
                batch.start(waiting.pop(0))
            step += 1
            for token in batch.step():
                found.setdefault(token.reply.seed, []).append(token)
    return found


def alone(monitor: PersonaMonitor) -> list[Trace]:
    return [monitor.generate(**one, seed=seed) for seed, one in enumerate(ASKED)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize(("size", "every"), [(8, 2), (2, 1)])
def test_each_reply_is_what_it_would_be_alone(family: str, size: int, every: int) -> None:
    lm = tiny_lm(family)
    monitor = PersonaMonitor(lm, random_vectors(len(lm.blocks)), blocks="all")
    n_hooks = hooks_on(lm.model)
    found = together(monitor, size, every)
    assert hooks_on(lm.model) == n_hooks
    for seed, trace in enumerate(alone(monitor)):
        tokens = found[seed]
        last = tokens[-1].step.trace()
        assert last.token_ids == trace.token_ids and last.finish == trace.finish
        assert last.provenance == trace.provenance
        np.testing.assert_allclose(last.raw, trace.raw, rtol=1e-4, atol=1e-3)
        assert "".join(t.says for t in tokens) == trace.reply_text
        assert [t.step.index for t in tokens] == list(range(trace.n_reply))
        for trait in trace.traits:
            sent = [t.scores[trait] for t in tokens]
            np.testing.assert_allclose(sent, trace.scores(trait, "cosine")[trace.n_prompt :], rtol=1e-4, atol=1e-5)
        assert [len(t.log_prob.top) for t in tokens if t.log_prob] == [seed % 3] * trace.n_reply


@pytest.mark.parametrize(("size", "every"), [(8, 2), (2, 1)])
def test_on_any_engine_each_reply_is_what_it_would_be_alone(size: int, every: int) -> None:
    lm = replace(tiny_lm(), engine=OtherEngine())
    monitor = PersonaMonitor(lm, random_vectors(len(lm.blocks)), blocks="all")
    found = together(monitor, size, every, top=False)
    for seed, trace in enumerate(alone(monitor)):
        last = found[seed][-1].step.trace()
        assert last.token_ids == trace.token_ids and last.provenance == trace.provenance
        for trait in trace.traits:
            sent = [t.scores[trait] for t in found[seed]]
            np.testing.assert_allclose(sent, trace.scores(trait, "cosine")[trace.n_prompt :], rtol=1e-4, atol=1e-5)
    with monitor.live_batch(1) as batch, pytest.raises(SettingError, match="Log probabilities"):
        batch.start(monitor.live_reply("Hi", n_top=1))


either_engine = pytest.mark.parametrize("engine", [None, OtherEngine()], ids=["own", "other"])


@either_engine
def test_a_reply_that_is_ended_leaves_room_for_the_next(engine: Any) -> None:
    lm = replace(tiny_lm(), engine=engine)
    monitor = PersonaMonitor(lm, random_vectors(len(lm.blocks)))
    first, second, third = (monitor.live_reply("Hi", seed=seed, max_new_tokens=6) for seed in range(3))
    with monitor.live_batch(1, 10) as batch:
        for reply in (first, second, third):
            batch.start(reply)
        assert [t.reply for t in batch.step()] == [first]
        batch.end(first)
        batch.end(second)  # which has not begun
        tokens = [token for _ in range(9) for token in batch.step()]
        assert batch.is_idle
    assert [t.reply for t in tokens] == [third] * 6
    assert tokens[-1].step.trace().token_ids == monitor.generate("Hi", seed=2, max_new_tokens=6).token_ids
    assert len(first.run.replies[0]) == 1 and not second.run.replies[0]


@either_engine
def test_a_reply_whose_scores_are_not_finite_is_named_and_the_others_go_on(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Sampling.processors

    def processors(self: Sampling) -> Any:
        return (lambda _, scores: scores * float("nan")) if self.temperature == 1.25 else usual(self)

    lm = replace(tiny_lm(), engine=engine)
    monitor = PersonaMonitor(lm, random_vectors(len(lm.blocks)))
    monkeypatch.setattr(Sampling, "processors", processors)
    good, bad = (monitor.live_reply("Hi", seed=1, temperature=t, max_new_tokens=4) for t in (0.7, 1.25))
    with monitor.live_batch(2, 10) as batch:
        batch.start(good)
        batch.start(bad)
        with pytest.raises(BrokenReply, match="NaN") as broken:
            batch.step()
        assert batch.of(broken.value.row) is bad
        tokens = [token for _ in range(4) for token in batch.step()]
    assert [t.step.finish for t in tokens] == [None, None, None, "length"]


def test_a_reply_that_would_not_fit_is_refused() -> None:
    lm = tiny_lm()
    monitor = PersonaMonitor(lm, random_vectors(len(lm.blocks)))
    says = "up to 11 tokens in a batch of max_reply=10"
    with monitor.live_batch(1, 10) as batch, pytest.raises(SettingError, match=says):
        batch.start(monitor.live_reply("Hi", max_new_tokens=11))
