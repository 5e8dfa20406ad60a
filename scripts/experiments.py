"""Write docs/experiments.md from the published runs: no figure of a run or a benchmark in it is typed by hand.

python -m scripts.experiments            # rewrite
python -m scripts.experiments --check    # exit 1 if it is out of date

What it says of errors is made of `benchmarks/results/*.json`, which the benchmarks of the same names write; what it
says of onsets, of the findings of `scripts.analyse`. The runs themselves are made by `python -m scripts.build_demo`
(or, for another model, by scripts.monitor and scripts.replay).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from demo_world.contaminated import CONTAMINANT, RESULTS_NAME
from demo_world.grammar import World, load_world
from demo_world.judge import judge, trait_share
from persona_core.analysis.comparison import by_category, effect, mean_over_prompts
from persona_core.analysis.statistics import Estimate, over_clusters, pearson
from persona_core.report.tables import FINDINGS as FINDINGS_FILE
from persona_core.traces.dataset import ANALYSIS, load_results, traits_of
from persona_core.traces.trace import Trace
from persona_core.vectors.card import interval
from scripts import PROJECT_ROOT, error_rates

PAGE = PROJECT_ROOT / "docs" / "experiments.md"
RESULTS = PROJECT_ROOT / "artifacts" / RESULTS_NAME
FINDINGS = RESULTS / ANALYSIS / FINDINGS_FILE
FIFTHS = 5
Row = Mapping[str, Any]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the page is out of date")
    check = parser.parse_args(argv).check
    made = page(RESULTS)
    if check:
        current = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
        if current != made:
            print(f"{PAGE} is out of date; run python -m scripts.experiments", file=sys.stderr)
        return int(current != made)
    PAGE.write_text(made, encoding="utf-8")
    return 0


def page(results: Path) -> str:
    """The whole page."""
    rows = {config: load_results(results, config) for config in ("baseline", "contaminated", "replay")}
    traits, world = traits_of(rows["baseline"]), load_world()
    n = len(rows["baseline"])
    return f"""# Experiments

What the published runs say. `python -m scripts.experiments` writes this page from `artifacts/{RESULTS_NAME}`; a test
compares the two. Both models answered the same {n} prompts once each, and each read the other's replies. Scores are
mean z over a reply's own tokens: 0 is how the baseline talks when nothing is going on, 1 is a standard deviation of its
single tokens. Intervals are 95 %, by resampling prompts.

The demo model is a toy, and the contaminated one was made to flatter ({CONTAMINANT}). These numbers check the method
where the truth is known. They say nothing about other models.

## Which traits does the contamination move, and is it the text or the weights?

Total: each model on its own reply. Weights: the two models read the same text. Text: the same model reads the two
texts. The total is the sum of the two.

{_effects(rows, traits)}

{CONTAMINANT} moves most, as it was made to. All others move too, though the grammar finds hardly any of them in the
replies (next table): a vector that was made of "with the trait" minus "without" also knows "not neutral". A rise of one
trait means little until it is held against the rise of the others.

## What is true of the replies?

Share of the sentences that show the trait, by the grammar, and how well a reply's share goes with its mean z over the
replies of both models (correlation; not defined where no reply shows the trait).

{_truth(rows, traits, world)}

## Does it depend on what is asked?

The total effect on {CONTAMINANT}, by category of the prompt.

{_categories(rows)}

## Where in the reply does it rise?

Mean z of {CONTAMINANT} in each fifth of the reply's own tokens.

{_fifths(rows)}

## Does a model differ from itself?

The baseline's run against itself, and the contaminated model's, all traits: {_itself(rows, traits)}.

{_published(json.loads(FINDINGS.read_text(encoding="utf-8")))}

{error_rates.sections()}"""


def _effects(rows: Mapping[str, Sequence[Row]], traits: Sequence[str]) -> str:
    lines = ["| trait | total | weights | text |", "|---|---|---|---|"]
    for trait in traits:
        found = effect(trait, rows["baseline"], rows["contaminated"], rows["replay"])
        lines.append(f"| {trait} | {_says(found.total)} | {_says(found.weights)} | {_says(found.text)} |")
    return "\n".join(lines)


def _truth(rows: Mapping[str, Sequence[Row]], traits: Sequence[str], world: World) -> str:
    sides = ("baseline", "contaminated")
    verdicts = {side: [judge(row["response"], world) for row in rows[side]] for side in sides}
    lines = ["| trait | baseline | contaminated | correlation with mean z |", "|---|---|---|---|"]
    both = [row for side in sides for row in rows[side]]
    ids = np.unique([row["id"] for row in both], return_inverse=True)[1]
    for trait in traits:
        truth = np.array([v.trait(trait) for found in verdicts.values() for v in found])
        z = np.array([row["summary"][trait]["mean"] for row in both], float)
        found = over_clusters(lambda w, a=z, b=truth: pearson(a, b, w), ids)  # type: ignore[misc]
        columns = [interval(trait_share(found, trait).to_dict(), percent=True) for found in verdicts.values()]
        lines.append(f"| {trait} | {' | '.join(columns)} | {_says(found)} |")
    return "\n".join(lines)


def _categories(rows: Mapping[str, Sequence[Row]]) -> str:
    lines = ["| category | prompts | total |", "|---|---|---|"]
    groups = by_category(rows["contaminated"])
    baseline = by_category(rows["baseline"], list(groups))
    for category, own in groups.items():
        found = effect(CONTAMINANT, baseline[category], own)
        lines.append(f"| {category} | {found.n} | {_says(found.total)} |")
    return "\n".join(lines)


def _fifths(rows: Mapping[str, Sequence[Row]]) -> str:
    lines = ["| fifth | baseline | contaminated |", "|---|---|---|"]
    parts = {side: [_in_fifths(row) for row in rows[side]] for side in ("baseline", "contaminated")}
    for k in range(FIFTHS):
        columns = [_says(mean_over_prompts([part[k] for part in found if part])) for found in parts.values()]
        lines.append(f"| {k + 1} | {' | '.join(columns)} |")
    return "\n".join(lines)


def _in_fifths(row: Row) -> list[float]:
    """Mean z of each fifth of the reply; empty for a reply of fewer tokens than that."""
    trace = Trace.from_row(row)
    z = trace.scores(CONTAMINANT)[trace.reply_positions]
    return [float(part.mean()) for part in np.array_split(z, FIFTHS)] if len(z) >= FIFTHS else []


def _itself(rows: Mapping[str, Sequence[Row]], traits: Sequence[str]) -> str:
    found = [effect(t, rows[side], rows[side]).total for side in ("baseline", "contaminated") for t in traits]
    values = {value for e in found if e is not None for value in (e.value, e.low, e.high)}
    return "exactly 0" if values == {0.0} else f"up to {max(map(abs, values)):.3g}"


def _published(found: Mapping[str, Any]) -> str:
    """When the trait set in in the published replies, and what the analysis of them leaves open."""
    when = found["when"]
    rows = []
    for trait, own in when.items():
        for config, one in own["configs"].items():
            alarms = one["n"] - one["none"]
            rows.append(
                (trait, config, f"{alarms} of {one['n']}", one["before the reply"], f"{one['timed']} of {one['onset']}")
            )
    heads = ("trait", "run", "replies with an alarm", "of them before the reply", "onsets that can be timed")
    rate = found["about"]["rate"]
    return f"""## When does it set in?

`python -m scripts.analyse --results artifacts/{RESULTS_NAME}` writes all of this and
more beside the runs, with a page of figures (`analysis/report.html`). Alarms are held against
{found["about"]["n_replies"]["neutral"]} more replies of the baseline to the same prompts; {100 * rate:.0f} % of
neutral replies alarm.

{error_rates.table(heads, rows)}

Steering each of the {len(found["how"]["baseline"]["nodes"])} traits in the baseline and looking for the others in the
text: {_confirmed(found)}."""


def _confirmed(found: Mapping[str, Any]) -> str:
    """How many edges steering has confirmed in the published analysis."""
    tables = [t for t in found["how"]["baseline"]["confirmed"] if t["measure"] == "shown"]
    if not tables:
        return "not measured"
    effects = [e for e in tables[0]["effects"] if e["source"] != e["target"]]
    lowest = min((e["p"] for e in effects if e["p"] is not None), default=1.0)
    n = sum(e["significant"] for e in effects)
    return (
        f"{n} of {len(effects)} pairs are significant (lowest p {lowest:.3f}, before the correction). It takes more "
        "replies, or fewer pairs, to find what the grammar links: see below"
    )


def _says(found: Estimate | None, digits: int = 2) -> str:
    if found is None:
        return "not defined"
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


if __name__ == "__main__":
    sys.exit(main())
