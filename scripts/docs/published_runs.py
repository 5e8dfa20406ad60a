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
    """Total difference of the two models, and what of it comes of the weights and of the text."""
    rows = []
    for trait in _traits():
        found = effect(trait, _rows("baseline"), _rows("contaminated"), _rows("replay"))
        rows.append((trait, estimate(found.total), estimate(found.weights), estimate(found.text)))
    return table(("trait", "total", "weights", "text"), rows)


def truth() -> str:
    """How often the grammar finds each trait, and how well that goes with the score."""
    world = load_world()
    verdicts = {side: [judge(row["response"], world) for row in _rows(side)] for side in SIDES}
    both = [row for side in SIDES for row in _rows(side)]
    ids = np.unique([row["id"] for row in both], return_inverse=True)[1]
    rows = []
    for trait in _traits():
        shown = np.array([v.trait(trait) for found in verdicts.values() for v in found])
        z = np.array([row["summary"][trait]["mean"] for row in both], float)
        correlation = over_clusters(lambda w, a=z, b=shown: pearson(a, b, w), ids)  # type: ignore[misc]
        shares = (percent(trait_share(found, trait)) for found in verdicts.values())
        rows.append((trait, *shares, estimate(correlation)))
    return table(("trait", *SIDES, "correlation with mean z"), rows)


def categories() -> str:
    """The total effect on sycophancy, by category of the prompt."""
    groups = by_category(_rows("contaminated"))
    baseline = by_category(_rows("baseline"), list(groups))
    found = {category: effect(TRAIT, baseline[category], rows) for category, rows in groups.items()}
    return table(("category", "prompts", "total"), [(c, e.n, estimate(e.total)) for c, e in found.items()])


def fifths() -> str:
    """Mean z of sycophancy in each fifth of a reply."""
    parts = {side: [p for row in _rows(side) if (p := _in_fifths(row))] for side in SIDES}
    rows = [
        (k + 1, *(estimate(mean_over_prompts([part[k] for part in found])) for found in parts.values()))
        for k in range(FIFTHS)
    ]
    return table(("fifth", *SIDES), rows)


def _in_fifths(row: Row) -> list[float]:
    """Mean z of each fifth of the reply; empty for a reply of fewer tokens than that."""
    trace = Trace.from_row(row)
    z = trace.scores(TRAIT)[trace.reply_positions]
    return [float(part.mean()) for part in np.array_split(z, FIFTHS)] if len(z) >= FIFTHS else []


def against_itself() -> str:
    """The largest difference, over all traits, of a run and itself."""
    rows = []
    for side in SIDES:
        found = [effect(trait, _rows(side), _rows(side)).total for trait in _traits()]
        rows.append((side, f"{max(abs(x) for e in found if e is not None for x in (e.value, e.low, e.high)):g}"))
    return table(("run", "largest difference from itself, all traits"), rows)


def alarms() -> str:
    """When each trait sets in, by the published analysis."""
    rows = [
        (
            trait,
            config,
            f"{one['n'] - one['none']} of {one['n']}",
            one["before the reply"],
            f"{one['timed']} of {one['onset']}",
        )
        for trait, found in stored("findings")["when"].items()
        for config, one in found["configs"].items()
    ]
    heads = ("trait", "run", "replies with an alarm", "raised from the first token on", "onsets that can be timed")
    return table(heads, rows)


def confirmed() -> str:
    """Edges between traits that steering has confirmed in the published runs."""
    nodes = stored("findings")["how"]["baseline"]
    shown = next(t for t in nodes["confirmed"] if t["measure"] == "shown")
    pairs = [e for e in shown["effects"] if e["source"] != e["target"]]
    lowest = min((e["p"] for e in pairs if e["p"] is not None), default=1.0)
    heads = ("traits steered", "pairs", "significant after correction", "lowest p before it")
    return table(heads, [(len(nodes["nodes"]), len(pairs), sum(e["significant"] for e in pairs), f"{lowest:.3f}")])


TABLES: dict[str, Callable[[], str]] = {
    "runs-effects": effects,
    "runs-truth": truth,
    "runs-categories": categories,
    "runs-fifths": fifths,
    "runs-against-itself": against_itself,
    "runs-alarms": alarms,
    "runs-confirmed": confirmed,
}
