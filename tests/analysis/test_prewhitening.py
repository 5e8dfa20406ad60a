"""Innovations: what the past does not foretell, without what all replies share, and nothing shifted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter
from scipy.stats import pearsonr

from persona_core.analysis.prewhitening import MIN_REPLIES, whiten
from persona_core.errors import SettingError


def replies(seed: int, phi: tuple[float, ...], n: int = 78) -> list[tuple[np.ndarray, np.ndarray]]:
    """Series of an autoregression with the coefficients `phi`, each with the noise that made it."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        noise = rng.normal(size=int(rng.integers(40, 141)) + 100)
        found.append((lfilter([1.0], [1.0, *(-p for p in phi)], noise)[100:], noise[100:]))
    return found


def lag_correlation(series: list[np.ndarray], lag: int) -> float:
    """Over all replies together, token by token."""
    pairs = [(z[t], z[t + lag]) for z in series for t in range(len(z) - lag)]
    return float(pearsonr(*zip(*pairs, strict=True))[0])


@pytest.mark.parametrize("phi", [(), (0.65,), (0.9,), (0.4, 0.15, 0.2)], ids=str)
def test_innovations_are_white_and_are_the_noise_that_made_the_series(phi: tuple[float, ...]) -> None:
    made = replies(1, phi)
    found = whiten([z for z, _ in made])
    innovations = list(found.innovations)
    assert all(abs(lag_correlation(innovations, lag)) < 0.04 for lag in (1, 2, 3, 5, 8))
    for (z, noise), e in zip(made, innovations, strict=True):
        assert len(e) == len(z) - found.order
        assert pearsonr(e, noise[found.order :])[0] > 0.95  # at the same token, not one beside it
    if phi:
        assert abs(lag_correlation([z for z, _ in made], 1)) > 0.5


@pytest.mark.parametrize(("phi", "order"), [((), 0), ((0.65,), 1), ((0.4, 0.15, 0.2), 3)], ids=str)
def test_aic_seldom_takes_an_order_below_the_true_one(phi: tuple[float, ...], order: int) -> None:
    orders = [whiten([z for z, _ in replies(seed, phi)]).order for seed in range(8)]
    assert min(orders) >= order and np.median(orders) <= order + 1


def test_the_order_is_the_one_of_the_smallest_aic_by_hand() -> None:
    series = [z for z, _ in replies(3, (0.4, 0.15, 0.2), n=30)]
    longest = max(map(len, series))
    reached = [[z[t] for z in series if len(z) > t] for t in range(longest)]
    pooled = np.mean([v for values in reached if len(values) < MIN_REPLIES for v in values])
    means = [np.mean(values) if len(values) >= MIN_REPLIES else pooled for values in reached]
    deviations = []
    for z in series:
        level = np.array([z[t] - means[t] for t in range(len(z))])
        deviations.append(level - level.mean())
    aic = []
    for order in range(5):
        rows = [[d[t - k] for k in range(1, order + 1)] for d in deviations for t in range(4, len(d))]
        now = np.array([d[t] for d in deviations for t in range(4, len(d))])
        guess = np.array(rows) @ np.linalg.lstsq(np.array(rows), now, rcond=None)[0] if order else np.zeros(len(now))
        aic.append(len(now) * np.log(np.mean((now - guess) ** 2)) + 2 * order)
    found = whiten(series, max_order=4)
    assert found.order == int(np.argmin(aic))
    assert np.allclose(found.aic, np.array(aic) - min(aic))


def test_what_all_replies_share_at_a_position_is_taken_off() -> None:
    made = [z for z, _ in replies(4, (0.65,))]
    rise = 3 * np.sin(np.arange(200) / 7)
    plain, drifting = whiten(made), whiten([z + rise[: len(z)] for z in made])
    common = [e for e in range(60) if e >= drifting.order]
    together = np.mean([[e[t] for t in range(30)] for e in drifting.innovations], axis=0)
    assert len(common) and np.abs(together).max() < 1e-1
    # Positions that few replies reach keep some of it; the first ones do not.
    same = [np.allclose(a[:25], b[:25], atol=0.3) for a, b in zip(plain.innovations, drifting.innovations, strict=True)]
    assert np.mean(same) > 0.95


def test_what_replies_share_at_a_position_is_the_mean_of_those_that_have_a_score_there() -> None:
    made = [z.copy() for z, _ in replies(4, (0.65,))]
    for i, z in enumerate(made):
        z[20] = np.nan if i % 2 else z[20] + 10
    found = whiten(made)
    there = [e[20 - found.order] for e in found.innovations]
    assert abs(np.nanmean(there)) < 0.5 and np.isnan(there).sum() == len(made) // 2


def test_a_level_per_reply_does_not_pass_for_persistence() -> None:
    made = [z for z, _ in replies(5, (0.65,))]
    rng = np.random.default_rng(0)
    found = whiten([z + rng.normal(0, 10) for z in made])
    assert abs(found.coefficients[0] - 0.65) < 0.08


def test_pooled_coefficients_are_nearer_to_the_truth_than_those_of_single_replies() -> None:
    """The measured reason for one autoregression a trait."""
    made = [z for z, _ in replies(6, (0.9,))]
    pooled = whiten(made, max_order=1).coefficients[0]
    single = [pearsonr(z[:-1] - z.mean(), z[1:] - z.mean())[0] for z in made]
    assert abs(pooled - 0.9) < abs(np.mean(single) - 0.9)


def test_what_cannot_be_whitened_is_refused_with_the_reason() -> None:
    made = [z for z, _ in replies(7, (0.65,))]
    with pytest.raises(SettingError, match=f"19 replies; at least {MIN_REPLIES}"):
        whiten(made[:19])
    with pytest.raises(SettingError, match="Reply 3 has 5 tokens; an order of up to 8 needs 12"):
        whiten([*made[:3], np.arange(5.0), *made[3:]])
    with pytest.raises(SettingError, match="do not vary"):
        whiten([np.arange(50.0)] * 30)
    with pytest.raises(SettingError, match="max_order"):
        whiten(made, max_order=-1)
    broken = made[2].copy()
    broken[7] = np.inf
    with pytest.raises(SettingError, match="Reply 2 contains inf at token 7"):
        whiten([*made[:2], broken, *made[3:]])
    with pytest.raises(SettingError, match="Reply 3 has 5 tokens"):  # tokens that have a score
        whiten([*made[:3], np.r_[np.arange(5.0), np.full(30, np.nan)], *made[3:]])


def test_a_token_without_a_score_costs_its_own_innovation_only() -> None:
    made = replies(9, (0.4, 0.15, 0.2))
    gaps = [z.copy() for z, _ in made]
    for z in gaps[::2]:
        z[[11, 30]] = np.nan
    plain, found = whiten([z for z, _ in made], 4), whiten(gaps, 4)
    assert np.allclose(found.coefficients, plain.coefficients, atol=0.05)
    for i, (a, b) in enumerate(zip(plain.innovations, found.innovations, strict=True)):
        missing = np.flatnonzero(np.isnan(b)) + found.order
        assert missing.tolist() == ([11, 30] if i % 2 == 0 else [])
        far = [t for t in range(len(b)) if not any(0 <= t + found.order - g <= found.order for g in (11, 30))]
        assert np.abs(a[far] - b[far]).max() < 0.3  # the reply's mean moves a little


@pytest.mark.parametrize("window", [3, 8])
def test_smoothed_series_are_refused(window: int) -> None:
    smooth = [np.convolve(z, np.ones(window) / window, "valid") for z, _ in replies(8, (0.65,))]
    with pytest.raises(SettingError, match="running means"):
        whiten(smooth)
