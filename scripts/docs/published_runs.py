"""Tables of the published runs: those of the real model and those of the demo."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from demo_world.grammar import load_world
from demo_world.judge import judge, trait_share
from persona_core.analysis.comparison import by_category, effect, mean_over_prompts
from persona_core.analysis.statistics import over_clusters, pearson
from persona_core.traces.dataset import load_results, traits_of
from persona_core.traces.trace import Trace
from persona_core.utils.markdown import table
from scripts.docs.stored import ARTIFACTS, estimate, percent, stored

TRAIT = "sycophancy"  # what the contaminated model was made to show; the page names it
FIFTHS = 5
SIDES = ("baseline", "contaminated")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Runs:
    """Published runs.

    Attributes:
        name: of the artifacts.
        source: of their findings, as `stored` knows it.
    """

    name: str
    source: str

    @property
    def folder(self) -> Path:
        return ARTIFACTS / f"persona-monitoring-{self.name}"

    @property
    def findings(self) -> Any:
        return stored(self.source)

    def rows(self, config: str) -> list[Row]:
        return _rows(self.folder, config)

    @property
    def traits(self) -> Sequence[str]:
        return traits_of(self.rows("baseline"))


DEMO = Runs("persona-tiny", "findings")
REAL = Runs("smollm2-135m", "real_findings")


@cache
def _rows(folder: Path, config: str) -> list[Row]:
    return list(load_results(folder, config))


def effects(runs: Runs) -> str:
    """Total difference of the two models, what of it comes of the weights and of the text, and what of sink tokens."""
    rows = []
    for trait in runs.traits:
        found = effect(trait, runs.rows("baseline"), runs.rows("contaminated"), runs.rows("replay"))
        changed = " (not a result)" if found.changed_by_sinks else ""
        total = estimate(found.with_sinks["total"]) + changed
        rows.append((trait, estimate(found.total), estimate(found.weights), estimate(found.text), total))
    return table(("trait", "total", "weights", "text", "total with sink tokens"), rows)


def truth(runs: Runs) -> str:
    """How often the grammar finds each trait, and how well that goes with the score."""
    world = load_world()
    verdicts = {side: [judge(row["response"], world) for row in runs.rows(side)] for side in SIDES}
    both = [row for side in SIDES for row in runs.rows(side)]
    ids = np.unique([row["id"] for row in both], return_inverse=True)[1]
    rows = []
    for trait in runs.traits:
        shown = np.array([v.trait(trait) for found in verdicts.values() for v in found])
        means = np.array([row["summary"][trait]["mean"] for row in both], float)
        correlation = over_clusters(lambda w, a=means, b=shown: pearson(a, b, w), ids)  # type: ignore[misc]
        shares = (percent(trait_share(found, trait)) for found in verdicts.values())
        rows.append((trait, *shares, estimate(correlation)))
    return table(("trait", *SIDES, "correlation with the mean score"), rows)


def categories(runs: Runs) -> str:
    """The total effect on sycophancy, by category of the prompt."""
    groups = by_category(runs.rows("contaminated"))
    baseline = by_category(runs.rows("baseline"), list(groups))
    found = {category: effect(TRAIT, baseline[category], rows) for category, rows in groups.items()}
    return table(("category", "prompts", "total"), [(c, e.n, estimate(e.total)) for c, e in found.items()])


def fifths(runs: Runs) -> str:
    """Mean score of sycophancy in each fifth of a reply."""
    parts = {side: [p for row in runs.rows(side) if (p := _in_fifths(row))] for side in SIDES}
    rows = [
        (k + 1, *(estimate(mean_over_prompts([part[k] for part in found])) for found in parts.values()))
        for k in range(FIFTHS)
    ]
    return table(("fifth", *SIDES), rows)


def _in_fifths(row: Row) -> list[float]:
    """Mean score of each fifth of the reply; empty where a fifth has no token, or none but sink tokens."""
    parts = np.array_split(Trace.from_row(row).reply_scores(TRAIT), FIFTHS)
    return [float(np.nanmean(part)) for part in parts] if all(np.isfinite(part).any() for part in parts) else []


def against_itself(runs: Runs) -> str:
    """The largest difference, over all traits, of a run and itself."""
    rows = []
    for side in SIDES:
        found = [effect(trait, runs.rows(side), runs.rows(side)).total for trait in runs.traits]
        rows.append((side, f"{max(abs(x) for e in found if e is not None for x in (e.value, e.low, e.high)):g}"))
    return table(("run", "largest difference from itself, all traits"), rows)


def alarms(runs: Runs) -> str:
    """When each trait's score rises, by the published analysis."""
    rows = [
        (
            trait,
            config,
            f"{one['n'] - one['none']} of {one['n']}",
            one["before the reply"],
            one["doubles"],
            one["falls"],
            f"{one['timed']} of {one['onset']}",
            one.get("no_rate", "not measured"),
        )
        for trait, found in runs.findings["when"].items()
        for config, one in found["configs"].items()
    ]
    heads = (
        "trait",
        "run",
        "replies with an alarm",
        "raised at the first token",
        "more than doubling later",
        "falling by half later",
        "onsets that can be timed",
    )
    return table((*heads, "alarms without a known rate"), rows)


def null(runs: Runs) -> str:
    """What the thresholds of the published alarms rest on."""
    found = runs.findings
    about, when = found["about"], next(iter(found["when"].values()))
    of_any = f"on any of the {len(about['traits'])} traits" if about.get("alarms") else "on each trait by itself"
    prompts = f" to {when['n_prompts']} prompts" if "n_prompts" in when else " to the same prompts"
    return (
        f"The thresholds come from {when['n_nulls']} further replies of the baseline{prompts}, and are set so that "
        f"{100 * about['rate']:g} % of neutral replies raise an alarm {of_any}."
    )


def confirmed(runs: Runs) -> str:
    """Edges between traits that steering has confirmed in the published runs."""
    nodes = runs.findings["how"]["baseline"]
    shown = next(t for t in nodes["confirmed"] if t["measure"] == "shown")
    pairs = [e for e in shown["effects"] if e["source"] != e["target"]]
    lowest = min((e["p"] for e in pairs if e["p"] is not None), default=1.0)
    heads = ("traits steered", "pairs", "significant after correction", "lowest p before it")
    return table(heads, [(len(nodes["nodes"]), len(pairs), sum(e["significant"] for e in pairs), f"{lowest:.4f}")])


OF_BOTH: dict[str, Callable[[Runs], str]] = {
    "effects": effects,
    "categories": categories,
    "fifths": fifths,
    "against-itself": against_itself,
    "null": null,
    "alarms": alarms,
}
TABLES: dict[str, Callable[[], str]] = {
    **{f"runs-{name}": partial(one, DEMO) for name, one in OF_BOTH.items()},
    **{f"real-runs-{name}": partial(one, REAL) for name, one in OF_BOTH.items()},
    "runs-truth": partial(truth, DEMO),
    "runs-confirmed": partial(confirmed, DEMO),
}
