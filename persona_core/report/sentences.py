"""The figures in sentences that claim no more than their intervals allow. Inert text, for HTML."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from persona_core.analysis.couplings import MIN_EXCESS
from persona_core.utils.markdown import interval

Figure = Mapping[str, Any]
SIGNIFICANT = 0.05
"""The largest q at which a difference is called one."""

CLOCKS = {"series": "scores, token by token", "activation": "onsets of scores", "behaviour": "what the text shows"}
NOT_NEUTRAL = "every vector also responds to “not neutral”"


def describe_onsets(trait: str, found: Figure, rate: float) -> str:
    """One trait's onsets in every run, and whether the two models differ."""
    name = html.escape(trait)
    parts = []
    for config, own in found["configs"].items():
        alarms = own["n"] - own["none"]
        says = f"{html.escape(config).capitalize()}: {alarms} of {own['n']} replies raise an alarm on {name}"
        if own["before the reply"]:
            says += f", {own['before the reply']} of them from the first token on"
        says += f"; about {rate * own['n']:.0f} would by chance."
        if own["onset"]:
            says += f" {own['timed']} of {own['onset']} onsets can be timed to within 20 tokens."
        if own["shown"] is not None:
            says += f" Annotated sentences show it in {own['shown']} replies."
            if alarms > 2 * own["shown"] + 2 * rate * own["n"]:
                says += f" The text does not account for most of these alarms: {NOT_NEUTRAL}."
        parts.append(says)
    test = found.get("test")
    if test and "missing" not in test:
        order = "earlier or more often" if test["statistic"] > 0 else "later or less often"
        differs = (
            f"the contaminated model's onsets come {order}"
            if test["q"] <= SIGNIFICANT
            else "the two models' onsets do not differ significantly"
        )
        parts.append(
            f"Over {test['n']} prompts {differs} (log-rank test, permuting the two replies to a prompt: "
            f"p = {test['p']:.4f}, over all traits q = {test['q']:.4f})."
        )
    if found["smallest"] is not None:
        parts.append(
            f"A step of {found['smallest']:g} SD half-way through a reply is detected at least 80 % of the time, a "
            "smaller one less often."
        )
    return " ".join(parts)


def describe_graph(graph: Figure) -> list[str]:
    """The edges of one run, and what was not measured."""
    edges = claimed_edges(graph)
    rest = [e for e in edges if e["kind"] != "together"]
    says = [*describe_couplings(graph), *map(describe_edge, edges)]
    if not any(e["kind"] == "follows" for e in rest):
        says.append("No trait was found to follow another.")
    if "behaviour" not in {c["clock"] for c in graph["clocks"]}:
        says.append("The order in which the text shows traits is unknown: fewer than two of them were annotated.")
    if not graph["confirmed"]:
        says.append("Steering was not measured in this run, so nothing can be said about causes.")
    elif not any(e["kind"] == "confirmed" for e in rest):
        says.append("Steering one trait was not found to bring on another in the text.")
    return says


def claimed_edges(graph: Figure) -> list[Figure]:
    """The edges; without the couplings of an analysis that did not compare them with neutral replies."""
    return [e for e in graph["edges"] if e["clock"] != "series" or e.get("null") is not None]


def describe_couplings(graph: Figure) -> list[str]:
    """How many pairs vary together beyond the neutral replies, and how often that would be said of neutral text."""
    found = graph["couplings"]
    if not found:
        return []
    if "bars" not in found:
        return ["The couplings were not compared with neutral replies: run persona analyse again."]
    if found["missing"]:
        return [html.escape(found["missing"])]
    claimed, significant = (sum(c[k] for c in found["together"]) for k in ("claimed", "significant"))
    says = [
        f"{claimed} of {len(found['together'])} pairs of traits vary together more, or less, than in the "
        f"{found['n_neutral']} neutral replies (to {found['n_neutral_prompts']} prompts): by more than "
        f"{found['bars'][0]:.2f} in Fisher's z. {significant} pairs differ by more than chance, however little. Scores "
        "follow the words, so this is no evidence that one trait causes another."
    ]
    if graph.get("other_reader"):
        says.append("The neutral replies are another model's, so a difference may lie in the weights.")
    neutral = graph.get("neutral_texts") or {}
    if "n_together" in neutral:
        says.append(
            f"Of neutral replies, compared with neutral replies to other prompts, this says it of "
            f"{neutral['together']} of {neutral['n_together']} pairs at the same token and {neutral['lagged']} of "
            f"{neutral['n_lagged']} later ones ({neutral['n_halvings']} random halvings of {neutral['n_prompts']} "
            "prompts)."
        )
    if found["control"]:
        share = found["control"]["together"]
        says.append(
            f"Of pairs of random directions, {interval(share, 0, percent=True)} differ by more than "
            f"{MIN_EXCESS:g} as well; an edge must also exceed 95 % of those pairs."
        )
    else:
        says.append("No random directions were read along; persona analyse does so if it is given the models.")
    return says


def describe_edge(edge: Figure) -> str:
    """An edge and its estimate."""
    source, target, estimate = html.escape(edge["source"]), html.escape(edge["target"]), edge["estimate"]
    lag = "" if edge["lag"] is None else f", {edge['lag']:g} tokens later"
    series = edge["clock"] == "series"  # the estimate is then the excess over neutral replies
    negative = estimate is not None and estimate["value"] < 0
    more = "less" if negative else "more"
    if edge["kind"] == "together":
        says = f"{source} and {target} vary together {more} than in neutral replies"
    elif edge["kind"] == "follows" and series:
        says = f"{target} varies with {source}{lag} {more} than in neutral replies ({CLOCKS['series']})"
    elif edge["kind"] == "follows":
        says = f"{target} follows {source}{lag} ({CLOCKS[edge['clock']]})"
    else:
        says = f"steering {source} {'suppresses' if negative else 'brings on'} {target}"
    if estimate is None:
        return says
    if series:
        own, null = (f"{edge[k]['value']:.2f}" for k in ("own", "null"))
        return f"{says}: r = {own} against {null}, excess in Fisher's z {interval(estimate, 2)}"
    value = interval(estimate, 1, percent=True)
    if edge["kind"] == "follows":
        return f"{says}: {source} comes first in {value} of the replies with both"
    return f"{says}: share of replies changed by {value} against a random direction"


def describe_warning(trait: str, found: Figure) -> str:
    """How early one trait could have been known, and whether that takes its vector."""
    z, name = found["scores"]["z"], html.escape(trait)
    lead = z["lead"]
    says = [
        f"{found['n']} replies show {name}, first at token {found['first']:g} (median). z exceeds {z['threshold']:.1f} "
        f"before that token in {interval(lead['early'], 0, percent=True)} of them."
    ]
    if lead["quantiles"]:
        tokens = lead["quantiles"]["0.5"]
        where = f"{abs(tokens):g} tokens {'before' if tokens >= 0 else 'after'} it"
        says.append(f"Where there is an alarm, it comes {where} (median).")
    if found["at_start"]:
        says.append(f"In {found['at_start']} replies the first token already exceeds it.")
    says.append(
        f"Of neutral replies that the threshold was not chosen on, {interval(z['false_alarms'], 0, percent=True)} "
        f"exceed it (nominal {100 * z['rate']:.0f} %), {z['alarms_per_1000']['value']:.1f} times per 1,000 tokens."
    )
    if found["other_reader"]:
        says.append(
            "The neutral replies are another model's, so the warning may tell the two models apart rather than "
            f"announce {name}."
        )
    rivals: dict[str, list[int]] = {}
    for one in z["ahead"]:
        for rival in [n for n in found["scores"] if n not in ("z", "cusum")]:
            other = next((o for o in found["scores"][rival]["ahead"] if o["k"] == one["k"]), None)
            if not (other and one["auroc"] and other["auroc"]):
                continue
            informative = max(one["auroc"]["low"], other["auroc"]["low"]) > 0.5
            if informative and other["auroc"]["high"] >= one["auroc"]["low"]:
                rivals.setdefault(rival, []).append(one["k"])
    if rivals:
        listed = "; ".join(f"{rival} ({', '.join(map(str, ks))})" for rival, ks in rivals.items())
        says.append(f"The AUROC of z is not clearly above that of (tokens before the trait in parentheses): {listed}.")
    return " ".join(says)


def describe_comparison(overall: Mapping[str, Figure]) -> str:
    """Which traits differ, and whether by text or weights."""
    moved = [t for t, e in overall.items() if e["total"] and (e["total"]["q"] or 1) <= SIGNIFICANT]
    if not moved:
        return "No trait differs significantly between the two models."
    most = max(moved, key=lambda t: abs(overall[t]["total"]["value"]))
    found = overall[most]
    says = (
        f"{len(moved)} of {len(overall)} traits differ significantly, {html.escape(most)} most: "
        f"{interval(found['total'], 2)} standard deviations over {found['n']} prompts"
    )
    if found["weights"] and found["text"]:
        says += (
            f", of which {interval(found['text'], 2)} are due to the text (one reader, two texts) and "
            f"{interval(found['weights'], 2)} to the weights (one text, two readers)"
        )
    return f"{says}. Compare a trait's rise with that of the others: {NOT_NEUTRAL}."


def group_reasons(reasons: Sequence[str]) -> list[str]:
    """Why something was not analysed; the same reason for several traits is one line. Not escaped."""
    grouped: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for reason in reasons:
        what, _, why = reason.partition(": ")
        section, comma, trait = what.rpartition(", ")
        if not comma:
            section, trait = what, ""
        general = why.replace(trait, "it") if trait else why
        grouped.setdefault((section, general), []).append((trait, why))
    return [
        f"{', '.join([section, *(trait for trait, _ in own if trait)])}: {own[0][1] if len(own) == 1 else why}"
        for (section, why), own in grouped.items()
    ]
