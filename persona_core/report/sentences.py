"""The figures in sentences that claim no more than their intervals allow. Inert text, for HTML."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

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
    together = [e for e in graph["edges"] if e["kind"] == "together"]
    rest = [e for e in graph["edges"] if e["kind"] != "together"]
    pairs = graph["couplings"]["together"] if graph["couplings"] else []
    edges = {(e["source"], e["target"]) for e in together}
    first = f"{len(together)} of {len(pairs)} pairs of traits are coupled at the same token"
    if any(pair["beyond_floor"] is not None for pair in pairs):
        beyond = sum(bool(pair["beyond_floor"]) for pair in pairs if (pair["source"], pair["target"]) in edges)
        first += f", {beyond} of them by more than the cosine of their vectors"
    says = [first + ". Scores that rise together may simply share a direction.", *map(describe_edge, rest)]
    if not any(e["kind"] == "follows" for e in rest):
        says.append("No trait was found to follow another.")
    if "behaviour" not in {c["clock"] for c in graph["clocks"]}:
        says.append("The order in which the text shows traits is unknown: fewer than two of them were annotated.")
    if not graph["confirmed"]:
        says.append("Steering was not measured in this run, so nothing can be said about causes.")
    elif not any(e["kind"] == "confirmed" for e in rest):
        says.append("Steering one trait was not found to bring on another in the text.")
    return says


def describe_edge(edge: Figure) -> str:
    """An edge and its estimate."""
    source, target, estimate = html.escape(edge["source"]), html.escape(edge["target"]), edge["estimate"]
    lag = "" if edge["lag"] is None else f", {edge['lag']:g} tokens later"
    ordered = edge["clock"] != "series"  # the estimate is then how often the source comes first
    negative = estimate is not None and estimate["value"] < 0
    if edge["kind"] == "together":
        says, value = f"{source} and {target} move {'in opposite directions' if negative else 'together'}", "r = {}"
        says += " at the same token"
    elif edge["kind"] == "follows":
        says = f"{target} {'falls after' if negative else 'follows'} {source}{lag} ({CLOCKS[edge['clock']]})"
        value = f"{source} comes first in {{}} of the replies with both" if ordered else "r = {}"
    else:
        says = f"steering {source} {'suppresses' if negative else 'brings on'} {target}"
        value = "share of replies changed by {} against a random direction"
    if estimate is None:
        return says
    share = edge["kind"] == "confirmed" or (edge["kind"] == "follows" and ordered)
    return f"{says}: {value.format(interval(estimate, 1, percent=True) if share else interval(estimate, 2))}"


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
