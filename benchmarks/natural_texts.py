"""Which direction reads natural English best on a real model: what a trait is contrasted with.

    make weights
    python -m benchmarks.natural_texts

SmolLM2-135M-Instruct reads the labelled texts of `datasets/texts`. Directions are made from the split "fit", the block
is chosen on half of its questions with directions of the other half, and the figures are of the split "test". Writes
`benchmarks/results/natural_texts.json`, from which `python -m scripts.docs` makes a table of docs/real_model.md. About
five minutes on two cores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.common import real_weights, save
from benchmarks.labelled_states import reply_states
from persona_core.analysis.statistics import Estimate, bounded, rank_auroc
from persona_core.models.language_model import LanguageModel
from persona_core.models.loading import load_model
from persona_core.monitor.transcripts import as_transcript
from persona_core.traces.specific import odds_against_rest
from persona_core.utils.numbering import numbered
from persona_core.vectors.whitening import within_class_covariance
from real_model.texts import TRAITS, TextQuestion, TextReply, load_questions
from real_model.truth import pieces_that_show

BLOCKS = range(10, 26, 2)
POSITIVE, BESIDE, NEGATIVE, NEUTRAL = range(4)
"""Kinds of tokens: in a sentence that shows its file's trait, beside one, of a negative and of a neutral reply."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens of many replies.

    Attributes:
        states: block -> float16 `[n_tokens, d_model]`.
        trait: index of the trait of its file, `[n_tokens]`.
        kind: see above, `[n_tokens]`.
        question: number of its question, `[n_tokens]`.
    """

    states: Mapping[int, np.ndarray]
    trait: np.ndarray
    kind: np.ndarray
    question: np.ndarray

    def take(self, tokens: np.ndarray) -> Tokens:
        states = {b: s[tokens] for b, s in self.states.items()}
        return Tokens(states, self.trait[tokens], self.kind[tokens], self.question[tokens])

    def mean(self, block: int, tokens: np.ndarray) -> np.ndarray:
        return self.states[block][tokens].mean(0, dtype=np.float64)


def main() -> int:
    lm = load_model(real_weights(), dtype="float32", device="cpu")

    questions = {split: load_questions(split=split) for split in ("fit", "test")}
    fit, test = (labelled_tokens(lm, own, BLOCKS) for own in questions.values())
    even = fit.question % 2 == 0
    chosen = _choose_block(fit.take(even), fit.take(~even))
    found = {name: _figures(_directions(fit, chosen, name), fit, test, chosen) for name in CONTRASTS}
    n = {split: len(own) for split, own in questions.items()}
    save("natural_texts", {"model": lm.record, "block": chosen, "questions": n, "contrasts": found})
    return 0


def labelled_tokens(lm: LanguageModel, questions: Sequence[TextQuestion], blocks: Sequence[int]) -> Tokens:
    """The tokens of all replies to some questions, as the model reads them in their place."""
    each = [(q, r) for q in questions for r in q.replies]
    texts = [as_transcript(lm, q.messages(r), None) for q, r in each]
    states = reply_states(lm, texts, blocks)
    kinds = [_kinds(r, t.pieces[t.n_prompt :]) for (_, r), t in zip(each, texts, strict=True)]
    lengths = [len(kind) for kind in kinds]
    return Tokens(
        {b: np.concatenate([s[k] for s in states]) for k, b in enumerate(blocks)},
        np.repeat([TRAITS.index(q.trait) for q, _ in each], lengths),
        np.concatenate(kinds),
        np.repeat(numbered(q.id for q, _ in each), lengths),
    )


def _kinds(reply: TextReply, pieces: Sequence[str]) -> np.ndarray:
    if reply.side != "positive":
        return np.full(len(pieces), NEGATIVE if reply.side == "negative" else NEUTRAL)
    return np.where(pieces_that_show(pieces, reply), POSITIVE, BESIDE)


# ---- directions ----

Contrast = Callable[[Tokens, int, int], np.ndarray]
CONTRASTS: dict[str, Contrast] = {
    "its own negative replies": lambda t, b, k: t.mean(b, (t.kind == NEGATIVE) & (t.trait == k)),
    "its own neutral replies": lambda t, b, k: t.mean(b, (t.kind == NEUTRAL) & (t.trait == k)),
    "the neutral replies of all traits": lambda t, b, _: t.mean(b, t.kind == NEUTRAL),
    "its own negative and the neutral replies, half each": lambda t, b, k: (
        (t.mean(b, (t.kind == NEGATIVE) & (t.trait == k)) + t.mean(b, t.kind == NEUTRAL)) / 2
    ),
    "all other tokens": lambda t, b, k: t.mean(b, (t.kind != POSITIVE) | (t.trait != k)),
}
"""What the mean state of a trait's tokens is held against."""


def _directions(tokens: Tokens, block: int, contrast: str) -> np.ndarray:
    """Whitened unit directions, `[n_traits, d_model]`."""
    difference = np.stack(
        [
            tokens.mean(block, (tokens.kind == POSITIVE) & (tokens.trait == k)) - CONTRASTS[contrast](tokens, block, k)
            for k in range(len(TRAITS))
        ]
    )
    found = _covariance(tokens, block).solve(difference)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def _covariance(tokens: Tokens, block: int) -> Any:
    states, kind, trait = tokens.states[block], tokens.kind, tokens.trait
    classes = [
        states[(kind == side) & (trait == k)].astype(np.float32)
        for k in range(len(TRAITS))
        for side in (POSITIVE, NEGATIVE)
    ]
    return within_class_covariance([*classes, states[kind == NEUTRAL].astype(np.float32)], 0.0)


def _scores(directions: np.ndarray, fit: Tokens, test: Tokens, block: int) -> dict[str, np.ndarray]:
    """z (up to a scale) and the specific score of the test tokens, `[n_traits, n_tokens]` each."""
    raw, before = (directions @ t.states[block].T.astype(np.float32) for t in (test, fit))
    variance = _covariance(fit, block).along(directions)  # [n_traits]
    neutral = before[:, fit.kind == NEUTRAL].mean(1)
    own = np.array([before[k, (fit.kind == POSITIVE) & (fit.trait == k)].mean() for k in range(len(TRAITS))])
    slope, offset = (own - neutral) / variance, (neutral**2 - own**2) / (2 * variance)
    return {"z": raw, "specific": odds_against_rest(raw, slope, offset)}


# ---- figures ----


def _figures(directions: np.ndarray, fit: Tokens, test: Tokens, block: int) -> dict[str, Any]:
    """By score and by what a trait's tokens are told from: the mean AUROC, and the worst trait's with its interval."""
    found: dict[str, Any] = {}
    for kind, scores in _scores(directions, fit, test, block).items():
        for name, against in (
            ("neutral", test.kind == NEUTRAL),
            ("negative", test.kind == NEGATIVE),
            ("else", np.ones(len(test.kind), bool)),
        ):
            each = []
            for k in range(len(TRAITS)):
                own = (test.kind == POSITIVE) & (test.trait == k)
                used = own | against
                each.append(bounded(rank_auroc(scores[k][used], own[used]), test.question[used]))
            found.setdefault(kind, {})[name] = _summary(each)
        found[kind]["replies"] = _summary([_of_replies(scores[k], test, k) for k in range(len(TRAITS))])
    return found


def _of_replies(scores: np.ndarray, test: Tokens, k: int) -> Estimate | None:
    """AUROC of whole replies by their mean score: a trait's positive replies against its negative ones."""
    means, positive, question = reply_means(scores, test, k)
    return bounded(rank_auroc(means, positive), question)


def reply_means(scores: np.ndarray, test: Tokens, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean score, whether it is the positive one, and question of a trait's replies of both sides, `[n_replies]`.

    Or the mean state, `[n_replies, d_model]`, from states in place of scores.
    """
    sides = {True: (POSITIVE, BESIDE), False: (NEGATIVE,)}
    means, labels, questions = [], [], []
    for question in np.unique(test.question[test.trait == k]):
        for positive, kinds in sides.items():
            inside = (test.question == question) & np.isin(test.kind, kinds)
            means.append(scores[inside].mean(0, dtype=np.float64))
            labels.append(positive)
            questions.append(question)
    return np.array(means), np.array(labels), np.array(questions)


def _summary(each: Sequence[Estimate | None]) -> dict[str, Any]:
    known = [e for e in each if e is not None]
    worst = min(known, key=lambda e: e.value)
    return {"mean": round(float(np.mean([e.value for e in known])), 4), "worst": worst.to_dict()}


def _choose_block(fitted: Tokens, rest: Tokens) -> int:
    """The block at which directions of one half tell the traits of the other half from everything else best."""

    def mean(block: int) -> float:
        directions = _directions(fitted, block, "the neutral replies of all traits")
        scores = _scores(directions, fitted, rest, block)["z"]
        own = [(rest.kind == POSITIVE) & (rest.trait == k) for k in range(len(TRAITS))]
        return float(np.mean([rank_auroc(scores[k], own[k])(np.ones(len(own[k]))) for k in range(len(TRAITS))]))

    return max(BLOCKS, key=mean)


if __name__ == "__main__":
    raise SystemExit(main())
