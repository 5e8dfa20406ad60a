"""HOW, in one graph: the edges between traits, of three kinds, each with its clock and its interval.

"Together" means that two scores vary together at the same token, more or less than in neutral replies; "follows" an
order in time. Only "confirmed", measured by steering, is causal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from persona_core.analysis.couplings import Couplings
from persona_core.analysis.interventional import InterventionalEffects
from persona_core.analysis.permutation import LEVEL
from persona_core.analysis.precedence import PrecedenceTable
from persona_core.analysis.statistics import Estimate
from persona_core.errors import SettingError

Kind = Literal["together", "follows", "confirmed"]


@dataclass(frozen=True)
class Edge:
    """A claimed connection between two traits.

    Attributes:
        source, target: for "together" in the order of the traits, without a direction.
        kind: "together": at the same token; "follows": later; "confirmed": by steering the source.
        clock: where it is seen: "series" (whitened scores, token by token), "activation" (onsets of scores) or
            "behaviour" (what the text visibly shows).
        lag: tokens from source to target; None where undefined.
        estimate: the excess over neutral replies, in Fisher's z, for "series"; share of replies with both in which the
            source comes first for "follows" on the other clocks; vector arm minus random arm for "confirmed".
        p, q: before and after correction for the other pairs of its table.
        own, null: correlation in the run and in neutral replies, for "series".
    """

    source: str
    target: str
    kind: Kind
    clock: str
    lag: float | None
    estimate: Estimate | None
    p: float | None
    q: float | None
    own: Estimate | None = None
    null: Estimate | None = None

    def to_dict(self) -> dict[str, Any]:
        estimates = {k: (one := getattr(self, k)) and one.to_dict() for k in ("estimate", "own", "null")}
        return {**asdict(self), **estimates}


@dataclass(frozen=True)
class TraitGraph:
    """Traits and the edges between them; the tables keep everything that was tested.

    Attributes:
        nodes: the traits.
        edges: those claimed by their table, each with q of at most `LEVEL`.
        couplings, clocks, confirmed: the tables.
    """

    nodes: tuple[str, ...]
    edges: tuple[Edge, ...]
    couplings: Couplings | None
    clocks: tuple[PrecedenceTable, ...]
    confirmed: tuple[InterventionalEffects, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "nodes": list(self.nodes),
            "level": LEVEL,
            "edges": [edge.to_dict() for edge in self.edges],
            "couplings": self.couplings and self.couplings.to_dict(),
            "clocks": [clock.to_dict() for clock in self.clocks],
            "confirmed": [table.to_dict() for table in self.confirmed],
        }


def trait_graph(
    traits: Sequence[str],
    couplings: Couplings | None = None,
    clocks: Sequence[PrecedenceTable] = (),
    confirmed: Sequence[InterventionalEffects] = (),
) -> TraitGraph:
    """The graph of the given tables.

    Raises:
        SettingError: a table has a trait that is not among `traits`.
    """
    edges = []
    for pair in (*couplings.together, *couplings.lagged) if couplings else ():
        if pair.claimed:
            kind: Kind = "follows" if pair.lag else "together"
            values = (float(pair.lag) if pair.lag else None, pair.excess, pair.p, pair.q, pair.estimate, pair.null)
            edges.append(Edge(pair.source, pair.target, kind, "series", *values))
    for clock in clocks:
        for one in clock.pairs:
            if one.claimed:
                lag = one.lag.value if one.lag else None
                edges.append(Edge(one.source, one.target, "follows", clock.name, lag, one.first, one.p, one.q))
    for table in confirmed:
        for e in table.edges:
            edges.append(Edge(e.source, e.target, "confirmed", "behaviour", None, e.estimate, e.p, e.q))
    unknown = sorted({t for e in edges for t in (e.source, e.target)} - set(traits))
    if unknown:
        raise SettingError(f"The tables have {', '.join(unknown)}, which is not among the traits {', '.join(traits)}.")
    return TraitGraph(tuple(traits), tuple(edges), couplings, tuple(clocks), tuple(confirmed))
