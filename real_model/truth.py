"""How well vectors read texts whose truth is known: the test split of the labelled texts, sentence by sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from persona_core.analysis.spans import piece_ends
from persona_core.analysis.statistics import bounded, bounded_difference, rank_auroc
from persona_core.errors import SettingError
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.traces.trace import Kind, Trace
from persona_core.utils.numbering import numbered
from real_model.texts import TextQuestion, TextReply

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

    question: TextQuestion
    reply: TextReply
    trace: Trace
    shows: np.ndarray


def read_replies(monitor: PersonaMonitor, questions: Sequence[TextQuestion]) -> list[ReadReply]:
    """All replies to some questions, read in their place."""
    each = [(q, r) for q in questions for r in q.replies]
    traces = monitor.read_batch([q.messages(r) for q, r in each], progress=True)
    return [ReadReply(q, r, t, tokens_that_show(t, r)) for (q, r), t in zip(each, traces, strict=True)]


def tokens_that_show(trace: Trace, reply: TextReply) -> np.ndarray:
    """Whether each reply token lies in a sentence that shows the trait, bool `[n_reply]`.

    A token belongs to the sentence of its last character.

    Raises:
        SettingError: the trace is of another text.
    """
    if trace.reply_text.strip() != reply.text:
        raise SettingError(f"The trace reads {trace.reply_text[:60]!r}, the reply is {reply.text[:60]!r}.")
    return pieces_that_show([trace.tokens[t] for t in trace.reply_positions], reply)


def pieces_that_show(pieces: Sequence[str], reply: TextReply) -> np.ndarray:
    """The same of the pieces of a reply's text, one for each token."""
    sentence = sentence_of(pieces, reply)
    return np.array(reply.shows)[sentence] & (sentence >= 0)


def sentence_of(pieces: Sequence[str], reply: TextReply) -> np.ndarray:
    """The sentence of each piece of a reply's text, int `[n_pieces]`; -1 after the last."""
    ends, begin = piece_ends(pieces), "".join(pieces).index(reply.text)
    starts = np.cumsum([0, *(len(s) + 1 for s in reply.sentences)])[:-1] + begin
    sentence = np.clip(np.searchsorted(starts, ends, side="right") - 1, 0, None)
    return np.where(ends < begin + len(reply.text), sentence, -1)


def token_figures(read: Sequence[ReadReply], trait: str, kind: Kind) -> dict[str, Any]:
    """AUROC of the tokens that show a trait, each with its interval over questions.

    Returns:
        "neutral": against the tokens of neutral replies. "else": against these and every other token: of negative
        replies, of other traits' replies, and of the sentences beside those that show the trait. "same styles" and
        "other styles": as "else", on questions of the styles that the vectors were made from, and of others.
    """
    lengths = [len(one.shows) for one in read]
    scores = np.concatenate([one.trace.reply_scores(trait, kind) for one in read]).astype(float)  # [n_tokens]
    own = np.concatenate([one.shows & (one.question.trait == trait) for one in read])
    neutral = np.repeat([one.reply.side == "neutral" for one in read], lengths)
    new_style = np.repeat([one.question.style in NEW_STYLES for one in read], lengths)
    questions = np.repeat(numbered(one.question.id for one in read), lengths)

    def figure(used: np.ndarray) -> dict[str, Any] | None:
        kept = used & np.isfinite(scores)
        found = bounded(rank_auroc(scores[kept], own[kept]), questions[kept])
        return None if found is None else found.to_dict()

    return {
        "neutral": figure(own | neutral),
        "else": figure(np.ones(len(own), bool)),
        "same styles": figure(~new_style),
        "other styles": figure(new_style),
    }


def sentence_figures(
    read: Sequence[ReadReply],
    fitted: Sequence[TextQuestion],
    trait: str,
    kinds: Sequence[Kind] = ("z", "specific"),
) -> dict[str, Any]:
    """AUROC of the sentences that show a trait against all others, each with its interval over questions.

    Args:
        read: replies to questions that neither vectors nor words were fitted on.
        fitted: the questions of the vectors; `words_alone` learns from their sentences.
        trait: the trait.
        kinds: of scores.

    Returns:
        For each kind: by the mean score of a sentence's tokens. "words": by its words alone, without a model.
        "question": by these and the words of the question, which the model has read too. "over words", "over question":
        the last kind's lead over them.
    """
    scores: dict[Kind, list[float]] = {kind: [] for kind in kinds}
    shows, questions, texts, asked = [], [], [], []
    for one in read:
        at = sentence_of([one.trace.tokens[t] for t in one.trace.reply_positions], one.reply)  # [n_reply]
        series = {kind: one.trace.reply_scores(trait, kind) for kind in scores}
        for k, text in enumerate(one.reply.sentences):
            inside = [z[(at == k) & np.isfinite(z)] for z in series.values()]
            if not all(z.size for z in inside):
                continue
            for kind, z in zip(scores, inside, strict=True):
                scores[kind].append(float(z.mean()))
            shows.append(one.reply.shows[k] and one.question.trait == trait)
            questions.append(one.question.id)
            texts.append(text)
            asked.append(f"{one.question.question} {text}")
    each: dict[str, np.ndarray] = {kind: np.array(z) for kind, z in scores.items()}
    each["words"] = words_alone(fitted, trait)(texts)
    each["question"] = words_alone(fitted, trait, with_question=True)(asked)
    clusters, figures = numbered(questions), {name: rank_auroc(z, np.array(shows)) for name, z in each.items()}
    found = {name: bounded(one, clusters) for name, one in figures.items()}
    for name in ("words", "question"):
        found[f"over {name}"] = bounded_difference(figures[kinds[-1]], figures[name], clusters)
    return {name: None if one is None else one.to_dict() for name, one in found.items()}


def words_alone(
    fitted: Sequence[TextQuestion], trait: str, with_question: bool = False
) -> Callable[[Sequence[str]], np.ndarray]:
    """A classifier of sentences by their words and pairs of words: what one knows without the model's states.

    Questions of a trait are alike, so one that knows the question too tells its sentences from those of other traits.

    Args:
        fitted: the questions whose sentences it learns from.
        trait: the trait.
        with_question: whether a text is a question and a sentence, joined by a space; or a sentence alone.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    each = [
        (f"{q.question} {text}" if with_question else text, shows and q.trait == trait)
        for q in fitted
        for r in q.replies
        for text, shows in zip(r.sentences, r.shows, strict=True)
    ]
    texts, labels = zip(*each, strict=True)
    features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(texts)
    model = LogisticRegression(class_weight="balanced", max_iter=1000).fit(features.transform(texts), labels)
    return lambda sentences: model.decision_function(features.transform(sentences))
