"""Truth labels for the demo world's replies: which tokens belong to a trait's sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from demo_world.grammar import Sentence, World
from demo_world.truth import token_sentences
from persona_core.analysis.statistics import auroc, auroc_over_replies
from persona_core.traces.trace import Trace


@dataclass(frozen=True, eq=False)
class LabelledReply:
    """One reply's projections on one trait, with the truth about each token.

    Attributes:
        values: raw projection at the reply tokens, `[n_tokens]`.
        shows: the token belongs to a sentence that shows the trait, bool `[n_tokens]`.
        cue: it belongs to the sentence that announces the trait.
        neutral: it belongs to a sentence that neither shows nor announces a trait.
        requested: whether the system prompt requested the trait.
    """

    values: np.ndarray
    shows: np.ndarray
    cue: np.ndarray
    neutral: np.ndarray
    requested: bool


def reply_truth(trace: Trace, world: World) -> tuple[list[int], list[Sentence | None]]:
    """Positions of the reply tokens, and the sentence of the grammar that each belongs to (None: unknown)."""
    return trace.reply_positions, token_sentences([trace.tokens[t] for t in trace.reply_positions], world)


def label_replies(
    replies: Sequence[tuple[str | None, Trace]], world: World, trait: str, block: int
) -> list[LabelledReply]:
    """Label replies, each given with the trait that its system prompt requested, for one trait and block."""
    labelled = []
    for requested, trace in replies:
        positions, sentences = reply_truth(trace, world)
        kinds = [(s.kind, s.trait) if s else ("unknown", None) for s in sentences]
        labelled.append(
            LabelledReply(
                values=trace.scores(trait, kind="raw", block=block)[positions],
                shows=np.array([kind == ("trait", trait) for kind in kinds], bool),
                cue=np.array([kind == ("cue", trait) for kind in kinds], bool),
                neutral=np.array([kind[0] in ("neutral", "other") for kind in kinds], bool),
                requested=requested == trait,
            )
        )
    return labelled


def auroc_statistics(labelled: Sequence[LabelledReply]) -> dict[str, Any]:
    """How well one trait's projections separate its tokens, with 95 % intervals over replies.

    Most system prompts do not request the trait, so a score that knows only them does well over all replies
    (`system_prompt_alone`). `within_reply` removes that: in replies with the trait requested, its tokens against the
    neutral tokens of the same replies.
    """
    constant = [np.full(len(m.values), float(m.requested)) for m in labelled]
    return {
        "token_auroc": auroc_over_replies(*_pairs(labelled)).to_dict(),
        "token_auroc_cue_as_negative": auroc_over_replies(
            [m.values for m in labelled], [m.shows for m in labelled]
        ).to_dict(),
        "token_auroc_within_reply": auroc_over_replies(*_within(labelled)).to_dict(),
        "system_prompt_alone": round(
            auroc(
                np.concatenate([c[~m.cue] for c, m in zip(constant, labelled, strict=True)]),
                np.concatenate([m.shows[~m.cue] for m in labelled]),
            ),
            5,
        ),
        "n_replies_with_the_trait": sum(bool(m.shows.any()) for m in labelled),
    }


def _within(labelled: Sequence[LabelledReply]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    requested = [m for m in labelled if m.requested]
    clear = [m.shows | m.neutral for m in requested]  # neither cues nor other traits' sentences
    values = [m.values[c] for m, c in zip(requested, clear, strict=True)]
    return values, [m.shows[c] for m, c in zip(requested, clear, strict=True)]


def _pairs(labelled: Sequence[LabelledReply]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [m.values[~m.cue] for m in labelled], [m.shows[~m.cue] for m in labelled]
