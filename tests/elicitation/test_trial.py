"""A trial of a plan: it ends soon, keeps nothing, and its counts are those of the replies."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from persona_core.elicitation.elicit import ElicitationPlan
from persona_core.elicitation.trial import MIN_STEPS, Trial, try_plan
from persona_core.inference.generation import GenerationRun
from persona_core.inference.sampling import Sampling
from tests.elicitation.test_elicit import plan
from tests.support.tiny import hooks_on, tiny_lm


def tried(which: ElicitationPlan, seconds: float) -> Trial:
    return try_plan(tiny_lm("llama", "chatml"), which, which.requests(), seconds)


def test_the_trial_ends_after_its_seconds_and_leaves_no_hook() -> None:
    lm = tiny_lm("llama", "chatml")
    endless = plan(sampling=Sampling(max_new_tokens=400, temperature=1.0), batch_size=4)
    hooks = hooks_on(lm.model)
    started = time.monotonic()
    found = try_plan(lm, endless, endless.requests(), seconds=0.05)
    assert time.monotonic() - started < 30 and hooks_on(lm.model) == hooks
    assert 1 <= found.n_replies <= 4 and found.seconds_a_token > 0


def test_a_machine_that_reads_prompts_slowly_still_times_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the replies would seem to take no time at all."""
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr("persona_core.elicitation.trial.time.monotonic", lambda: float(next(clock)))
    found = tried(plan(sampling=Sampling(50, 1.0), batch_size=2), seconds=10.0)
    assert found.seconds_a_token > 0 and found.seconds_for(10) > 10 * found.seconds_before


def test_replies_that_never_end_count_as_long_as_the_limit() -> None:
    lm = replace(tiny_lm("llama", "chatml"), eos_ids=frozenset())
    which = plan(sampling=Sampling(max_new_tokens=20, temperature=1.0))
    assert try_plan(lm, which, which.requests(), 30.0).reply_tokens == 20
    assert try_plan(lm, which, which.requests(), 30.0).tokens_for(3) == 60


def test_replies_that_end_are_as_long_as_they_are() -> None:
    """All of the trial's replies come to their end here, so the estimate can be compared with their mean length."""
    which = plan(sampling=Sampling(max_new_tokens=300, temperature=1.0), batch_size=64)
    lm = tiny_lm("llama", "chatml")
    lengths: list[int] = []
    finish = GenerationRun.reply_text

    def count(self: GenerationRun, row: int) -> str:
        lengths.append(len(self.replies[row]))
        return finish(self, row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GenerationRun, "reply_text", count)
        found = try_plan(lm, which, which.requests(), seconds=120.0)
    assert MIN_STEPS < found.reply_tokens <= 300
    assert found.reply_tokens == pytest.approx(sum(lengths) / len(lengths), rel=0.25)
