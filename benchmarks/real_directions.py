"""Which direction reads best on a real model: what was tried, and what won on held-out sentences, topics and phrasings.

Fitting and choosing happen on one half of the demo world (the block on its odd sentences, with directions of its even
ones); the figures are those of the other half, which shares no sentence, topic or phrasing with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.labelled_states import NEUTRAL, LabelledStates, table_row
from persona_core.traces.specific import odds_against_rest
from persona_core.vectors.whitening import (
    MIN_SHRINKAGE,
    ReadingDirections,
    reading_directions,
    within_class_covariance,
)


@dataclass(frozen=True, eq=False)
class Fitted:
    """Directions and log odds of all traits at some blocks, from labelled tokens.

    Attributes:
        difference: trait -> mean state of its tokens minus that of neutral ones, `[n_blocks, d_model]`.
        reading: whitened.
    """

    difference: Mapping[str, np.ndarray]
    reading: ReadingDirections


def fit(
    states: LabelledStates,
    traits: list[str],
    own_neutral: np.ndarray,
    labels: np.ndarray | None = None,
    min_shrinkage: float = 0.0,
) -> Fitted:
    """Directions from the tokens of each trait and of neutral text.

    The covariance and the log odds also see the model's own neutral replies, as those of `make_vectors` do: how it
    talks about everything else is no sign of a trait.

    Args:
        own_neutral: states of the model's own neutral replies, `[n_blocks, n_tokens, d_model]`.
        labels: of each token; None: those of its sentence.
        min_shrinkage: of the covariance. Labels by sentence are right for every token and need none; `make_vectors`,
            which has labels by reply, takes `MIN_SHRINKAGE`.
    """
    label = states.label if labels is None else labels

    def tokens(k: int) -> Callable[[int], np.ndarray]:
        return lambda row: states.states[row, label == k].astype(np.float32)

    neutral = tokens(NEUTRAL)

    def every_neutral(row: int) -> np.ndarray:
        return np.concatenate([neutral(row), own_neutral[row].astype(np.float32)])

    rows = range(len(states.blocks))
    difference = {
        t: np.stack([tokens(k)(row).mean(0) - neutral(row).mean(0) for row in rows]) for k, t in enumerate(traits)
    }
    positive = {t: tokens(k) for k, t in enumerate(traits)}
    return Fitted(difference, reading_directions(difference, positive, [], every_neutral, True, min_shrinkage))


def odds(fitted: Fitted, states: LabelledStates, block: int, traits: list[str]) -> np.ndarray:
    """Log odds of each trait against neutral and all others, `[n_traits, n_tokens]`."""
    slope, offset = np.stack([fitted.reading.log_odds[t][states.blocks.index(block)] for t in traits]).T
    return odds_against_rest(project(fitted, states, block, traits), slope, offset)


def project(fitted: Fitted, states: LabelledStates, block: int, traits: list[str]) -> np.ndarray:
    """Projections on the reading directions, `[n_traits, n_tokens]`."""
    row = states.blocks.index(block)
    return np.stack([states.at(block) @ fitted.reading.directions[t][row] for t in traits])


def choose_block(states: LabelledStates, traits: list[str], own_neutral: np.ndarray) -> tuple[int, dict[int, float]]:
    """The block whose odds tell traits best from everything else on sentences that the directions have not seen."""
    even = states.sentence % 2 == 0
    fitted, rest = fit(states.take(even), traits, own_neutral), states.take(~even)
    found = {}
    for block in states.blocks:
        scores = odds(fitted, rest, block, traits)
        found[block] = float(table_row(lambda k, s=scores: s[k], rest, len(traits))["else"]["mean"])  # type: ignore[index, misc]
    return max(found, key=lambda b: found[b]), found


def tried(
    fitting: LabelledStates, held_out: LabelledStates, traits: list[str], block: int, own_neutral: np.ndarray
) -> dict[str, Any]:
    """AUROC of each direction or score that was tried, at one block, on the held-out half."""
    n, fitted = len(traits), fit(fitting, traits, own_neutral)
    row = fitting.blocks.index(block)
    at = held_out.at(block)
    d = np.stack([fitted.difference[t][row] for t in traits])  # [n_traits, d_model]
    w = np.stack([fitted.reading.directions[t][row] for t in traits])

    def along(directions: np.ndarray) -> dict[str, Any]:
        scores = at @ directions.T  # [n_tokens, n_traits]
        return table_row(lambda k: scores[:, k], held_out, n)

    covariance = within_class_covariance((fitting.at(block)[fitting.label == k] for k in range(NEUTRAL, n)), 0.0)
    neutral_only = within_class_covariance([fitting.at(block)[fitting.label == NEUTRAL]], 0.0)
    rest = np.stack([d[[i for i in range(n) if i != k]].mean(0) for k in range(n)])
    z = at @ (w / np.sqrt(neutral_only.along(w))[:, None]).T
    less_others = np.stack([z[:, k] - np.delete(z, k, 1).mean(1) for k in range(n)], 1)
    specific = odds(fitted, held_out, block, traits)
    floored = fit(fitting, traits, own_neutral, min_shrinkage=MIN_SHRINKAGE)
    by_reply_alone = fit(fitting, traits, own_neutral, fitting.requested)
    by_reply = fit(fitting, traits, own_neutral, fitting.requested, MIN_SHRINKAGE)
    sampled = fit(fitting.take(_evenly_spaced(fitting)), traits, own_neutral)
    grammar_only = fit(fitting, traits, own_neutral[:, :0])
    several = _several_blocks(fitted, held_out, traits, block)
    return {
        "mean difference": along(d),
        "whitened, within-class covariance": along(w),
        "whitened, shrunk as far as `make_vectors` shrinks": _readings(floored, held_out, traits, block),
        "whitened, covariance of neutral tokens": along(neutral_only.solve(d)),
        "whitened, trait minus the other traits": along(covariance.solve(d - rest)),
        "whitened, less the mean of the others": table_row(lambda k: less_others[:, k], held_out, n),
        "specific (odds against neutral and the others)": table_row(lambda k: specific[k], held_out, n),
        "specific, without the model's own neutral replies": table_row(
            lambda k: odds(grammar_only, held_out, block, traits)[k], held_out, n
        ),
        "specific, three blocks together": table_row(lambda k: several[k], held_out, n),
        "specific, 16 tokens of each reply": table_row(
            lambda k: odds(sampled, held_out, block, traits)[k], held_out, n
        ),
        "specific, shrunk as far as `make_vectors` shrinks": table_row(
            lambda k: odds(floored, held_out, block, traits)[k], held_out, n
        ),
        "whitened, labels by reply": _readings(by_reply_alone, held_out, traits, block),
        "specific, labels by reply": table_row(lambda k: odds(by_reply_alone, held_out, block, traits)[k], held_out, n),
        "whitened, labels by reply, shrunk as far as `make_vectors` shrinks": _readings(
            by_reply, held_out, traits, block
        ),
        "specific, labels by reply, shrunk as far as `make_vectors` shrinks": table_row(
            lambda k: odds(by_reply, held_out, block, traits)[k], held_out, n
        ),
    }


def _readings(fitted: Fitted, states: LabelledStates, traits: list[str], block: int) -> dict[str, Any]:
    scores = project(fitted, states, block, traits)
    return table_row(lambda k: scores[k], states, len(traits))


def _several_blocks(fitted: Fitted, held_out: LabelledStates, traits: list[str], block: int) -> np.ndarray:
    """The odds from the mean log likelihood at the block and its two neighbours, `[n_traits, n_tokens]`."""
    at = held_out.blocks.index(block)
    near = held_out.blocks[max(0, at - 1) : at + 2]
    total = np.zeros((len(traits), len(held_out.label)))
    for b in near:
        row = held_out.blocks.index(b)
        slope, offset = np.stack([fitted.reading.log_odds[t][row] for t in traits]).T
        total += (slope[:, None] * project(fitted, held_out, b, traits) + offset[:, None]) / len(near)
    return odds_against_rest(total, np.ones(len(traits)), np.zeros(len(traits)))


def _evenly_spaced(states: LabelledStates, n: int = 16) -> np.ndarray:
    """About `n` tokens of each reply, spread evenly over it, bool `[n_tokens]`."""
    kept = np.zeros(len(states.reply), bool)
    for reply in np.unique(states.reply):
        tokens = np.flatnonzero(states.reply == reply)
        kept[tokens[:: max(1, -(-len(tokens) // n))]] = True
    return kept
