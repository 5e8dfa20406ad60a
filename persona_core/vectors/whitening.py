"""Reading directions: the mean difference, whitened by the within-class covariance of token states.

    u[b] = W[b]⁻¹ v[b] / ‖W[b]⁻¹ v[b]‖

v is the mean difference, along which a model is steered; W is how single tokens vary within the replies of one kind.
A token's projection on v also carries everything else that varies along v; u weighs each direction by how little it
varies otherwise (Fisher's linear discriminant). A model is read along u and steered along v.

W is the pooled covariance around the mean of each class (each side of each trait, and the neutral replies), shrunk
towards a multiple of the identity by the rule of Ledoit and Wolf (2004), but at least by `MIN_SHRINKAGE`. It is
accumulated one class and one block at a time: memory for about four `[d_model, d_model]` matrices in float64, whatever
the number of replies (558 MB at a width of 4,096).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from persona_core.errors import NumericalError, SettingError

MIN_TOKENS = 50
"""Fewer sampled tokens than this are no basis for a covariance."""

MIN_SHRINKAGE = 0.3
"""The rule's own estimate, about 0.005, is the best one where the label of every token is right. With labels by reply,
tokens before the first sentence that shows the trait count for it too, and weak signs of what is to come are read as
the trait: in the demo world onsets lie within 2 tokens of the sentence that announces it in 70 % of texts by the rule's
estimate, and in 91 % with this floor (docs/experiments.md). On SmolLM2, labels by reply, it costs 0.001 of the mean
AUROC against neutral text, and 0.008 of that of the specific score against everything else (docs/real_model.md)."""

MAX_TOKENS = 40_000
"""Sampled tokens that a covariance is made of, over all classes."""


@dataclass(frozen=True, eq=False)
class Covariance:
    """A shrunk covariance, (1 - shrinkage) S + shrinkage × scale × I.

    Attributes:
        sample: S, float64 `[d_model, d_model]`.
        scale: mean of the diagonal of S.
        shrinkage: 0 to 1.
        n_tokens: tokens behind S.
    """

    sample: np.ndarray
    scale: float
    shrinkage: float
    n_tokens: int

    def solve(self, vectors: np.ndarray) -> np.ndarray:
        """W⁻¹ v for each row, float64 `[n, d_model]`."""
        from scipy.linalg import cho_factor, cho_solve  # here: importing it takes a fifth of a second

        shrunk = (1 - self.shrinkage) * self.sample
        shrunk[np.diag_indices_from(shrunk)] += self.shrinkage * self.scale
        return cho_solve(cho_factor(shrunk, lower=True), vectors.T.astype(np.float64)).T

    def along(self, directions: np.ndarray) -> np.ndarray:
        """Variance of the unshrunk projections on each row, `[n]`."""
        return np.einsum("nd,de,ne->n", directions, self.sample, directions)


def within_class_covariance(classes: Iterable[np.ndarray], min_shrinkage: float = MIN_SHRINKAGE) -> Covariance:
    """The pooled covariance of states around the mean of their class.

    Args:
        classes: the states of one class after the other, `[n_tokens, d_model]` each, without NaN.
        min_shrinkage: the least shrinkage; 0 leaves it to the rule of Ledoit and Wolf, for labels by token.

    Raises:
        SettingError: too few tokens, or states that are all the same.
        NumericalError: a state that is NaN or infinite.

    >>> rng = np.random.default_rng(0)
    >>> found = within_class_covariance([rng.normal(size=(400, 3)) + 9, rng.normal(size=(400, 3))])
    >>> bool(abs(found.sample - np.eye(3)).max() < 0.15), found.n_tokens
    (True, 800)
    """
    total: np.ndarray | None = None
    n, n_classes, fourth = 0, 0, 0.0  # tokens, classes with any, and the sum of ‖x‖⁴
    for states in classes:
        if not len(states):
            continue
        centred = states - states.mean(0, dtype=np.float64).astype(np.float32)
        product = (centred.T @ centred).astype(np.float64)  # [d_model, d_model]
        total = product if total is None else total + product
        fourth += float((np.einsum("nd,nd->n", centred, centred, dtype=np.float64) ** 2).sum())
        n, n_classes = n + len(states), n_classes + 1
    if total is None or n - n_classes < MIN_TOKENS:  # each class takes a degree of freedom for its mean
        raise SettingError(
            f"{n} sampled tokens in {n_classes} classes; a covariance needs at least {MIN_TOKENS} more than there are "
            "classes. Elicit more replies."
        )
    sample = total / n
    d = len(sample)
    scale = float(np.trace(sample) / d)
    if not np.isfinite(scale):
        raise NumericalError(
            "A sampled state is NaN or infinite, so there is no covariance. Load the model as float32."
        )
    if not scale > 0:
        raise SettingError(
            "Within every class all sampled states are the same, so there is nothing to whiten by. Elicit more varied "
            "replies."
        )
    spread = float((sample**2).sum()) - d * scale**2  # ‖S - scale I‖²
    error = (fourth / n - float((sample**2).sum())) / n
    shrinkage = 1.0 if spread <= 0 else min(1.0, max(error / spread, min_shrinkage))
    return Covariance(sample, scale, shrinkage, n)


@dataclass(frozen=True, eq=False)
class ReadingDirections:
    """What scores are taken along.

    Attributes:
        directions: trait -> unit directions, float32 `[n_blocks, d_model]`.
        log_odds: trait -> slope and offset of the log odds against neutral, float32 `[n_blocks, 2]`.
        shrinkage: `[n_blocks]`.
        n_tokens: sampled tokens behind each covariance, the fewest of any block.
    """

    directions: Mapping[str, np.ndarray]
    log_odds: Mapping[str, np.ndarray]
    shrinkage: np.ndarray
    n_tokens: int


TokensAt = Callable[[int], np.ndarray]
"""Block -> states of a class's sampled tokens at that block, float32 `[n_tokens, d_model]`, without NaN."""


def plain_tokens(states: np.ndarray) -> np.ndarray:
    """The states of `[n_replies, n_sampled, d_model]` that are there, `[n_tokens, d_model]`; sink tokens are NaN."""
    flat = states.reshape(-1, states.shape[-1])
    return flat[np.isfinite(flat[:, 0])]


def reading_directions(
    vectors: Mapping[str, np.ndarray],
    positive: Mapping[str, TokensAt],
    others: Sequence[TokensAt],
    neutral: TokensAt,
    whiten: bool = True,
    min_shrinkage: float = MIN_SHRINKAGE,
) -> ReadingDirections:
    """Reading directions of all traits at all blocks, and their log odds against neutral.

    Args:
        vectors: trait -> mean difference, `[n_blocks, d_model]`.
        positive: trait -> tokens of the replies that show it.
        others: further classes, such as the traits' negative replies; they count for the covariance only.
        neutral: tokens of neutral replies.
        whiten: whether to whiten; False reads along the vectors themselves.
        min_shrinkage: of the covariance.
    """
    n_blocks, d_model = next(iter(vectors.values())).shape
    directions = {t: np.empty((n_blocks, d_model), np.float32) for t in vectors}
    odds = {t: np.empty((n_blocks, 2), np.float32) for t in vectors}
    shrinkage, fewest = np.zeros(n_blocks), np.inf
    for block in range(n_blocks):
        means: dict[str, np.ndarray] = {}
        plain = neutral(block)  # [n_tokens, d_model]
        covariance = within_class_covariance(_classes(block, positive, others, plain, means), min_shrinkage)
        at = np.stack([v[block] for v in vectors.values()]).astype(np.float64)  # [n_traits, d_model]
        found = covariance.solve(at) if whiten else at
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        variance = covariance.along(found)  # [n_traits]
        shrinkage[block], fewest = covariance.shrinkage, min(fewest, covariance.n_tokens)
        for trait, direction, spread in zip(vectors, found, variance, strict=True):
            directions[trait][block] = direction
            odds[trait][block] = _log_odds(direction, float(spread), means.get(trait), plain)
    return ReadingDirections(directions, odds, shrinkage, int(fewest))


def _classes(
    block: int,
    positive: Mapping[str, TokensAt],
    others: Sequence[TokensAt],
    plain: np.ndarray,
    means: dict[str, np.ndarray],
) -> Iterator[np.ndarray]:
    """The states of each class; fills in the means of the positive ones on the way, so that each is read once."""
    for trait, tokens in positive.items():
        states = tokens(block)
        if len(states):
            means[trait] = states.mean(0, dtype=np.float64)
        yield states
    for tokens in others:
        yield tokens(block)
    yield plain


def _log_odds(
    direction: np.ndarray, variance: float, positive: np.ndarray | None, neutral: np.ndarray
) -> tuple[float, float]:
    """Slope and offset of the log likelihood ratio of two normal distributions with the same variance.

    A direction along which the positive replies do not lie higher says nothing: slope and offset are 0.
    """
    if positive is None or not len(neutral) or not variance > 0:
        return 0.0, 0.0
    high, low = float(direction @ positive), float(direction @ neutral.mean(0, dtype=np.float64))
    slope = max(0.0, (high - low) / variance)
    return slope, -slope * (high + low) / 2
