"""WHEN: at which token of a reply a score rises for good, with a known rate of false alarms.

The statistic is a bank of one-sided CUSUMs of position-adjusted scores (Page 1954; several drifts at once: Lorden and
Eisenberger 1973). S_t = max(0, S_{t-1} + x_t - drift) for each drift; each sum is measured against the largest ones of
neutral replies, (S_t - location) / scale, and the statistic is the larger of the two: a drift of 0.75 finds small
lasting shifts, one of 1.5 finds large ones sooner (`benchmarks/onset.py` has the comparison with mixtures, GLR and an
e-detector). The alarm is the first token at which the statistic exceeds the threshold. The onset is the most likely
position of a step between the last zero of the most sensitive sum and the alarm. Its interval comes from neutral
replies with planted steps: how far off the estimate was for steps that looked as large as this one.

"No onset" is an answer, and so is "before the reply began": a step at the first token says that the score was high
from the start, not when it rose. Such a score may still rise much further: the same sums of the score less twice its
first level say when it more than doubles. NaN is a token without evidence (a sink token): the sums stay as they are,
and the position counts. `calibrate_onset` (onset_calibration.py) makes a detector, `calibrate_detectors` (detectors.py)
those of several traits at one common rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from persona_core.analysis.cusum import adjust, cusums, most_likely_step
from persona_core.analysis.series import checked
from persona_core.errors import CorruptFile, SettingError
from persona_core.traces.trace import Kind

WIDEST = 20
"""Tokens: an onset with a wider interval is detected, but not timed."""

FIRST = 5
"""Tokens, at least, whose mean is the first level of a score that is high from the start. No steady score with the
spread of neutral tokens is then said to double, and at most 5 % of those with 1.8 times the spread."""

Answer = Literal["onset", "before the reply", "none"]


@dataclass(frozen=True)
class Onset:
    """The onset in one reply.

    Attributes:
        answer: "onset", "before the reply", or "none".
        alarm: position in the reply at which the threshold is crossed; None without an alarm.
        onset: most likely position at which the score rises; None unless the answer is "onset".
        peak: largest statistic of the reply.
        low, high: 95 % interval of the onset, as positions in the reply; None unless the answer is "onset".
        size: of the step, in standard deviations of neutral tokens at that position; None without an alarm.
        kind: of the score: "specific", or "z", which says "not neutral" rather than which trait.
        no_rate: what the stated false-alarm rate is not known for, of this reply; empty where it is known.
        doubles: position from which a score that was high at the first token is more than twice as high; None where it
            never is for long.
        falls: position from which a score that was high at the first token is less than half as high; None likewise.
        section: "answer" or "thought" where the reply has both, and positions count from its first token; else "".

    >>> str(Onset("onset", 21, 19, 7.2, 17, 20, 3.1)), str(Onset("none", None, None, 0.4))
    ('rises at token 19 [17, 20]', 'no reliable onset')
    >>> str(Onset("before the reply", 2, None, 7.2, size=4.0, doubles=43))
    'raised at the first token already; more than doubles at token 43'
    >>> str(Onset("before the reply", 2, None, 7.2, size=4.0, falls=9))
    'raised at the first tokens; falls by more than half at token 9'
    >>> str(Onset("onset", 21, 19, 7.2, 17, 20, 3.1, no_rate=("this kind of prompt",)))
    'rises at token 19 [17, 20]; no rate is known for this kind of prompt'
    """

    answer: Answer
    alarm: int | None
    onset: int | None
    peak: float
    low: int | None = None
    high: int | None = None
    size: float | None = None
    kind: Kind = "specific"
    no_rate: tuple[str, ...] = ()
    doubles: int | None = None
    falls: int | None = None
    section: Literal["", "answer", "thought"] = ""

    @property
    def timed(self) -> bool:
        """Whether the interval is narrow enough to state a time: at most `WIDEST` tokens."""
        return self.low is not None and self.high is not None and self.high - self.low <= WIDEST

    def __str__(self) -> str:
        where = f"in the {self.section}, " if self.section else ""
        if self.answer == "none":
            return f"{where}no reliable onset"
        outside = f"; no rate is known for {' and '.join(self.no_rate)}" if self.no_rate else ""
        return where + self._says() + outside

    def _says(self) -> str:
        if self.answer == "before the reply":
            at = "at the first token already" if self.falls is None else "at the first tokens"
            raised = f"raised {at}" if self.kind == "specific" else f"not neutral {at}, no trait in particular"
            changes = [(self.falls, "falls by more than half"), (self.doubles, "more than doubles")]
            later = sorted((token, does) for token, does in changes if token is not None)
            if not later:
                return f"{raised}: when it began cannot be said"
            return f"{raised}; " + ", ".join(f"{does} at token {token}" for token, does in later)
        if self.timed:
            return f"rises at token {self.onset} [{self.low}, {self.high}]"
        return f"rises somewhere between tokens {self.low} and {self.high}: too small or too slow to be timed"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record."""
        return {**asdict(self), "no_rate": list(self.no_rate), "timed": self.timed, "says": str(self)}


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
        mean, spread: of neutral scores by position in the reply, `[n_positions]`; the last applies to all later ones.
        drifts: subtracted at every token, one for each sum, rising, `[n_sums]`.
        location, scale: of the sums' largest values in neutral replies: their upper quartile, and the mean excess
            above it, `[n_sums]`.
        threshold: of the statistic, in units of `scale`.
        rate: share of neutral replies in which this trait raises an alarm by token `supported`.
        n_prompts, n_nulls: neutral prompts and replies behind the threshold.
        supported: the rate holds for replies of up to so many tokens: enough neutral ones are that long.
        errors: of the estimated onset.
        smallest: step, in standard deviations, that is found in 80 % of neutral replies when it is planted half-way;
            smaller ones are likely to go unnoticed. None if even the largest one tried is found less often.
        kind: of the scores, "specific" or "z".

    >>> from persona_core.analysis.onset_calibration import calibrate_onset
    >>> rng = np.random.default_rng(0)
    >>> detector = calibrate_onset([rng.normal(size=80) for _ in range(400)])
    >>> late = rng.normal(size=80) + np.repeat([0.0, 6.0], 40)
    >>> abs(detector.find(late).onset - 40) <= 3, str(detector.find(np.zeros(80)))
    (True, 'no reliable onset')
    """

    mean: np.ndarray
    spread: np.ndarray
    drifts: np.ndarray
    location: np.ndarray
    scale: np.ndarray
    threshold: float
    rate: float
    n_prompts: int
    n_nulls: int
    supported: int
    errors: OnsetErrors
    smallest: float | None
    kind: Kind = "z"

    def adjusted(self, z: np.ndarray) -> np.ndarray:
        """Scores minus the mean of neutral replies at each position, in units of their spread, `[n_tokens]`."""
        return adjust(z, self.mean, self.spread)

    def statistic(self, z: np.ndarray) -> np.ndarray:
        """What is compared with the threshold, at every token, `[n_tokens]`."""
        return self._of_sums(cusums(self.adjusted(checked(z, gaps=True)), self.drifts))

    def _of_sums(self, sums: np.ndarray) -> np.ndarray:
        return ((sums - self.location[:, None]) / self.scale[:, None]).max(0)

    def find(self, z: np.ndarray) -> Onset:
        """The onset in one reply.

        Args:
            z: scores of the reply tokens, unsmoothed, `[n_tokens]`; NaN where a token gives no evidence.

        Raises:
            SettingError: an infinite score.
        """
        return self.find_adjusted(self.adjusted(checked(z, gaps=True)))

    def find_adjusted(self, adjusted: np.ndarray, sums: np.ndarray | None = None) -> Onset:
        """The onset in a series that is already adjusted for position, `[n_tokens]`.

        Args:
            adjusted: scores, `[n_tokens]`.
            sums: their CUSUMs if known, `[n_sums, n_tokens]`.
        """
        sums = cusums(adjusted, self.drifts) if sums is None else sums
        series = self._of_sums(sums)
        over = np.flatnonzero(series > self.threshold)
        peak = float(series.max()) if len(series) else self.lowest
        if not len(over):
            return Onset("none", None, None, peak, kind=self.kind)
        alarm = int(over[0])
        begin, size = self._step(adjusted, sums, alarm)
        if begin == 0:
            first = float(np.nanmean(adjusted[: max(alarm + 1, FIRST)]))
            doubles = self._stays_above(adjusted - 2 * first)
            falls = self._stays_above((first / 2 - adjusted)[:doubles])
            return Onset("before the reply", alarm, None, peak, size=size, kind=self.kind, doubles=doubles, falls=falls)
        low, high = self.errors.interval(begin, size, alarm)
        return Onset("onset", alarm, begin, peak, low, high, size, self.kind)

    def _step(self, adjusted: np.ndarray, sums: np.ndarray, alarm: int) -> tuple[int, float]:
        """Position and size of the step that led to an alarm: it lies after the last zero of the first sum."""
        zeros = np.flatnonzero(sums[0, :alarm] == 0)
        first = int(zeros[-1]) + 1 if len(zeros) else 0
        step, size = most_likely_step(adjusted[first : alarm + 1])
        return first + step, size

    def _stays_above(self, series: np.ndarray) -> int | None:
        """Position from which a series is above 0 for long enough to raise an alarm, and on average to the end."""
        sums = cusums(series, self.drifts)
        over = np.flatnonzero(self._of_sums(sums) > self.threshold)
        if not len(over):
            return None
        begin = self._step(series, sums, int(over[0]))[0]
        return begin if float(np.nanmean(series[begin:])) > 0 else None

    @property
    def lowest(self) -> float:
        """The statistic before any token."""
        return float((-self.location / self.scale).max())

    def online(self) -> OnlineOnset:
        """The same, one token at a time."""
        return OnlineOnset(self)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record; `from_dict` restores it exactly."""
        record = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(self).items()}
        return {**record, "errors": {k: v.tolist() for k, v in vars(self.errors).items()}}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> OnsetDetector:
        """The inverse of `to_dict`. Records with a single drift, of before the bank of sums, give the same alarms.

        Raises:
            CorruptFile: a missing field, or values that are not numbers.
        """
        try:
            if "drift" in record:
                record = {**record, "drifts": [record["drift"]], "location": [0.0], "scale": [1.0]}
                record |= {"n_prompts": record["n_nulls"], "supported": record["tested"]}
            errors = OnsetErrors(**{k: np.array(record["errors"][k], float) for k in ("sizes", "low", "high")})
            arrays = {k: np.array(record[k], float) for k in ("mean", "spread", "drifts", "location", "scale")}
            threshold, rate = float(record["threshold"]), float(record["rate"])
            counts = {k: int(record[k]) for k in ("n_prompts", "n_nulls", "supported")}
            smallest = None if record["smallest"] is None else float(record["smallest"])
            kind: Kind = "specific" if record.get("kind") == "specific" else "z"
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CorruptFile(f"Not an onset detector: {type(error).__name__}: {error}") from error
        numbers = np.concatenate([a.ravel() for a in (*arrays.values(), *vars(errors).values(), np.array([threshold]))])
        by_position, by_sum = (
            {arrays[k].shape for k in names} for names in (("mean", "spread"), ("drifts", "location", "scale"))
        )
        one_axis = all(a.ndim == 1 and len(a) for a in arrays.values())
        fits = len(by_position) == len(by_sum) == 1 and len(errors.sizes) + 1 == len(errors.low) == len(errors.high)
        if not (one_axis and fits and np.isfinite(numbers).all()):
            raise CorruptFile("Not an onset detector: its arrays differ in length or are not finite.")
        positive = min(arrays["spread"].min(), arrays["scale"].min(), arrays["drifts"].min(), *counts.values()) > 0
        if not (positive and 0 <= rate < 1):
            raise CorruptFile("Not an onset detector: a spread, scale, drift, rate or count is out of range.")
        return cls(
            arrays["mean"], arrays["spread"], arrays["drifts"], arrays["location"], arrays["scale"], threshold, rate,
            counts["n_prompts"], counts["n_nulls"], counts["supported"], errors, smallest, kind,
        )  # fmt: skip


class OnlineOnset:
    """For use inside a decode loop: `push` each token's score; it raises the alarm at the same token as `find`."""

    def __init__(self, detector: OnsetDetector) -> None:
        self._detector = detector
        self._sums = np.zeros(len(detector.drifts))
        self._adjusted: list[float] = []
        self._alarmed = False

    def push(self, z: float) -> bool:
        """Take the score of the next token; True at the token at which the alarm goes off, once per reply."""
        d = self._detector
        if np.isinf(z):
            raise SettingError(f"The score is {z} at token {len(self._adjusted)}; the detector needs finite scores.")
        position = min(len(self._adjusted), len(d.mean) - 1)
        adjusted = float((z - d.mean[position]) / d.spread[position])
        self._adjusted.append(adjusted)
        if not np.isnan(adjusted):
            self._sums = np.maximum(0.0, self._sums + adjusted - d.drifts)
        if self._alarmed or not ((self._sums - d.location) / d.scale).max() > d.threshold:
            return False
        self._alarmed = True
        return True

    @property
    def result(self) -> Onset:
        """The onset after the tokens so far."""
        return self._detector.find_adjusted(np.array(self._adjusted))
