"""Held-out replies with their pooled states and scores: used to choose a vector's block, and to report on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_core.analysis.statistics import Estimate
from persona_core.judging.judge import MIN_SCORE
from persona_core.vectors.states import States

if TYPE_CHECKING:
    from persona_core.elicitation.shown import ShownParts


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out replies of one trait, both sides: coherent ones with a score.

    Attributes:
        states: their pooled states.
        texts: what they say.
        n_tokens: `[n]`, their lengths.
        token_ids: of each reply, without end-of-turn tokens.
        positive: bool `[n]`, whether the reply was written under the positive instruction.
        question: `[n]`, which evaluation question each answers.
        score: `[n]`, the judge's trait score, 0 to 100.
        pair: `[n]`, which instruction pair each was written under; None: unknown.
        parts: what of each reply its state is the mean over, and None where that is all of it; None: of every reply.
    """

    states: States
    texts: tuple[str, ...]
    n_tokens: np.ndarray
    token_ids: tuple[tuple[int, ...], ...]
    positive: np.ndarray
    question: np.ndarray
    score: np.ndarray
    pair: np.ndarray | None = None
    parts: tuple[ShownParts | None, ...] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def pooled_texts(self) -> tuple[str, ...]:
        """What of each reply its state is the mean over."""
        return tuple(t if part is None else part.text for t, part in zip(self.texts, self._parts, strict=True))

    @property
    def pooled_positions(self) -> tuple[tuple[int, ...], ...]:
        """Positions of those tokens, counted from the reply's first."""
        each = zip(self.token_ids, self._parts, strict=True)
        return tuple(tuple(range(len(ids))) if part is None else part.positions for ids, part in each)

    @property
    def _parts(self) -> tuple[ShownParts | None, ...]:
        return (None,) * len(self) if self.parts is None else self.parts

    @property
    def shows(self) -> np.ndarray:
        """Whether the judge sees the trait in each reply, bool `[n]`."""
        return self.score >= MIN_SCORE

    def take(self, inside: np.ndarray) -> HeldOut:
        """The replies for which `inside`, bool `[n]`, is true."""
        rows = np.flatnonzero(inside)
        return HeldOut(
            self.states.take(rows),
            tuple(self.texts[i] for i in rows),
            self.n_tokens[rows],
            tuple(self.token_ids[i] for i in rows),
            self.positive[rows],
            self.question[rows],
            self.score[rows],
            None if self.pair is None else self.pair[rows],
            None if self.parts is None else tuple(self.parts[i] for i in rows),
        )

    def project(self, vector: np.ndarray, block: int) -> np.ndarray:
        """Mean projection of each reply on the unit vector, float64 `[n]`."""
        return project_states(self.states, vector, block)


@dataclass(frozen=True, eq=False)
class CrossTrait:
    """Replies elicited for other traits, judged on this one.

    Attributes:
        states: their pooled states.
        score: `[n]`, the judge's score for this trait.
        cluster: `[n]`, which trait and question each answers; a bootstrap resamples whole clusters.
    """

    states: States
    score: np.ndarray
    cluster: np.ndarray


def project_states(states: States, vector: np.ndarray, block: int) -> np.ndarray:
    """Projection of each pooled state on the unit vector, float64 `[n]`.

    Args:
        vector: `[n_blocks, d_model]`.
    """
    return project_rows(states.block(block), vector[block]) if len(states) else np.empty(0)


def project_rows(states: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Projection of each row of `[n, d_model]` on the unit vector along `direction`, float64 `[n]`."""
    along = direction.astype(np.float64)
    with np.errstate(invalid="ignore"):  # a non-finite state gives NaN, which is counted and flagged
        return states.astype(np.float64) @ (along / np.linalg.norm(along))


def halves(held_out: HeldOut, n_choosing: int) -> tuple[HeldOut, HeldOut]:
    """Replies to the first `n_choosing` questions, which choose the block, and to the others, which are reported."""
    first = held_out.question < n_choosing
    return held_out.take(first), held_out.take(~first)


def figure(found: Estimate | None) -> dict[str, Any] | None:
    """An estimate as it is stored in `config.json`; None stays None."""
    return None if found is None else found.to_dict()
