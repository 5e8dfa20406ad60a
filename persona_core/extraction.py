"""From replies to a persona vector, and from neutral replies to its null.

    v[b] = mean over high-trait replies of h̄[b]  -  mean over low-trait replies of h̄[b]

with h̄[b] the mean state of one reply's tokens at block b (Persona Vectors, arXiv 2507.21509). A larger projection
means more of the trait. Every reply counts the same, whatever its length; means accumulate in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from persona_core.errors import SettingError
from persona_core.trace import Trace
from persona_core.vectors import Null, PersonaVectors

PROBABILITIES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
MIN_REPLIES = 2


class RunningMean:
    """The mean of states that arrive one reply at a time; nothing but the mean is kept."""

    def __init__(self) -> None:
        self.count = 0
        self._mean: np.ndarray | None = None  # float64 [n_blocks, d_model]

    def add(self, state: np.ndarray) -> None:
        """Add one reply's mean state, `[n_blocks, d_model]`. Replies of no token (NaN) are not to be added."""
        if not np.isfinite(state).all():
            raise SettingError("A mean state holds NaN or infinity: a reply of no token, or an overflow in the model.")
        self.count += 1
        value = state.astype(np.float64)
        self._mean = value if self._mean is None else self._mean + (value - self._mean) / self.count

    @property
    def mean(self) -> np.ndarray:
        """float64 `[n_blocks, d_model]`."""
        if self._mean is None:
            raise SettingError("No reply was added.")
        return self._mean


def mean_difference(high: Iterable[np.ndarray], low: Iterable[np.ndarray], trait: str = "") -> torch.Tensor:
    """The mean-difference vector of mean states, each `[n_blocks, d_model]`.

    Returns:
        float32 `[n_blocks, d_model]`.

    Raises:
        SettingError: fewer than two replies on a side, with the counts.

    >>> mean_difference([np.ones((1, 2))] * 2, [np.zeros((1, 2))] * 2)
    tensor([[1., 1.]])
    """
    sides = {"high": RunningMean(), "low": RunningMean()}
    for side, states in (("high", high), ("low", low)):
        for state in states:
            sides[side].add(state)
    counts = {side: running.count for side, running in sides.items()}
    if min(counts.values()) < MIN_REPLIES:
        raise SettingError(
            f"Too few replies for the vector{f' of {trait!r}' if trait else ''}: {counts['high']} high and "
            f"{counts['low']} low, at least {MIN_REPLIES} of each are needed. Elicit more, or loosen the filter."
        )
    return torch.from_numpy((sides["high"].mean - sides["low"].mean).astype(np.float32))


def calibrate(vectors: PersonaVectors, neutral: Sequence[Trace]) -> PersonaVectors:
    """The same vectors with a null: the distribution of the raw projection over the tokens of neutral replies.

    Args:
        vectors: of the model that read `neutral`.
        neutral: neutral replies of that model, read at every block of the vectors (`blocks="all"`).

    Raises:
        SettingError: no reply token, a trait or block that was not read, traces of different readers.
    """
    unread = sorted({b for b in vectors.blocks for t in neutral if b not in t.blocks})
    if not neutral or unread:
        raise SettingError(f"Calibration needs neutral traces of all blocks; got {len(neutral)}, unread {unread}.")
    if any(t.provenance.vectors != vectors.fingerprint for t in neutral):
        raise SettingError("A neutral trace was read with other vectors than those to calibrate; read it with these.")
    steered = [i for i, t in enumerate(neutral) if t.provenance.steering]
    if steered:
        raise SettingError(f"Trace {steered[0]} of the neutral ones was steered; a null rests on the model as it is.")
    readers = {(t.provenance.reader, t.provenance.reader_adapter, t.provenance.template) for t in neutral}
    if len(readers) > 1:
        raise SettingError(f"The neutral traces come from different readers or templates: {sorted(map(str, readers))}.")
    samples = []
    for trace in neutral:
        own = [t for t in range(trace.n_prompt, trace.n_tokens) if trace.roles[t] == "assistant"]
        rows = [trace.traits.index(t) for t in vectors.traits]
        columns = [trace.blocks.index(b) for b in vectors.blocks]
        samples.append(trace.raw[np.ix_(rows, columns, own)])  # [n_traits, n_present, n_own]
        if not np.isfinite(samples[-1]).all():
            raise SettingError(f"A neutral trace (of seed {trace.provenance.seed}) holds NaN or infinity.")
    raw = np.concatenate(samples, axis=2).astype(np.float64)  # [n_traits, n_present, n_all_tokens]
    if raw.shape[2] < MIN_REPLIES:
        raise SettingError("The neutral replies hold no token to calibrate on.")
    nulls = {}
    for row, trait in enumerate(vectors.traits):
        mean, std = (np.full(vectors.n_blocks, np.nan, np.float32) for _ in range(2))
        quantiles = np.full((vectors.n_blocks, len(PROBABILITIES)), np.nan, np.float32)
        for column, block in enumerate(vectors.blocks):
            values = raw[row, column]
            mean[block], std[block] = values.mean(), values.std(ddof=1)
            if not std[block] > 0:
                raise SettingError(f"The projection on {trait!r} at block {block} is the same at all neutral tokens.")
            quantiles[block] = np.quantile(values, PROBABILITIES)
        nulls[trait] = Null(mean, std, quantiles, PROBABILITIES)
    counts = {"null": {"n_replies": len(neutral), "n_tokens": int(raw.shape[2])}}
    return PersonaVectors(
        vectors.tensors, vectors.best_block, nulls, vectors.absent_blocks, {**vectors.config, **counts}
    )
