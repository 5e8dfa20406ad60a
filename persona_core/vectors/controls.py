"""What a vector is compared with: its other half, chance, words alone, position and single tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from persona_core.analysis.statistics import auroc, pearson
from persona_core.errors import SettingError
from persona_core.vectors.extraction import Method, Sides
from persona_core.vectors.states import ArrayStates

if TYPE_CHECKING:
    from persona_core.traces.trace import Trace

POSITION_BINS = 10


@dataclass(frozen=True, eq=False)
class ExtractionReplies:
    """The kept replies that a vector was extracted from.

    Attributes:
        sides: their pooled states.
        positive_questions, negative_questions: which question each answers, `[n]`.
        positive_texts, negative_texts: their texts.
        positive_pairs, negative_pairs: which instruction pair each was written under, `[n]`; None: unknown.
        positive_parts: what of the positive texts their states are means over; None: all of them.
    """

    sides: Sides
    positive_questions: np.ndarray
    negative_questions: np.ndarray
    positive_texts: tuple[str, ...]
    negative_texts: tuple[str, ...]
    positive_pairs: np.ndarray | None = None
    negative_pairs: np.ndarray | None = None
    positive_parts: tuple[str, ...] | None = None


def one_block(extracted: ExtractionReplies, block: int) -> Sides:
    """The sides at one block, as states of a single block: all that a method needs for that block's direction."""
    sides = extracted.sides
    neutral = sides.neutral.block(block) if len(sides.neutral) else np.empty((0, sides.positive.d_model), np.float32)
    return Sides(
        *(ArrayStates(s[:, None]) for s in (sides.positive.block(block), sides.negative.block(block), neutral))
    )


# ---- stability and chance ----


def split_half_cosines(
    extracted: ExtractionReplies, block: int, method: Method, n_halvings: int = 20, seed: int = 0
) -> np.ndarray:
    """Cosines between vectors of two random halves of the questions, `[n_halvings]`.

    Halves of questions, not of replies: two replies to one question share its words. A halving that leaves a side
    without replies, or gives a zero vector, is left out.
    """
    sides = one_block(extracted, block)
    questions = np.unique(np.concatenate([extracted.positive_questions, extracted.negative_questions]))
    rng = np.random.default_rng(seed)
    cosines = []
    for _ in range(n_halvings):
        first = rng.permutation(questions)[: len(questions) // 2]
        halves = []
        for inside in (True, False):
            positive = np.flatnonzero(np.isin(extracted.positive_questions, first) == inside)
            negative = np.flatnonzero(np.isin(extracted.negative_questions, first) == inside)
            if not len(positive) or not len(negative):
                break
            halves.append(method(Sides(sides.positive.take(positive), sides.negative.take(negative), sides.neutral))[0])
        if len(halves) == 2:
            cosine = cosine_of(*halves)
            cosines += [] if cosine is None else [cosine]
    return np.array(cosines)


def cosine_of(a: np.ndarray, b: np.ndarray) -> float | None:
    """Cosine of two vectors `[d_model]`; None where one is zero or not finite.

    >>> cosine_of(np.array([3.0, 0.0]), np.array([1.0, 0.0]))
    1.0
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(x) * np.linalg.norm(y)
    return float(x @ y / norms) if np.isfinite(norms) and norms > 0 else None


def random_direction_aurocs(states: np.ndarray, labels: np.ndarray, n: int = 100, seed: int = 0) -> np.ndarray:
    """How well random directions tell the labels apart, `[n]`, each with its better sign.

    Where the two sides differ along a direction of large variance, random directions separate them too; this measures
    how well.

    Args:
        states: `[n_replies, d_model]`.
        labels: bool `[n_replies]`.

    Returns:
        An empty array where there is no AUROC: one class is empty, or a state is not finite.
    """
    if labels.all() or not labels.any() or not np.isfinite(states).all():
        return np.empty(0)
    found = np.array([auroc(column, labels) for column in _random_projections(states, n, seed).T])
    return np.maximum(found, 1 - found)


def random_direction_correlations(states: np.ndarray, scores: np.ndarray, n: int = 100, seed: int = 0) -> np.ndarray:
    """Absolute correlations of random directions with the judge's scores, `[n]`.

    Reported beside the AUROC, which reaches 1 for random directions too where the two sides are far apart.

    Args:
        states: `[n_replies, d_model]`.
        scores: `[n_replies]`.

    Returns:
        An empty array where the scores do not vary, or a state is not finite.
    """
    if not len(scores) or np.ptp(scores) == 0 or not np.isfinite(states).all():
        return np.empty(0)
    return np.abs([pearson(column, scores) for column in _random_projections(states, n, seed).T])


def _random_projections(states: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Projections on `n` isotropic directions, float64 `[n_replies, n]`."""
    return states.astype(np.float64) @ np.random.default_rng(seed).normal(size=(states.shape[1], n))


def shuffled_gaps(
    extracted: ExtractionReplies, block: int, method: Method, n: int = 100, seed: int = 0
) -> tuple[float, np.ndarray]:
    """The distance between the two sides' means along the vector, and the same for vectors of shuffled labels.

    Labels are shuffled within questions, as the sides differ within questions; replies to questions with only one side
    kept are shuffled among themselves. Distances are compared, not held-out AUROCs: where replies differ mostly in the
    trait, a vector of shuffled labels lies along the trait too, with either sign, only much shorter. On the demo model
    about half of such vectors have an AUROC above 0.99, and most others one below 0.05.

    Returns:
        The vector's distance, and those of shuffled labels, `[n]`.
    """
    sides = one_block(extracted, block)
    both = np.concatenate([sides.positive.block(0), sides.negative.block(0)])
    is_positive = np.arange(len(both)) < len(sides.positive)
    strata = _strata(extracted)

    def gap(labels: np.ndarray) -> float:
        positive, negative = both[labels], both[~labels]
        vector = method(Sides(ArrayStates(positive[:, None]), ArrayStates(negative[:, None]), sides.neutral))[0]
        unit = vector.astype(np.float64) / max(float(np.linalg.norm(vector)), 1e-30)
        return float(unit @ (positive.mean(0, dtype=np.float64) - negative.mean(0, dtype=np.float64)))

    def shuffled() -> np.ndarray:
        labels = is_positive.copy()
        for rows in strata:
            labels[rows] = is_positive[rng.permutation(rows)]
        return labels

    rng = np.random.default_rng(seed)
    return gap(is_positive), np.array([gap(shuffled()) for _ in range(n)])


def _strata(extracted: ExtractionReplies) -> list[np.ndarray]:
    """Rows, of positive then negative replies, that may swap labels: those of one question; the rest together."""
    question = np.concatenate([extracted.positive_questions, extracted.negative_questions])
    both_sides = np.intersect1d(extracted.positive_questions, extracted.negative_questions)
    strata = [np.flatnonzero(question == q) for q in both_sides]
    return [*strata, np.flatnonzero(~np.isin(question, both_sides))]


# ---- the words alone ----


def text_scores(extracted: ExtractionReplies, texts: Sequence[str]) -> np.ndarray | None:
    """How much a text looks like the positive replies by its words alone, `[n_texts]`; None without scikit-learn.

    A logistic regression on the tf-idf of words and word pairs, fitted to the extraction replies: to what of them the
    vector is made of. Where there are no words to learn from, every text scores 0.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        return None
    if not len(texts):
        return np.zeros(0)
    positive = extracted.positive_texts if extracted.positive_parts is None else extracted.positive_parts
    known = [*positive, *extracted.negative_texts]
    labels = np.r_[np.ones(len(positive)), np.zeros(len(extracted.negative_texts))]
    try:
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(known)
    except ValueError:  # no word in any reply
        return np.zeros(len(texts))
    probe = LogisticRegression(C=10.0, max_iter=1000).fit(words.transform(known), labels)
    return np.asarray(probe.decision_function(words.transform(list(texts))), np.float64)


# ---- single tokens ----


@dataclass(frozen=True, eq=False)
class TokenTables:
    """Mean projections over neutral reply tokens, by position and by token.

    Attributes:
        position_r2: share of the variance explained by ten bins of position, adjusted for their number.
        token_r2: share explained by the token id: means over one half of the replies, tested on the other half, so
            that rare tokens do not count as explained.
        mean: over all tokens.
        edges, by_position: the bins of position, and the mean in each.
        by_token: token id -> mean.
    """

    position_r2: float
    token_r2: float
    mean: float
    edges: np.ndarray
    by_position: np.ndarray
    by_token: dict[int, float]

    def from_positions(self, positions: Sequence[int]) -> float:
        """The score of the tokens at these positions of a reply if only positions mattered."""
        if not len(positions):
            return self.mean
        return float(self.by_position[np.searchsorted(self.edges, positions, side="right")].mean())

    def from_tokens(self, token_ids: Sequence[int]) -> float:
        """The score of these tokens if only their ids mattered; an unseen token counts as average."""
        return float(np.mean([self.by_token.get(i, self.mean) for i in token_ids])) if len(token_ids) else self.mean


def token_tables(traces: Sequence[Trace], trait: str, block: int) -> TokenTables:
    """The tables of one trait at one block, from neutral replies.

    Raises:
        SettingError: fewer than two neutral replies, or fewer than 20 tokens in all.
    """
    values, positions, ids, half = [], [], [], []
    for number, trace in enumerate(traces):
        reply = trace.reply_positions
        values.append(trace.scores(trait, kind="raw", block=block)[reply].astype(np.float64))
        positions.append(np.arange(len(reply)))
        ids.append(np.array([trace.token_ids[t] for t in reply], int))
        half.append(np.full(len(reply), number % 2))
    n_tokens = sum(map(len, values))
    if len(traces) < 2 or n_tokens < 2 * POSITION_BINS:
        raise SettingError(
            f"{len(traces)} neutral replies of {n_tokens} tokens in all; at least 2 with {2 * POSITION_BINS} are "
            "needed to tell what position and token explain. Elicit more neutral replies."
        )
    flat, position, token, half_of = (np.concatenate(x) for x in (values, positions, ids, half))
    edges = np.unique(np.quantile(position, np.linspace(0, 1, POSITION_BINS + 1)[1:-1]))
    bins = np.searchsorted(edges, position, side="right")
    counts = np.bincount(bins, minlength=len(edges) + 1)
    sums = np.bincount(bins, flat, minlength=len(edges) + 1)
    by_position = np.where(counts > 0, sums / np.maximum(counts, 1), flat.mean())
    names, at = np.unique(token, return_inverse=True)
    means = np.bincount(at, flat) / np.bincount(at)
    return TokenTables(
        position_r2=_r2(flat, by_position[bins], int((counts > 0).sum())),
        token_r2=_token_r2(flat, token, half_of),
        mean=float(flat.mean()),
        edges=edges,
        by_position=by_position,
        by_token=dict(zip(names.tolist(), means.tolist(), strict=True)),
    )


def _r2(values: np.ndarray, guess: np.ndarray, n_groups: int) -> float:
    """Adjusted for the number of groups, and at least 0."""
    total = ((values - values.mean()) ** 2).sum()
    if not total > 0:
        return 0.0
    r2 = 1 - ((values - guess) ** 2).sum() / total
    n = len(values)
    return float(max(0.0, 1 - (1 - r2) * (n - 1) / max(n - n_groups, 1)))


def _token_r2(values: np.ndarray, tokens: np.ndarray, half: np.ndarray) -> float:
    explained = total = 0.0
    for fitted in (0, 1):
        inside, outside = half == fitted, half != fitted
        if not inside.any() or not outside.any():
            continue
        names, number = np.unique(tokens[inside], return_inverse=True)
        means = np.bincount(number, values[inside]) / np.bincount(number)
        mean = values[inside].mean()
        at = np.minimum(np.searchsorted(names, tokens[outside]), len(names) - 1)
        guess = np.where(names[at] == tokens[outside], means[at], mean)
        explained += ((values[outside] - guess) ** 2).sum()
        total += ((values[outside] - mean) ** 2).sum()
    return float(max(0.0, 1 - explained / total)) if total > 0 else 0.0
