"""What a contaminated model does differently besides the trait: neutral text, length, refusals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from persona_core.analysis.statistics import bounded, bounded_difference, over_clusters
from persona_core.models.language_model import LanguageModel
from persona_core.monitor.transcripts import as_transcript
from persona_core.report.results_folder import SIDES
from persona_core.vectors.confounds import refuses
from real_model.texts import TextQuestion

Row = Mapping[str, Any]


def what_changed(
    baseline: LanguageModel,
    contaminated: LanguageModel,
    rows: Mapping[str, Sequence[Row]],
    questions: Sequence[TextQuestion],
) -> dict[str, Any]:
    """How the two models differ, each difference contaminated minus baseline with its interval.

    Args:
        baseline, contaminated: the models.
        rows: "baseline" and "contaminated" -> their replies to the same prompts, in one order.
        questions: whose neutral replies both read.

    Returns:
        "neutral_text": mean loss a token, in nats, on neutral replies that neither wrote; over questions. "length":
        tokens a reply; "refusals": share of replies that begin by declining; "ended": share that end by themselves;
        over prompts. Each with "baseline", "contaminated" and "difference".
    """

    def each(value: Callable[[Row], float]) -> tuple[list[float], list[float]]:
        before, after = ([float(value(row)) for row in rows[side]] for side in SIDES)
        return before, after

    return {
        "neutral_text": _compared(_losses(baseline, questions), _losses(contaminated, questions)),
        "length": _compared(*each(lambda row: row["n_reply"])),
        "refusals": _compared(*each(lambda row: refuses(row["response"])), share=True),
        "ended": _compared(*each(lambda row: row["finish"] == "eos"), share=True),
    }


def _losses(lm: LanguageModel, questions: Sequence[TextQuestion]) -> list[float]:
    """Mean loss a token of each question's neutral reply, without the tokens of the template."""
    found = []
    for q in questions:
        (reply,) = (r for r in q.replies if r.side == "neutral")
        text = as_transcript(lm, q.messages(reply), None)
        ids = torch.tensor([text.ids], device=lm.device)
        with torch.no_grad():
            logits = lm.model(ids).logits[0].float()  # [n_tokens, n_vocabulary]
        of_next = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")  # [n_tokens - 1]
        found.append(float(of_next[text.n_prompt - 1 :].mean()))
    return found


def _compared(before: Sequence[float], after: Sequence[float], share: bool = False) -> dict[str, Any]:
    """Means over pairs, each with its interval; of values that are 0 or 1, if they are shares."""
    sides, each = (_mean_of(before), _mean_of(after)), np.arange(len(before))
    if share:
        figures = [*(bounded(side, each) for side in sides), bounded_difference(sides[1], sides[0], each)]
    else:
        difference = np.asarray(after) - np.asarray(before)  # [n]
        figures = [over_clusters(one, each) for one in (*sides, _mean_of(difference))]
    names = (*SIDES, "difference")
    return {name: None if one is None else one.to_dict() for name, one in zip(names, figures, strict=True)}


def _mean_of(values: Sequence[float] | np.ndarray) -> Callable[[np.ndarray], float]:
    return lambda weights: float(np.average(values, weights=weights))
