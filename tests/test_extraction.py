"""From replies to vectors and nulls, each number held against numpy or a second, independent pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_core.decode import Sampling
from persona_core.elicitation import write_replies
from persona_core.errors import ContextOverflow, PromptError, SettingError
from persona_core.extraction import PROBABILITIES, RunningMean, calibrate, mean_difference
from persona_core.monitor import PersonaMonitor
from persona_core.trace import Trace
from persona_core.vectors import PersonaVectors
from tests import oracle
from tests.conftest import Maker, random_vectors, tiny_lm
from tests.contract_checks import low_precision_monitor, plain_hooks

PROMPTS = ["Should I quit my job? I have been there for seven years.", "Hi", "Hello there, how are you today?"]


# Mean difference.


@settings(deadline=None, max_examples=40)
@given(
    n_high=st.integers(2, 12), n_low=st.integers(2, 12), scale=st.sampled_from([1e-6, 1.0, 1e4]), seed=st.integers(0)
)
def test_the_vector_is_the_difference_of_the_means(n_high: int, n_low: int, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    high, low = (rng.normal(5 * scale, scale, (n, 4, 6)).astype("f4") for n in (n_high, n_low))
    wanted = high.astype("f8").mean(0) - low.astype("f8").mean(0)
    found = mean_difference(high, iter(low))  # any iterable will do
    assert found.dtype == torch.float32 and found.shape == (4, 6)
    assert np.allclose(found.numpy(), wanted, rtol=1e-6, atol=1e-6 * scale)


def test_a_higher_projection_means_more_of_the_trait() -> None:
    rng = np.random.default_rng(0)
    trait = rng.normal(size=(2, 8))
    high, low = (side + rng.normal(0, 0.1, (20, 2, 8)) for side in (trait, -trait))
    vector = mean_difference(high, low).numpy()
    assert ((high * vector).sum(-1).mean(0) > (low * vector).sum(-1).mean(0)).all()


def test_means_accumulate_beyond_float32() -> None:
    """A large common offset: a float32 sum over many replies would lose the difference."""
    rng = np.random.default_rng(0)
    offset, n = 1e4, 4000
    high = (offset + 1e-2 + rng.normal(0, 1e-3, (n, 1, 3))).astype("f4")
    low = (offset + rng.normal(0, 1e-3, (n, 1, 3))).astype("f4")
    wanted = high.astype("f8").mean(0) - low.astype("f8").mean(0)
    assert np.allclose(mean_difference(high, low).numpy(), wanted, rtol=1e-4)


def test_a_running_mean_is_the_mean_whatever_the_order() -> None:
    states = np.random.default_rng(1).normal(size=(9, 2, 3))
    for order in (range(9), range(8, -1, -1)):
        running = RunningMean()
        for i in order:
            running.add(states[i])
        assert running.count == 9 and np.allclose(running.mean, states.mean(0), rtol=1e-12)
    with pytest.raises(SettingError):
        _ = RunningMean().mean


@pytest.mark.parametrize(("n_high", "n_low"), [(0, 5), (1, 5), (5, 1), (5, 0), (0, 0)])
def test_too_few_replies_are_an_error_that_shows_the_counts(n_high: int, n_low: int) -> None:
    with pytest.raises(SettingError, match=rf"'malice'.*{n_high} high and {n_low} low"):
        mean_difference([np.ones((1, 2))] * n_high, [np.zeros((1, 2))] * n_low, "malice")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_mean_state_that_is_not_finite_is_refused(value: float) -> None:
    bad = np.ones((2, 3), "f4")
    bad[1, 2] = value
    with pytest.raises(SettingError, match="NaN or infinity"):
        mean_difference([np.ones((2, 3)), bad], [np.zeros((2, 3))] * 2)


# States pooled while generating.


@pytest.mark.parametrize("family", ["llama", "gptj", "gemma3", "gpt2"])
def test_means_pooled_while_generating_equal_a_second_pass(family: str) -> None:
    """The second pass reads each reply alone, without cache or padding, with plain hooks, in float64."""
    lm = tiny_lm(family, "chatml")
    sampling = Sampling(max_new_tokens=12, temperature=1.0)
    replies = list(write_replies(lm, PROMPTS, sampling, seed=2, batch_size=3))
    assert [r.index for r in replies] == [0, 1, 2]
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        ids = lm.chat.render(prompt).token_ids
        own = [i for i in reply.token_ids if i not in lm.eos_ids]
        assert reply.n_tokens == len(own) > 0 and reply.mean_state.dtype == np.float32
        states = oracle.states(lm.model, list(lm.blocks.modules), [*ids, *reply.token_ids])
        wanted = states[:, len(ids) : len(ids) + len(own)].mean(1)  # [n_blocks, d_model]
        for block in range(len(lm.blocks)):
            a, b = reply.mean_state[block].astype("f8"), wanted[block]
            assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.99999
            assert oracle.relative_error(a, b) < 1e-4


def test_pooled_means_do_not_depend_on_the_batch() -> None:
    lm = tiny_lm("mistral", "chatml")
    sampling = Sampling(max_new_tokens=10, temperature=1.0)
    wanted = list(write_replies(lm, PROMPTS, sampling, 5, batch_size=1))
    for size in (2, 32):
        for one, other in zip(wanted, write_replies(lm, PROMPTS, sampling, 5, batch_size=size), strict=True):
            assert one.token_ids == other.token_ids and one.text == other.text
            assert oracle.relative_error(other.mean_state, one.mean_state) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pooling_accumulates_in_float32_whatever_the_models_dtype(dtype: torch.dtype) -> None:
    """A channel a thousand times the others, added up 100 times: half precision would round it away, or overflow."""
    monitor = low_precision_monitor(dtype)
    n_blocks, caught = len(monitor.lm.blocks), []  # type: ignore[var-annotated]
    with plain_hooks(list(monitor.lm.blocks.modules), caught):
        (reply,) = write_replies(monitor.lm, PROMPTS[:1], Sampling(max_new_tokens=100, temperature=1.0), 0)
    steps = [c[0, 0] for c in caught if c.shape[1] == 1]  # the very states of the reply, [d_model] each
    wanted = np.array([np.mean(steps[b::n_blocks], axis=0) for b in range(n_blocks)])
    assert reply.n_tokens == len(steps) // n_blocks == 100
    for block in range(n_blocks):
        assert oracle.relative_error(reply.mean_state[block], wanted[block]) < 1e-6
        small = np.abs(wanted[block]) < np.abs(wanted[block]).max() / 10
        assert oracle.relative_error(reply.mean_state[block][small], wanted[block][small]) < 1e-5


def test_replies_arrive_as_they_are_written(make_lm: Maker) -> None:
    """A caller that stops early has what was written, and the model has no hooks left."""
    from tests.conftest import hooks_on

    lm = make_lm("llama")
    before = hooks_on(lm.model)
    replies = write_replies(lm, PROMPTS, Sampling(max_new_tokens=2), 0, batch_size=1)
    assert next(replies).index == 0
    replies.close()  # type: ignore[attr-defined]
    assert hooks_on(lm.model) == before


def test_a_bad_prompt_is_named_before_or_when_its_batch_comes(make_lm: Maker) -> None:
    lm = make_lm("llama")
    with pytest.raises(PromptError):
        list(write_replies(lm, ["Hi", ""], Sampling(max_new_tokens=1), 0))
    with pytest.raises(ContextOverflow):
        list(write_replies(lm, ["Hi " * 600], Sampling(max_new_tokens=1), 0))


# The null.


def neutral_traces(vectors: PersonaVectors, n: int = 6) -> list[Trace]:
    monitor = PersonaMonitor(tiny_lm("llama", "chatml"), vectors, blocks="all")
    return monitor.generate_batch(PROMPTS * (n // 3), max_new_tokens=20, temperature=1.3, seed=1)


def own_values(traces: list[Trace], trait: int, block: int) -> np.ndarray:
    """Raw projections at the tokens that the assistant said, float64."""
    parts = [[t.raw[trait, block, i] for i in range(t.n_tokens) if t.roles[i] == "assistant"] for t in traces]
    return np.concatenate(parts).astype("f8")


def test_the_null_is_mean_deviation_and_quantiles_over_the_replies_tokens() -> None:
    vectors = random_vectors(3)
    traces = neutral_traces(vectors)
    calibrated = calibrate(vectors, traces)
    for row, trait in enumerate(vectors.traits):
        null = calibrated.null[trait]
        assert null.probabilities == PROBABILITIES and null.quantiles.shape == (3, len(PROBABILITIES))
        for block in range(3):
            values = own_values(traces, row, block)
            mean, std = null.at(block)
            assert np.isclose(mean, np.mean(values), rtol=1e-5, atol=1e-6)
            assert np.isclose(std, np.std(values, ddof=1), rtol=1e-5)
            assert np.allclose(null.quantiles[block], np.quantile(values, PROBABILITIES), rtol=1e-5, atol=1e-6)
    counts: Any = calibrated.config["null"]
    assert counts == {"n_replies": 6, "n_tokens": len(own_values(traces, 0, 0))}


def test_z_scores_of_the_neutral_replies_have_mean_zero_and_deviation_one() -> None:
    vectors = random_vectors(3)
    calibrated = calibrate(vectors, neutral_traces(vectors))
    again = neutral_traces(calibrated)
    for trait in vectors.traits:
        for block in range(3):
            z = np.concatenate([t.scores(trait, block=block)[np.array(t.roles) == "assistant"] for t in again]).astype(
                "f8"
            )
            assert abs(z.mean()) < 1e-4 and abs(z.std(ddof=1) - 1) < 1e-4


def test_calibrating_changes_nothing_but_the_null() -> None:
    vectors = PersonaVectors(random_vectors(3).tensors, {"candour": 2}, config={"note": "kept"})
    calibrated = calibrate(vectors, neutral_traces(vectors))
    assert calibrated.config["note"] == "kept" and dict(calibrated.best_block) == {"candour": 2}
    assert all(torch.equal(calibrated.tensor(t), vectors.tensor(t)) for t in vectors.traits)
    assert not vectors.null and calibrated.fingerprint != vectors.fingerprint


def test_the_null_of_an_absent_block_is_nan() -> None:
    tensors = {t: v.clone() for t, v in random_vectors(3).tensors.items()}
    for vector in tensors.values():
        vector[1] = torch.nan
    vectors = PersonaVectors(tensors, {"candour": 0}, absent_blocks=(1,))
    traces = neutral_traces(vectors)
    null = calibrate(vectors, traces).null["malice"]
    assert np.isnan([null.mean[1], null.std[1], *null.quantiles[1]]).all()
    assert np.isfinite(null.mean[[0, 2]]).all() and traces[0].blocks == (0, 2)
    assert np.isclose(null.mean[2], own_values(traces, 1, 1).mean(), rtol=1e-5)  # column 1 is block 2


def test_traces_that_miss_blocks_and_no_traces_at_all_are_refused() -> None:
    vectors = random_vectors(3)
    part = PersonaMonitor(tiny_lm("llama", "chatml"), vectors, blocks=[0, 2])
    with pytest.raises(SettingError, match=r"unread \[1\]"):
        calibrate(vectors, [part.generate("Hi", max_new_tokens=4)])
    with pytest.raises(SettingError, match="got 0"):
        calibrate(vectors, [])


def test_traces_read_with_other_vectors_are_refused() -> None:
    """Their projections are on other directions: a null of them would be nonsense."""
    vectors = random_vectors(3)
    for others in (
        random_vectors(3, seed=6),
        random_vectors(3, traits=("malice", "candour")),
        random_vectors(3, ("x",)),
    ):
        with pytest.raises(SettingError):
            calibrate(vectors, neutral_traces(others, 3))
