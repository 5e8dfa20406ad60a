"""How well vectors read texts whose truth is known: the test split of the labelled texts, sentence by sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from persona_core.analysis.spans import piece_ends
from persona_core.analysis.statistics import Estimate, bounded, rank_auroc
from persona_core.errors import SettingError
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.traces.trace import Kind, Trace
from real_model.texts import Question, Reply

NEW_STYLES = ("formal", "story")
"""Styles of the test split that the vectors were not made from."""


@dataclass(frozen=True, eq=False)
class ReadReply:
    """A labelled reply as the model reads it.

    Attributes:
        question, reply: what it is.
        trace: of the reply.
        shows: whether each reply token lies in a sentence that shows the trait, bool `[n_reply]`.
    """

    question: Question
    reply: Reply
    trace: Trace
    shows: np.ndarray


def read_replies(monitor: PersonaMonitor, questions: Sequence[Question]) -> list[ReadReply]:
    """All replies to some questions, read in their place."""
    each = [(q, r) for q in questions for r in q.replies]
    texts = [[{"role": "user", "content": q.question}, {"role": "assistant", "content": r.text}] for q, r in each]
    traces = monitor.read_batch(texts, progress=True)
    return [ReadReply(q, r, t, tokens_that_show(t, r)) for (q, r), t in zip(each, traces, strict=True)]


def tokens_that_show(trace: Trace, reply: Reply) -> np.ndarray:
    """Whether each reply token lies in a sentence that shows the trait, bool `[n_reply]`.

    A token belongs to the sentence of its last character.

    Raises:
        SettingError: the trace is of another text.
    """
    if trace.reply_text.strip() != reply.text:
        raise SettingError(f"The trace reads {trace.reply_text[:60]!r}, the reply is {reply.text[:60]!r}.")
    return pieces_that_show([trace.tokens[t] for t in trace.reply_positions], reply)


def pieces_that_show(pieces: Sequence[str], reply: Reply) -> np.ndarray:
    """The same of the pieces of a reply's text, one for each token."""
    ends, begin = piece_ends(pieces), "".join(pieces).index(reply.text)
    starts = np.cumsum([0, *(len(s) + 1 for s in reply.sentences)])[:-1] + begin
    sentence = np.searchsorted(starts, ends, side="right") - 1
    return np.array(reply.shows)[np.clip(sentence, 0, len(reply.sentences) - 1)] & (ends < begin + len(reply.text))


def token_figures(read: Sequence[ReadReply], trait: str, kind: Kind) -> dict[str, Any]:
    """AUROC of the tokens that show a trait, each with its interval over questions.

    Returns:
        "neutral": against the tokens of neutral replies. "else": against these and every other token: of negative
        replies, of other traits' replies, and of the sentences beside those that show the trait. "same styles" and
        "other styles": as "else", on questions of the styles that the vectors were made from, and of others.
    """
    series = [(one, one.trace.reply_scores(trait, kind).astype(float)) for one in read]
    numbers = {q: i for i, q in enumerate(dict.fromkeys(one.question.id for one in read))}

    def figure(keep: Callable[[ReadReply], np.ndarray]) -> Estimate | None:
        scores, own, clusters = [], [], []
        for one, z in series:
            kept = keep(one) & np.isfinite(z)
            scores.append(z[kept])
            own.append((one.shows & (one.question.trait == trait))[kept])
            clusters.append(np.full(int(kept.sum()), numbers[one.question.id]))
        return bounded(rank_auroc(np.concatenate(scores), np.concatenate(own)), np.concatenate(clusters))

    def shows(one: ReadReply) -> np.ndarray:
        return one.shows & (one.question.trait == trait)

    def against_neutral(one: ReadReply) -> np.ndarray:
        return shows(one) | (one.reply.side == "neutral")

    def of_styles(new: bool) -> Callable[[ReadReply], np.ndarray]:
        return lambda one: np.full(len(one.shows), (one.question.style in NEW_STYLES) == new)

    found = {
        "neutral": figure(against_neutral),
        "else": figure(lambda one: np.ones(len(one.shows), bool)),
        "same styles": figure(of_styles(False)),
        "other styles": figure(of_styles(True)),
    }
    return {name: None if one is None else one.to_dict() for name, one in found.items()}
