"""By how much couplings exceed those of neutral replies: estimates, intervals and p-values over many pairs at once.

The unit is the prompt: all replies to one move together. A prompt that both samples answer is one unit, so that what it
does to every reply to it cancels.

The null permutes the labels "run" and "neutral": between the replies to a prompt that both samples answer, and between
whole prompts where only one does. The samples often differ in size (one reply to a prompt against five), so what is
permuted is the difference over its standard error: where samples of unequal size differ in spread, the plain difference
would reject a true null too often (Janssen 1997; Chung and Romano 2013). The pairs are many and depend on each other.
So p is adjusted by the largest statistic of each permutation (Westfall and Young 1993): q is the chance of any false
edge, and no p below 1 / (permutations + 1) is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from persona_core.analysis.statistics import expanded_tail


@dataclass(frozen=True, eq=False)
class FisherSample:
    """Fisher's z of many pairs of traits, in the replies of a run and in neutral ones.

    Attributes:
        weighted: z times its weight, float64 `[n_replies, n_pairs]`.
        weight: `[n_replies, n_pairs]`.
        prompt: index of each reply's prompt, `[n_replies]`, ascending without gaps.
        neutral: whether each reply is a neutral one, bool `[n_replies]`.
    """

    weighted: np.ndarray
    weight: np.ndarray
    prompt: np.ndarray
    neutral: np.ndarray

    @classmethod
    def of(
        cls,
        run: tuple[np.ndarray, np.ndarray],
        prompts: np.ndarray,
        neutral: tuple[np.ndarray, np.ndarray],
        neutral_prompts: np.ndarray,
    ) -> FisherSample:
        """Two samples of z and weight, each `[n_replies, n_pairs]`, with the name of each reply's prompt."""
        z, weight = (np.concatenate(both) for both in zip(run, neutral, strict=True))
        _, prompt = np.unique(np.concatenate([prompts, neutral_prompts]), return_inverse=True)
        order = np.argsort(prompt, kind="stable")
        is_neutral = np.arange(len(z)) >= len(prompts)
        return cls((z * weight)[order], weight[order], prompt[order], is_neutral[order])

    def sums(self) -> np.ndarray:
        """Weighted z and weights summed by prompt, `[2 samples, 2, n_prompts, n_pairs]`: run first, z first."""
        values, starts = np.stack([self.weighted, self.weight]), np.flatnonzero(np.diff(self.prompt, prepend=-1))
        return np.stack(
            [np.add.reduceat(values * own[:, None], starts, axis=1) for own in (~self.neutral, self.neutral)]
        )

    def units(self) -> FisherSample:
        """What a permutation moves: the replies to prompts of both samples, and other prompts as a whole."""
        shares = np.bincount(self.prompt, self.neutral) / np.bincount(self.prompt)  # of neutral replies, [n_prompts]
        both = ((shares > 0) & (shares < 1))[self.prompt]
        first = np.diff(self.prompt, prepend=-1) > 0
        starts = np.flatnonzero(both | first)
        weighted, weight = (np.add.reduceat(v, starts, axis=0) for v in (self.weighted, self.weight))
        return FisherSample(weighted, weight, self.prompt[starts], self.neutral[starts])

    def permuted(self, n_shuffles: int, rng: np.random.Generator) -> np.ndarray:
        """Labels of units as they might have been, bool `[n_shuffles, n_units]`."""
        # Units that swap labels: those of one prompt of both samples; all prompts of only one sample (stratum -1).
        n = np.bincount(self.prompt)
        stratum = np.where(n[self.prompt] > 1, self.prompt, -1)
        order = np.argsort(stratum, kind="stable")
        labels = np.empty((n_shuffles, len(order)), bool)
        drawn = np.argsort(rng.random((n_shuffles, len(order))) + stratum[order], axis=1)  # shuffled within strata
        labels[:, order] = self.neutral[order][drawn]
        return labels

    def statistics(self, neutral: np.ndarray) -> np.ndarray:
        """Difference of the two samples' mean z over its standard error, for labels `[n_shuffles, n_units]`.

        Returns:
            `[n_shuffles, n_pairs]`; the run minus the neutral replies.
        """
        a, b = self.weighted, self.weight
        values = np.stack([a, b, a * a, a * b, b * b])  # [5, n_units, n_pairs]
        run = (~neutral).astype(float) @ values  # [5, n_shuffles, n_pairs]
        parts = [_mean_and_variance(one) for one in (run, values.sum(1)[:, None] - run)]
        (mean, variance), (null_mean, null_variance) = parts
        return _ratio(mean - null_mean, np.sqrt(variance + null_variance))


def mean_z(sums: np.ndarray) -> np.ndarray:
    """Weighted mean of z, from sums `[2, ...]` of weighted z and of weights; NaN without weight."""
    return np.divide(sums[0], sums[1], out=np.full_like(sums[0], np.nan), where=sums[1] > 0)


def p_values(observed: np.ndarray, shuffled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each pair's own two-sided p, and p adjusted for all pairs, `[n_pairs]` each.

    The data count as one of the shuffles.

    >>> p_values(np.array([3.0, 0.5]), np.array([[1.0, 2.0], [0.2, 0.4], [0.1, 4.0]]))
    (array([0.25, 0.75]), array([0.5 , 0.75]))
    """
    observed, shuffled = np.abs(observed), np.abs(shuffled)
    reached = (1 + (shuffled >= observed).sum(0)) / (1 + len(shuffled))
    largest = shuffled.max(1)
    return reached, (1 + (largest[:, None] >= observed).sum(0)) / (1 + len(shuffled))


def resampled_z(sums: np.ndarray, n_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Mean z of both samples over resampled prompts, `[2 samples, n_resamples, n_pairs]`.

    Prompts of both samples, of the run only and of the neutral replies only are resampled each among themselves.
    """
    has = (sums[:, 1] > 0).any(2)  # [2 samples, n_prompts]
    weights = np.zeros((n_resamples, has.shape[1]))
    for kind in np.unique(has, axis=1).T:
        own = np.flatnonzero((has == kind[:, None]).all(0))
        weights[:, own] = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), size=n_resamples)
    return np.stack([mean_z(np.stack([weights @ part for part in one])) for one in sums])


def ends(samples: np.ndarray, n_prompts: int) -> np.ndarray:
    """Ends of 95 % intervals from samples `[n_resamples, n_pairs]`, `[2, n_pairs]`, as wide as n_prompts demands."""
    tail = expanded_tail(n_prompts)
    return np.nanquantile(samples, [tail, 1 - tail], axis=0)


def _mean_and_variance(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and its variance, from sums of a, b, a², ab and b² (a: weighted z, b: weight)."""
    a, b, aa, ab, bb = sums
    mean = mean_z(np.stack([a, b]))
    return mean, (aa - 2 * mean * ab + mean**2 * bb) / np.maximum(b, 1e-300) ** 2


def _ratio(difference: np.ndarray, error: np.ndarray) -> np.ndarray:
    return np.divide(difference, error, out=np.zeros_like(difference), where=np.isfinite(difference) & (error > 0))
