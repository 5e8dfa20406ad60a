"""What a published pair shows, in words: one trait in the two models' replies to one prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from persona_core.report.results_folder import BASELINE, CONTAMINATED, SIDES

SCALES = {
    "specific": "specific score, in standard deviations over neutral tokens",
    "z": "z, in standard deviations over neutral tokens",
    "raw": "projection, in residual-stream units",
}


@dataclass(frozen=True)
class PairFinding:
    """One trait in the two replies to one prompt.

    Attributes:
        trait: its name.
        kind: of the scores.
        means: baseline, contaminated: mean score over each reply, without sink tokens.
        onsets: of the same two replies; None where the results were not analysed.
    """

    trait: str
    kind: str
    means: tuple[float, float]
    onsets: tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]

    def says(self) -> str:
        """The finding as plain text. It is of one pair: what the models do in general is in the analysis."""
        first, second = (f"{mean:+.2f}".replace("-", "−") for mean in self.means)
        text = (
            f"Over the contaminated model's reply {self.trait} averages {second}, over the baseline's {first} "
            f"({SCALES.get(self.kind, self.kind)})."
        )
        before, after = self.onsets
        if before is None or after is None:
            return text
        return f"{text} Contaminated: {after['says']}. Baseline: {before['says']}."


def pair_finding(table: Mapping[str, Any], id: str, trait: str | None = None) -> PairFinding | None:
    """The finding of one pair.

    Args:
        table: of `SavedRuns.table`.
        id: of the prompt.
        trait: which trait; None: the one whose means differ most.

    Returns:
        None where there are not two replies, or nothing to compare in them.
    """
    prompt = next(prompt for prompt in table["prompts"] if prompt["id"] == id)
    runs = {run["config"]: run["traits"] for run in prompt["runs"]}
    if not set(SIDES) <= set(runs):
        return None
    found = []
    for name in runs[BASELINE]:
        first, second = runs[BASELINE][name], runs[CONTAMINATED].get(name)
        if trait in (None, name) and second is not None and None not in (first["mean"], second["mean"]):
            means, onsets = (first["mean"], second["mean"]), (first["onset"], second["onset"])
            found.append(PairFinding(name, table["kind"], means, onsets))
    return max(found, key=lambda pair: abs(pair.means[1] - pair.means[0]), default=None)
