"""What a model could have said in place of a token, and the branch from there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from persona_core.errors import PromptError
from persona_core.inference.probabilities import likeliest
from persona_core.models.detokenize import split_text
from persona_core.monitor.branching import Branch, prefix_of
from persona_core.utils.checks import is_integer

if TYPE_CHECKING:
    from persona_core.models.language_model import LanguageModel
    from persona_core.traces.trace import Trace


@dataclass(frozen=True)
class Alternative:
    """A token that the model could have chosen.

    Attributes:
        id: of the token.
        text: as it would be shown; "" for a part of a character.
        probability: at temperature 1, without steering.
        ends: whether the reply would end there, so that nothing can follow.
    """

    id: int
    text: str
    probability: float
    ends: bool


def alternatives(lm: LanguageModel, trace: Trace, at: int, k: int = 5) -> list[Alternative]:
    """The tokens that are likeliest at one token of a reply, likeliest first; one forward over what comes before.

    Args:
        lm: the model that wrote it.
        trace: with the reply.
        at: which token of it, from 0.
        k: how many.

    Raises:
        SettingError: the reply has no such token.
        VectorsMismatch: the trace was written with another tokenizer.
    """
    ids = prefix_of(lm, Branch(trace, at), at + 1).ids
    return [
        Alternative(i, "".join(split_text(lm.tokenizer, [*ids, i])[len(ids) :]), p, i in lm.eos_ids)
        for i, p in likeliest(lm, ids, k)
    ]


def branch_with(lm: LanguageModel, trace: Trace, at: int, token_id: int) -> Branch:
    """The branch in which token `at` of the reply is another one.

    Raises:
        PromptError: no token that a reply can go on after.
        SettingError: the reply has no token `at`.
        VectorsMismatch: the trace was written with another tokenizer.
    """
    if not is_integer(token_id, minimum=0) or token_id >= lm.vocabulary_size or token_id in lm.eos_ids:
        raise PromptError(f"Token {token_id!r} cannot stand in a reply that goes on; choose another one.")
    ids = (*prefix_of(lm, Branch(trace, at), at + 1).ids, token_id)
    n = len(ids)
    role = trace.roles[n - 1] if n <= trace.n_tokens and trace.roles[n - 1] == "thinking" else "assistant"
    unread = np.full((*trace.raw.shape[:-1], 1), np.nan, np.float32)
    changed = trace.replace(
        token_ids=ids,
        tokens=tuple(split_text(lm.tokenizer, ids)),
        roles=(*trace.roles[: n - 1], role),
        special=(*trace.special[: n - 1], token_id in set(lm.tokenizer.all_special_ids)),
        raw=np.concatenate([trace.raw[..., : n - 1], unread], axis=-1),
        norms=np.concatenate([trace.norms[..., : n - 1], unread[0]], axis=-1),
    )
    return Branch(changed, at + 1)
