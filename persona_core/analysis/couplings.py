"""What is known of the couplings between traits, and which of them are edges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from persona_core.analysis.permutation import LEVEL
from persona_core.analysis.statistics import Estimate, exact_share

MIN_EXCESS = 0.1
"""Excess, in Fisher's z, that an edge's whole interval must lie beyond. Chosen on texts with traits of the demo world
(variant "cued"): the smallest multiple of 0.02 that no pair of 16 random directions exceeds. At 0, 32 % of their pairs
would be edges there, at 0.06 5 %. What it does on other texts is measured by `benchmarks.interaction`."""

OTHER_MODEL = (
    "No coupling is claimed: the neutral replies are another model's, and a fine-tune moves the couplings of all "
    "directions. Analyse with both models: random directions are then read along, and show by how much."
)
CONTROL_QUANTILE = 0.95
"""Share of the pairs of random directions whose excess an edge must lie beyond."""

NO_NEUTRAL = (
    "No coupling is claimed: there are no neutral replies to compare with, and any two directions of a model's state "
    "are correlated, whatever the text says."
)


@dataclass(frozen=True)
class Coupling:
    """Two traits at one lag.

    Attributes:
        source, target: the target's token is `lag` tokens after the source's.
        lag: 0 at the same token; the pair then has no direction.
        estimate: correlation of the innovations, pooled over replies; n counts prompts.
        null: the same in neutral replies; None without them.
        excess: Fisher's z of the run minus that of the null, with a 95 % bootstrap interval over the prompts of both.
        p: two-sided, by permuting which replies are neutral.
        q: p adjusted for all pairs at lag 0, or for all ordered pairs and later lags: the chance of any false one.
        claimed: whether this is an edge; see `Couplings.bars`.
        reason: why it was not tested; None if it was.
    """

    source: str
    target: str
    lag: int
    estimate: Estimate | None
    null: Estimate | None
    excess: Estimate | None
    p: float | None
    q: float | None
    claimed: bool
    reason: str | None

    @property
    def significant(self) -> bool:
        """Whether it differs from neutral replies by more than chance, however little."""
        return self.q is not None and self.q <= LEVEL

    def exceeds(self, bar: float) -> bool:
        """Whether it is significant, and the whole interval of its excess beyond a bar, on either side of 0."""
        return self.significant and self.excess is not None and max(self.excess.low, -self.excess.high) > bar

    def to_dict(self) -> dict[str, Any]:
        estimates = {k: (one := getattr(self, k)) and one.to_dict() for k in ("estimate", "null", "excess")}
        return {**asdict(self), **estimates, "significant": self.significant}


@dataclass(frozen=True)
class Couplings:
    """All pairs of traits at all lags.

    Attributes:
        together: every pair at the same token.
        lagged: every ordered pair at every lag.
        control: all pairs of the random directions that were read along, at all lags; empty without any.
        bars: what the whole interval of an edge's excess must lie beyond, at the same token and at later lags:
            `MIN_EXCESS`, or what 95 % of the pairs of random directions stay below, if that is more.
        missing: why no coupling is claimed at all; None where there is a null.
        orders: trait -> order of the autoregression that whitened the run.
        n_replies, n_prompts: of the run.
        n_neutral, n_neutral_prompts: of the null.
        left_out: replies of the run too short to be whitened.
        n_shuffles: permutations behind each p.
    """

    together: tuple[Coupling, ...]
    lagged: tuple[Coupling, ...]
    control: tuple[Coupling, ...]
    bars: tuple[float, float]
    missing: str | None
    orders: Mapping[str, int]
    n_replies: int
    n_prompts: int
    n_neutral: int
    n_neutral_prompts: int
    left_out: int
    n_shuffles: int

    def control_share(self, lagged: bool = False) -> Estimate | None:
        """Share of the pairs of random directions that `MIN_EXCESS` alone would make edges; None without any.

        Its interval is binomial over pairs, which are not independent.
        """
        pairs = [c for c in self.control if bool(c.lag) == lagged and c.q is not None]
        return exact_share(sum(c.exceeds(MIN_EXCESS) for c in pairs), len(pairs)) if pairs else None

    def withheld(self, reason: str) -> Couplings:
        """The same without any claim."""
        together, lagged = (tuple(replace(c, claimed=False) for c in own) for own in (self.together, self.lagged))
        return replace(self, together=together, lagged=lagged, missing=reason)

    def to_dict(self) -> dict[str, Any]:
        pairs = {k: [pair.to_dict() for pair in getattr(self, k)] for k in ("together", "lagged")}
        shares = {"together": self.control_share(), "lagged": self.control_share(lagged=True)}
        return {
            **{k: v for k, v in vars(self).items() if k not in (*pairs, "control")},
            **pairs,
            "orders": dict(self.orders),
            "bars": list(self.bars),
            "control": {k: v and v.to_dict() for k, v in shares.items()} if self.control else None,
        }
