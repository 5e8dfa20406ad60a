"""The clearest rise of a series of scores."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_ind

from persona_core.analysis.turning_point import MIN_PART, turning_point


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_split_with_the_largest_t(seed: int) -> None:
    rng = np.random.default_rng(seed)
    z = rng.standard_normal(60) + 2.0 * (np.arange(60) >= rng.integers(12, 48))
    z[rng.integers(0, 60, 5)] = np.nan
    known = np.flatnonzero(np.isfinite(z))
    values = z[known]
    splits = range(MIN_PART, len(values) - MIN_PART + 1)
    best = max(splits, key=lambda k: ttest_ind(values[k:], values[:k]).statistic)
    found = turning_point(z)
    assert found is not None
    assert found.at == known[best]
    assert found.t == pytest.approx(ttest_ind(values[best:], values[:best]).statistic)
    assert (found.before, found.after) == pytest.approx((values[:best].mean(), values[best:].mean()))


def test_nothing_turns_in_a_short_or_a_falling_series() -> None:
    assert turning_point(np.arange(2 * MIN_PART - 1.0)) is None
    assert turning_point(-np.arange(40.0)) is None
    assert turning_point(np.full(40, np.nan)) is None
    assert turning_point(np.zeros(40)) is None
