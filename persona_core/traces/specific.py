"""The specific score: that the text shows this trait, rather than that it is not neutral.

A trait's projection is turned into log odds against neutral text, l_k = slope_k × raw_k + offset_k (the log likelihood
ratio of two normal distributions with the same spread, as in Fisher's linear discriminant). The odds of trait k against
everything else known are then

    o_k = l_k - log(1 + Σ_{j ≠ k} exp(l_j))

where the 1 stands for neutral text and j runs over the other traits. Its unit is the standard deviation of o_k over the
tokens of neutral replies, so 0 is neutral and +2 is rare. A token that looks like every trait a little is high on every
z and low on every specific score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class LogOdds:
    """What turns raw projections into specific scores, for each trait and block.

    Attributes:
        slope, offset: of the log odds against neutral, float32 `[n_traits, n_blocks]`.
        mean, std: of o_k over the tokens of neutral replies, float32 `[n_traits, n_blocks]`.
    """

    slope: np.ndarray
    offset: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.slope.shape)

    def at(self, column: int) -> LogOdds:
        """The same at one block, `[n_traits]` each."""
        return LogOdds(*(part[:, column] for part in (self.slope, self.offset, self.mean, self.std)))

    def select(self, traits: Sequence[int], blocks: Sequence[int]) -> LogOdds:
        """The same for some rows and columns."""
        rows = np.ix_(traits, blocks)
        return LogOdds(*(part[rows] for part in (self.slope, self.offset, self.mean, self.std)))


def specific_scores(raw: np.ndarray, at: LogOdds) -> np.ndarray:
    """Specific scores of all traits at one block, float32 `[n_traits, n_tokens]`.

    Args:
        raw: projections of all traits at that block, `[n_traits, n_tokens]`.
        at: `[n_traits]` each.

    >>> at = LogOdds(np.ones(2), np.zeros(2), np.zeros(2), np.ones(2))
    >>> specific_scores(np.array([[9.0], [9.0]]), at).astype(int).tolist()  # not neutral, but neither in particular
    [[0], [0]]
    >>> specific_scores(np.array([[9.0], [0.0]]), at).astype(int).tolist()
    [[8], [-9]]
    """
    return np.stack([specific_score(raw, at, k) for k in range(len(raw))])


def specific_score(raw: np.ndarray, at: LogOdds, trait: int) -> np.ndarray:
    """Specific scores of one trait at one block, float32 `[n_tokens]`.

    Args:
        raw, at: as for `specific_scores`.
        trait: its row.
    """
    odds = _odds(raw, at.slope, at.offset, trait)
    return ((odds - at.mean[trait]) / at.std[trait]).astype(np.float32)


def odds_against_rest(raw: np.ndarray, slope: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """The log odds o_k of each trait against all the rest, float64 `[n_traits, n_tokens]`.

    Args:
        raw: `[n_traits, n_tokens]`.
        slope, offset: `[n_traits]`.
    """
    return np.stack([_odds(raw, slope, offset, k) for k in range(len(raw))])


def _odds(raw: np.ndarray, slope: np.ndarray, offset: np.ndarray, trait: int) -> np.ndarray:
    each = slope[:, None].astype(np.float64) * raw + offset[:, None]  # [n_traits, n_tokens]
    rest = np.concatenate([np.zeros((1, each.shape[1])), np.delete(each, trait, axis=0)])  # neutral text is one of them
    return each[trait] - np.logaddexp.reduce(rest, axis=0)
