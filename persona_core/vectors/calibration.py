"""The null of a vector: the distribution of its projection, and of its specific score, over neutral replies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from persona_core.errors import SettingError
from persona_core.inference.sinks import norm_limits
from persona_core.traces.sinks import is_sink
from persona_core.traces.specific import odds_against_rest
from persona_core.traces.trace import Trace
from persona_core.vectors.null import Null
from persona_core.vectors.vectors import PersonaVectors

PROBABILITIES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
MIN_TOKENS = 2


def calibrate(vectors: PersonaVectors, neutral: Sequence[Trace]) -> PersonaVectors:
    """The same vectors with a null: the distribution of projections and specific scores over neutral replies.

    Tokens are counted without sink tokens, whose limit is measured here too. Specific scores need the log odds of at
    least two traits.

    Args:
        vectors: of the model that read `neutral`.
        neutral: neutral replies of that model, read at every block of the vectors (`blocks="all"`).

    Raises:
        SettingError: no reply tokens, a block that was not read, or traces of different readers.
    """
    if not neutral:
        raise SettingError("No neutral replies to calibrate on; pass their traces.")
    if unread := sorted({b for b in vectors.blocks for t in neutral if b not in t.blocks}):
        which = f"Block {unread[0]} was" if len(unread) == 1 else f"Blocks {', '.join(map(str, unread))} were"
        raise SettingError(f"{which} not read in the neutral traces; read them with blocks='all'.")
    if any(t.provenance.vectors != vectors.fingerprint for t in neutral):
        raise SettingError("A neutral trace was read with other vectors; read it with the vectors to calibrate.")
    steered = [i for i, t in enumerate(neutral) if t.provenance.steering]
    if steered:
        raise SettingError(f"Neutral trace {steered[0]} was steered; a null is measured on the unsteered model.")
    readers = {(t.provenance.reader, t.provenance.reader_adapter, t.provenance.template) for t in neutral}
    if len(readers) > 1:
        raise SettingError(f"The neutral traces come from different readers or templates: {sorted(map(str, readers))}.")
    if sum(len(t.reply_positions) for t in neutral) < MIN_TOKENS:
        raise SettingError("The neutral replies hold no tokens to calibrate on.")
    for i, trace in enumerate(neutral):
        if not (np.isfinite(trace.raw[..., trace.reply_positions]).all() and np.isfinite(trace.norms).all()):
            raise SettingError(
                f"Neutral trace {i} holds NaN or infinity; read it in float32 or bfloat16, or leave it out."
            )
    max_norm = _limits(vectors, neutral)
    null: dict[str, Null] = {t: _empty(vectors.n_blocks) for t in vectors.traits}
    odds_of_all = set(vectors.log_odds) == set(vectors.traits) and len(vectors.traits) > 1
    specific = {t: np.full((vectors.n_blocks, 2), np.nan, np.float32) for t in vectors.traits if odds_of_all}
    for block in vectors.blocks:
        raw = _raw(vectors, neutral, block, max_norm[block])  # [n_traits, n_all_tokens]
        for trait, values in zip(vectors.traits, raw, strict=True):
            std = values.std(ddof=1)
            if not std > 0:
                raise SettingError(f"The projection on {trait!r} at block {block} is the same at all neutral tokens.")
            null[trait].mean[block], null[trait].std[block] = values.mean(), std
            null[trait].quantiles[block] = np.quantile(values, PROBABILITIES)
        if specific:
            slope, offset = np.stack([vectors.log_odds[t][block] for t in vectors.traits]).T
            for trait, values in zip(vectors.traits, odds_against_rest(raw, slope, offset), strict=True):
                # A trait that its vector does not tell from neutral has no spread of its own, and no specific score.
                specific[trait][block] = values.mean(), values.std(ddof=1)
    counts = {"null": {"n_replies": len(neutral), "n_tokens": sum(len(t.reply_positions) for t in neutral)}}
    return replace(
        vectors,
        null=null,
        specific_null=specific,
        max_norm=max_norm,
        config={**vectors.config, **counts},
    )


def calibrate_steering(vectors: PersonaVectors, neutral: Sequence[Trace]) -> PersonaVectors:
    """The same vectors with the null along their steering directions.

    Args:
        vectors: calibrated.
        neutral: the neutral replies, read with `vectors.along_steering()` at every block.
    """
    found = calibrate(vectors.along_steering(), neutral)
    return replace(vectors, steering_null=found.null)


def _empty(n_blocks: int) -> Null:
    mean, std = (np.full(n_blocks, np.nan, np.float32) for _ in range(2))
    return Null(mean, std, np.full((n_blocks, len(PROBABILITIES)), np.nan, np.float32), PROBABILITIES)


def _limits(vectors: PersonaVectors, neutral: Sequence[Trace]) -> np.ndarray:
    """The norm above which a token is a sink token, float32 `[n_blocks]`."""
    limits = np.full(vectors.n_blocks, np.inf, np.float32)
    columns = [neutral[0].blocks.index(b) for b in vectors.blocks]
    norms = np.concatenate([t.norms[columns][:, t.reply_positions] for t in neutral], axis=1)
    limits[list(vectors.blocks)] = norm_limits(norms)
    return limits


def _raw(vectors: PersonaVectors, neutral: Sequence[Trace], block: int, max_norm: float) -> np.ndarray:
    """Projections at the reply tokens of all traces, sinks left out, float64 `[n_traits, n_all_tokens]`."""
    found = []
    for trace in neutral:
        column, rows = trace.blocks.index(block), [trace.traits.index(t) for t in vectors.traits]
        sink = is_sink(trace.norms[column], max_norm)  # [n_tokens]
        plain = [t for t in trace.reply_positions if not sink[t]]
        found.append(trace.raw[rows, column][:, plain])
    return np.concatenate(found, axis=1).astype(np.float64)
