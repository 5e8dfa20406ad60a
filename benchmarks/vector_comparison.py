"""Two sets of vectors of one model on each other's held-out set: replies to instructions, and labelled texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.labelled_states import reply_states
from benchmarks.natural_texts import NEUTRAL, POSITIVE, Tokens, labelled_tokens, reply_means
from persona_core.analysis.statistics import bounded, over_clusters, rank_auroc
from persona_core.elicitation.store import ReplyStore
from persona_core.errors import SettingError
from persona_core.models.chat import conversation
from persona_core.models.language_model import LanguageModel
from persona_core.monitor.transcripts import written_by
from persona_core.traces.specific import specific_scores
from persona_core.utils.numbering import numbered
from persona_core.vectors.controls import cosine_of, random_direction_aurocs
from persona_core.vectors.held_out import figure
from persona_core.vectors.vectors import PersonaVectors
from real_model.texts import TRAITS, TextQuestion

N_RANDOM = 100
KINDS = ("z", "specific")

Scores = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Scores, whether each is of the trait, and the number of its question, `[n]` each."""


def compare(
    lm: LanguageModel,
    store: ReplyStore,
    vectors: Mapping[str, PersonaVectors],
    questions: Sequence[TextQuestion],
) -> dict[str, Any]:
    """Cosines, and AUROCs on instructed replies and on labelled texts, at the block of the vectors from texts.

    Args:
        lm: the model.
        store: the instructed replies.
        vectors: name -> vectors; those named "texts" say at which block all are read.
        questions: held-out labelled texts.
    """
    given = vectors["texts"]
    at = {t: given.best_block[t] for t in given.traits}
    tokens = labelled_tokens(lm, questions, sorted(set(at.values())))
    replies = {t: InstructedReplies.of(lm, store, t, b) for t, b in at.items()}
    chance: dict[str, dict[str, np.ndarray]] = {}
    for k, (t, r) in enumerate(replies.items()):
        states = tokens.states[at[t]]
        known = {"instructed_replies": (r.states, r.positive), "instructed_replies_alone": (r.alone, r.positive)}
        for against in ("neutral", "else"):
            used, own = _told_apart(tokens, t, against)
            known[against] = states[used], own
        known["replies"] = reply_means(states, tokens, TRAITS.index(t))[:2]
        for name, (of, positive) in known.items():
            chance.setdefault(name, {})[t] = random_direction_aurocs(of, positive, N_RANDOM, k)
    return {
        "cosines": {name: _cosines(given, v, at) for name, v in vectors.items() if name != "texts"},
        "on_instructed_replies": {
            name: {
                read: aurocs(
                    {t: (r.along(v, t, at[t], read), r.positive, r.question) for t, r in replies.items()}, False
                )
                for read in ("states", "alone")
            }
            for name, v in vectors.items()
        },
        "on_texts": {name: _on_texts(v, tokens, at) for name, v in vectors.items()},
        "random": {name: random_limits(found) for name, found in chance.items()},
    }


@dataclass(frozen=True, eq=False)
class InstructedReplies:
    """The evaluation replies of one trait at one block.

    Attributes:
        states: means over each reply's tokens, as it was written, `[n, d_model]`.
        alone: the same without the instruction: the question and the reply, read again.
        positive, question: `[n]`.
    """

    states: np.ndarray
    alone: np.ndarray
    positive: np.ndarray
    question: np.ndarray

    @classmethod
    def of(cls, lm: LanguageModel, store: ReplyStore, trait: str, block: int) -> InstructedReplies:
        own = [r for r in store.replies(split="evaluation", trait=trait) if r.n_tokens]
        texts = [written_by(lm, conversation(r.request.user), r.answer_ids) for r in own]
        return cls(
            store.states(own).block(block),
            np.stack([s[0].mean(0, dtype=np.float64) for s in reply_states(lm, texts, [block])]),
            np.array([r.request.side == "positive" for r in own]),
            np.array([r.request.question for r in own]),
        )

    def along(self, vectors: PersonaVectors, trait: str, block: int, read: str) -> np.ndarray:
        """Mean reading of each reply, `[n]`; z is the same up to its scale."""
        found: np.ndarray = getattr(self, read) @ vectors.reading_direction(trait, block).numpy().astype(np.float64)
        return found


def _on_texts(vectors: PersonaVectors, tokens: Tokens, at: Mapping[str, int]) -> dict[str, Any]:
    """AUROC of tokens in sentences that show the trait, by score and by what they are told from, and of whole replies.

    "replies" are a trait's positive ones against its negative ones, by their mean score.
    """
    found: dict[str, Any] = {}
    for kind in KINDS:
        scores = {t: token_scores(vectors, tokens.states[b], t, b)[kind] for t, b in at.items()}
        found[kind] = {}
        for against in ("neutral", "else"):
            parts: dict[str, Scores] = {}
            for t in at:
                used, own = _told_apart(tokens, t, against)
                parts[t] = (scores[t][used], own, tokens.question[used])
            found[kind][against] = aurocs(parts, shared_questions=True)
        means = {t: reply_means(scores[t], tokens, TRAITS.index(t)) for t in at}
        found[kind]["replies"] = aurocs(means, shared_questions=True)
    return found


def token_scores(vectors: PersonaVectors, states: np.ndarray, trait: str, block: int) -> dict[str, np.ndarray]:
    """z (up to its scale) and the specific score of tokens `[n_tokens, d_model]` at one block, `[n_tokens]` each."""
    along = np.stack([vectors.reading_direction(t, block).numpy() for t in vectors.traits])
    raw = along @ states.T.astype(np.float32)  # [n_traits, n_tokens]
    odds, k = vectors.odds_at([block]), vectors.traits.index(trait)
    if odds is None:
        raise SettingError("The vectors have no specific scores; make them again.")
    return {"z": raw[k], "specific": specific_scores(raw, odds.at(0))[k]}


def _told_apart(tokens: Tokens, trait: str, against: str) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens are used, and which of these show the trait."""
    own = (tokens.kind == POSITIVE) & (tokens.trait == TRAITS.index(trait))
    used = own | (tokens.kind == NEUTRAL) if against == "neutral" else np.ones(len(own), bool)
    return used, own[used]


# ---- arithmetic ----


def aurocs(by_trait: Mapping[str, Scores], shared_questions: bool) -> dict[str, Any]:
    """AUROC of each trait, and their mean, with intervals over questions.

    Args:
        by_trait: trait -> scores.
        shared_questions: whether a number is the same question for every trait; otherwise each has its own.
    """
    parts = list(by_trait.values())
    if not parts:
        return {"mean": None, "by_trait": {}}
    each = [rank_auroc(scores, own) for scores, own, _ in parts]
    ends = np.cumsum([len(scores) for scores, *_ in parts])[:-1]

    def mean(weights: np.ndarray) -> float:
        return float(np.mean([one(w) for one, w in zip(each, np.split(weights, ends), strict=True)]))

    clusters = numbered(
        (-1 if shared_questions else k, int(q)) for k, (*_, question) in enumerate(parts) for q in question
    )
    by = {t: figure(bounded(one, p[2])) for (t, p), one in zip(by_trait.items(), each, strict=True)}
    return {"mean": figure(bounded(mean, clusters)), "by_trait": by}


def random_limits(found: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What 95 % of random directions stay below, for each trait and for the mean over traits.

    Args:
        found: trait -> AUROCs of random directions, each with its better sign, `[n_random]`.
    """
    by = {t: round(float(np.quantile(a, 0.95)), 4) for t, a in found.items()}
    return {"mean": round(float(np.quantile(np.mean(list(found.values()), axis=0), 0.95)), 4), "by_trait": by}


def _cosines(texts: PersonaVectors, ours: PersonaVectors, at: Mapping[str, int]) -> dict[str, Any]:
    """Of steering and of reading directions."""
    return {
        name: cosines(
            {t: getattr(texts, name)(t, b).numpy() for t, b in at.items()},
            {b: {t: getattr(ours, name)(t, b).numpy() for t in at} for b in set(at.values())},
            at,
        )
        for name in ("direction", "reading_direction")
    }


def cosines(
    one: Mapping[str, np.ndarray], other: Mapping[int, Mapping[str, np.ndarray]], at: Mapping[str, int]
) -> dict[str, Any]:
    """Cosine of each trait's direction with its counterpart, and how much larger than with other traits' ones.

    Args:
        one: trait -> direction `[d_model]`.
        other: block -> trait -> direction.
        at: trait -> block of `one`.

    Returns:
        "by_trait": with its counterpart; "mean"; "others": the mean over those of other traits; "more": the first less
        the second, with an interval over traits.
    """
    table = np.array([[cosine_of(one[t], other[at[t]][o]) for o in at] for t in at], float)  # [n_traits, n_traits]
    same = np.eye(len(table), dtype=bool)
    own, others = table[same], np.array([row[~here].mean() for row, here in zip(table, same, strict=True)])
    gain = own - others
    more = over_clusters(lambda w: float(w @ gain / w.sum()), np.arange(len(gain)))
    return {
        "by_trait": {t: round(float(c), 4) for t, c in zip(at, own, strict=True)},
        "mean": round(float(own.mean()), 4),
        "others": round(float(others.mean()), 4),
        "more": figure(more),
    }
