"""Interventions: what they add, take out or cap, in which unit, from which token on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from persona_core.errors import NotCalibrated, SettingError, UnknownBlock, UnknownTrait
from persona_core.inference.steering import PAD_INDEX, Intervention, Steer
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.vectors.null import Null
from persona_core.vectors.vectors import PersonaVectors
from tests.support import oracle
from tests.support.tiny import random_vectors, tiny_lm

PROMPT = "Should I quit my job?"
BLOCK = 1  # in the middle: what comes after it must feel the change, what comes before must not
TRAITS = ("candour", "malice")


def with_null(vectors: PersonaVectors, seed: int = 3) -> PersonaVectors:
    """The same vectors with a null of plausible numbers, another one for each trait and block."""
    rng, n = np.random.default_rng(seed), vectors.n_blocks

    def null() -> Null:
        mean, std = rng.normal(size=n).astype("f4"), rng.uniform(0.2, 2.0, n).astype("f4")
        return Null(mean, std, np.zeros((n, 1), "f4"), (0.5,))

    return PersonaVectors(vectors.tensors, vectors.best_block, {t: null() for t in vectors.traits})


def monitor_of(family: str = "llama", **changes: Any) -> PersonaMonitor:
    """Reads all blocks with calibrated vectors; replies do not end before their length unless `eos_ids` is given."""
    lm = dataclasses.replace(tiny_lm(family, "chatml"), **({"eos_ids": frozenset()} | changes))
    return PersonaMonitor(lm, with_null(random_vectors(len(lm.blocks), TRAITS)), blocks="all")


def values(monitor: PersonaMonitor, trait: str, steer: Any = None, kind: Any = "raw", block: int = BLOCK) -> np.ndarray:
    """One trait's score at each token of the prompt, steered from its first token on."""
    return monitor.read(PROMPT, steer=steer).scores(trait, kind=kind, block=block)


# Units and modes, seen where the change is made.


@pytest.mark.parametrize("family", ["llama", "gptj"])  # a tensor output, a tuple output
@pytest.mark.parametrize("strength", [4.0, -0.25, 300.0])
def test_adding_s_moves_the_raw_projection_by_exactly_s(family: str, strength: float) -> None:
    monitor = monitor_of(family)
    steer = Steer("malice", BLOCK, strength, start=None)
    moved = values(monitor, "malice", steer) - values(monitor, "malice")
    assert np.allclose(moved, strength, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strength", [2.0, -3.0])
def test_adding_s_in_standard_deviations_moves_the_z_score_by_s(strength: float) -> None:
    monitor = monitor_of()
    steer = Steer("candour", BLOCK, strength, start=None, unit="sd")
    moved = values(monitor, "candour", steer, kind="z") - values(monitor, "candour", kind="z")
    assert np.allclose(moved, strength, atol=1e-4)


def test_the_length_of_the_vector_does_not_matter() -> None:
    """Strength is along the unit vector: a vector ten times as long steers the same."""
    monitor = monitor_of()
    longer = {t: 10 * v for t, v in monitor.vectors.tensors.items()}
    other = PersonaMonitor(monitor.lm, PersonaVectors(longer, monitor.vectors.best_block), blocks="all")
    steer = Steer("malice", BLOCK, 5.0, start=None)
    assert np.allclose(values(monitor, "malice", steer), values(other, "malice", steer), atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_ablation_leaves_a_projection_of_zero(family: str) -> None:
    monitor = monitor_of(family)
    before = values(monitor, "malice")
    after = values(monitor, "malice", Steer.ablate("malice", BLOCK, start=None))
    assert np.abs(before).min() > 1e-3 and np.abs(after).max() < 1e-5 * np.abs(before).max()


def test_ablation_keeps_what_is_orthogonal_to_the_trait() -> None:
    monitor = monitor_of()
    direction = monitor.vectors.direction("malice", BLOCK).double().numpy()
    states = oracle.states(monitor.lm.model, list(monitor.lm.blocks.modules), monitor.read(PROMPT).token_ids)[BLOCK]
    wanted = np.linalg.norm(states - np.outer(states @ direction, direction), axis=-1)
    trace = monitor.read(PROMPT, steer=Steer.ablate("malice", BLOCK, start=None))
    assert oracle.relative_error(trace.norms[BLOCK], wanted) < 1e-5


@pytest.mark.parametrize("unit", ["residual", "sd"])
def test_a_cap_holds_what_is_above_at_the_threshold_and_leaves_the_rest_bit_for_bit(unit: Any) -> None:
    monitor = monitor_of()
    kind: Any = "raw" if unit == "residual" else "z"
    before = values(monitor, "malice", kind=kind)
    threshold = float(np.median(before))
    trace = monitor.read(PROMPT, steer=Steer.cap("malice", BLOCK, threshold, start=None, unit=unit))
    after = trace.scores("malice", kind=kind, block=BLOCK)
    low = before < threshold
    assert low.any() and not low.all()
    assert np.array_equal(after[low], before[low])
    assert np.allclose(after[~low], threshold, atol=1e-4)
    assert np.array_equal(trace.norms[BLOCK][low], monitor.read(PROMPT).norms[BLOCK][low])


def test_a_cap_above_everything_changes_nothing_at_all() -> None:
    monitor = monitor_of()
    plain = monitor.generate(PROMPT, max_new_tokens=8, temperature=1.0, seed=1)
    steer = Steer.cap("malice", BLOCK, float(plain.raw.max()) + 1.0, start=None)
    capped = monitor.generate(PROMPT, max_new_tokens=8, temperature=1.0, seed=1, steer=steer)
    assert capped.token_ids == plain.token_ids and np.array_equal(capped.raw, plain.raw)


def test_a_strength_of_zero_changes_nothing_at_all() -> None:
    monitor = monitor_of()
    assert np.array_equal(monitor.read(PROMPT, steer=Steer("malice", BLOCK, 0.0)).raw, monitor.read(PROMPT).raw)


def test_earlier_blocks_do_not_feel_a_change_and_later_ones_do() -> None:
    monitor = monitor_of()
    plain, steered = monitor.read(PROMPT), monitor.read(PROMPT, steer=Steer("malice", BLOCK, 5.0, start=None))
    assert np.array_equal(plain.raw[:, :BLOCK], steered.raw[:, :BLOCK])
    assert (np.abs(plain.raw[:, BLOCK + 1 :] - steered.raw[:, BLOCK + 1 :]).max(-1) > 1e-2).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_change_is_computed_in_float32_and_leaves_its_input_alone(dtype: torch.dtype) -> None:
    """One large channel: a projection computed in half precision would be off by more than the strength."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 3, 16, generator=generator).to(dtype)
    states[..., 0] = 1000.0
    direction = torch.nn.functional.normalize(torch.randn(16, generator=generator), dim=0)
    kept = states.clone()
    index = torch.tensor([[PAD_INDEX, -1, 0], [-2, -1, 0]])
    for mode, amount in (("ablate", 0.0), ("add", 3.0), ("cap", -1.0)):
        steer = {"ablate": Steer.ablate("x", 0), "add": Steer("x", 0, amount), "cap": Steer.cap("x", 0, amount)}[mode]
        out = Intervention(steer, direction, amount).apply(states, index)
        assert torch.equal(states, kept) and out.dtype == dtype
        assert torch.equal(out[0, 0], states[0, 0]) and torch.equal(out[1, 0], states[1, 0])  # padding, and too early
        x, v = states.double(), direction.double()
        p = (x @ v)[..., None]
        wanted = {"ablate": x - p * v, "add": x + 3.0 * v, "cap": x - (p + 1.0).clamp_min(0) * v}[mode].to(dtype)
        # Computed in float32 and rounded once at the end.
        assert torch.allclose(out[:, 1:].double(), wanted[:, 1:].double(), rtol=torch.finfo(dtype).eps, atol=1e-3)


# From which token on.

SETTINGS: dict[str, Any] = dict(max_new_tokens=10, temperature=1.0, seed=11)


@pytest.mark.parametrize("family", ["llama", "gptj", "gpt2"])
@pytest.mark.parametrize("start", [0, 1, 5])
def test_start_is_the_first_reply_token_whose_choice_can_change(family: str, start: int) -> None:
    monitor = monitor_of(family)
    plain = monitor.generate(PROMPT, **SETTINGS)
    changed = set()
    for strength in (60.0, -60.0, 400.0, -400.0):
        steered = monitor.generate(PROMPT, steer=Steer("malice", BLOCK, strength, start=start), **SETTINGS)
        first = plain.n_prompt + start
        assert steered.token_ids[:first] == plain.token_ids[:first]
        # The state that chooses token `start` is the first that is changed: by exactly the strength.
        assert np.array_equal(steered.raw[..., : first - 1], plain.raw[..., : first - 1])
        moved = steered.raw[1, BLOCK, first - 1] - plain.raw[1, BLOCK, first - 1]
        assert np.isclose(moved, strength, rtol=1e-4)
        changed.add(steered.token_ids[first] != plain.token_ids[first])
    assert True in changed


def test_a_steer_from_the_start_leaves_the_prompt_but_its_last_token_unchanged() -> None:
    monitor = monitor_of()
    plain = monitor.generate(PROMPT, **SETTINGS)
    steered = monitor.generate(PROMPT, steer=Steer("malice", BLOCK, 5.0), **SETTINGS)
    last = plain.n_prompt - 1
    assert np.array_equal(steered.raw[..., :last], plain.raw[..., :last])
    assert not np.array_equal(steered.raw[:, BLOCK, last], plain.raw[:, BLOCK, last])


def test_start_none_acts_on_the_prompt_too() -> None:
    monitor = monitor_of()
    steer = Steer("malice", BLOCK, 5.0, start=None)
    plain, steered = monitor.read(PROMPT), monitor.generate(PROMPT, steer=steer, **SETTINGS)
    moved = steered.raw[1, BLOCK, : plain.n_tokens] - plain.raw[1, BLOCK]
    assert np.allclose(moved, 5.0, atol=1e-3)


def test_a_start_behind_the_end_changes_nothing() -> None:
    monitor = monitor_of()
    plain = monitor.generate(PROMPT, **SETTINGS)
    late = monitor.generate(PROMPT, steer=Steer("malice", BLOCK, 99.0, start=11), **SETTINGS)
    assert late.token_ids == plain.token_ids and np.array_equal(late.raw, plain.raw)
    # start = 10 names the token after the last: its choice is never made, but the state behind it is changed.
    next_one = monitor.generate(PROMPT, steer=Steer("malice", BLOCK, 99.0, start=10), **SETTINGS)
    assert next_one.token_ids == plain.token_ids
    assert np.array_equal(next_one.raw[..., :-1], plain.raw[..., :-1])


def test_start_counts_from_each_rows_own_reply_in_a_batch_of_mixed_lengths() -> None:
    monitor = monitor_of("gpt2")
    prompts = ["Hi", PROMPT + " I have been there for seven years.", PROMPT]
    steer = Steer("malice", BLOCK, 50.0, start=3)
    for index, trace in enumerate(monitor.generate_batch(prompts, steer=steer, **SETTINGS)):
        plain = monitor.generate(prompts[index], **(SETTINGS | {"seed": SETTINGS["seed"] + index}))
        first = plain.n_prompt + 3
        assert trace.token_ids[:first] == plain.token_ids[:first]
        assert oracle.relative_error(trace.raw[..., : first - 1], plain.raw[..., : first - 1]) < 1e-4
        moved = trace.raw[1, BLOCK, first - 1] - plain.raw[1, BLOCK, first - 1]
        assert np.isclose(moved, 50.0, rtol=1e-4)


# Several at once, and what a steered run leaves behind.


def apply(monitor: PersonaMonitor, steers: Sequence[Steer]) -> oracle.Change:
    """The definition of each mode, in the oracle's terms, at every token."""

    def change(block: int, states: torch.Tensor) -> torch.Tensor:
        for steer in steers:
            if steer.block == block:
                v = monitor.vectors.direction(steer.trait, block).to(states)
                p = (states @ v)[:, None]
                if steer.mode == "add":
                    states = states + steer.amount * v
                else:
                    states = states - (p if steer.mode == "ablate" else (p - steer.amount).clamp_min(0)) * v
        return states

    return change


COMBINATIONS = [
    [Steer("malice", 0, 6.0, start=None), Steer("candour", 2, -4.0, start=None)],
    [Steer("malice", BLOCK, 6.0, start=None), Steer("candour", BLOCK, -4.0, start=None)],
    [Steer("malice", BLOCK, 6.0, start=None), Steer.cap("malice", BLOCK, 1.0, start=None)],
    [Steer.ablate("candour", BLOCK, start=None), Steer("candour", BLOCK, 2.0, start=None)],
]


@pytest.mark.parametrize("steers", COMBINATIONS, ids=["two-blocks", "one-block", "add-then-cap", "ablate-then-add"])
def test_several_steers_act_one_after_the_other_in_the_order_given(steers: list[Steer]) -> None:
    monitor = monitor_of()
    trace = monitor.read(PROMPT, steer=steers)
    vectors = {t: monitor.vectors.tensor(t).numpy() for t in TRAITS}
    modules = list(monitor.lm.blocks.modules)
    wanted = oracle.raw(monitor.lm.model, modules, trace.token_ids, vectors, apply(monitor, steers))
    assert oracle.relative_error(trace.raw, wanted) < 1e-4
    assert len(trace.provenance.steering) == 2


def test_two_additions_of_one_trait_add_up() -> None:
    monitor = monitor_of()
    half = Steer("malice", BLOCK, 2.5, start=None)
    twice = monitor.read(PROMPT, steer=(half, half))
    once = monitor.read(PROMPT, steer=dataclasses.replace(half, strength=5.0))
    assert oracle.relative_error(twice.raw, once.raw) < 1e-4


@pytest.mark.parametrize("start", [None, 0, 4])
def test_a_steered_reply_reads_the_same_with_the_same_steer(start: int | None) -> None:
    monitor = monitor_of()
    steers = [Steer("malice", BLOCK, 8.0, start=start), Steer.cap("candour", 2, 0.5, start=start)]
    written = monitor.generate(PROMPT, steer=steers, **SETTINGS)
    read = monitor.read(written, steer=steers)
    assert read.token_ids == written.token_ids
    assert oracle.relative_error(read.raw, written.raw) < 1e-4
    assert oracle.relative_error(read.norms, written.norms) < 1e-4
    assert oracle.relative_error(monitor.read(written).raw, written.raw) > 1e-2


def test_a_steered_run_leaves_the_model_as_it_was() -> None:
    monitor = monitor_of()
    before = monitor.generate(PROMPT, **SETTINGS)
    monitor.generate(PROMPT, steer=Steer("malice", BLOCK, 50.0, start=None), **SETTINGS)
    after = monitor.generate(PROMPT, **SETTINGS)
    assert after.token_ids == before.token_ids and np.array_equal(after.raw, before.raw)
    assert before.provenance.steering == after.provenance.steering == ()


def test_a_trace_records_how_it_was_steered() -> None:
    monitor = monitor_of()
    steers = [
        Steer("malice", 1, -2.0, start=3, unit="sd"),
        Steer.cap("candour", 0, 1.5),
        Steer.ablate("candour", 2, start=None),
    ]
    trace = monitor.generate(PROMPT, steer=steers, max_new_tokens=1)
    assert [dict(s) for s in trace.provenance.steering] == [
        {"trait": "malice", "block": 1, "mode": "add", "unit": "sd", "start": 3, "amount": -2.0},
        {"trait": "candour", "block": 0, "mode": "cap", "unit": "residual", "start": 0, "amount": 1.5},
        {"trait": "candour", "block": 2, "mode": "ablate", "unit": "residual", "start": None},
    ]


# What is refused.


@pytest.mark.parametrize("amount", [float("nan"), float("inf"), -float("inf"), "much", None])
def test_an_amount_that_is_no_finite_number_is_refused(amount: Any) -> None:
    with pytest.raises(SettingError):
        Steer("malice", 0, amount)
    with pytest.raises(SettingError):
        Steer.cap("malice", 0, amount)


@pytest.mark.parametrize("start", [-1, -10, float("nan"), 1.5, "0"])
def test_a_start_that_is_not_a_reply_position_is_refused(start: Any) -> None:
    with pytest.raises(SettingError, match="start"):
        Steer("malice", 0, 1.0, start=start)


def test_unknown_units_and_modes_are_refused() -> None:
    unit: Any = "z"
    mode: Any = "multiply"
    with pytest.raises(SettingError, match="'z'"):
        Steer("malice", 0, 1.0, unit=unit)
    with pytest.raises(SettingError, match="multiply"):
        Steer("malice", 0, 1.0, mode=mode)
    with pytest.raises(SettingError, match="threshold"):
        Steer("malice", 0, mode="cap")


def test_unknown_traits_and_blocks_are_refused_before_anything_runs() -> None:
    monitor, forwards = monitor_of(), []
    handle = monitor.lm.model.register_forward_pre_hook(lambda *_: forwards.append(1))
    try:
        for steer, error in (
            (Steer("charm", 0, 1.0), UnknownTrait),
            (Steer("malice", 3, 1.0), UnknownBlock),
            (Steer("malice", -1, 1.0), UnknownBlock),
            ([Steer("malice", 0, 1.0), Steer("charm", 0, 1.0)], UnknownTrait),
        ):
            for run in (
                monitor.generate,
                monitor.read,
                monitor.stream,
                lambda p, **kw: monitor.generate_batch([p], **kw),
            ):
                with pytest.raises(error):
                    run(PROMPT, steer=steer)
    finally:
        handle.remove()
    assert not forwards


def test_standard_deviations_without_a_null_are_refused() -> None:
    lm = tiny_lm("llama", "chatml")
    bare = PersonaMonitor(lm, random_vectors(3, TRAITS), blocks="all")
    with pytest.raises(NotCalibrated, match="malice"):
        bare.read(PROMPT, steer=Steer("malice", 0, 1.0, unit="sd"))


def test_standard_deviations_of_a_block_without_a_spread_are_refused() -> None:
    """A σ of zero or NaN would make the push nothing, or everything NaN."""
    monitor = monitor_of()
    for std in (0.0, np.nan):
        null = Null(np.zeros(3, "f4"), np.full(3, std, "f4"), np.zeros((3, 1), "f4"), (0.5,))
        vectors = PersonaVectors(monitor.vectors.tensors, monitor.vectors.best_block, dict.fromkeys(TRAITS, null))
        with pytest.raises(NotCalibrated):
            PersonaMonitor(monitor.lm, vectors, blocks="all").read(PROMPT, steer=Steer("malice", 0, 1.0, unit="sd"))


def test_each_row_of_a_batch_may_start_at_another_token() -> None:
    direction = torch.tensor([1.0, 0.0, 0.0])
    states, index = torch.zeros(3, 4, 3), torch.arange(-1, 3).expand(3, 4)
    change = Intervention(Steer("t", 0, strength=2.0), direction, 2.0, starts=torch.tensor([0, 2, 2**40]))
    moved = change.apply(states, index)[..., 0]
    assert moved.tolist() == [[2.0] * 4, [0.0, 0.0, 2.0, 2.0], [0.0] * 4]


def test_a_control_moves_a_state_by_the_same_amount_elsewhere() -> None:
    direction, along = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    states, index = torch.tensor([[[3.0, 5.0], [-1.0, 5.0]]]), torch.tensor([[0, 1]])
    cap = Intervention(Steer.cap("t", 0, threshold=1.0), direction, 1.0, along=along)
    assert cap.apply(states, index).tolist() == [[[3.0, 3.0], [-1.0, 5.0]]]
