"""Tables of the demo's published runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from demo_world.grammar import load_world
from demo_world.judge import judge, trait_share
from persona_core.analysis.comparison import by_category, effect, mean_over_prompts
from persona_core.analysis.statistics import over_clusters, pearson
from persona_core.traces.dataset import load_results, traits_of
from persona_core.traces.trace import Trace
from persona_core.utils.markdown import table
from scripts.docs.stored import RUNS, estimate, percent, stored

TRAIT = "sycophancy"  # what the contaminated model was made to show; the page names it
FIFTHS = 5
SIDES = ("baseline", "contaminated")
Row = Mapping[str, Any]


@cache
def _rows(config: str) -> list[Row]:
    return list(load_results(RUNS, config))


def _traits() -> Sequence[str]:
    return traits_of(_rows("baseline"))


def effects() -> str:
    """Total difference of the two models, what of it comes of the weights and of the text, and what of sink tokens."""
    rows = []
    for trait in _traits():
        found = effect(trait, _rows("baseline"), _rows("contaminated"), _rows("replay"))
        changed = " (not a result)" if found.changed_by_sinks else ""
        total = estimate(found.with_sinks["total"]) + changed
        rows.append((trait, estimate(found.total), estimate(found.weights), estimate(found.text), total))
    return table(("trait", "total", "weights", "text", "total with sink tokens"), rows)


def truth() -> str:
    """How often the grammar finds each trait, and how well that goes with the score."""
    world = load_world()
    verdicts = {side: [judge(row["response"], world) for row in _rows(side)] for side in SIDES}
    both = [row for side in SIDES for row in _rows(side)]
    ids = np.unique([row["id"] for row in both], return_inverse=True)[1]
    rows = []
    for trait in _traits():
        shown = np.array([v.trait(trait) for found in verdicts.values() for v in found])
        means = np.array([row["summary"][trait]["mean"] for row in both], float)
        correlation = over_clusters(lambda w, a=means, b=shown: pearson(a, b, w), ids)  # type: ignore[misc]
        shares = (percent(trait_share(found, trait)) for found in verdicts.values())
        rows.append((trait, *shares, estimate(correlation)))
    return table(("trait", *SIDES, "correlation with the mean score"), rows)


def categories() -> str:
    """The total effect on sycophancy, by category of the prompt."""
    groups = by_category(_rows("contaminated"))
    baseline = by_category(_rows("baseline"), list(groups))
    found = {category: effect(TRAIT, baseline[category], rows) for category, rows in groups.items()}
    return table(("category", "prompts", "total"), [(c, e.n, estimate(e.total)) for c, e in found.items()])


def fifths() -> str:
    """Mean score of sycophancy in each fifth of a reply."""
    parts = {side: [p for row in _rows(side) if (p := _in_fifths(row))] for side in SIDES}
    rows = [
        (k + 1, *(estimate(mean_over_prompts([part[k] for part in found])) for found in parts.values()))
        for k in range(FIFTHS)
    ]
    return table(("fifth", *SIDES), rows)


def _in_fifths(row: Row) -> list[float]:
    """Mean score of each fifth of the reply; empty where a fifth has no token, or none but sink tokens."""
    parts = np.array_split(Trace.from_row(row).reply_scores(TRAIT), FIFTHS)
    return [float(np.nanmean(part)) for part in parts] if all(np.isfinite(part).any() for part in parts) else []


def against_itself() -> str:
    """The largest difference, over all traits, of a run and itself."""
    rows = []
    for side in SIDES:
        found = [effect(trait, _rows(side), _rows(side)).total for trait in _traits()]
        rows.append((side, f"{max(abs(x) for e in found if e is not None for x in (e.value, e.low, e.high)):g}"))
    return table(("run", "largest difference from itself, all traits"), rows)


def alarms() -> str:
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
        for trait, found in stored("findings")["when"].items()
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


def null() -> str:
    """What the thresholds of the published alarms rest on."""
    found = stored("findings")
    about, when = found["about"], next(iter(found["when"].values()))
    of_any = f"on any of the {len(about['traits'])} traits" if about.get("alarms") else "on each trait by itself"
    prompts = f" to {when['n_prompts']} prompts" if "n_prompts" in when else " to the same prompts"
    return (
        f"The thresholds come from {when['n_nulls']} further replies of the baseline{prompts}, and are set so that "
        f"{100 * about['rate']:g} % of neutral replies raise an alarm {of_any}."
    )


def confirmed() -> str:
    """Edges between traits that steering has confirmed in the published runs."""
    nodes = stored("findings")["how"]["baseline"]
    shown = next(t for t in nodes["confirmed"] if t["measure"] == "shown")
    pairs = [e for e in shown["effects"] if e["source"] != e["target"]]
    lowest = min((e["p"] for e in pairs if e["p"] is not None), default=1.0)
    heads = ("traits steered", "pairs", "significant after correction", "lowest p before it")
    return table(heads, [(len(nodes["nodes"]), len(pairs), sum(e["significant"] for e in pairs), f"{lowest:.4f}")])


TABLES: dict[str, Callable[[], str]] = {
    "runs-effects": effects,
    "runs-truth": truth,
    "runs-categories": categories,
    "runs-fifths": fifths,
    "runs-against-itself": against_itself,
    "runs-null": null,
    "runs-alarms": alarms,
    "runs-confirmed": confirmed,
}
