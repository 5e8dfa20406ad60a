"""The largest statistics of neutral replies, and the threshold that keeps all watched traits at one common rate.

The unit is the *prompt*: replies to one prompt rise together, so each prompt counts once, however many replies it has.
An alarm of any watched trait counts. The rate is that of replies which go on to token `supported` (or end anywhere
before it): an alarm in the s-th stretch of tokens is weighted by 1 / (share of prompts that reach that stretch), so
that short neutral replies do not dilute the alarms of long ones. The threshold is chosen by conformal risk control
(Angelopoulos et al. 2022, arXiv 2208.02814; for streamed monitors arXiv 2607.02510): (n F + 1) / (n + 1) <= rate, with
n prompts and F their weighted share of alarms. So the *expected* rate on a new prompt of the same kind is at most the
nominal one, over the draw of the neutral prompts; `Rate.low` and `.high` say between which values the rate of this one
threshold lies with 95 % confidence. (A threshold whose upper confidence bound is the nominal rate was tried: it
realises 3.3 % instead of 5 %, and finds less.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from persona_core.errors import CorruptFile, SettingError, UnknownTrait

N_STRETCHES = 8
"""Stretches of tokens whose alarms are counted separately."""

MAX_RATE = 0.2
"""Only the upper quarter of the neutral replies' statistics is kept."""


@dataclass(frozen=True)
class Rate:
    """A false-alarm rate per reply.

    Attributes:
        value: expected share of neutral replies with an alarm, each prompt counting once.
        low, high: with 95 % confidence, the rate for new prompts of the same kind lies between them.
        n_prompts: neutral prompts it rests on.
    """

    value: float
    low: float
    high: float
    n_prompts: int

    def __str__(self) -> str:
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}] of replies, over {self.n_prompts} prompts"


@dataclass(frozen=True, eq=False)
class NullPeaks:
    """The largest statistic of each neutral reply by the end of each stretch of tokens.

    Attributes:
        traits: in the order of the peaks' second axis.
        prompts: number of the prompt that each reply answers, `[n_replies]`.
        lengths: tokens of each reply, `[n_replies]`.
        ends: of the stretches, in tokens, rising; the last is the longest supported reply, `[n_stretches]`.
        peaks: largest statistic up to the end of each stretch, 0 where it is lower,
            `[n_replies, n_traits, n_stretches]`. The statistics' scales were fitted on the replies to other prompts.
    """

    traits: tuple[str, ...]
    prompts: np.ndarray
    lengths: np.ndarray
    ends: np.ndarray
    peaks: np.ndarray

    @property
    def n_prompts(self) -> int:
        return len(np.unique(self.prompts))

    @property
    def smallest_rate(self) -> float:
        """The smallest rate for which there are enough prompts: one of them may alarm, and one more is allowed for."""
        return 2 / (self.n_prompts + 1)

    def threshold(self, rate: float, traits: Sequence[str] | None = None) -> float:
        """The lowest threshold at which the traits together raise alarms in at most `rate` of the replies.

        Args:
            rate: per reply, over all the traits.
            traits: those that are watched; None: all.

        Raises:
            UnknownTrait.
            SettingError: too few prompts for the rate, or a rate above `MAX_RATE`.
        """
        n = self.n_prompts
        if not 0 < rate <= MAX_RATE:
            raise SettingError(f"rate={rate!r}; expected a number above 0 and up to {MAX_RATE:g}.")
        if rate < self.smallest_rate:
            raise SettingError(
                f"{n} neutral prompts are too few for rate={rate:g}: it needs {int(np.ceil(2 / rate)) - 1}; the "
                f"smallest rate that they support is {np.ceil(1e4 * self.smallest_rate) / 1e4:g}. Replies to one "
                "prompt count once."
            )
        largest = self._largest(traits)  # [n_replies, n_stretches]
        candidates = np.unique(largest[:, -1])[::-1]
        lowest = float(candidates[0])
        for candidate in candidates:
            if (n * self._share(largest, float(candidate)) + 1) / (n + 1) > rate + 1e-12:
                break
            lowest = float(candidate)
        return lowest

    def rate(self, threshold: float, traits: Sequence[str] | None = None) -> Rate:
        """The rate of a threshold, with its interval over the draw of the prompts.

        Where all prompts weigh the same, and k of n are above a threshold that is itself one of the peaks, its rate
        follows a Beta(k + 1, n - k) distribution. An alarm after the end of most replies weighs more than others. So
        alarms enter as the number (sum w)^2 / sum w^2 of equal ones, and the upper end allows for one more, as heavy as
        the heaviest. Between two peaks this is the interval of Clopper and Pearson.
        """
        from scipy.special import betaincinv

        n, largest = self.n_prompts, self._largest(traits)
        over = self._by_prompt(largest > threshold)
        reached = self._by_prompt((largest >= threshold) & (largest > 0))  # a peak of 0 was never one
        heaviest = reached.max() or 1 / self._reach().min()
        share, hits, others = _effective(reached)
        if share > over.sum():
            share *= n / (n + 1)  # the threshold was chosen from the peaks: the mean of the Beta distribution
        low = float(betaincinv(hits, others + 1, 0.025)) if hits else 0.0
        _, hits, others = _effective(np.append(over, heaviest))
        high = float(betaincinv(hits, others + 1, 0.975)) if others else 1.0
        return Rate(share, low, high, n)

    def replies_above(self, threshold: float, traits: Sequence[str] | None = None) -> int:
        """Neutral replies in which a trait's statistic exceeds a threshold; None: any of the traits."""
        return int((self._largest(traits)[:, -1] > threshold).sum())

    def _largest(self, traits: Sequence[str] | None) -> np.ndarray:
        """Of the watched traits, `[n_replies, n_stretches]`."""
        names = self.traits if traits is None else tuple(traits)
        for name in names:
            if name not in self.traits:
                raise UnknownTrait(name, self.traits)
        if not names:
            raise SettingError(f"No trait to watch; name at least one of {', '.join(self.traits)}.")
        return self.peaks[:, [self.traits.index(name) for name in names]].max(1)

    def _share(self, largest: np.ndarray, threshold: float) -> float:
        """Expected share of replies with an alarm by the last supported token, if all were that long."""
        return float(self._weights(largest > threshold).sum())

    def _weights(self, over: np.ndarray) -> np.ndarray:
        """What each reply's alarm adds to the share, 0 without one, `[n_replies]`.

        Args:
            over: bool `[n_replies, n_stretches]`.
        """
        return np.where(over.any(1), prompt_weights(self.prompts) / self._reach()[over.argmax(1)], 0.0)

    def _by_prompt(self, over: np.ndarray) -> np.ndarray:
        """`_weights` of the replies to each prompt together, `[n_prompts]`."""
        return np.bincount(np.unique(self.prompts, return_inverse=True)[1], self._weights(over))

    def _reach(self) -> np.ndarray:
        """Mean weight of the replies over the tokens of each stretch, in prompts, `[n_stretches]`."""
        starts = np.concatenate([[0], self.ends[:-1]])
        present = np.clip((self.lengths[:, None] - starts) / (self.ends - starts), 0.0, 1.0)  # [n_replies, n_stretches]
        return prompt_weights(self.prompts) @ present

    def select(self, traits: Sequence[str]) -> NullPeaks:
        """Of some traits only."""
        self._largest(traits)
        rows = [self.traits.index(t) for t in traits]
        return NullPeaks(tuple(traits), self.prompts, self.lengths, self.ends, self.peaks[:, rows])

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record; `from_dict` restores it exactly."""
        return {
            "traits": list(self.traits),
            **{k: getattr(self, k).tolist() for k in ("prompts", "lengths", "ends")},
            "peaks": [
                [[float(f"{v:g}") if v else 0 for v in trait] for trait in reply] for reply in self.peaks.tolist()
            ],
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> NullPeaks:
        """The inverse of `to_dict`.

        Raises:
            CorruptFile.
        """
        try:
            traits = tuple(map(str, record["traits"]))
            prompts, lengths, ends = (np.array(record[k], int) for k in ("prompts", "lengths", "ends"))
            peaks = np.array(record["peaks"], float)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFile(f"Not the peaks of neutral replies: {type(error).__name__}: {error}") from error
        shapes = prompts.shape == lengths.shape and peaks.shape == (len(prompts), len(traits), len(ends))
        if not (shapes and len(prompts) and len(ends) and np.isfinite(peaks).all() and (np.diff(ends) > 0).all()):
            raise CorruptFile("Not the peaks of neutral replies: arrays differ in length or are not finite.")
        return cls(traits, prompts, lengths, ends, peaks)


def _effective(weights: np.ndarray) -> tuple[float, float, float]:
    """The share that weighted alarms make up, at most 1, and how many equal prompts with and without an alarm have the
    same share and as much spread."""
    share = min(1.0, float(weights.sum()))
    hits = float(weights.sum() ** 2 / (weights**2).sum()) if share else 0.0
    return share, hits, hits * (1 / share - 1) if share else 0.0


def prompt_weights(prompts: np.ndarray) -> np.ndarray:
    """1 / (replies to the same prompt), `[n_replies]`: each prompt counts once.

    >>> prompt_weights(np.array([0, 0, 1])).tolist()
    [0.5, 0.5, 1.0]
    """
    _, index, counts = np.unique(prompts, return_inverse=True, return_counts=True)
    return 1.0 / counts[index]


def supported_length(lengths: np.ndarray, prompts: np.ndarray, n_needed: float) -> int:
    """The longest length, in tokens, that the replies to `n_needed` prompts reach; 0 if there are fewer.

    >>> supported_length(np.array([10, 20, 30]), np.array([0, 1, 2]), 2)
    20
    """
    order = np.argsort(lengths)[::-1]
    reach = np.cumsum(prompt_weights(prompts)[order])
    enough = np.flatnonzero(reach >= n_needed - 1e-9)
    return int(lengths[order][enough[0]]) if len(enough) else 0


def running_peaks(statistic: np.ndarray, lengths: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Largest statistic by the end of each stretch, not below 0 and to four digits, `[n_replies, n_stretches]`.

    Args:
        statistic: `[n_replies, n_tokens]`, padded with anything after each reply.
        lengths: of the replies, `[n_replies]`.
        ends: of the stretches, `[n_stretches]`.
    """
    inside = np.arange(statistic.shape[1]) < lengths[:, None]
    largest = np.maximum.accumulate(np.where(inside, statistic, 0.0).clip(0.0), axis=1)
    return np.round(largest[:, np.minimum(ends, statistic.shape[1]) - 1], 4)


def stretches(supported: int) -> np.ndarray:
    """Ends of `N_STRETCHES` equal stretches of tokens, `[n_stretches]`."""
    return np.unique(np.ceil(np.linspace(0, supported, min(N_STRETCHES, supported) + 1)[1:]).astype(int))
