"""From judged replies to a persona vector.

    v[b] = mean over positive replies of h̄[b]  -  mean over negative replies of h̄[b]

where h̄[b] is the pooled state of one reply at block b (Persona Vectors, arXiv 2507.21509). A larger projection means
more of the trait. Every reply has the same weight, whatever its length; means accumulate in float64.

A method is a function of both sides and the neutral replies. The methods here read one reply, or one block, at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from persona_core.errors import SettingError
from persona_core.judging.judge import MIN_SCORE
from persona_core.vectors.states import States

if TYPE_CHECKING:
    from persona_core.elicitation.store import Reply, ReplyScore

MIN_REPLIES = 2
NEUTRAL_VARIANCE = 0.5  # share of the neutral replies' variance that the removed components explain
PROBE_C = 0.01  # inverse strength of the probe's L2 penalty, on standardised states


@dataclass(frozen=True, eq=False)
class Sides:
    """Pooled states of one trait's kept replies, and of neutral ones.

    Attributes:
        positive, negative: replies that show the trait, and replies that do not.
        neutral: replies without an instruction; may be empty for methods that do not use them.
    """

    positive: States
    negative: States
    neutral: States


Method = Callable[[Sides], np.ndarray]
"""Sides -> `[n_blocks, d_model]`, signed so that a larger projection means more of the trait."""


class RunningMean:
    """The mean of states that arrive one reply at a time (Welford's update)."""

    def __init__(self) -> None:
        self.count = 0
        self._mean: np.ndarray | None = None  # float64 [n_blocks, d_model]

    def add(self, state: np.ndarray) -> None:
        """Add one reply's pooled state, `[n_blocks, d_model]`; that of an empty reply is NaN and refused."""
        if not np.isfinite(state).all():
            raise SettingError("A pooled state holds NaN or infinity: an empty reply, or an overflow in the model.")
        self.count += 1
        value = state.astype(np.float64)
        self._mean = value if self._mean is None else self._mean + (value - self._mean) / self.count

    @property
    def mean(self) -> np.ndarray:
        """float64 `[n_blocks, d_model]`."""
        if self._mean is None:
            raise SettingError("No replies were added.")
        return self._mean


def mean_of(states: Iterable[np.ndarray]) -> np.ndarray:
    """The mean over replies, float64 `[n_blocks, d_model]`."""
    running = RunningMean()
    for state in states:
        running.add(state)
    return running.mean


# ---- methods ----


def mean_difference(sides: Sides) -> np.ndarray:
    """Mean state of the positive replies minus that of the negative ones, float32 `[n_blocks, d_model]`."""
    return (mean_of(sides.positive) - mean_of(sides.negative)).astype(np.float32)


def difference_from_neutral(sides: Sides) -> np.ndarray:
    """Mean state of the positive replies minus that of the neutral ones, `[n_blocks, d_model]`: for reading."""
    return mean_of(sides.positive) - mean_of(sides.neutral)


def logistic_probe(sides: Sides, c: float = PROBE_C) -> np.ndarray:
    """The direction of an L2-penalised logistic regression of positive against negative, block by block.

    States are standardised for the fit, so that a few channels a thousand times the others do not dominate, and the
    coefficients are mapped back to the residual stream. The norm is the distance of the two means along the direction,
    so that strengths are comparable with those of the mean difference.

    Raises:
        SettingError: scikit-learn is missing.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise SettingError("method='logistic_probe' needs scikit-learn: pip install scikit-learn.") from error
    labels = np.r_[np.ones(len(sides.positive)), np.zeros(len(sides.negative))]
    found = []
    for block in range(sides.positive.n_blocks):
        sides_here = (side.block(block).astype(np.float64) for side in (sides.positive, sides.negative))
        positive, negative = sides_here  # [n, d_model] each
        both = np.concatenate([positive, negative])
        spread = both.std(0)
        spread[spread == 0] = np.inf  # a channel that never changes carries no information
        fit = LogisticRegression(C=c, max_iter=1000).fit((both - both.mean(0)) / spread, labels)
        direction = fit.coef_[0] / spread  # [d_model]
        norm = np.linalg.norm(direction)
        if not norm > 0:
            raise SettingError(f"The probe finds no direction at block {block}: both sides are the same there.")
        unit = direction / norm
        found.append(unit * abs(unit @ (positive.mean(0) - negative.mean(0))))
    return np.stack(found).astype(np.float32)


def mean_difference_without_neutral_components(sides: Sides, variance: float = NEUTRAL_VARIANCE) -> np.ndarray:
    """The mean difference without the directions in which neutral replies vary.

    At each block, the top principal components that explain `variance` of the neutral states' variance are projected
    out of the mean difference.

    Raises:
        SettingError: fewer than three neutral replies.
    """
    if len(sides.neutral) < 3:
        raise SettingError(
            f"{len(sides.neutral)} neutral replies; principal components need at least 3. Elicit neutral replies, or "
            "use method='mean_difference'."
        )
    vector = mean_difference(sides).astype(np.float64)
    for block in range(len(vector)):
        states = sides.neutral.block(block).astype(np.float64)  # [n, d_model]
        _, singular, components = np.linalg.svd(states - states.mean(0), full_matrices=False)
        explained = np.cumsum(singular**2) / np.sum(singular**2)
        top = components[: int(np.searchsorted(explained, variance)) + 1]  # [k, d_model]
        vector[block] -= top.T @ (top @ vector[block])
    return vector.astype(np.float32)


METHODS: Mapping[str, Method] = {
    "mean_difference": mean_difference,
    "logistic_probe": logistic_probe,
    "mean_difference_without_neutral_components": mean_difference_without_neutral_components,
}


def extract(trait: str, sides: Sides, method: Method) -> np.ndarray:
    """One trait's vector, checked: float32 `[n_blocks, d_model]`.

    Raises:
        SettingError: too few replies on a side, or a method that does not return finite, non-zero directions.
    """
    counts = len(sides.positive), len(sides.negative)
    if min(counts) < MIN_REPLIES:
        raise SettingError(
            f"Too few replies for the vector of {trait!r}: {counts[0]} positive and {counts[1]} negative; at least "
            f"{MIN_REPLIES} of each are needed. Elicit more, or loosen the filter."
        )
    vector = np.asarray(method(sides), np.float32)
    name = getattr(method, "__name__", "the method")
    expected = sides.positive.n_blocks, sides.positive.d_model
    if vector.shape != expected:
        raise SettingError(f"{name} returned shape {vector.shape} for {trait!r}; expected {expected}.")
    if not np.isfinite(vector).all():
        raise SettingError(f"{name} returned NaN or infinity for {trait!r}.")
    zero = np.flatnonzero(np.linalg.norm(vector, axis=1) == 0)
    if len(zero):
        raise SettingError(f"{name} returned a zero vector for {trait!r} at block {zero[0]}.")
    return vector


# ---- the filter ----


@dataclass(frozen=True, eq=False)
class KeptReplies:
    """The replies that pass the filter; each side is filtered separately.

    Attributes:
        positive, negative: replies.
        counts: side -> how many were written and kept, and why others were not.
    """

    positive: tuple[Reply, ...]
    negative: tuple[Reply, ...]
    counts: Mapping[str, Mapping[str, int]]


def keep(
    trait: str,
    replies: Sequence[Reply],
    scores: Mapping[int, ReplyScore],
    min_trait: float = MIN_SCORE,
    min_coherence: float = MIN_SCORE,
) -> KeptReplies:
    """The filter: coherence >= 50, and trait >= 50 on the positive side or < 50 on the negative.

    Replies that are empty or lack scores are never kept.

    Raises:
        SettingError: fewer than two are left on a side; the message shows the counts.
    """
    kept: dict[str, list[Reply]] = {"positive": [], "negative": []}
    counts = {
        side: dict.fromkeys(("written", "kept", "no_score", "incoherent", "off_side", "empty"), 0) for side in kept
    }
    for reply in replies:
        side = reply.request.side
        verdict = _verdict(reply, scores.get(reply.request.index), min_trait, min_coherence)
        counts[side]["written"] += 1
        counts[side][verdict] += 1
        if verdict == "kept":
            kept[side].append(reply)
    if min(len(side) for side in kept.values()) < MIN_REPLIES:
        table = "; ".join(f"{side}: " + ", ".join(f"{n} {what}" for what, n in c.items()) for side, c in counts.items())
        raise SettingError(
            f"The filter leaves too few replies for the vector of {trait!r}, {len(kept['positive'])} positive and "
            f"{len(kept['negative'])} negative ({table}). Read them in replies.jsonl: if the model does not follow the "
            "instructions, make them clearer; if it does, check the judge; or elicit more."
        )
    return KeptReplies(tuple(kept["positive"]), tuple(kept["negative"]), counts)


def _verdict(reply: Reply, score: ReplyScore | None, min_trait: float, min_coherence: float) -> str:
    if not reply.n_tokens:
        return "empty"
    if score is None or score.trait is None or score.coherence is None:
        return "no_score"
    if score.coherence < min_coherence:
        return "incoherent"
    shows = score.trait >= min_trait
    return "kept" if shows == (reply.request.side == "positive") else "off_side"
