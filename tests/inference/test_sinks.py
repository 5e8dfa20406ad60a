"""Sink tokens: found by the norm of their state, and left out of means and samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from persona_core.errors import NumericalError
from persona_core.inference.pooled_states import PooledStates
from persona_core.inference.pooling import parse_position
from persona_core.inference.sections import NEITHER
from persona_core.inference.sinks import norm_limits, norm_limits_of
from tests.support import oracle
from tests.support.tiny import tiny_lm


def pooled(states: torch.Tensor, limit: float, names: tuple[str, ...], n_sampled: int = 0) -> PooledStates:
    """One block; every token of `[rows, tokens, d_model]` is a reply token."""
    found = PooledStates([parse_position(n) for n in names], 1, max_norm=np.array([limit], "f4"), n_sampled=n_sampled)
    index = torch.arange(states.shape[1]).expand(states.shape[:2])
    found.begin(index, index, None)
    found.add(0, states)
    return found


def with_a_sink(at: int = 2) -> torch.Tensor:
    torch.manual_seed(0)
    states = torch.randn(2, 6, 4)
    states[0, at] *= 1000
    return states


def test_the_limit_follows_the_median_whatever_the_sinks() -> None:
    rng = np.random.default_rng(0)
    norms = np.exp(rng.normal(0, 0.1, size=(2, 999))) * np.array([[5.0], [80.0]])
    clean = norm_limits(norms)
    np.testing.assert_allclose(clean, 3 * np.median(norms, axis=1), rtol=0.02)
    norms[:, :40] *= 100
    np.testing.assert_allclose(norm_limits(norms), clean, rtol=0.05)


def test_a_block_whose_norms_spread_widely_has_a_wider_limit() -> None:
    norms = np.exp(np.random.default_rng(0).normal(0, 0.4, size=(1, 5000)))
    limit = norm_limits(norms)[0]
    assert limit > 8 and (norms > limit).mean() < 1e-3


@pytest.mark.parametrize(
    ("norms", "says"),
    [
        (np.empty((1, 0)), "No token"),
        (np.array([[1.0, 2.0, 3.0], [1.0, np.nan, np.inf]]), "Block 1: 2 of 3 norms are NaN or infinite"),
    ],
)
def test_a_limit_needs_finite_norms(norms: np.ndarray, says: str) -> None:
    with pytest.raises(NumericalError, match=says):
        norm_limits(norms)


def test_the_first_token_of_a_text_is_not_measured() -> None:
    """It is a sink in most models, and would be half of the tokens of short texts."""
    lm = tiny_lm("llama", "chatml")
    rows = [[7, 3], [8, 5], [1, 7, 3, 9]]
    by_hand = [oracle.norms(lm.model, lm.blocks.modules, row)[:, 1:] for row in rows]  # each [n_blocks, n_tokens - 1]
    np.testing.assert_allclose(norm_limits_of(lm, rows), norm_limits(np.concatenate(by_hand, axis=1)), rtol=1e-4)


def test_means_leave_sink_tokens_out_and_say_what_they_would_be_with_them() -> None:
    states = with_a_sink()
    found = pooled(states, 50.0, ("reply_mean", "reply_mean_with_sinks")).means()
    plain = states[0, [0, 1, 3, 4, 5]].mean(0).numpy()
    np.testing.assert_allclose(found[0, 0, 0], plain, rtol=1e-5)
    np.testing.assert_allclose(found[0, 1, 0], states[0].mean(0).numpy(), rtol=1e-5)
    np.testing.assert_allclose(found[1], states[1].mean(0).expand(2, 4)[:, None].numpy(), rtol=1e-5, atol=1e-6)


def test_a_reply_of_nothing_but_sinks_keeps_them() -> None:
    states = torch.full((1, 3, 4), 1000.0)
    np.testing.assert_allclose(pooled(states, 50.0, ("reply_mean",)).means()[0, 0, 0], 1000.0)


def test_the_last_prompt_token_is_taken_whatever_its_norm() -> None:
    states = torch.full((1, 1, 4), 1000.0)
    found = PooledStates([parse_position("prompt_last")], 1, max_norm=np.array([50.0], "f4"))
    found.begin(torch.tensor([[-1]]), torch.tensor([[NEITHER]]), None)
    found.add(0, states)
    np.testing.assert_allclose(found.means()[0, 0, 0], 1000.0)


def test_samples_hold_no_sink_token() -> None:
    states = with_a_sink()
    found = pooled(states, 50.0, ("reply_mean",), n_sampled=6).samples()  # [rows, 6, 1, 4]
    assert np.isnan(found[0, 2]).all() and np.isfinite(found[0, [0, 1, 3, 4, 5]]).all() and np.isfinite(found[1]).all()


def test_a_sample_is_the_same_token_by_token_and_at_once() -> None:
    torch.manual_seed(0)
    states = torch.randn(2, 40, 4)
    lengths = (40, 23)
    index = torch.arange(40).expand(2, 40)
    mask = torch.stack([torch.arange(40) < n for n in lengths])
    at_once = PooledStates([parse_position("reply_mean")], 1, n_sampled=5)
    at_once.begin(index, torch.where(mask, index, NEITHER), None)
    at_once.add(0, states)
    stepwise = PooledStates([parse_position("reply_mean")], 1, n_rows=2, n_sampled=5)
    for t in range(40):
        stepwise.begin(index[:, t : t + 1], torch.where(mask, index, NEITHER)[:, t : t + 1], torch.arange(2))
        stepwise.add(0, states[:, t : t + 1])
    np.testing.assert_array_equal(at_once.samples(), stepwise.samples())
    for row, n in enumerate(lengths):  # five different tokens of the reply, none beyond its end
        kept = {int(np.abs(states[row].numpy() - s).sum(1).argmin()) for s in at_once.samples()[row, :, 0]}
        assert len(kept) == 5 and max(kept) < n


@pytest.mark.parametrize("n_sampled", [1, 5, 8])
@pytest.mark.parametrize("n", [1, 7, 8, 9, 64, 300, 419])
def test_a_sample_is_spread_evenly_over_a_reply_of_any_length(n: int, n_sampled: int) -> None:
    states = torch.arange(n, dtype=torch.float32)[None, :, None]
    found = pooled(states, 1e9, ("reply_mean",), n_sampled).samples()[0, :, 0, 0]
    kept = np.sort(found[np.isfinite(found)])
    assert len(kept) == len(set(kept)) == min(n, n_sampled) and kept[0] == 0
    if n_sampled > 1:
        gaps = np.diff([*kept, n])
        assert gaps.max() <= 4 * n / n_sampled + 1


def test_of_a_text_beyond_the_context_only_what_fits_is_read() -> None:
    lm = tiny_lm("llama", "chatml")
    assert lm.context_length is not None
    row = [1 + t % 90 for t in range(5 * lm.context_length)]
    np.testing.assert_array_equal(norm_limits_of(lm, [row]), norm_limits_of(lm, [row[: lm.context_length]]))
