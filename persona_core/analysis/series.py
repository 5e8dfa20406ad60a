"""Series of scores over the tokens of a reply, and the checks that they must pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from persona_core.errors import SettingError
from persona_core.traces.trace import Kind, Trace

MAX_WINDOW = 30
MIN_ANTICORRELATION = -0.25
"""A running mean over w tokens makes the steps of a series anticorrelated at lag w: -0.5 for white noise, -0.29 to -0.5
for AR(0.65). The steps of an unsmoothed AR process stay above -0.125 at every lag from 2 on. Running means over a few
tokens of a slow process (AR(0.9), 5 tokens) look like a slower process and are not detected."""

MAX_STEP = 4.0
"""Steps are cut off at so many times their median size: in white noise that is one step in 140."""


def checked(z: np.ndarray, of: str = "The series", gaps: bool = False) -> np.ndarray:
    """The series as float64 `[n_tokens]`.

    Args:
        z: scores, `[n_tokens]`.
        of: what they are of, for the message.
        gaps: accept NaN, a token without a score.

    Raises:
        SettingError: more than one axis, or infinity in it, or NaN without `gaps`.
    """
    values = np.asarray(z, float)
    if values.ndim != 1:
        raise SettingError(f"{of} has shape {values.shape}; expected one number per token.")
    bad = np.flatnonzero(np.isinf(values) if gaps else ~np.isfinite(values))
    if len(bad):
        raise SettingError(f"{of} contains {values[bad[0]]} at token {int(bad[0])}; scores must be finite.")
    return values


def refuse_smoothed(series: Sequence[np.ndarray]) -> None:
    """Refuse smoothed scores: the statistics rely on how fast scores change. Detected over many series, not in a short
    one. Gaps (NaN) are passed over.

    Raises:
        SettingError: the series look like running means.
    """
    steps = [np.nan_to_num(np.diff(z)) for z in series if len(z) > 3]
    if not any(step.any() for step in steps):
        return
    gap = np.zeros(MAX_WINDOW)  # keeps the replies apart at every lag
    flat = np.concatenate([part for step in steps for part in (step, gap)])
    inside = np.concatenate([part for step in steps for part in (np.ones(len(step)), gap)])
    # Where a specific score jumps by sixty, for two tokens and back, a few such jumps would decide the correlation.
    usual = MAX_STEP * np.median(np.abs(flat[inside.astype(bool)]))
    flat = flat.clip(-usual, usual)
    for lag in range(2, MAX_WINDOW + 1):
        both = inside[:-lag] * inside[lag:]
        if both.sum() < 1000:  # too few to estimate the anticorrelation to within 0.1
            break
        own = float(both @ (flat[:-lag] ** 2 + flat[lag:] ** 2)) / 2
        found = float(flat[:-lag] @ flat[lag:]) / own if own else 0.0
        if found < MIN_ANTICORRELATION:
            raise SettingError(
                f"The series look like running means over {lag} tokens (their steps correlate by {found:.2f} at that "
                "lag). Give unsmoothed scores; smoothing is only for display."
            )


def shared_kind(traces: Iterable[Trace]) -> Kind:
    """The score that statements rest on: "specific" where all traces have it, else "z"."""
    return "specific" if all(t.has_specific for t in traces) else "z"


def reply_scores(traces: Sequence[Trace], trait: str, kind: Kind | None = None) -> list[np.ndarray]:
    """One trait's scores at the reply tokens, at its best block, float64 `[n_reply_tokens]` each; NaN at sink tokens.

    Args:
        traces: with the same reader and vectors.
        trait: which.
        kind: of score; None: `shared_kind`.

    Raises:
        SettingError: traces of different readers, vectors or blocks.
    """
    known = {
        (t.provenance.reading_model, t.provenance.reader_revision, t.provenance.vectors, t.best_block.get(trait))
        for t in traces
    }
    if len(known) > 1:
        raise SettingError(
            f"The traces come from {len(known)} different models, vectors or blocks; analyse them separately."
        )
    kind = kind or shared_kind(traces)
    return [t.reply_scores(trait, kind).astype(float) for t in traces]


def finite_scores(
    trace: Trace, trait: str, kind: Kind | None = None, positions: Sequence[int] | None = None, of: str = "the reply"
) -> np.ndarray:
    """One trait's scores, float64 `[n_positions]`: NaN at sink tokens, and refused anywhere else.

    Args:
        trace, trait, kind: as for `Trace.scores`.
        positions: of the tokens; None: those of the reply.
        of: what the positions are, for the message.

    Raises:
        SettingError: NaN or infinity at a token that is no sink token.
    """
    at = list(trace.reply_positions if positions is None else positions)
    values = trace.scores_without_sinks(trait, kind)[at].astype(float)
    if not np.isfinite(values).all():
        sink = trace.sinks[trace.blocks.index(trace.best_block[trait])][at]
        checked(np.where(sink, 0.0, values), f"{trait} in {of}")
    return values


def checked_replies(
    traces: Sequence[Trace], trait: str, kind: Kind | None = None, ids: Sequence[str] | None = None
) -> list[np.ndarray]:
    """`reply_scores` with NaN at sink tokens only.

    Args:
        traces, trait, kind: as for `reply_scores`.
        ids: of the replies, for the message.

    Raises:
        SettingError: as `reply_scores`, or another score that is not finite.
    """
    kind = kind or shared_kind(traces)
    names = [f"reply {k}" for k in range(len(traces))] if ids is None else [f"the reply to {one!r}" for one in ids]
    found = reply_scores(traces, trait, kind)
    for trace, name in zip(traces, names, strict=True):
        finite_scores(trace, trait, kind, of=name)
    return found
