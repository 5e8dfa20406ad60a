"""Calibrate an onset detector on neutral replies: its threshold, the errors of its onsets, and its power."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from persona_core.analysis.onset import OnsetDetector, OnsetErrors, adjust, cusum
from persona_core.analysis.series import checked, refuse_smoothed
from persona_core.errors import SettingError

MIN_NULLS = 300
"""Neutral replies needed for a threshold: with 60, a nominal 5 % came out as 16 %."""

DRIFT = 0.75
"""Half the smallest shift of interest, 1.5 standard deviations."""

POSITIONS = 32
"""Positions whose mean and spread are estimated separately; later ones share the last estimate."""

N_PLANTED = 4000
"""Neutral replies, drawn with replacement, in which a step is planted to measure the errors of the onsets."""

PLANTED = (0.75, 9.0)
"""Sizes of planted steps, in standard deviations. Smaller ones are hardly ever found, larger ones at once."""

RISE = (0.4, 4.0)
LIVELIER = (1.0, 1.8)
"""How a planted trait sets in: over 1 to 10 tokens, with 1 to 1.8 times the spread of neutral tokens. In texts of the
demo world a cued trait peaks after 4 tokens and an uncued one after 20, with 1.8 times the spread; with sudden steps
and unchanged spread, the interval covered the cue in only 74 % of texts."""

CLASSES = 8
SIZES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0)
FOUND = 0.8


def calibrate_onset(
    nulls: Sequence[np.ndarray], rate: float = 0.05, drift: float = DRIFT, seed: int = 0
) -> OnsetDetector:
    """A detector whose threshold is a quantile of the largest CUSUM of neutral replies.

    The adjustment for position and the threshold use different halves of the replies, in turn: a series that
    contributed to its own mean exceeds a threshold less often than a new one.

    Args:
        nulls: z of the tokens of each neutral reply, `[n_tokens]` each; from the same model, decoding and kind of
            text as the replies to be tested.
        rate: share of neutral replies that may raise an alarm.
        drift: subtracted at every token, in standard deviations: half the smallest shift of interest.
        seed: for the split and the planted steps.

    Raises:
        SettingError: fewer than `MIN_NULLS` replies or too few for the rate, or a series with NaN or smoothing.
    """
    if not 0 < rate < 1 or not drift > 0:
        raise SettingError(f"rate={rate!r}, drift={drift!r}; the rate must lie between 0 and 1, the drift above 0.")
    series = [checked(z, f"Neutral reply {i}") for i, z in enumerate(nulls) if len(z)]
    refuse_smoothed(series)
    if len(series) < MIN_NULLS:
        raise SettingError(
            f"{len(series)} neutral replies; at least {MIN_NULLS} are needed for the stated false-alarm rate to hold."
        )
    if rate * len(series) < 5:
        raise SettingError(
            f"rate={rate:g} of {len(series)} replies is {rate * len(series):.1f}; this rate needs "
            f"{int(np.ceil(5 / rate))} neutral replies."
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(series))
    halves = [series[i] for i in order[::2]], [series[i] for i in order[1::2]]
    peaks = [
        cusum(adjust(z, mean, spread), drift).max()
        for fitted, used in (halves, halves[::-1])
        for mean, spread in (_by_position(fitted),)
        for z in used
    ]
    mean, spread = _by_position(series)
    # The (n + 1)(1 - rate)-th smallest of n: a new neutral reply exceeds it with a probability of at most `rate`.
    rank = min(len(peaks), int(np.ceil((len(peaks) + 1) * (1 - rate))))
    threshold = float(np.sort(peaks)[rank - 1])
    nothing = OnsetErrors(np.empty(0), np.zeros(1), np.zeros(1))
    detector = OnsetDetector(
        mean, spread, threshold, rate, drift, len(series), max(map(len, series)), errors=nothing, smallest=None
    )
    return replace(detector, errors=_errors(detector, series, rng), smallest=_smallest(detector, series))


@dataclass(frozen=True)
class DetectionPower:
    """The detection power at one size of step.

    Attributes:
        shift: in standard deviations.
        found: share of replies with an alarm at or after the step.
        delay: median tokens from the step to the alarm; None if none is found.
        error: median distance of the estimated onset from the step.
        n: replies.
    """

    shift: float
    found: float
    delay: float | None
    error: float | None
    n: int

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record."""
        return asdict(self)


def power(detector: OnsetDetector, nulls: Sequence[np.ndarray], shift: float, at: int) -> DetectionPower:
    """How often and how late a shift of a given size would be found, in neutral replies with a step added.

    Args:
        nulls: as in `calibrate_onset`; those that end before `at` are left out.
        shift: added from `at` on, in standard deviations of the null.
        at: position in the reply.

    Raises:
        SettingError: no neutral reply is long enough.
    """
    long = [z for z in nulls if len(z) > at]
    if not long:
        raise SettingError(f"No neutral reply is longer than {at} tokens.")
    found = [detector.find(np.asarray(z, float) + shift * (np.arange(len(z)) >= at)) for z in long]
    delays = [f.alarm - at for f in found if f.alarm is not None and f.alarm >= at]
    errors = [abs(f.onset - at) for f in found if f.onset is not None and f.alarm is not None and f.alarm >= at]
    return DetectionPower(
        shift, len(delays) / len(long), float(np.median(delays)) if delays else None,
        float(np.median(errors)) if errors else None, len(long),
    )  # fmt: skip


def _errors(detector: OnsetDetector, series: Sequence[np.ndarray], rng: np.random.Generator) -> OnsetErrors:
    """Plant rises of all sizes at all positions of neutral replies, and measure the errors of the estimates.

    They are classed by *apparent* size: a rise that is found by luck looks larger than it is.
    """
    sizes, errors = [], []
    for index, size in zip(rng.integers(len(series), size=N_PLANTED), rng.uniform(*PLANTED, N_PLANTED), strict=True):
        z = detector.adjusted(series[index])
        at = int(rng.integers(1, max(2, len(z))))
        found = detector.find_adjusted(with_rise(z, at, size, rng))
        if found.onset is not None and found.size is not None:
            sizes.append(found.size)
            errors.append(at - found.onset)
    if len(errors) < N_PLANTED / 10:
        raise SettingError(
            f"The neutral replies are too short (longest: {detector.tested} tokens) to detect steps: of {N_PLANTED} "
            f"planted ones, {len(errors)} were timed."
        )
    by_size = np.argsort(sizes)
    groups = np.array_split(np.array(errors, float)[by_size], CLASSES)
    ends = [np.array(sizes)[by_size][end - 1] for end in np.cumsum([len(g) for g in groups])[:-1]]
    # Whole tokens: the quantiles are observed errors, rounded outwards.
    low = [np.quantile(g, 0.025, method="lower") for g in groups]
    high = [np.quantile(g, 0.975, method="higher") for g in groups]
    return OnsetErrors(np.array(ends), np.array(low), np.array(high))


def with_rise(x: np.ndarray, at: int, size: float, rng: np.random.Generator) -> np.ndarray:
    """A neutral reply with a planted trait: z rises over a few tokens and varies more from then on, `[n_tokens]`.

    Args:
        x: adjusted z of a neutral reply, `[n_tokens]`.
        at: position of the first raised token.
        size: of the rise, in standard deviations.
        rng: draws how fast it rises and how much more it varies, within `RISE` and `LIVELIER`.
    """
    since = np.arange(len(x)) - at
    pace, livelier = np.exp(rng.uniform(*np.log(RISE))), rng.uniform(*LIVELIER)
    rise = np.where(since >= 0, size * -np.expm1(-(since.clip(0) + 1) / pace), 0.0)
    return np.where(since >= 0, livelier, 1.0) * x + rise


def _smallest(detector: OnsetDetector, series: Sequence[np.ndarray]) -> float | None:
    """The smallest of `SIZES` that is found in `FOUND` of the replies when it sets in half-way."""

    def found(size: float) -> bool:
        hits = 0
        for z in series:
            half = len(z) // 2
            alarm = detector.find(z + size * (np.arange(len(z)) >= half)).alarm
            hits += alarm is not None and alarm >= half
        return hits >= FOUND * len(series)

    first = bisect_left(SIZES, True, key=found)  # monotonic: larger steps are found at least as often
    return SIZES[first] if first < len(SIZES) else None


def _by_position(series: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread of z at the first positions, and of all later ones together, each `[n_positions]`."""
    longest = max(map(len, series))
    n = max(1, min(POSITIONS, longest))
    groups = [np.array([z[k] for z in series if len(z) > k]) for k in range(n - 1)]
    groups.append(np.concatenate([z[n - 1 :] for z in series]))
    pooled = np.concatenate(series).std()
    if not pooled > 0:
        raise SettingError("The neutral replies do not vary, so there is no null to compare with.")
    few = [len(g) < 30 for g in groups]  # too few replies are that long: use the pooled values
    overall = float(np.concatenate(series).mean())
    mean = [overall if bad else g.mean() for g, bad in zip(groups, few, strict=True)]
    spread = [pooled if bad or not g.std() > 0 else g.std() for g, bad in zip(groups, few, strict=True)]
    return np.array(mean, float), np.array(spread, float)
