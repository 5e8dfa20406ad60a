"""The results of an intervention window, and of a cap on replies that it should leave alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from persona_core.analysis.intervention_statistics import Arm, ArmStatistics, Outcome, arm_statistics
from persona_core.analysis.statistics import Estimate
from persona_core.errors import SettingError


@dataclass(frozen=True)
class InterventionWindow:
    """How much an intervention from t* - k on still changes.

    Attributes:
        trait, block: the trait, and the block of the intervention.
        cap: level of the cap, in residual-stream units.
        strength: of the steering away, in standard deviations of the null.
        n_prompts: replies.
        n_showing: replies that show the trait and were regenerated.
        n_diverged: regenerated replies that differ before t* - k, and are left out.
        first: median t*.
        outcomes: every reply of every arm and k.
    """

    trait: str
    block: int
    cap: float
    strength: float
    n_prompts: int
    n_showing: int
    n_diverged: int
    first: float
    outcomes: tuple[Outcome, ...] = field(repr=False)

    @cached_property
    def cells(self) -> tuple[ArmStatistics, ...]:
        """Every arm at every k. A reply counts at each k up to its t*, so `n` falls as k grows."""
        return arm_statistics(self.outcomes)

    @cached_property
    def common(self) -> tuple[ArmStatistics, ...]:
        """The same over the replies that count at every k, so that only k differs between cells."""
        ks = {one.k for one in self.outcomes}
        by_reply: dict[int, set[int]] = {}
        for one in self.outcomes:
            by_reply.setdefault(one.reply, set()).add(one.k)
        return arm_statistics([one for one in self.outcomes if by_reply[one.reply] == ks])

    def at(self, k: int, arm: Arm) -> ArmStatistics:
        """One cell.

        Raises:
            SettingError: not measured, or no reply was long enough.
        """
        for cell in self.cells:
            if (cell.k, cell.arm) == (k, arm):
                return cell
        raise SettingError(f"No cell k={k}, {arm!r}; known are k={sorted({c.k for c in self.cells})}.")

    def to_dict(self) -> dict[str, Any]:
        return {
            "trait": self.trait,
            "block": self.block,
            "cap": round(self.cap, 5),
            "strength": self.strength,
            "n_prompts": self.n_prompts,
            "n_showing": self.n_showing,
            "n_diverged": self.n_diverged,
            "first": self.first,
            "cells": [cell.to_dict() for cell in self.cells],
            "common": [cell.to_dict() for cell in self.common],
        }


@dataclass(frozen=True)
class CapSideEffects:
    """What a cap from the first token on does to neutral replies, which it should leave alone.

    Attributes:
        cap: level, in residual-stream units.
        identical: share of replies whose ids do not change.
        coherence, coherence_before: of the replies with and without the cap.
        n: replies.
    """

    cap: float
    identical: Estimate | None
    coherence: Estimate | None
    coherence_before: Estimate | None
    n: int

    def to_dict(self) -> dict[str, Any]:
        named = {k: getattr(self, k) for k in ("identical", "coherence", "coherence_before")}
        return {"cap": round(self.cap, 5), "n": self.n, **{k: e and e.to_dict() for k, e in named.items()}}
