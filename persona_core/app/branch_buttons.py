"""The three buttons beside the text that branch: what each does to the trait that is shown, and by how much."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from persona_core.app.requests import MAX_AMOUNT

if TYPE_CHECKING:
    from persona_core.app.pooled_model import PooledModel

CHOOSE = "choose"
"""In place of an action: another token, whose id is the amount; nothing is steered."""
UNKNOWN_AMOUNT = 1.0
"""Standard deviations, where the vectors say nothing of it."""


def change_of(where: Mapping[str, Any], trait: Any, action: Any, amount: Any) -> tuple[Any, Any, Any]:
    """Trait, action and amount of a press, unchecked; an amount of None is the one that the vectors suggest.

    Args:
        where: the data of the view's event `branch`.
        trait, action, amount: of the form, which hold where the event names no action. An empty trait is the one shown.

    >>> change_of({"trait": "evil", "action": "remove"}, "", "cap", 2.0)
    ('evil', 'remove', None)
    >>> change_of({"trait": "evil"}, "", "cap", 2.0)
    ('evil', 'cap', 2.0)
    """
    if where.get("action") == CHOOSE:
        return None, CHOOSE, where.get("token")
    if where.get("action") is not None:
        return where.get("trait"), where["action"], None
    return trait or where.get("trait"), action, amount


def suggested_amount(pooled: PooledModel, trait: Any, action: Any) -> float:
    """How far to move a trait, or where to cap it, in standard deviations: what the card of its vectors suggests.

    A cap leaves all but one neutral token in a hundred as it is; a push is the strongest that left replies coherent.

    Args:
        pooled: the model, which is in this process.
        trait, action: unchecked; for an unknown one, `UNKNOWN_AMOUNT`.
    """
    from persona_core.vectors.card_steering import cap_threshold, coherent_push

    vectors = pooled.monitor().vectors
    if not isinstance(trait, str) or trait not in vectors.best_block or action == "remove":
        return UNKNOWN_AMOUNT
    known = (coherent_push if action == "add" else cap_threshold)(vectors, trait)
    if known is None:
        return UNKNOWN_AMOUNT
    # A push is rounded down: a stronger one may not be coherent any more.
    rounded = math.floor(100 * known) / 100 if action == "add" else round(known, 2)
    return min(max(rounded, -MAX_AMOUNT), MAX_AMOUNT)
