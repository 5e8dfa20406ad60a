"""The results of a comparison of two models: by trait, by category, and prompt by prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from persona_core.analysis.statistics import Estimate
from persona_core.traces.trace import UNITS, Kind

EFFECTS = ("total", "weights", "text")


@dataclass(frozen=True)
class Effect:
    """How far one trait differs, in mean score over the reply tokens that are not sink tokens.

    Attributes:
        total, weights, text: see `persona_core.analysis.comparison`; weights and text are None without a replay. An
            estimate is None where there are fewer than three prompts.
        n: prompts.
        with_sinks: effect -> the same estimate with sink tokens put back.
        n_sinks: tokens left out of the texts.
        p: effect -> two-sided p-value of the sign-flip permutation over prompts; None where not computed.
        q: effect -> the same after Benjamini-Hochberg over all traits and effects of one table.
    """

    total: Estimate | None
    weights: Estimate | None
    text: Estimate | None
    n: int
    with_sinks: Mapping[str, Estimate | None]
    n_sinks: int
    p: Mapping[str, float] | None = None
    q: Mapping[str, float] | None = None

    @property
    def changed_by_sinks(self) -> tuple[str, ...]:
        """The effects whose interval does not overlap that with sink tokens put back: these are not results."""
        return tuple(name for name in EFFECTS if not overlap(getattr(self, name), self.with_sinks.get(name)))

    def to_dict(self) -> dict[str, Any]:
        """`{"n", "n_sinks", "changed_by_sinks", "total", "weights", "text"}`.

        Each effect is None or `{"value", "low", "high", "n", "p", "q", "with_sinks"}`, the last an estimate.
        """
        found: dict[str, Any] = {
            "n": self.n,
            "n_sinks": self.n_sinks,
            "changed_by_sinks": list(self.changed_by_sinks),
        }
        for name in EFFECTS:
            estimate: Estimate | None = getattr(self, name)
            found[name] = estimate and {
                **estimate.to_dict(),
                "p": (self.p or {}).get(name),
                "q": (self.q or {}).get(name),
                "with_sinks": (other := self.with_sinks.get(name)) and other.to_dict(),
            }
        return found


def overlap(one: Estimate | None, other: Estimate | None) -> bool:
    """Whether two intervals share a value; True where one of them is unknown.

    >>> overlap(Estimate(0.5, 0.4, 0.6, 9), Estimate(0.65, 0.6, 0.7, 9)), overlap(None, Estimate(0.0, 0.0, 0.0, 9))
    (True, True)
    """
    return one is None or other is None or (one.low <= other.high and other.low <= one.high)


@dataclass(frozen=True)
class PromptEffect:
    """One trait on one prompt.

    Attributes:
        id, category: of the prompt.
        trait: which.
        total, weights, text: see `persona_core.analysis.comparison`; None without a replay.
        bb, cc, cb, bc: mean score in the four cells, the reader first; the last two None without a replay.
        with_sinks: effect -> the same with sink tokens put back.
        n_sinks: tokens left out of the two texts.
    """

    id: str
    category: str
    trait: str
    total: float
    weights: float | None
    text: float | None
    bb: float
    cc: float
    cb: float | None
    bc: float | None
    with_sinks: Mapping[str, float | None]
    n_sinks: int

    def to_dict(self) -> dict[str, Any]:
        """Without the effects with sink tokens, which `Effect` sums up."""
        record = {k: round(v, 5) if isinstance(v, float) else v for k, v in asdict(self).items()}
        del record["with_sinks"]
        return record


@dataclass(frozen=True)
class Comparison:
    """Two models compared.

    Attributes:
        baseline, contaminated: the two readers.
        overall: trait -> effect over all prompts.
        categories: trait -> category -> effect, with q-values over this table alone.
        prompts: a record for each trait and prompt.
        left_out: prompts that are missing from a cell, or whose reply is empty or nothing but sink tokens.
        kind: of the scores: "specific", or "z" where a row has no specific scores.
        against: the traits that were read together: each one's specific score is what the others do not share.
        plain: trait -> effect on z, where `kind` is "specific": a difference in z alone means "not neutral", not which
            trait. None where `kind` is "z".
    """

    baseline: str | None
    contaminated: str | None
    overall: Mapping[str, Effect]
    categories: Mapping[str, Mapping[str, Effect]]
    prompts: tuple[PromptEffect, ...]
    left_out: tuple[str, ...]
    kind: Kind
    against: tuple[str, ...]
    plain: Mapping[str, Effect] | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "baseline": self.baseline,
            "contaminated": self.contaminated,
            "kind": self.kind,
            "unit": UNITS[self.kind],
            "against": list(self.against),
            "plain": self.plain and {trait: e.to_dict() for trait, e in self.plain.items()},
            "overall": {trait: e.to_dict() for trait, e in self.overall.items()},
            "categories": {
                trait: {name: e.to_dict() for name, e in table.items()} for trait, table in self.categories.items()
            },
            "prompts": [p.to_dict() for p in self.prompts],
            "left_out": list(self.left_out),
        }
