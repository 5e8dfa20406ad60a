"""Correlations of every reply's source with every reply's target at a lag: observed and shuffled ones at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class AlignedInnovations:
    """Innovations of all traits on the same tokens, padded with zeros at the end."""

    values: np.ndarray  # [n_traits, n_replies, longest]
    inside: np.ndarray  # 1.0 within the reply, [n_replies, longest]

    @classmethod
    def of(cls, innovations: Sequence[Sequence[np.ndarray]], lengths: Sequence[int]) -> AlignedInnovations:
        """Every trait loses as many first tokens as the one with the highest order."""
        shortest = [min(len(trait[i]) for trait in innovations) for i in range(len(lengths))]
        values = np.zeros((len(innovations), len(lengths), max(shortest)))
        for k, trait in enumerate(innovations):
            for i, n in enumerate(shortest):
                values[k, i, :n] = trait[i][len(trait[i]) - n :]
        inside = (np.arange(max(shortest)) < np.array(shortest)[:, None]).astype(float)
        return cls(values, inside)

    def at_lag(self, lag: int) -> LaggedSums:
        n = max(0, self.values.shape[2] - lag)
        early, late = self.values[..., :n], self.values[..., lag:]
        inside_early, inside_late = self.inside[:, :n], self.inside[:, lag:]
        return LaggedSums(
            early=early,
            late=late,
            n=inside_early @ inside_late.T,
            sums=(early @ inside_late.T, inside_early @ late.swapaxes(1, 2)),
            squares=(early**2 @ inside_late.T, inside_early @ (late**2).swapaxes(1, 2)),
        )


@dataclass(frozen=True, eq=False)
class LaggedSums:
    """Sums over the tokens that reply i (source) and reply j (target, `lag` tokens later) have in common."""

    early: np.ndarray  # [n_traits, n_replies, longest - lag]
    late: np.ndarray  # [n_traits, n_replies, longest - lag]
    n: np.ndarray  # [n_replies, n_replies]
    sums: tuple[np.ndarray, np.ndarray]  # of source and target, each [n_traits, n_replies, n_replies]
    squares: tuple[np.ndarray, np.ndarray]

    def fisher(self, a: int, b: int) -> tuple[np.ndarray, np.ndarray]:
        """Fisher's z of trait a in reply i and trait b in reply j, and its weight n - 3, each `[n_replies, n_replies]`.

        The weight is 0 where there are too few tokens, or one series is constant.
        """
        n = np.maximum(self.n, 1.0)
        product = self.early[a] @ self.late[b].T - self.sums[0][a] * self.sums[1][b] / n
        spread_a = self.squares[0][a] - self.sums[0][a] ** 2 / n
        spread_b = self.squares[1][b] - self.sums[1][b] ** 2 / n
        good = (self.n > 3) & (spread_a > 1e-12 * self.squares[0][a]) & (spread_b > 1e-12 * self.squares[1][b])
        r = np.divide(product, np.sqrt(np.where(good, spread_a * spread_b, 1.0)), out=np.zeros_like(n), where=good)
        return np.arctanh(np.clip(r, -0.999999, 0.999999)), np.where(good, self.n - 3.0, 0.0)
