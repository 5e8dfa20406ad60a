"""What a branch has changed, in one line: the trait, and whether the text is still one that the model would write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

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
            f"{trait}: {percent(original.high)} → {percent(branch.high)} of tokens above {HIGH:g} SD, "
            f"mean {_signed(original.mean)} → {_signed(branch.mean)}"
        )
    warnings = []
    if original.fluency is not None and branch.fluency is not None:
        parts.append(f"text fluency {percent(original.fluency)} → {percent(branch.fluency)}")
        if branch.fluency < MUCH_LESS_LIKELY * original.fluency:
            warnings.append(
                "The model, unsteered, finds the branch's tokens less than half as likely: the text may be breaking."
            )
    if branch.repeated > max(REPETITIVE, original.repeated):
        warnings.append(
            f"The branch repeats itself: {percent(branch.repeated)} of its runs of {RUN} tokens come again "
            f"({percent(original.repeated)} in the original)."
        )
    detail = (
        f"From reply token {at} on, {original.n_tokens} tokens of the original and {branch.n_tokens} of the branch. "
        "Both are read by the model without steering. Text fluency: how likely it finds each token (geometric mean)."
    )
    return Outcome("; ".join(parts), detail, " ".join(warnings))


@dataclass(frozen=True)
class MeasuredBranch:
    """A branch of a published reply, and what it changed.

    Attributes:
        name: id of the branch's own row.
        id, config: of the reply that it continues.
        trait: that was changed.
        at: the first token of the reply that can differ.
        mode: "cap", "ablate" or "add", as in `Steer`.
        amount: threshold or strength in standard deviations; 0 for "ablate".
        original, branch: both texts from `at` on.
    """

    name: str
    id: str
    config: str
    trait: str
    at: int
    mode: str
    amount: float
    original: TextFigures
    branch: TextFigures

    @property
    def outcome(self) -> Outcome:
        return outcome_of(self.trait, self.at, self.original, self.branch)

    @property
    def less_high(self) -> float | None:
        """How much smaller the share of high tokens is than in the original; None where either is unknown."""
        before, after = self.original.high, self.branch.high
        return None if before is None or after is None else before - after

    @property
    def fluency_kept(self) -> float | None:
        """The branch's fluency as a share of the original's; None where either is unknown."""
        before, after = self.original.fluency, self.branch.fluency
        return None if before is None or after is None else after / before

    @property
    def change(self) -> str:
        return change_name(self.trait, self.mode, self.amount)

    def to_row(self) -> dict[str, Any]:
        """Flat: the figures as `original_*` and `branch_*`."""
        record = {k: v for k, v in vars(self).items() if not isinstance(v, TextFigures)}
        both = (("original", self.original), ("branch", self.branch))
        return record | {f"{side}_{name}": value for side, text in both for name, value in vars(text).items()}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> MeasuredBranch:
        """What `to_row` made."""
        texts: dict[str, Any] = {
            side: TextFigures(**{f.name: row[f"{side}_{f.name}"] for f in fields(TextFigures)})
            for side in ("original", "branch")
        }
        return cls(**{f.name: row[f.name] for f in fields(cls) if f.name not in texts} | texts)


def change_name(trait: str, mode: str, amount: float) -> str:
    """A short name of an intervention; amounts are in standard deviations.

    >>> change_name("sycophancy", "cap", 2.5)
    'sycophancy capped at +2.5 SD'
    """
    if mode == "ablate":
        return f"without {trait}"
    return f"{trait} capped at {amount:+g} SD" if mode == "cap" else f"{trait} {amount:+g} SD"


def percent(share: float | None) -> str:
    """A share in words, such as "12 %"."""
    return "unknown" if share is None else f"{100 * share:.0f} %"


def _signed(value: float | None) -> str:
    return "unknown" if value is None else f"{value:+.1f}".replace("-", "−")
