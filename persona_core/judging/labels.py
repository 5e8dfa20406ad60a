"""Labels without a judge: the side that a reply was asked for, or that its text was given."""

from __future__ import annotations

from collections.abc import Sequence

from persona_core.elicitation.store import ReplyScore, ReplyStore
from persona_core.elicitation.texts import GIVEN
from persona_core.elicitation.traits import TraitDefinition
from persona_core.judging.replies import check_judge

INSTRUCTION = "instruction"
"""What stands in place of the judge's name, as `GIVEN` does."""
UNJUDGED = {
    INSTRUCTION: "No judge read the replies. The label of a reply is the side of the instruction that it was written "
    "under, whether it followed it or not; every reply counts as coherent. Where the model does not follow its "
    "instructions, the vector shows the instructions and not the trait.",
    GIVEN: "No judge read the replies. They are texts that were given with a label each, read by this model; it wrote "
    "none of them.",
}
"""What a card says about such labels."""


def label_replies(store: ReplyStore, traits: Sequence[TraitDefinition], how: str = INSTRUCTION) -> int:
    """Score every reply by its side: 100 on the positive side, 0 on the negative, and coherent.

    Args:
        store: the replies.
        traits: the definitions that they were elicited with.
        how: `INSTRUCTION`, or `GIVEN` for labelled texts.

    Returns:
        How many replies were labelled now.

    Raises:
        SettingError: a judge scored the store before.
    """
    check_judge(store, how, traits)
    known = store.scores()
    new = [
        ReplyScore(r.request.index, 100.0 if r.request.side == "positive" else 0.0, 100.0, how, r.fingerprint)
        for r in store.replies()
        if r.request.trait is not None and r.request.index not in known
    ]
    store.add_scores(new)
    return len(new)
