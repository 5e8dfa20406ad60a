"""What may be said of a reply whose plain z is high where no specific score is: not neutral, no trait in particular."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from persona_core.traces.trace import Trace

MIN_MEAN_Z = 2.0
"""Mean z of a reply from which it is called not neutral: where a single neutral token is rare, and the mean of a whole
reply, which spreads less, is rarer still."""


def with_not_neutral(trace: Trace, onsets: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The onsets in a reply, where each statement names its trait only if the specific score bears it.

    A trait without an onset whose z is `MIN_MEAN_Z` on average gets another sentence, and "named": False, since it is
    not about the trait.

    Args:
        trace: a complete one.
        onsets: trait -> onset in its reply, at least with "answer" and "says"; found on specific scores. Those of
            plain z, and all onsets of a trace without specific scores, stay as they are.
    """
    found = {trait: dict(onset) for trait, onset in onsets.items()}
    if not (trace.has_specific and trace.calibrated and trace.reply_positions):
        return found
    rising = [trait for trait, onset in found.items() if onset.get("answer", "none") != "none"]
    for trait, onset in found.items():
        if trait in rising or onset.get("kind", "specific") != "specific" or trait not in trace.best_block:
            continue
        z = trace.reply_scores(trait, "z")
        mean = float(z[np.isfinite(z)].mean()) if np.isfinite(z).any() else 0.0
        if mean >= MIN_MEAN_Z:
            which = f"but not {trait} in particular" if rising else "no trait in particular"
            onset |= {"named": False, "says": f"not neutral, {which} (mean z of {trait} {mean:+.1f})"}
    return found
