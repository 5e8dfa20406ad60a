"""What vectors are made of and validated on, gathered from the store of replies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from persona_core.elicitation.stored_states import TOKENS
from persona_core.errors import SettingError
from persona_core.utils.numbering import numbered
from persona_core.vectors.controls import ExtractionReplies
from persona_core.vectors.extraction import KeptReplies, Sides, keep
from persona_core.vectors.held_out import CrossTrait, HeldOut
from persona_core.vectors.whitening import MAX_TOKENS, TokensAt, plain_tokens

if TYPE_CHECKING:
    from persona_core.elicitation.elicit import ElicitationPlan
    from persona_core.elicitation.shown import ShownParts
    from persona_core.elicitation.store import Reply, ReplyStore

PartsOf = Callable[["Reply"], "ShownParts | None"]
"""What of a reply its states are means over; None: all of it."""

READ_POSITION = "reply_mean"
"""Held-out replies are scored by the mean over their tokens, as a monitor reads them, whatever the position."""
SINKS_POSITION = "reply_mean_with_sinks"
"""If the plan has it, the card says what sink tokens would change."""


def neutral_replies(store: ReplyStore) -> list[Reply]:
    """The neutral replies that are not empty."""
    return [r for r in store.replies(split="neutral") if r.n_tokens]


def kept_replies(store: ReplyStore, trait: str, min_trait: float, min_coherence: float) -> KeptReplies:
    """The extraction replies that pass the filter."""
    replies = store.replies(split="extraction", trait=trait)
    return keep(trait, replies, store.scores(), min_trait, min_coherence)


def held_out(
    store: ReplyStore,
    trait: str,
    min_coherence: float,
    position: str = READ_POSITION,
    parts_of: PartsOf | None = None,
) -> HeldOut:
    """Coherent evaluation replies with a score, by the mean over their tokens or over those of `parts_of`."""
    scores = store.scores()
    replies = []
    for reply in store.replies(split="evaluation", trait=trait):
        score = scores.get(reply.request.index)
        judged = score is not None and score.trait is not None and score.coherence is not None
        if reply.n_tokens and judged and score.coherence >= min_coherence:  # type: ignore[union-attr, operator]
            replies.append(reply)
    if not replies:
        raise SettingError(
            f"No evaluation reply of {trait!r} has both scores and is coherent. Judge the replies, or elicit more."
        )
    return HeldOut(
        states=store.states(replies, position),
        texts=tuple(r.text for r in replies),
        n_tokens=np.array([r.n_tokens for r in replies]),
        token_ids=tuple(r.answer_ids for r in replies),
        positive=np.array([r.request.side == "positive" for r in replies]),
        question=np.array([r.request.question for r in replies]),
        score=np.array([scores[r.request.index].trait for r in replies], float),
        pair=_pairs(replies),
        parts=None if parts_of is None else tuple(map(parts_of, replies)),
    )


def cross_trait(store: ReplyStore, trait: str) -> CrossTrait | None:
    """Positive replies of other traits that were judged on this one."""
    scores = {
        index: s.value for (index, t), s in store.cross_trait_scores().items() if t == trait and s.value is not None
    }
    replies = [r for r in store.replies(split="evaluation", side="positive") if r.request.index in scores]
    if not replies:
        return None
    return CrossTrait(
        states=store.states(replies, READ_POSITION),
        score=np.array([scores[r.request.index] for r in replies], float),
        cluster=numbered((r.request.trait, r.request.question) for r in replies),
    )


def sides(store: ReplyStore, kept: KeptReplies, position: str) -> Sides:
    """States of the kept replies of both sides, and of the neutral ones.

    Of neutral replies, those that the same hand wrote, if there are any: a given text differs from a reply of the
    model in more than the trait.
    """
    writers, neutral = {r.writer for r in kept.positive}, neutral_replies(store)
    alike = [r for r in neutral if r.writer in writers]
    groups = (kept.positive, kept.negative, alike or neutral)
    return Sides(*(store.states(group, position) for group in groups))


def extraction_replies(
    store: ReplyStore, kept: KeptReplies, position: str, parts_of: PartsOf | None = None
) -> ExtractionReplies:
    """The kept replies with what they answer and say."""
    parts = [None if parts_of is None else parts_of(r) for r in kept.positive]
    return ExtractionReplies(
        sides=sides(store, kept, position),
        positive_questions=np.array([r.request.question for r in kept.positive]),
        negative_questions=np.array([r.request.question for r in kept.negative]),
        positive_texts=tuple(r.text for r in kept.positive),
        negative_texts=tuple(r.text for r in kept.negative),
        positive_pairs=_pairs(kept.positive),
        negative_pairs=_pairs(kept.negative),
        positive_parts=tuple(r.text if p is None else p.text for r, p in zip(kept.positive, parts, strict=True)),
    )


def sampled_tokens(
    plan: ElicitationPlan, store: ReplyStore, kept: Mapping[str, KeptReplies]
) -> tuple[dict[str, TokensAt], list[TokensAt], TokensAt]:
    """The sampled tokens of each trait's positive replies, of each one's negative replies, and of neutral ones."""
    # About as many tokens of each side, so that the covariance of a large plan fits into minutes.
    per_class = MAX_TOKENS // (2 * len(kept) + 1)

    def tokens(replies: Sequence[Reply]) -> TokensAt:
        few = replies[:: max(1, ceil(len(replies) * plan.tokens_per_reply / per_class))]
        return lambda block: plain_tokens(store.states(few, TOKENS).block(block))

    return (
        {t: tokens(k.positive) for t, k in kept.items()},
        [tokens(k.negative) for k in kept.values()],
        tokens(neutral_replies(store)),
    )


def _pairs(replies: Sequence[Reply]) -> np.ndarray | None:
    """Which instruction pair each reply was written under; None where one is unknown."""
    pairs = [r.request.pair for r in replies]
    return None if None in pairs else np.array(pairs, int)
