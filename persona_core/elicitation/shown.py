"""Which tokens of a labelled reply show the trait, where the labels say which parts of it do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from persona_core.analysis.spans import piece_ends
from persona_core.errors import PromptError
from persona_core.inference.sections import NEITHER
from persona_core.models.detokenize import split_text

if TYPE_CHECKING:
    from persona_core.elicitation.store import Reply
    from persona_core.models.language_model import LanguageModel


@dataclass(frozen=True)
class ShownParts:
    """What of a reply stands for it.

    Attributes:
        text: the parts, joined by a space.
        positions: of their tokens in the answer.
    """

    text: str
    positions: tuple[int, ...]


def shown_parts(lm: LanguageModel, reply: Reply, shows: Sequence[str]) -> ShownParts:
    """The parts of a stored reply that its states were pooled over.

    Raises:
        PromptError: as `shown_positions`.
    """
    answer = reply.answer_ids
    inside = shown_positions(lm, answer, range(len(answer)), reply.text, shows)
    return ShownParts(" ".join(s.strip() for s in shows), tuple(t for t, at in enumerate(inside) if at != NEITHER))


def shown_positions(
    lm: LanguageModel, reply_ids: Sequence[int], answered: Sequence[int], reply: str, shows: Sequence[str]
) -> list[int]:
    """Positions as if the parts that show the trait were the whole answer, `NEITHER` elsewhere, `[n_reply_tokens]`.

    Args:
        lm: whose template the reply was placed by.
        reply_ids: the tokens of the reply.
        answered: from `answer_positions`.
        reply: the text of the answer.
        shows: parts of it; each occurs in it once.

    Raises:
        PromptError: the template rewrites the reply, so its parts have no place in what is read.
    """
    answer = [t for t, position in enumerate(answered) if position >= 0]
    pieces = split_text(lm.tokenizer, [reply_ids[t] for t in answer])
    read, said = "".join(pieces), reply.strip()
    if read.count(said) != 1:
        raise PromptError(
            f"The model's template rewrites the reply {said[:60]!r}, so the parts that show the trait cannot be found "
            "in it. Leave the field 'shows' out of this text."
        )
    ends, number = piece_ends(pieces), count()
    inside = set()
    for part in shows:
        start = read.index(said) + said.index(part.strip())
        inside |= {t for t, end in zip(answer, ends, strict=True) if start <= end < start + len(part.strip())}
    return [next(number) if t in inside else NEITHER for t in range(len(reply_ids))]
