"""Measures a branch and the reply that it was continued from, with the model that wrote both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from persona_core.analysis.branch_figures import Outcome, TextFigures, measure, outcome_of
from persona_core.inference.probabilities import log_probabilities

if TYPE_CHECKING:
    from persona_core.monitor.branching import Branch
    from persona_core.monitor.monitor import PersonaMonitor
    from persona_core.traces.trace import Trace


def branch_outcome(monitor: PersonaMonitor, branch: Branch, written: Trace, trait: str) -> Outcome:
    """What a branch has changed, with two more forwards over each text.

    Args:
        monitor: the one that wrote it.
        branch: what it was continued from.
        written: the branch.
        trait: that was changed.
    """
    original, new = (text_figures(monitor, trace, branch.at, trait) for trace in (branch.trace, written))
    return outcome_of(trait, branch.at, original, new)


def text_figures(monitor: PersonaMonitor, trace: Trace, at: int, trait: str) -> TextFigures:
    """The figures of a reply from its token `at` on, as the unsteered model reads it.

    Steering moves the states of the very tokens that it writes: along the trait itself, by construction. So the text
    is read once more without it, and what is left is what the text says.
    """
    trace = monitor.read(trace)
    start = trace.n_prompt + at
    own = [t for t in range(start, trace.n_tokens) if trace.roles[t] in ("assistant", "thinking")]
    scores = np.full(trace.n_tokens, np.nan)
    if trace.default_kind in ("specific", "z"):
        scores = trace.scores_without_sinks(trait)
    log_probs = log_probabilities(monitor.lm, trace.token_ids, start)
    return measure([trace.token_ids[t] for t in own], scores[own], log_probs[[t - start for t in own]])
