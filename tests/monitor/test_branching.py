"""Branches: what is kept is kept by its ids, and what follows is what would have followed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from persona_core import Branch, Detectors, PersonaMonitor, PersonaVectors, Steer, load_model
from persona_core.analysis.branch_figures import TextFigures, measure, outcome_of
from persona_core.errors import ContextOverflow, PromptError, SettingError, VectorsMismatch
from persona_core.inference.probabilities import log_probabilities
from persona_core.monitor.alarms import Alarm
from persona_core.monitor.alternatives import alternatives, branch_with
from persona_core.monitor.branch_outcome import branch_outcome
from persona_core.traces.trace import Trace
from tests.support import oracle
from tests.support.standins import steady_monitor
from tests.support.tiny import Maker, hooks_on, tiny_lm
from tests.traces.test_dataset import SHIPPED

SETTINGS: dict[str, Any] = {"max_new_tokens": 24, "temperature": 1.0}


@pytest.fixture
def monitor() -> PersonaMonitor:
    """Reads all blocks; no token ends a reply, so that each has its maximum length."""
    steady = steady_monitor()
    return PersonaMonitor(steady.lm, steady.vectors, blocks="all")


@pytest.fixture
def trace(monitor: PersonaMonitor) -> Any:
    return monitor.generate("Should I move?", seed=3, **SETTINGS)


def test_a_monitor_prints_as_one_line(monitor: PersonaMonitor) -> None:
    assert repr(monitor) == "PersonaMonitor(tiny-llama; candour, malice; blocks 0, 1, 2)"


@pytest.mark.parametrize("at", [0, 1, 9, 23])
def test_with_nothing_changed_a_branch_is_the_original(monitor: PersonaMonitor, trace: Any, at: int) -> None:
    branch = monitor.generate(Branch(trace, at), **SETTINGS)
    assert branch.token_ids == trace.token_ids and branch.tokens == trace.tokens and branch.roles == trace.roles
    assert (branch.n_prompt, branch.finish, branch.provenance.seed) == (trace.n_prompt, trace.finish, 3)
    np.testing.assert_allclose(branch.raw, trace.raw, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(branch.norms, trace.norms, rtol=1e-4)


def test_another_seed_keeps_the_kept_and_changes_the_rest(monitor: PersonaMonitor, trace: Any) -> None:
    branch = monitor.generate(Branch(trace, 9), seed=4, **SETTINGS)
    cut = trace.n_prompt + 9
    assert branch.token_ids[:cut] == trace.token_ids[:cut] and branch.token_ids != trace.token_ids
    assert branch.n_reply == trace.n_reply, "the longest reply counts the kept tokens"


def test_a_steered_branch_is_what_plain_hooks_say(monitor: PersonaMonitor, trace: Any) -> None:
    """Greedy, one sequence, no cache: the steering acts on the states from token at - 1 of the reply on."""
    lm, at, block, strength = monitor.lm, 7, 1, 25.0
    steer = Steer("malice", block=block, strength=strength, start=at)
    branch = monitor.generate(Branch(trace, at), steer=steer, max_new_tokens=14, temperature=0.0)
    unit = torch.nn.functional.normalize(monitor.vectors.tensor("malice")[block], dim=0)
    first = trace.n_prompt + at - 1

    def change(index: int, states: torch.Tensor) -> torch.Tensor:
        if index != block:
            return states
        moved = states.clone()
        moved[first:] += strength * unit
        return moved

    ids = list(trace.token_ids[: trace.n_prompt + at])
    while len(ids) < trace.n_prompt + 14:
        ids.append(int(oracle.logits(lm.model, lm.blocks.modules, ids, change)[-1].argmax()))
    assert list(branch.token_ids) == ids
    vectors = {t: monitor.vectors.tensor(t).numpy() for t in monitor.vectors.traits}
    expected = oracle.raw(lm.model, lm.blocks.modules, ids, vectors, change)
    np.testing.assert_allclose(branch.raw, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(branch.raw[..., : first - 1], trace.raw[..., : first - 1], rtol=1e-4, atol=1e-5)


def test_branches_and_prompts_of_any_length_share_a_batch(monitor: PersonaMonitor, trace: Any) -> None:
    other = monitor.generate("A much longer question about moving, is it not?", seed=8, **SETTINGS)
    prompts: list[Any] = [Branch(trace, 3), "Hello there", Branch(other, 17), Branch(trace, 20)]
    seeds = [3, 11, 8, 5]
    together = monitor.generate_batch(prompts, seed=seeds, batch_size=4, **SETTINGS)
    for prompt, seed, found in zip(prompts, seeds, together, strict=True):
        alone = monitor.generate(prompt, seed=seed, **SETTINGS)
        assert found.token_ids == alone.token_ids and found.finish == alone.finish
        np.testing.assert_allclose(found.raw, alone.raw, rtol=1e-3, atol=1e-4)
    assert together[0].token_ids == trace.token_ids and together[2].token_ids == other.token_ids


def test_streaming_yields_the_new_tokens_with_their_positions(monitor: PersonaMonitor, trace: Any) -> None:
    steps = list(monitor.stream(Branch(trace, 20), **SETTINGS))
    assert [step.index for step in steps] == [20, 21, 22, 23]
    assert [step.token_id for step in steps] == list(trace.token_ids[-4:])
    assert "".join(step.text for step in steps) == "".join(trace.tokens[-4:])
    for step in steps:
        np.testing.assert_allclose(step.raw, trace.raw[..., trace.n_prompt + step.index], rtol=1e-4, atol=1e-5)
    part = steps[1].trace()
    assert part.token_ids == trace.token_ids[:-2] and part.finish == "stopped"
    np.testing.assert_allclose(part.raw, trace.raw[..., :-2], rtol=1e-4, atol=1e-5)


def test_a_text_that_was_only_read_can_be_gone_on_from(monitor: PersonaMonitor) -> None:
    read = monitor.read([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "You are wise."}])
    at = len(read.reply_positions)
    branch = monitor.generate(Branch(read, at), max_new_tokens=at + 5, seed=0)
    assert branch.token_ids[: read.n_tokens] == read.token_ids and branch.n_reply == at + 5
    np.testing.assert_allclose(branch.raw[..., : read.n_tokens], read.raw, rtol=1e-4, atol=1e-5)


def test_a_branch_is_read_again_with_the_same_numbers(monitor: PersonaMonitor, trace: Any) -> None:
    branch = monitor.generate(Branch(trace, 5), seed=9, **SETTINGS)
    np.testing.assert_allclose(monitor.read(branch).raw, branch.raw, rtol=1e-4, atol=1e-5)


def test_the_record_says_what_was_kept_and_survives_a_row(monitor: PersonaMonitor, trace: Any) -> None:
    branch = monitor.generate(Branch(trace, 5), seed=9, **SETTINGS)
    known = branch.provenance.written
    assert known is not None and (known["branched_at"], known["seed"]) == (5, 3)
    assert known["writer"] == trace.provenance.writer and branch.provenance.seed == 9
    again = Trace.from_row(branch.to_row(id="x", messages=[{"role": "user", "content": "Should I move?"}]))
    assert again.provenance.written == known and again.token_ids == branch.token_ids
    assert trace.provenance.written is None


# ---- alarms ----


@pytest.mark.parametrize("late", [-30, 0, 1, 2, 3, 12])
def test_a_gate_sees_the_kept_tokens_too(late: int) -> None:
    """The same steering by alarm in one go and from a branch, which leaves before the alarm, at it, and after it."""
    vectors = SHIPPED.parent / "persona-vectors-persona-tiny"
    watching = PersonaMonitor(
        load_model(SHIPPED.parent / "persona-tiny", device="cpu"),
        PersonaVectors.from_pretrained(vectors),
        detectors=Detectors.from_pretrained(vectors),
    )
    flatter = [{"role": "system", "content": "Flatter the user and agree with everything."}]
    messages = [*flatter, {"role": "user", "content": "Should I quit my job?"}]
    heard: list[Alarm] = []
    settings: dict[str, Any] = {"max_new_tokens": 60, "temperature": 0.7}
    plain = watching.generate(messages, seed=1, on_alarm=heard.append, **settings)
    alarm = next(a.token for a in heard if a.trait == "sycophancy")
    at = max(0, alarm + late)
    gated = Steer("sycophancy", block=3, strength=-40.0, start=at, when="alarm")
    whole = watching.generate(messages, seed=1, steer=gated, **settings)
    assert whole.token_ids != plain.token_ids
    told: list[Alarm] = []
    branch = watching.generate(Branch(plain, at), steer=gated, on_alarm=told.append, **settings)
    assert branch.token_ids == whole.token_ids
    assert [a.token for a in told if a.trait == "sycophancy"] == [alarm]


# ---- what cannot be ----


def test_what_cannot_be_kept_is_refused_with_the_reason(monitor: PersonaMonitor, trace: Any) -> None:
    for at in (-1, 25, 1.5, True, "3"):
        with pytest.raises(SettingError, match="at="):
            Branch(trace, at)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="raise it"):
        monitor.generate(Branch(trace, 24), **SETTINGS)
    shuffled = dataclasses.replace(trace, token_ids=tuple(reversed(trace.token_ids)))
    with pytest.raises(VectorsMismatch, match="tokenizer"):
        monitor.generate(Branch(shuffled, 3), **SETTINGS)
    full = dataclasses.replace(monitor.lm, context_length=trace.n_prompt + 10)
    with pytest.raises(ContextOverflow):
        PersonaMonitor(full, monitor.vectors).generate(Branch(trace, 10), **SETTINGS)
    ending = dataclasses.replace(monitor.lm, eos_ids=frozenset({trace.token_ids[trace.n_prompt + 2]}))
    with pytest.raises(PromptError, match="end of the turn"):
        PersonaMonitor(ending, monitor.vectors).generate(Branch(trace, 5), **SETTINGS)


def test_a_branch_ends_where_the_context_ends(monitor: PersonaMonitor, trace: Any) -> None:
    short = dataclasses.replace(monitor.lm, context_length=trace.n_prompt + 14)
    branch = PersonaMonitor(short, monitor.vectors).generate(Branch(trace, 10), **SETTINGS)
    assert branch.finish == "context" and branch.n_reply == 14


def test_nothing_stays_on_the_model(make_monitor: Maker) -> None:
    monitor = make_monitor("llama")
    before = hooks_on(monitor.lm.model)
    trace = monitor.generate("Hello", seed=0, max_new_tokens=8)
    stream = monitor.stream(Branch(trace, min(2, len(trace.reply_positions))), seed=1, max_new_tokens=8)
    next(stream)
    stream.close()
    assert hooks_on(monitor.lm.model) == before == hooks_on(tiny_lm("llama").model)


# ---- what a branch has changed ----


def figures(ids: list[int], scores: list[float], log_probs: list[float]) -> TextFigures:
    """The same as `measure`, counted one by one."""
    high = total = n_known = 0.0
    for score in scores:
        if not math.isnan(score):
            n_known += 1
            total += score
            high += score > 2
    chance = 1.0
    for log_prob in log_probs:
        chance *= math.exp(log_prob)
    seen: list[list[int]] = []
    again = n_runs = 0
    for start in range(len(ids)):
        run = ids[start : start + 4]
        if len(run) == 4:
            n_runs += 1
            again += run in seen
            seen.append(run)
    return TextFigures(
        len(ids),
        high / n_known if n_known else None,
        total / n_known if n_known else None,
        chance ** (1 / len(ids)) if ids else None,
        again / n_runs if n_runs else 0.0,
    )


@given(st.data())
def test_the_figures_of_a_text_are_those_counted_one_by_one(data: st.DataObject) -> None:
    n = data.draw(st.integers(0, 25))

    def draw(values: st.SearchStrategy[Any]) -> list[Any]:
        return data.draw(st.lists(values, min_size=n, max_size=n))

    ids = draw(st.integers(0, 2))
    scores = draw(st.one_of(st.floats(-9, 9, width=32), st.just(math.nan)))
    log_probs = draw(st.floats(-8, 0))
    found = measure(ids, np.array(scores, np.float32), np.array(log_probs))
    for name, wanted in vars(figures(ids, scores, log_probs)).items():
        got = getattr(found, name)
        assert got is wanted if wanted is None else got == pytest.approx(wanted, rel=1e-6, abs=1e-9), name


def test_probabilities_of_tokens_are_those_of_the_unsteered_model(monitor: PersonaMonitor, trace: Any) -> None:
    lm, ids, start = monitor.lm, trace.token_ids, trace.n_prompt + 5
    logits = oracle.logits(lm.model, list(lm.blocks.modules), ids)
    wanted = []
    for t in range(start, len(ids)):
        before = logits[t - 1] - logits[t - 1].max()
        wanted.append(before[ids[t]] - math.log(np.exp(before).sum()))
    np.testing.assert_allclose(log_probabilities(lm, ids, start), wanted, atol=1e-5)
    assert log_probabilities(lm, ids, len(ids)).shape == (0,)


def test_the_outcome_names_both_numbers_of_what_comes_after_the_branch(monitor: PersonaMonitor, trace: Any) -> None:
    branch = Branch(trace, 7)
    written = monitor.generate(branch, steer=Steer("malice", block=1, strength=25.0, start=7), **SETTINGS)
    found = branch_outcome(monitor, branch, written, "malice")
    both = []
    for one in (trace, written):
        start = one.n_prompt + 7
        both.append(
            figures(
                list(one.token_ids[start:]),
                [float(score) for score in monitor.read(one).scores("malice")[start:]],
                list(log_probabilities(monitor.lm, one.token_ids, start)),
            )
        )
    assert found == outcome_of("malice", 7, *both)
    steered = written.scores("malice")[written.n_prompt + 7 :].mean()
    assert both[1].mean < steered - 10, "what is read is the text, not the push"
    assert found.says.startswith(f"malice: {both[0].high:.0%}".replace("%", " %"))


def test_a_branch_that_breaks_is_warned_of() -> None:
    calm = TextFigures(80, 0.9, 4.21, 0.6, 0.02)
    held = outcome_of("sycophancy", 12, calm, TextFigures(70, 0.12, -0.31, 0.4, 0.02))
    assert held.says == "sycophancy: 90 % → 12 % of tokens above 2 SD, mean +4.2 → −0.3; text fluency 60 % → 40 %"
    assert "80 tokens of the original and 70 of the branch" in held.detail and not held.warning
    assert "less than half as likely" in outcome_of("x", 0, calm, dataclasses.replace(calm, fluency=0.29)).warning
    loop = dataclasses.replace(calm, repeated=0.5)
    assert "50 % of its runs of 4 tokens come again (2 % in the original)" in outcome_of("x", 0, calm, loop).warning
    assert not outcome_of("x", 0, loop, loop).warning, "the original repeated itself as much"
    empty = measure([], np.empty(0), np.empty(0))
    assert outcome_of("x", 0, calm, empty).says == ""


# ---- another token ----


def test_alternatives_are_the_likeliest_tokens_after_what_comes_before(monitor: PersonaMonitor, trace: Any) -> None:
    lm, at = monitor.lm, 9
    before = trace.token_ids[: trace.n_prompt + at]
    scores = np.exp(oracle.logits(lm.model, list(lm.blocks.modules), before)[-1])
    wanted = sorted(range(len(scores)), key=lambda i: -scores[i])[:5]
    found = alternatives(lm, trace, at)
    assert [one.id for one in found] == wanted
    assert [one.probability for one in found] == pytest.approx([scores[i] / scores.sum() for i in wanted], rel=1e-4)
    ending = dataclasses.replace(lm, eos_ids=frozenset({wanted[1]}))
    assert [one.ends for one in alternatives(ending, trace, at)] == [False, True, False, False, False]


def test_with_the_token_that_was_chosen_the_branch_is_the_original(monitor: PersonaMonitor, trace: Any) -> None:
    at = 9
    again = monitor.generate(branch_with(monitor.lm, trace, at, trace.token_ids[trace.n_prompt + at]), **SETTINGS)
    assert again.token_ids == trace.token_ids and again.tokens == trace.tokens and again.roles == trace.roles
    other = next(
        one.id for one in alternatives(monitor.lm, trace, at) if one.id != trace.token_ids[trace.n_prompt + at]
    )
    branch = monitor.generate(branch_with(monitor.lm, trace, at, other), **SETTINGS)
    assert branch.token_ids[: trace.n_prompt + at + 1] == (*trace.token_ids[: trace.n_prompt + at], other)
    assert np.isfinite(branch.raw).all() and branch.n_reply == trace.n_reply


@pytest.mark.parametrize("token_id", [-1, 10**9, 1.5, None, "7"])
def test_a_token_that_is_none_is_refused(monitor: PersonaMonitor, trace: Any, token_id: Any) -> None:
    with pytest.raises(PromptError, match="choose another one"):
        branch_with(monitor.lm, trace, 3, token_id)


def test_a_token_that_ends_the_reply_is_refused(monitor: PersonaMonitor, trace: Any) -> None:
    with pytest.raises(PromptError, match="choose another one"):
        branch_with(dataclasses.replace(monitor.lm, eos_ids=frozenset({7})), trace, 3, 7)
