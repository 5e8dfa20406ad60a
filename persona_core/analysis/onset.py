"""WHEN: at which token of a reply a trait sets in, with a known rate of false alarms.

The statistic is a one-sided CUSUM of position-adjusted z (Page 1954): S_t = max(0, S_{t-1} + z_t - drift). A reply
alarms at the first token at which S exceeds the threshold, and the threshold is a quantile of the *largest* S of whole
neutral replies of the same model, so that the stated rate is that of replies and not of tokens. The onset is the
likeliest place of a step between the last zero of S and the alarm.

"No onset" is an answer, and so is "before the reply began": a step at the first token says that the trait was there
from the start, not when it came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from persona_core.analysis.series import checked, refuse_smoothed
from persona_core.errors import SettingError

LEAST_NULLS = 300
"""Neutral replies that a threshold needs: with 60 a nominal 5 % came out as 16 %."""

DRIFT = 0.75
"""Half of the smallest shift that is looked for, in standard deviations: 1.5."""

RISING = 0.75
"""A score above this just before the step belongs to it: a state rises over a few tokens, not at once."""

POSITIONS = 32
"""Tokens of the reply whose mean and spread are estimated one by one; later ones share the last estimate."""

Answer = Literal["onset", "before the reply", "none"]


@dataclass(frozen=True)
class Onset:
    """What a reply's series says.

    Attributes:
        answer: "onset", "before the reply", or "none".
        alarm: place in the reply at which the threshold was crossed; None without an alarm.
        onset: likeliest place at which the trait set in; None unless the answer is "onset".
        peak: largest CUSUM of the reply.
    """

    answer: Answer
    alarm: int | None
    onset: int | None
    peak: float


@dataclass(frozen=True, eq=False)
class OnsetDetector:
    """A calibrated detector for one trait of one model.

    Attributes:
        mean, spread: of neutral z by position in the reply, `[n_positions]`; the last holds for all later ones.
        threshold: what the CUSUM of a neutral reply exceeds with probability `rate`.
        rate: nominal share of neutral replies with a false alarm.
        drift: taken off at every token.
        n_nulls: replies that the threshold rests on.
        tested: longest reply, in tokens, for which the rate holds.

    >>> rng = np.random.default_rng(0)
    >>> detector = calibrate_onset([rng.normal(size=80) for _ in range(400)])
    >>> late = rng.normal(size=80) + np.repeat([0.0, 6.0], 40)
    >>> abs(detector.find(late).onset - 40) <= 3, detector.find(np.zeros(80)).answer
    (True, 'none')
    """

    mean: np.ndarray
    spread: np.ndarray
    threshold: float
    rate: float
    drift: float
    n_nulls: int
    tested: int

    def adjusted(self, z: np.ndarray) -> np.ndarray:
        """z with the drift over positions of neutral replies taken out, `[n_tokens]`."""
        return _adjusted(z, self.mean, self.spread)

    def find(self, z: np.ndarray) -> Onset:
        """The onset in one reply.

        Args:
            z: of the reply's own tokens, unsmoothed, `[n_tokens]`.

        Raises:
            SettingError: a series with NaN.
        """
        adjusted = self.adjusted(checked(z))
        series = _cusum(adjusted, self.drift)
        over = np.flatnonzero(series > self.threshold)
        peak = float(series.max()) if len(series) else 0.0
        if not len(over):
            return Onset("none", None, None, peak)
        alarm = int(over[0])
        zeros = np.flatnonzero(series[:alarm] == 0)
        first = int(zeros[-1]) + 1 if len(zeros) else 0
        return _answer(alarm, first, adjusted[first : alarm + 1], peak)

    def online(self) -> OnlineOnset:
        """The same, one token at a time."""
        return OnlineOnset(self)


class OnlineOnset:
    """Runs inside a decode loop: `push` each token's z, and it says when the alarm goes off, exactly as `find` does."""

    def __init__(self, detector: OnsetDetector) -> None:
        self._detector = detector
        self._sum, self._peak, self._place = 0.0, 0.0, 0
        self._excursion: list[float] = []  # adjusted z since the sum last left zero
        self._alarm: int | None = None

    def push(self, z: float) -> bool:
        """Take the z of the next token; True at the token at which the alarm goes off, once a reply."""
        d = self._detector
        if not np.isfinite(z):
            raise SettingError(f"z is {z} at token {self._place}; the detector needs finite scores.")
        place = min(self._place, len(d.mean) - 1)
        adjusted = float((z - d.mean[place]) / d.spread[place])
        self._sum = max(0.0, self._sum + adjusted - d.drift)
        self._peak = max(self._peak, self._sum)
        self._place += 1
        if self._alarm is not None:
            return False
        if self._sum > 0:
            self._excursion.append(adjusted)
        else:
            self._excursion.clear()
        if self._sum > d.threshold:
            self._alarm = self._place - 1
            return True
        return False

    @property
    def result(self) -> Onset:
        """What is known after the tokens so far."""
        if self._alarm is None:
            return Onset("none", None, None, self._peak)
        first = self._alarm + 1 - len(self._excursion)
        return _answer(self._alarm, first, np.array(self._excursion), self._peak)


def calibrate_onset(
    nulls: Sequence[np.ndarray], rate: float = 0.05, drift: float = DRIFT, seed: int = 0
) -> OnsetDetector:
    """A detector whose threshold is a quantile of the largest CUSUM of neutral replies.

    The adjustment for position and the threshold rest on different halves of the replies, taken in turn: a series that
    has helped to estimate its own mean exceeds a threshold less often than a new one.

    Args:
        nulls: z of each neutral reply's own tokens, `[n_tokens]` each; same model, decoding and kind of text as what
            is to be judged.
        rate: share of neutral replies that may alarm.
        drift: taken off at every token, in standard deviations: half of the smallest shift that is looked for.
        seed: of the split.

    Raises:
        SettingError: fewer than `LEAST_NULLS` replies, a series with NaN or one that has been smoothed, or a rate that
            so few replies cannot support.
    """
    if not 0 < rate < 1 or not drift > 0:
        raise SettingError(f"rate={rate!r}, drift={drift!r}; the rate lies between 0 and 1, the drift above 0.")
    series = [checked(z, f"Neutral reply {i}") for i, z in enumerate(nulls) if len(z)]
    refuse_smoothed(series)
    if len(series) < LEAST_NULLS:
        raise SettingError(
            f"{len(series)} neutral replies; at least {LEAST_NULLS} are needed: with fewer the rate of false alarms is "
            "not what it says."
        )
    if rate * len(series) < 5:
        raise SettingError(
            f"rate={rate:g} of {len(series)} replies is {rate * len(series):.1f}; {int(np.ceil(5 / rate))} neutral "
            "replies are needed for it."
        )
    order = np.random.default_rng(seed).permutation(len(series))
    halves = [series[i] for i in order[::2]], [series[i] for i in order[1::2]]
    peaks = [
        _cusum(_adjusted(z, mean, spread), drift).max()
        for fitted, used in (halves, halves[::-1])
        for mean, spread in (_by_position(fitted),)
        for z in used
    ]
    mean, spread = _by_position(series)
    # The (n + 1)(1 - rate)-th smallest of n: a new neutral reply exceeds it with a probability of at most `rate`.
    rank = min(len(peaks), int(np.ceil((len(peaks) + 1) * (1 - rate))))
    threshold = float(np.sort(peaks)[rank - 1])
    return OnsetDetector(mean, spread, threshold, rate, drift, len(series), max(map(len, series)))


@dataclass(frozen=True)
class Power:
    """What a detector can find.

    Attributes:
        shift: in standard deviations.
        found: share of replies that alarm at or after the step.
        delay: median tokens from the step to the alarm; None where none is found.
        error: median distance of the estimated onset from the step.
        n: replies that were tried.
    """

    shift: float
    found: float
    delay: float | None
    error: float | None
    n: int


def power(detector: OnsetDetector, nulls: Sequence[np.ndarray], shift: float, at: int) -> Power:
    """How often and how late a shift of a given size would be found: replies of the null with a step added.

    Args:
        nulls: as in `calibrate_onset`; those that end before `at` are left out.
        shift: added from `at` on, in standard deviations of the null.
        at: place in the reply.

    Raises:
        SettingError: no neutral reply is so long.
    """
    long = [z for z in nulls if len(z) > at]
    if not long:
        raise SettingError(f"No neutral reply is longer than {at} tokens.")
    found = [detector.find(np.asarray(z, float) + shift * (np.arange(len(z)) >= at)) for z in long]
    delays = [f.alarm - at for f in found if f.alarm is not None and f.alarm >= at]
    errors = [abs(f.onset - at) for f in found if f.onset is not None and f.alarm is not None and f.alarm >= at]
    return Power(
        shift, len(delays) / len(long), float(np.median(delays)) if delays else None,
        float(np.median(errors)) if errors else None, len(long),
    )  # fmt: skip


def _answer(alarm: int, first: int, excursion: np.ndarray, peak: float) -> Onset:
    """The likeliest onset of a step of unknown size within the excursion that led to an alarm.

    The log likelihood of a step at k is (x_k + ... + x_alarm)^2 / (2 n), n the tokens from k on. Where the excursion
    left zero is earlier than that by whatever noise came before: by 8 tokens in one of twenty texts of the demo world.
    """
    sums = np.cumsum(excursion[::-1])[::-1]  # from each token to the alarm
    likelihood = np.where(sums > 0, sums**2 / np.arange(len(sums), 0, -1), 0.0)
    step = int(np.argmax(likelihood))
    while step > 0 and excursion[step - 1] > RISING:
        step -= 1
    begin = first + step
    return Onset("before the reply", alarm, None, peak) if begin == 0 else Onset("onset", alarm, begin, peak)


def _adjusted(z: np.ndarray, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    place = np.minimum(np.arange(len(z)), len(mean) - 1)
    return (z - mean[place]) / spread[place]


def _by_position(series: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread of z at the first positions, and of all later ones together, each `[n_positions]`."""
    longest = max(map(len, series))
    n = max(1, min(POSITIONS, longest))
    groups = [np.array([z[k] for z in series if len(z) > k]) for k in range(n - 1)]
    groups.append(np.concatenate([z[n - 1 :] for z in series]))
    pooled = np.concatenate(series).std()
    if not pooled > 0:
        raise SettingError("The neutral replies do not vary: there is no null to hold anything against.")
    few = [len(g) < 30 for g in groups]  # too few replies are so long: the pooled figures hold
    overall = float(np.concatenate(series).mean())
    mean = [overall if bad else g.mean() for g, bad in zip(groups, few, strict=True)]
    spread = [pooled if bad or not g.std() > 0 else g.std() for g, bad in zip(groups, few, strict=True)]
    return np.array(mean, float), np.array(spread, float)


def _cusum(x: np.ndarray, drift: float) -> np.ndarray:
    """S_t = max(0, S_{t-1} + x_t - drift), `[n]`."""
    total, found = 0.0, np.empty(len(x))
    for t, value in enumerate(x.tolist()):
        total = max(0.0, total + value - drift)
        found[t] = total
    return found
