"""Mark a reading against the truth of the demo world: which tokens belong to a trait's sentences."""

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
        values: raw projection, `[n_tokens]`, the reply's own tokens only.
        shows: the token belongs to a sentence that shows the trait, bool `[n_tokens]`.
        cue: it belongs to the sentence that announces the trait.
        neutral: it belongs to a sentence that shows and announces nothing.
        asked: whether the system prompt asked for the trait.
    """

    values: np.ndarray
    shows: np.ndarray
    cue: np.ndarray
    neutral: np.ndarray
    asked: bool


def reply_truth(trace: Trace, world: World) -> tuple[list[int], list[Sentence | None]]:
    """Places of the reply's own tokens, and the sentence of the grammar that each belongs to (None: unknown)."""
    return trace.reply_positions, token_sentences([trace.tokens[t] for t in trace.reply_positions], world)


def label_replies(
    replies: Sequence[tuple[str | None, Trace]], world: World, trait: str, block: int
) -> list[LabelledReply]:
    """Mark replies, each given with the trait that its system prompt asked for, for one trait and block."""
    marked = []
    for asked_for, trace in replies:
        own, sentences = reply_truth(trace, world)
        kinds = [(s.kind, s.trait) if s else ("unknown", None) for s in sentences]
        marked.append(
            LabelledReply(
                values=trace.scores(trait, kind="raw", block=block)[own],
                shows=np.array([kind == ("trait", trait) for kind in kinds], bool),
                cue=np.array([kind == ("cue", trait) for kind in kinds], bool),
                neutral=np.array([kind[0] in ("neutral", "other") for kind in kinds], bool),
                asked=asked_for == trait,
            )
        )
    return marked


def auroc_within(marked: Sequence[LabelledReply]) -> float:
    """In replies that were asked for the trait: its tokens against the neutral tokens of the same replies.

    By this the block is chosen. Over all replies a score does well that only knows what the system prompt asked for.
    """
    values, labels = _within(marked)
    return auroc(np.concatenate(values), np.concatenate(labels))


def auroc_statistics(marked: Sequence[LabelledReply], n_resamples: int) -> dict[str, Any]:
    """What one trait's projections are worth, with 95 % intervals over replies.

    Most replies were never asked for the trait, so a score that only knows the system prompt does well on all replies
    together (`system_prompt_alone`). `within_reply` takes that away: replies that were asked for the trait, its tokens
    against the neutral tokens of the same replies.
    """
    constant = [np.full(len(m.values), float(m.asked)) for m in marked]
    return {
        "token_auroc": auroc_over_replies(*_pairs(marked), n_resamples).to_dict(),
        "token_auroc_cue_as_negative": auroc_over_replies(
            [m.values for m in marked], [m.shows for m in marked], n_resamples
        ).to_dict(),
        "token_auroc_within_reply": auroc_over_replies(*_within(marked), n_resamples).to_dict(),
        "system_prompt_alone": round(
            auroc(
                np.concatenate([c[~m.cue] for c, m in zip(constant, marked, strict=True)]),
                np.concatenate([m.shows[~m.cue] for m in marked]),
            ),
            5,
        ),
        "n_replies_with_the_trait": sum(bool(m.shows.any()) for m in marked),
    }


def _within(marked: Sequence[LabelledReply]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    asked = [m for m in marked if m.asked]
    clear = [m.shows | m.neutral for m in asked]  # neither cues nor other traits' sentences
    values = [m.values[c] for m, c in zip(asked, clear, strict=True)]
    return values, [m.shows[c] for m, c in zip(asked, clear, strict=True)]


def _pairs(marked: Sequence[LabelledReply]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [m.values[~m.cue] for m in marked], [m.shows[~m.cue] for m in marked]
