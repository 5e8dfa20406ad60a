"""What a branch has changed, in one line: the trait, and whether the text is still one that the model would write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from persona_core.inference.probabilities import log_probabilities

if TYPE_CHECKING:
    from persona_core.monitor.branching import Branch
    from persona_core.monitor.monitor import PersonaMonitor
    from persona_core.traces.trace import Trace

HIGH = 2.0
"""Standard deviations: a token that scores higher shows the trait; about one neutral token in forty does."""
RUN = 4
"""Tokens of the runs that are looked for again."""
MUCH_LESS_LIKELY = 0.5
"""Of the original's fluency: a branch below it is warned of."""
REPETITIVE = 0.25
"""Share of repeated runs from which a branch is warned of."""


@dataclass(frozen=True)
class TextFigures:
    """What is measured of one text, from the branch on.

    Attributes:
        n_tokens: that the model said or thought.
        high: share of them that score above `HIGH`; None where no token has a score.
        mean: score; None where no token has one.
        fluency: geometric mean of the probabilities of the tokens under the unsteered model; None without tokens.
        repeated: share of the runs of `RUN` tokens that are in the text a second time or more.
    """

    n_tokens: int
    high: float | None
    mean: float | None
    fluency: float | None
    repeated: float


@dataclass(frozen=True)
class Outcome:
    """What a branch has changed.

    Attributes:
        says: both numbers of everything measured.
        detail: what was measured, and on how many tokens.
        warning: where the text breaks; "" where it does not.
    """

    says: str
    detail: str
    warning: str = ""


def measure(ids: Sequence[int], scores: np.ndarray, log_probs: np.ndarray) -> TextFigures:
    """The figures of one text.

    Args:
        ids: of its tokens.
        scores: of one trait at each, in standard deviations; NaN where a token has none.
        log_probs: of each, under the unsteered model.

    >>> nan = float("nan")
    >>> measure([1, 2, 3, 4, 1, 2, 3, 4], np.array([0, 4, nan, 4, 0, 4, 0, 0.0]), np.log([0.5] * 8))
    TextFigures(n_tokens=8, high=0.42857142857142855, mean=1.7142857142857142, fluency=0.5, repeated=0.2)
    """
    known = scores[np.isfinite(scores)].astype(np.float64)
    runs = [tuple(ids[i : i + RUN]) for i in range(len(ids) - RUN + 1)]
    return TextFigures(
        len(ids),
        float((known > HIGH).mean()) if len(known) else None,
        float(known.mean()) if len(known) else None,
        float(np.exp(log_probs.mean())) if len(log_probs) else None,
        (len(runs) - len(set(runs))) / len(runs) if runs else 0.0,
    )


def outcome_of(trait: str, at: int, original: TextFigures, branch: TextFigures) -> Outcome:
    """The outcome in words.

    Args:
        trait: that was changed.
        at: the first token of the reply that can differ.
        original, branch: both texts from there on.
    """
    parts = []
    if None not in (original.high, branch.high):
        parts.append(
            f"{trait}: {_percent(original.high)} → {_percent(branch.high)} of tokens above {HIGH:g} SD, "
            f"mean {_signed(original.mean)} → {_signed(branch.mean)}"
        )
    warnings = []
    if original.fluency is not None and branch.fluency is not None:
        parts.append(f"text fluency {_percent(original.fluency)} → {_percent(branch.fluency)}")
        if branch.fluency < MUCH_LESS_LIKELY * original.fluency:
            warnings.append(
                "The model, unsteered, finds the branch's tokens less than half as likely: the text may be breaking."
            )
    if branch.repeated > max(REPETITIVE, original.repeated):
        warnings.append(
            f"The branch repeats itself: {_percent(branch.repeated)} of its runs of {RUN} tokens come again "
            f"({_percent(original.repeated)} in the original)."
        )
    detail = (
        f"From reply token {at} on, {original.n_tokens} tokens of the original and {branch.n_tokens} of the branch. "
        "Text fluency: how likely the model, unsteered, finds each of them (geometric mean)."
    )
    return Outcome("; ".join(parts), detail, " ".join(warnings))


def branch_outcome(monitor: PersonaMonitor, branch: Branch, written: Trace, trait: str) -> Outcome:
    """What a branch has changed, with one more forward over each text.

    Args:
        monitor: the one that wrote it.
        branch: what it was continued from.
        written: the branch.
        trait: that was changed.
    """
    original, new = (_figures(monitor, trace, branch.at, trait) for trace in (branch.trace, written))
    return outcome_of(trait, branch.at, original, new)


def _figures(monitor: PersonaMonitor, trace: Trace, at: int, trait: str) -> TextFigures:
    start = trace.n_prompt + at
    own = [t for t in range(start, trace.n_tokens) if trace.roles[t] in ("assistant", "thinking")]
    scores = np.full(trace.n_tokens, np.nan)
    if trace.default_kind in ("specific", "z"):
        scores = trace.scores_without_sinks(trait)
    log_probs = log_probabilities(monitor.lm, trace.token_ids, start)
    return measure([trace.token_ids[t] for t in own], scores[own], log_probs[[t - start for t in own]])


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.0f} %"


def _signed(value: float | None) -> str:
    return "unknown" if value is None else f"{value:+.1f}".replace("-", "−")
