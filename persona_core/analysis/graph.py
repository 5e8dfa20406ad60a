"""HOW, in one graph: the edges between traits, of three kinds, each with its clock and its interval.

"Together" means coupling at the same token, "follows" an order in time; only "confirmed", measured by steering, is
causal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from persona_core.analysis.interaction import Couplings
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
        estimate: correlation for "series"; share of replies with both in which the source comes first for "follows" on
            the other clocks; vector arm minus random arm for "confirmed".
        p, q: before and after Benjamini-Hochberg within its table.
        floor: cosine of the vectors, for "together".
    """

    source: str
    target: str
    kind: Kind
    clock: str
    lag: float | None
    estimate: Estimate | None
    p: float
    q: float
    floor: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "estimate": self.estimate and self.estimate.to_dict()}


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
            edges.append(_edge(pair, kind, "series", float(pair.lag) if pair.lag else None, pair.floor))
    for clock in clocks:
        for one in clock.pairs:
            if one.claimed:
                edges.append(_edge(one, "follows", clock.name, one.lag.value if one.lag else None))
    for table in confirmed:
        edges += [_edge(effect, "confirmed", "behaviour") for effect in table.edges]
    unknown = sorted({t for e in edges for t in (e.source, e.target)} - set(traits))
    if unknown:
        raise SettingError(f"The tables have {', '.join(unknown)}, which is not among the traits {', '.join(traits)}.")
    return TraitGraph(tuple(traits), tuple(edges), couplings, tuple(clocks), tuple(confirmed))


def _edge(pair: Any, kind: Kind, clock: str, lag: float | None = None, floor: float | None = None) -> Edge:
    estimate = pair.first if kind == "follows" and clock != "series" else pair.estimate
    return Edge(pair.source, pair.target, kind, clock, lag, estimate, pair.p, pair.q, floor)
