"""Why a trait has too few replies for a vector, and the command that helps, with numbers."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING

from persona_core.cli.extraction_plan import with_traits
from persona_core.errors import SettingError

if TYPE_CHECKING:
    from persona_core.elicitation.elicit import ElicitationPlan
    from persona_core.elicitation.store import Reply, ReplyStore
    from persona_core.elicitation.traits import TraitDefinition
    from persona_core.pipeline import Settings


def usable_traits(plan: ElicitationPlan, store: ReplyStore, settings: Settings) -> tuple[ElicitationPlan, list[str]]:
    """The plan with the traits that a vector can be made of, and why not of the others.

    Raises:
        SettingError: there is none.
    """
    reasons = {trait.name: why_not_enough(plan, store, trait, settings) for trait in plan.traits}
    unusable = [f"the vector of {name}: {why}" for name, why in reasons.items() if why]
    if len(unusable) == len(reasons):
        raise SettingError("\n".join(why for why in reasons.values() if why))
    return with_traits(plan, [name for name, why in reasons.items() if not why]), unusable


def why_not_enough(plan: ElicitationPlan, store: ReplyStore, trait: TraitDefinition, settings: Settings) -> str | None:
    """What keeps a trait's vector from being made; None if nothing does."""
    from persona_core.vectors.held_out import halves
    from persona_core.vectors.stored_replies import held_out, kept_replies

    name = trait.name
    try:
        kept_replies(store, name, settings.min_trait, settings.min_coherence)
    except SettingError as error:
        counts = _kept(store, store.replies(split="extraction", trait=name), settings)
        return f"{error} {_advice(plan, name, counts, plan.rollouts, '--rollouts')}"
    evaluation = store.replies(split="evaluation", trait=name)
    first = [r for r in evaluation if r.request.question < plan.n_choosing(trait)]
    counts, option = _kept(store, first, settings), "--evaluation-rollouts"
    try:
        choice, _ = halves(held_out(store, name, settings.min_coherence), plan.n_choosing(trait))
    except SettingError as error:
        return f"{error} {_advice(plan, name, counts, plan.evaluation_rollouts, option)}"
    shows = int(choice.shows.sum())
    if min(shows, len(choice) - shows) < 2:
        return (
            f"No block can be chosen for {name!r}: of {len(choice)} coherent replies to the first half of its "
            f"evaluation questions {shows} show the trait; at least 2 must and 2 must not. "
            f"{_advice(plan, name, counts, plan.evaluation_rollouts, option)}"
        )
    return None


def _kept(store: ReplyStore, replies: Sequence[Reply], settings: Settings) -> dict[str, tuple[int, int, int]]:
    """Side -> replies that are written, that have scores, and that count for the side."""
    scores = store.scores()
    found = {"positive": (0, 0, 0), "negative": (0, 0, 0)}
    for reply in replies:
        score, side = scores.get(reply.request.index), reply.request.side
        judged = score is not None and score.trait is not None and score.coherence is not None
        counts = (
            judged
            and reply.n_tokens > 0
            and score.coherence >= settings.min_coherence  # type: ignore[union-attr, operator]
            and (score.trait >= settings.min_trait) == (side == "positive")  # type: ignore[union-attr, operator]
        )
        n, n_judged, n_kept = found[side]
        found[side] = n + 1, n_judged + judged, n_kept + counts
    return found


def _advice(
    plan: ElicitationPlan, trait: str, counts: dict[str, tuple[int, int, int]], rollouts: int, option: str
) -> str:
    """What to do, by what there is least of."""
    if hasattr(plan, "texts"):
        return "Label more texts of this trait, on both sides."
    side = min(counts, key=lambda s: counts[s][2])
    written, judged, kept = counts[side]
    if not written:
        return "Elicit them first: --stage elicit."
    if not judged:
        return f"None of the {written} {side} replies has scores: --stage judge, or --label instruction."
    if not kept:
        return (
            f"None of the {judged} judged {side} replies counts, so more of them will hardly help: make the "
            f"instructions of {trait!r} clearer, lower --min-trait or --min-coherence, or go without a judge (--label "
            "instruction in another folder, or texts of your own: --texts)."
        )
    enough = max(rollouts + 1, ceil(4 * rollouts / kept))
    return f"You have {kept} of {written} {side} replies with {option} {rollouts}: {option} {enough} adds to them."
