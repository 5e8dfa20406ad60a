"""The page of answers: each question in one or two sentences, from stored figures, by what their intervals allow."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from persona_core.analysis.statistics import exact_share
from persona_core.report.comparison_sentences import against, describe_comparison
from persona_core.report.results_folder import ResultsFolder
from persona_core.report.sentences import NOT_NEUTRAL, SCORES, SIGNIFICANT, describe_couplings, expected
from persona_core.traces.dataset import REPLIES
from scripts.docs.published_runs import DEMO, REAL, TRAIT, Runs
from scripts.docs.stored import Figure, percent, stored

AHEAD = 4
"""Tokens before the trait at which an intervention is quoted."""


def scores(runs: Runs) -> str:
    """What the published figures are of."""
    about = runs.findings["about"]
    says = against(about)
    return says if about.get("kind") == "specific" else f"{says} Mind that {NOT_NEUTRAL}."


def when(runs: Runs) -> str:
    found = runs.findings["when"]
    if "missing" in found:
        return str(found["missing"])
    own = found[TRAIT]
    kind, configs = own.get("kind", "z"), own["configs"]
    alarms = {config: one["n"] - one["none"] for config, one in configs.items()}
    rate = own.get("rate", runs.findings["about"]["rate"])
    here = configs["contaminated"]
    says = (
        f"The {SCORES[kind]} of {TRAIT} is raised in {alarms['contaminated']} of {here['n']} replies of the "
        f"contaminated model and in {alarms['baseline']} of {configs['baseline']['n']} of the baseline, where the rate "
        f"of neutral replies gives {expected(rate * configs['baseline']['n'])}. In {here['before the reply']} of the "
        f"contaminated ones it is raised at the first token already; in {here['doubles']} of these it more than "
        "doubles later. "
    )
    if here["onset"]:
        says += f"{here['timed']} of the {here['onset']} later rises can be timed to within 20 tokens. "
    return says.strip()


def near_a_known_onset() -> str:
    """How near an onset lies to the true one, in the texts of the demo world."""
    near = stored("onset")["texts"]["cued"]["near"]
    return (
        f"In texts with a known onset, announced by a cue, {percent(near)} of the estimates lie within "
        f"{stored('onset')['near']} tokens of it."
    )


def how(runs: Runs) -> str:
    graph = runs.findings["how"]["contaminated"]
    says = graph["missing"] if "missing" in graph else " ".join(describe_couplings(graph))
    shown = [
        one
        for run in runs.findings["how"].values()
        for table in run.get("confirmed", ())
        if table["measure"] == "shown"
        for one in table["effects"]
        if one["source"] != one["target"]
    ]
    if not shown:
        return f"{says} Steering was not measured in these runs, so nothing is said about causes."
    links = sum(one["significant"] for one in shown)
    return f"{says} In {links} of {len(shown)} pairs, steering one trait changed whether the text shows another."


def where(runs: Runs) -> str:
    found = runs.findings
    warned = found["where"]["contaminated"]
    warned = warned.get(TRAIT, warned)
    if "missing" in warned:
        return str(warned["missing"])
    lead = warned["scores"][warned.get("kind", "z")]["lead"]
    says = (
        f"In {percent(lead['early'])} of the contaminated replies that show {TRAIT}, its score crosses the threshold "
        "before the first word that shows it"
    )
    if lead["quantiles"]:
        median = lead["quantiles"]["0.5"]
        says += f", in the median {abs(median):g} tokens {'before' if median >= 0 else 'after'} it"
    says += "."
    if warned["other_reader"]:
        says += " The threshold is that of the baseline's replies, so this may tell the two models apart."
    window = found["window"].get("contaminated", {}).get(TRAIT)
    return says if window is None else f"{says} {_intervention(window)}"


def _intervention(window: Figure) -> str:
    cells = {cell["arm"]: cell for cell in window["cells"] if cell["k"] == AHEAD}
    cap, random, none = (cells[arm] for arm in ("cap", "cap, random", "none"))
    says = (
        f"A cap from {AHEAD} tokens before that word on leaves {percent(cap['share'])} of the following tokens "
        f"showing it; moving the state as far in a random direction leaves {percent(random['share'])}"
    )
    if not cap["share"]["high"] < random["share"]["low"]:
        return f"{says}: no clear effect."
    coherence = [f"{cell['coherence']['value']:.0f}" for cell in (cap, none)]
    return f"{says}. With the cap, coherence is {coherence[0]} of 100 instead of {coherence[1]}."


def differs(runs: Runs) -> str:
    found = runs.findings
    return describe_comparison(found["comparison"], found["statistics"])


def sure(runs: Runs) -> str:
    about = runs.findings["about"]
    replies = [one for one in ResultsFolder(runs.folder).table(REPLIES) if one["config"] == "baseline"]
    ids = {one["id"] for one in replies}
    alarmed = {one["id"] for one in replies if one["alarm"] is not None}
    share = exact_share(len(alarmed), len(ids))
    says = (
        f"Of the baseline's own {len(ids)} replies, {percent(share)} raise an alarm on at least one of "
        f"{len(about['traits'])} traits (nominal {100 * about['rate']:g} %"
    )
    alarms = about.get("alarms")
    if not alarms:
        return f"{says} for each trait by itself)."
    kinds = alarms["held_out"].get("kinds")
    new = "" if kinds is None else f", and {percent(kinds)} of those to kinds of prompts left out of the calibration"
    return f"{says} for all together; {percent(alarms['neutral'])} of the neutral replies do{new})."


def links() -> str:
    """How many pairs of traits a significant effect of steering links, in the benchmark with a known truth."""
    found = stored("interaction")["steering"]
    planted = {tuple(pair) for pair in found["planted"]}
    edges = {tuple(pair) for pair in found["edges"]}
    return (
        f"In a larger experiment steering found {len(edges & planted)} of the {len(planted)} links that the grammar "
        f"contains, and {len(edges - planted)} of {found['n_pairs'] - len(planted)} that it does not "
        f"(q ≤ {SIGNIFICANT:g})."
    )


OF_BOTH: dict[str, Callable[[Runs], str]] = {
    "scores": scores,
    "when": when,
    "how": how,
    "where": where,
    "difference": differs,
    "sure": sure,
}
TABLES: dict[str, Callable[[], str]] = {
    **{f"answer-{name}": partial(one, DEMO) for name, one in OF_BOTH.items()},
    "answer-when": lambda: f"{when(DEMO)} {near_a_known_onset()}",
    "answer-how": lambda: f"{how(DEMO)} {links()}",
    **{f"real-answer-{name}": partial(one, REAL) for name, one in OF_BOTH.items()},
}
