"""Held-out replies with their pooled states and scores: what a vector is chosen on, and what it is reported on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from persona_core.judging.judge import MIN_SCORE
from persona_core.vectors.states import States


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out replies of one trait, both sides: coherent ones with a score.

    Attributes:
        states: their pooled states.
        texts: what they say.
        n_tokens: `[n]`, their lengths.
        token_ids: of each reply, end-of-turn tokens left out.
        asked: bool `[n]`, the positive instruction was given.
        question: `[n]`, which evaluation question each answers.
        score: `[n]`, the judge's trait score, 0 to 100.
    """

    states: States
    texts: tuple[str, ...]
    n_tokens: np.ndarray
    token_ids: tuple[tuple[int, ...], ...]
    asked: np.ndarray
    question: np.ndarray
    score: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def shows(self) -> np.ndarray:
        """bool `[n]`."""
        return self.score >= MIN_SCORE

    def take(self, inside: np.ndarray) -> HeldOut:
        """The replies that are marked, bool `[n]`."""
        places = np.flatnonzero(inside)
        return HeldOut(
            self.states.take(places),
            tuple(self.texts[i] for i in places),
            self.n_tokens[places],
            tuple(self.token_ids[i] for i in places),
            self.asked[places],
            self.question[places],
            self.score[places],
        )

    def project(self, vector: np.ndarray, block: int) -> np.ndarray:
        """Mean projection of each reply on the unit vector, float64 `[n]`."""
        return project_states(self.states, vector, block)


@dataclass(frozen=True, eq=False)
class CrossTrait:
    """Replies that were asked for other traits, judged on this one.

    Attributes:
        states: their pooled states.
        score: `[n]`, the judge's score for this trait.
        cluster: `[n]`, replies to one question of one trait move together.
    """

    states: States
    score: np.ndarray
    cluster: np.ndarray


def project_states(states: States, vector: np.ndarray, block: int) -> np.ndarray:
    """Projection of each pooled state on the unit vector, float64 `[n]`.

    Args:
        vector: `[n_blocks, d_model]`.
    """
    if not len(states):
        return np.empty(0)
    unit = vector[block].astype(np.float64)
    with np.errstate(invalid="ignore"):  # a state that is not finite gives NaN, which is counted and flagged
        return states.block(block).astype(np.float64) @ (unit / np.linalg.norm(unit))


def halves(held_out: HeldOut, n_questions: int) -> tuple[HeldOut, HeldOut]:
    """The first half of the questions, which chooses the block, and the second, which is reported."""
    first = held_out.question < (n_questions + 1) // 2
    return held_out.take(first), held_out.take(~first)
