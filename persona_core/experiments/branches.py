"""Branches of published replies: where a trait turns, it is held, taken out or pushed, and what came of it is measured.

Four branches a reply, from the token on at which the trait turns: capped where all but one neutral token in a hundred
lie, without the trait, pushed by the strength that left replies coherent, and pushed by `TOO_FAR`. Each has the seed
and the sampling of the reply that it continues.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from persona_core.analysis.branch_figures import MeasuredBranch
from persona_core.errors import NotFound
from persona_core.inference.steering import Steer
from persona_core.monitor.branch_outcome import text_figures
from persona_core.monitor.branching import Branch
from persona_core.traces.trace import Trace
from persona_core.vectors.card_steering import suggested_amount

if TYPE_CHECKING:
    from persona_core.monitor.monitor import PersonaMonitor
    from persona_core.vectors.vectors import PersonaVectors

Row = Mapping[str, Any]
TOO_FAR = 20.0
"""Standard deviations: what a text looks like that breaks. SmolLM2's keeps a twentieth of its fluency."""
USUAL_CAP = 2.0
"""Standard deviations, for vectors that do not know their neutral tokens along the steering direction."""


@dataclass(frozen=True)
class BranchPoint:
    """Where a reply is branched.

    Attributes:
        id: of the reply.
        trait: to change.
        at: the first token of the reply that can differ.
    """

    id: str
    trait: str
    at: int


def branch_replies(
    monitor: PersonaMonitor, rows: Sequence[Row], config: str, points: Sequence[BranchPoint], progress: bool = True
) -> list[tuple[dict[str, Any], MeasuredBranch]]:
    """Branch the replies of a run, and measure each branch.

    Args:
        monitor: the model that wrote them, with the vectors that they were read with.
        rows: of the run.
        config: its name.
        points: where.
        progress: show a bar.

    Returns:
        For each branch its row and what it changed. The row's id is the branch's name.

    Raises:
        NotFound: a reply that is not among the rows.
        SettingError, UnknownTrait, ContextOverflow: as `PersonaMonitor.generate`.
    """
    known = {row["id"]: row for row in rows}
    if missing := [point.id for point in points if point.id not in known]:
        raise NotFound(f"No reply {missing[0]!r} in {config!r} to branch from.")
    wanted = [(point, steer) for point in points for steer in changes(monitor.vectors, point.trait, point.at)]
    found = []
    for point, steer in tqdm(wanted, desc="branching", unit="branch", disable=not progress):
        row = known[point.id]
        trace = Trace.from_row(row)
        settings = dict(trace.provenance.sampling or {})
        written = monitor.generate(Branch(trace, point.at), seed=trace.provenance.seed, steer=steer, **settings)
        figures = (text_figures(monitor, one, point.at, point.trait) for one in (trace, written))
        name = f"{point.id}/{config}/{point.trait}/{point.at}/{steer.mode}{steer.amount:+g}"
        same = {key: row[key] for key in ("messages", "set", "category")}
        measured = MeasuredBranch(name, point.id, config, point.trait, point.at, steer.mode, steer.amount, *figures)
        found.append((written.to_row(id=name, **same), measured))
    return found


def changes(vectors: PersonaVectors, trait: str, at: int) -> tuple[Steer, ...]:
    """What is tried on a trait, from token `at` of a reply on; a push that no card names is left out.

    Raises:
        UnknownTrait: the vectors have no such trait.
    """
    vectors.tensor(trait)
    block = vectors.best_block[trait]
    cap, push = (suggested_amount(vectors, trait, mode) for mode in ("cap", "add"))
    pushes = [TOO_FAR] if push is None or push >= TOO_FAR else [push, TOO_FAR]
    return (
        Steer.cap(trait, block, USUAL_CAP if cap is None else cap, start=at, unit="sd"),
        Steer.ablate(trait, block, start=at),
        *(Steer(trait, block, strength=amount, start=at, unit="sd") for amount in pushes),
    )
