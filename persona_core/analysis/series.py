"""Series of scores over the tokens of a reply: what may be analysed, and where they come from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from persona_core.errors import SettingError
from persona_core.traces.trace import Trace

LONGEST_WINDOW = 30
MIN_ANTICORRELATION = -0.25
"""A running mean of w tokens makes the steps of a series anticorrelated at lag w: by -0.5 for white noise, by -0.29 to
-0.5 for AR(0.65). Steps of an AR process that was not smoothed stay above -0.125 at every lag from 2 on. Running means
over a few tokens of a slower process (AR(0.9), 5 tokens) look like a slower process and are not found."""


def checked(z: np.ndarray, of: str = "The series") -> np.ndarray:
    """The series as float64 `[n_tokens]`.

    Raises:
        SettingError: more than one axis, or NaN or infinity in it.
    """
    values = np.asarray(z, float)
    if values.ndim != 1:
        raise SettingError(f"{of} has the shape {values.shape}; one number a token is expected.")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise SettingError(f"{of} holds {values[bad[0]]} at token {int(bad[0])}; scores must be finite.")
    return values


def refuse_smoothed(series: Sequence[np.ndarray]) -> None:
    """Statistics rest on how fast scores change; smoothing is for the eye. One short series cannot show it, many can.

    Raises:
        SettingError: the series look like running means.
    """
    steps = [np.diff(z) for z in series if len(z) > 3]
    total = sum(float(d @ d) for d in steps)
    if not total > 0:
        return
    for lag in range(2, LONGEST_WINDOW + 1):
        long = [d for d in steps if len(d) > lag]
        own = sum(float(d[:-lag] @ d[:-lag] + d[lag:] @ d[lag:]) / 2 for d in long)
        n = sum(len(d) - lag for d in long)
        if n < 1000:  # the anticorrelation of noise would be within 0.1 of 0 by chance
            break
        found = sum(float(d[:-lag] @ d[lag:]) for d in long) / own
        if found < MIN_ANTICORRELATION:
            raise SettingError(
                f"The series look like running means over {lag} tokens (their steps correlate {found:.2f} at that "
                "distance). Give the scores as they were read; smoothing is for the eye."
            )


def reply_scores(traces: Sequence[Trace], trait: str) -> list[np.ndarray]:
    """z of the replies' own tokens at the trait's best block, `[n_own]` each, of traces that belong together.

    Raises:
        SettingError: traces of different readers, vectors or blocks.
    """
    known = {
        (t.provenance.reading_model, t.provenance.reader_revision, t.provenance.vectors, t.best_block.get(trait))
        for t in traces
    }
    if len(known) > 1:
        raise SettingError(f"The traces are of {len(known)} different models, vectors or blocks; analyse them apart.")
    return [t.scores(trait)[t.reply_positions].astype(float) for t in traces]
