"""The statistics of an intervention window: trait rate and coherence against k, for each arm, paired by prompt.

Replies are selected because they show the trait, so any change of the text lowers the trait rate (regression to the
mean). What counts is an arm's effect beyond its random arm, which moves the states by the same amount in a meaningless
direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from persona_core.analysis.statistics import Estimate, over_clusters
from persona_core.errors import SettingError
from persona_core.utils.numbering import numbered

Arm = Literal["none", "cap", "cap, random", "steer", "steer, random"]
ARMS: tuple[Arm, ...] = ("none", "cap", "cap, random", "steer", "steer, random")
CONTROL: dict[Arm, Arm] = {"cap": "cap, random", "steer": "steer, random"}
MEASURES = ("shows", "share", "coherence", "changed")


@dataclass(frozen=True)
class Outcome:
    """One reply, regenerated from t* - k on.

    Attributes:
        reply: index; pairs the arms.
        group: its prompt; intervals are over prompts.
        k: tokens before the first token of the trait.
        arm: the intervention.
        shows: whether a token of the trait occurs at t* - k or later, 0 or 1.
        share: of the reply tokens from t* - k on, the share that belongs to the trait; None without a token.
        coherence: 0 to 100, of the whole reply; None if unknown.
        changed: whether the ids from t* - k on differ from those of the original reply, 0 or 1.
    """

    reply: int
    group: object
    k: int
    arm: Arm
    shows: float
    share: float | None
    coherence: float | None
    changed: float


@dataclass(frozen=True)
class ArmStatistics:
    """One arm at one k.

    Attributes:
        k, arm: which.
        n: replies.
        shows, share, coherence, changed: means over replies, as in `Outcome`, with intervals over prompts.
        minus_random: measure -> mean difference from the random arm, paired by reply; empty for arms without one.
    """

    k: int
    arm: Arm
    n: int
    shows: Estimate | None
    share: Estimate | None
    coherence: Estimate | None
    changed: Estimate | None
    minus_random: dict[str, Estimate | None]

    def to_dict(self) -> dict[str, Any]:
        return {
            "k": self.k,
            "arm": self.arm,
            "n": self.n,
            **{name: _plain(getattr(self, name)) for name in MEASURES},
            "minus_random": {name: _plain(e) for name, e in self.minus_random.items()} or None,
        }


def arm_statistics(outcomes: Sequence[Outcome], n_resamples: int = 1000, seed: int = 0) -> tuple[ArmStatistics, ...]:
    """Every arm at every k.

    Args:
        outcomes: of all arms; each reply at most once for each arm and k.
        n_resamples, seed: for the bootstrap over prompts.

    Raises:
        SettingError: a reply that occurs twice in one cell.

    >>> again = [
    ...     Outcome(i, i, 4, arm, float(arm == "cap, random"), 0.0, 90.0, 1.0)
    ...     for i in range(9)
    ...     for arm in ("cap", "cap, random")
    ... ]
    >>> [(one.arm, one.shows.value) for one in arm_statistics(again)]
    [('cap', 0.0), ('cap, random', 1.0)]
    >>> arm_statistics(again)[0].minus_random["shows"].value
    -1.0
    """
    cells: dict[tuple[int, Arm], dict[int, Outcome]] = {}
    for one in outcomes:
        cell = cells.setdefault((one.k, one.arm), {})
        if one.reply in cell:
            raise SettingError(f"Reply {one.reply} occurs twice at k={one.k} in the arm {one.arm!r}.")
        cell[one.reply] = one
    figures = []
    for k in sorted({k for k, _ in cells}):
        for arm in (arm for arm in ARMS if (k, arm) in cells):
            own = list(cells[k, arm].values())
            groups = [one.group for one in own]
            means = {
                name: mean_over_groups(
                    [getattr(one, name) for one in own], groups, (0.0, _top(name)), n_resamples, seed
                )
                for name in MEASURES
            }
            control = cells.get((k, CONTROL[arm]), {}) if arm in CONTROL else {}
            pairs = [(one, control[one.reply]) for one in own if one.reply in control]
            differences = {
                name: mean_over_groups(
                    [_difference(getattr(a, name), getattr(b, name)) for a, b in pairs],
                    [a.group for a, _ in pairs],
                    (-_top(name), _top(name)),
                    n_resamples,
                    seed,
                )
                for name in (MEASURES if pairs else ())
            }
            figures.append(ArmStatistics(k, arm, len(own), **means, minus_random=differences))
    return tuple(figures)


def mean_over_groups(
    values: Sequence[float | None],
    groups: Sequence[object],
    ends: tuple[float, float],
    n_resamples: int = 1000,
    seed: int = 0,
) -> Estimate | None:
    """A mean with its 95 % interval over groups; None without values, or with one group only.

    Resampling values that are all 0 gives exactly 0. Where all values lie at one end of their range, the interval is as
    wide as the exact binomial one with a group as the trial: 0 of 50 are compatible with a share of 7 %.

    Args:
        values: None if unknown.
        groups: of each value.
        ends: the smallest and the largest possible value.

    >>> mean_over_groups([1.0] * 50, range(50), (0.0, 1.0))
    Estimate(value=1.0, low=0.928..., high=1.0, n=50)
    """
    known = [(v, g) for v, g in zip(values, groups, strict=True) if v is not None]
    array = np.array([v for v, _ in known], float)
    of = numbered(g for _, g in known)
    n_groups = len(set(of))
    if n_groups < 2:
        return None
    low, high = ends
    for end, other in ((low, high), (high, low)):
        if (array == end).all():
            reach = end + (other - end) * (1 - 0.025 ** (1 / n_groups))
            return Estimate(end, min(end, reach), max(end, reach), n_groups)
    return over_clusters(lambda w: float(w @ array / w.sum()), of, n_resamples, seed)


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _top(name: str) -> float:
    return 100.0 if name == "coherence" else 1.0


def _plain(estimate: Estimate | None) -> dict[str, float | int] | None:
    return None if estimate is None else estimate.to_dict()
