"""The null of a vector: the distribution of its projection over neutral replies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from persona_core.errors import SettingError
from persona_core.traces.trace import Trace
from persona_core.vectors.vectors import Null, PersonaVectors

PROBABILITIES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
MIN_TOKENS = 2


def calibrate(vectors: PersonaVectors, neutral: Sequence[Trace]) -> PersonaVectors:
    """The same vectors with a null: the distribution of the raw projection over the tokens of neutral replies.

    Args:
        vectors: of the model that read `neutral`.
        neutral: neutral replies of that model, read at every block of the vectors (`blocks="all"`).

    Raises:
        SettingError: no reply tokens, a block that was not read, or traces of different readers.
    """
    unread = sorted({b for b in vectors.blocks for t in neutral if b not in t.blocks})
    if not neutral or unread:
        raise SettingError(f"Calibration needs neutral traces of all blocks; got {len(neutral)}, unread {unread}.")
    if any(t.provenance.vectors != vectors.fingerprint for t in neutral):
        raise SettingError("A neutral trace was read with other vectors; read it with the vectors to calibrate.")
    steered = [i for i, t in enumerate(neutral) if t.provenance.steering]
    if steered:
        raise SettingError(f"Neutral trace {steered[0]} was steered; a null is measured on the unsteered model.")
    readers = {(t.provenance.reader, t.provenance.reader_adapter, t.provenance.template) for t in neutral}
    if len(readers) > 1:
        raise SettingError(f"The neutral traces come from different readers or templates: {sorted(map(str, readers))}.")
    samples = []
    for trace in neutral:
        rows = [trace.traits.index(t) for t in vectors.traits]
        columns = [trace.blocks.index(b) for b in vectors.blocks]
        samples.append(trace.raw[np.ix_(rows, columns, trace.reply_positions)])  # [n_traits, n_present, n_reply]
        if not np.isfinite(samples[-1]).all():
            raise SettingError(f"A neutral trace (seed {trace.provenance.seed}) holds NaN or infinity.")
    raw = np.concatenate(samples, axis=2).astype(np.float64)  # [n_traits, n_present, n_all_tokens]
    if raw.shape[2] < MIN_TOKENS:
        raise SettingError("The neutral replies hold no tokens to calibrate on.")
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
