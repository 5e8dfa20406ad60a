"""What an onset detector would find: neutral replies with a step or a rise planted in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from persona_core.analysis.onset import OnsetDetector
from persona_core.errors import SettingError

RISE = (0.8, 14.0)
"""Time constants of a planted rise, in tokens: it takes 2 to 35 tokens. Chosen on texts of the demo world, where a
trait often begins with a few neutral tokens: the interval covers the first one in 97 % of cued texts and 93 % of uncued
ones, and with rises of up to 10 tokens in 77 and 92 %."""

SPREAD_FACTOR = (1.0, 1.8)
"""Spread of a planted trait's scores over that of neutral tokens; 1.8 in texts of the demo world."""


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


def with_rise(x: np.ndarray, at: int, size: float, rng: np.random.Generator) -> np.ndarray:
    """A neutral reply with a planted trait: z rises over a few tokens and varies more from then on, `[n_tokens]`.

    Args:
        x: adjusted z of a neutral reply, `[n_tokens]`.
        at: position of the first raised token.
        size: of the rise, in standard deviations.
        rng: draws how fast it rises and how much more it varies, within `RISE` and `SPREAD_FACTOR`.
    """
    since = np.arange(len(x)) - at
    time_constant, factor = np.exp(rng.uniform(*np.log(RISE))), rng.uniform(*SPREAD_FACTOR)
    rise = np.where(since >= 0, size * -np.expm1(-(since.clip(0) + 1) / time_constant), 0.0)
    return np.where(since >= 0, factor, 1.0) * x + rise
