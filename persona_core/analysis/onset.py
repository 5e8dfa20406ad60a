"""WHEN: at which token of a reply a trait sets in, with a known rate of false alarms.

The statistic is a one-sided CUSUM of position-adjusted z (Page 1954): S_t = max(0, S_{t-1} + z_t - drift). The alarm is
the first token at which S exceeds the threshold, a quantile of the *largest* S of whole neutral replies of the same
model, so the stated rate is per reply, not per token. The onset is the most likely position of a step between the last
zero of S and the alarm. Its interval comes from neutral replies with planted steps: how far off the estimate was for
steps that looked as large as this one.

"No onset" is an answer, and so is "before the reply began": a step at the first token says that the trait was there
from the start, not when it came. `calibrate_onset` (onset_calibration.py) makes a detector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from persona_core.analysis.series import checked
from persona_core.errors import CorruptFile, SettingError

RISING = 0.75
"""A score above this just before the step belongs to it: states rise over a few tokens, not at once."""

WIDEST = 20
"""Tokens: an onset with a wider interval is detected, but not timed."""

Answer = Literal["onset", "before the reply", "none"]


@dataclass(frozen=True)
class Onset:
    """The onset in one reply.

    Attributes:
        answer: "onset", "before the reply", or "none".
        alarm: position in the reply at which the threshold is crossed; None without an alarm.
        onset: most likely position at which the trait sets in; None unless the answer is "onset".
        low, high: 95 % interval of the onset, as positions in the reply; None unless the answer is "onset".
        size: of the step, in standard deviations of neutral tokens at that position; None without an alarm.
        peak: largest CUSUM of the reply.
    """

    answer: Answer
    alarm: int | None
    onset: int | None
    peak: float
    low: int | None = None
    high: int | None = None
    size: float | None = None

    @property
    def timed(self) -> bool:
        """Whether the interval is narrow enough to state a time: at most `WIDEST` tokens."""
        return self.low is not None and self.high is not None and self.high - self.low <= WIDEST

    def __str__(self) -> str:
        if self.answer == "none":
            return "no reliable onset"
        if self.answer == "before the reply":
            return "raised from the first token on, so there is no onset to time"
        if self.timed:
            return f"sets in at token {self.onset} [{self.low}, {self.high}]"
        return f"rises somewhere between tokens {self.low} and {self.high}: too small or too slow to be timed"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record."""
        return {**asdict(self), "timed": self.timed, "says": str(self)}


@dataclass(frozen=True, eq=False)
class OnsetErrors:
    """How far off onsets are: quantiles of (true - estimated position), by the apparent size of the step.

    Attributes:
        sizes: upper ends of the classes of apparent size, `[n_classes - 1]`, in standard deviations.
        low, high: the 2.5 % and 97.5 % quantiles of the error in each class, `[n_classes]`, tokens.
    """

    sizes: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def interval(self, onset: int, size: float, alarm: int) -> tuple[int, int]:
        """The 95 % interval around an estimated onset, from 0 at the earliest to the alarm at the latest."""
        k = int(np.searchsorted(self.sizes, size))
        low, high = onset + int(np.floor(self.low[k])), onset + int(np.ceil(self.high[k]))
        return max(0, min(low, onset)), max(onset, min(high, alarm))


@dataclass(frozen=True, eq=False)
class OnsetDetector:
    """A calibrated detector for one trait of one model.

    Attributes:
        mean, spread: of neutral z by position in the reply, `[n_positions]`; the last applies to all later ones.
        threshold: the CUSUM of a neutral reply exceeds it with probability `rate`.
        rate: nominal share of neutral replies with a false alarm.
        drift: subtracted at every token.
        n_nulls: neutral replies behind the threshold.
        tested: longest reply, in tokens, for which the rate holds.
        errors: of the estimated onset.
        smallest: step, in standard deviations, that is found in 80 % of neutral replies when it sets in half-way;
            smaller ones are likely to go unnoticed. None if even the largest one tried is found less often.

    >>> from persona_core.analysis.onset_calibration import calibrate_onset
    >>> rng = np.random.default_rng(0)
    >>> detector = calibrate_onset([rng.normal(size=80) for _ in range(400)])
    >>> late = rng.normal(size=80) + np.repeat([0.0, 6.0], 40)
    >>> abs(detector.find(late).onset - 40) <= 3, str(detector.find(np.zeros(80)))
    (True, 'no reliable onset')
    """

    mean: np.ndarray
    spread: np.ndarray
    threshold: float
    rate: float
    drift: float
    n_nulls: int
    tested: int
    errors: OnsetErrors
    smallest: float | None

    def adjusted(self, z: np.ndarray) -> np.ndarray:
        """z minus the mean of neutral replies at each position, in units of their spread, `[n_tokens]`."""
        return adjust(z, self.mean, self.spread)

    def cusum(self, z: np.ndarray) -> np.ndarray:
        """The statistic at every token, `[n_tokens]`."""
        return cusum(self.adjusted(checked(z)), self.drift)

    def find(self, z: np.ndarray) -> Onset:
        """The onset in one reply.

        Args:
            z: of the reply tokens, unsmoothed, `[n_tokens]`.

        Raises:
            SettingError: a series with NaN.
        """
        return self.find_adjusted(self.adjusted(checked(z)))

    def find_adjusted(self, adjusted: np.ndarray) -> Onset:
        """The onset in a series that is already adjusted for position, `[n_tokens]`."""
        series = cusum(adjusted, self.drift)
        over = np.flatnonzero(series > self.threshold)
        peak = float(series.max()) if len(series) else 0.0
        if not len(over):
            return Onset("none", None, None, peak)
        alarm = int(over[0])
        zeros = np.flatnonzero(series[:alarm] == 0)
        first = int(zeros[-1]) + 1 if len(zeros) else 0
        return self.answer(alarm, adjusted[first : alarm + 1], peak)

    def answer(self, alarm: int, excursion: np.ndarray, peak: float) -> Onset:
        """What an alarm says, from the adjusted z since the CUSUM last left zero, `[n]`, the alarm's included."""
        step, size = most_likely_step(excursion)
        begin = alarm + 1 - len(excursion) + step
        if begin == 0:
            return Onset("before the reply", alarm, None, peak, size=size)
        low, high = self.errors.interval(begin, size, alarm)
        return Onset("onset", alarm, begin, peak, low, high, size)

    def online(self) -> OnlineOnset:
        """The same, one token at a time."""
        return OnlineOnset(self)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record; `from_dict` restores it exactly."""
        record = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(self).items()}
        return {**record, "errors": {k: v.tolist() for k, v in vars(self.errors).items()}}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> OnsetDetector:
        """The inverse of `to_dict`.

        Raises:
            CorruptFile: a missing field, or values that are not numbers.
        """
        try:
            errors = OnsetErrors(**{k: np.array(record["errors"][k], float) for k in ("sizes", "low", "high")})
            mean, spread = (np.array(record[k], float) for k in ("mean", "spread"))
            plain = {k: float(record[k]) for k in ("threshold", "rate", "drift")}
            n_nulls, tested = int(record["n_nulls"]), int(record["tested"])
            smallest = None if record["smallest"] is None else float(record["smallest"])
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFile(f"Not an onset detector: {type(error).__name__}: {error}") from error
        numbers = np.concatenate([mean, spread, errors.sizes, errors.low, errors.high, list(plain.values())])
        fits = mean.shape == spread.shape and mean.ndim == 1 and len(errors.sizes) + 1 == len(errors.low)
        if not (len(mean) and fits and len(errors.low) == len(errors.high) and np.isfinite(numbers).all()):
            raise CorruptFile("Not an onset detector: its arrays differ in length or are not finite.")
        if not (spread > 0).all() or min(*plain.values(), n_nulls, tested) <= 0 or plain["rate"] >= 1:
            raise CorruptFile("Not an onset detector: a spread, threshold, rate, drift or count is out of range.")
        return cls(mean, spread, **plain, n_nulls=n_nulls, tested=tested, errors=errors, smallest=smallest)


class OnlineOnset:
    """For use inside a decode loop: `push` each token's z; it raises the alarm at the same token as `find`."""

    def __init__(self, detector: OnsetDetector) -> None:
        self._detector = detector
        self._sum, self._peak, self._position = 0.0, 0.0, 0
        self._excursion: list[float] = []  # adjusted z since the sum last left zero
        self._alarm: int | None = None

    def push(self, z: float) -> bool:
        """Take the z of the next token; True at the token at which the alarm goes off, once per reply."""
        d = self._detector
        if not np.isfinite(z):
            raise SettingError(f"z is {z} at token {self._position}; the detector needs finite scores.")
        position = min(self._position, len(d.mean) - 1)
        adjusted = float((z - d.mean[position]) / d.spread[position])
        self._sum = max(0.0, self._sum + adjusted - d.drift)
        self._peak = max(self._peak, self._sum)
        self._position += 1
        if self._alarm is not None:
            return False
        if self._sum > 0:
            self._excursion.append(adjusted)
        else:
            self._excursion.clear()
        if self._sum > d.threshold:
            self._alarm = self._position - 1
            return True
        return False

    @property
    def result(self) -> Onset:
        """The onset after the tokens so far."""
        if self._alarm is None:
            return Onset("none", None, None, self._peak)
        return self._detector.answer(self._alarm, np.array(self._excursion), self._peak)


def most_likely_step(excursion: np.ndarray) -> tuple[int, float]:
    """The most likely position of a step of unknown size within the excursion that led to an alarm, and its size.

    The log likelihood of a step at k is (x_k + ... + x_alarm)^2 / (2 n), with n tokens from k on. The point where the
    excursion leaves zero is earlier, by the noise before the step: by 8 tokens in one of twenty texts of the demo
        world.

    Args:
        excursion: adjusted z, `[n]`.
    """
    sums = np.cumsum(excursion[::-1])[::-1]  # from each token to the alarm
    likelihood = np.where(sums > 0, sums**2 / np.arange(len(sums), 0, -1), 0.0)
    step = int(np.argmax(likelihood))
    while step > 0 and excursion[step - 1] > RISING:
        step -= 1
    return step, float(excursion[step:].mean())


def adjust(z: np.ndarray, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """z minus the mean at its position, in units of the spread there, `[n_tokens]`."""
    position = np.minimum(np.arange(len(z)), len(mean) - 1)
    return (z - mean[position]) / spread[position]


def cusum(x: np.ndarray, drift: float) -> np.ndarray:
    """S_t = max(0, S_{t-1} + x_t - drift), `[n]`."""
    total, found = 0.0, np.empty(len(x))
    for t, value in enumerate(x.tolist()):
        total = max(0.0, total + value - drift)
        found[t] = total
    return found
