"""Correlations of every two traits' innovations within each reply, at a lag."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MIN_TOKENS = 4
"""Pairs of tokens that a correlation needs: Fisher's z has the variance 1 / (n - 3)."""


def lagged_fisher(innovations: Sequence[np.ndarray], lag: int) -> tuple[np.ndarray, np.ndarray]:
    """Fisher's z of each trait with each trait `lag` tokens later, and its weight n - 3.

    Args:
        innovations: of each reply, `[n_traits, n_tokens]`; NaN where there is none. A pair of tokens counts where both
            have one.
        lag: 0 or more.

    Returns:
        Two arrays `[n_replies, n_traits, n_traits]`: source, then target. The weight is 0 where there are too few pairs
        of tokens, or one of the two does not vary over them.

    >>> rng = np.random.default_rng(0)
    >>> source = rng.normal(size=500)
    >>> z, weight = lagged_fisher([np.stack([source, np.roll(source, 3)])], 3)
    >>> float(np.tanh(z[0, 0, 1]).round(3)), float(weight[0, 0, 1])
    (1.0, 494.0)
    """
    found = [_of_reply(reply[:, : max(0, reply.shape[1] - lag)], reply[:, lag:]) for reply in innovations]
    z, weight = (np.stack(arrays) for arrays in zip(*found, strict=True))
    return z, weight


def _of_reply(early: np.ndarray, late: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    has_early, has_late = (np.isfinite(side).astype(float) for side in (early, late))  # [n_traits, n_tokens - lag]
    x, y = np.nan_to_num(early), np.nan_to_num(late)
    n = has_early @ has_late.T  # [n_traits, n_traits]: over the pairs of tokens that both have
    count = np.maximum(n, 1.0)
    sum_x, sum_y, squares_x, squares_y = x @ has_late.T, has_early @ y.T, x**2 @ has_late.T, has_early @ (y**2).T
    spread_x, spread_y = squares_x - sum_x**2 / count, squares_y - sum_y**2 / count
    good = (n >= MIN_TOKENS) & (spread_x > 1e-12 * squares_x) & (spread_y > 1e-12 * squares_y)
    product = x @ y.T - sum_x * sum_y / count
    r = np.divide(product, np.sqrt(np.where(good, spread_x * spread_y, 1.0)), out=np.zeros_like(n), where=good)
    return np.arctanh(np.clip(r, -0.999999, 0.999999)), np.where(good, n - 3.0, 0.0)
