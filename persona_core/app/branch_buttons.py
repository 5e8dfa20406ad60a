"""The three buttons beside the text that branch: what each does to the trait that is shown, and by how much."""

from __future__ import annotations

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
    """How far to move a trait, or where to cap it, in standard deviations; see `card_steering.suggested_amount`.

    Args:
        pooled: the model, which is in this process.
        trait, action: unchecked; for an unknown one, `UNKNOWN_AMOUNT`.
    """
    from persona_core.vectors import card_steering

    vectors = pooled.monitor().vectors
    if not isinstance(trait, str) or trait not in vectors.best_block or action == "remove":
        return UNKNOWN_AMOUNT
    known = card_steering.suggested_amount(vectors, trait, "add" if action == "add" else "cap")
    return UNKNOWN_AMOUNT if known is None else min(max(known, -MAX_AMOUNT), MAX_AMOUNT)
