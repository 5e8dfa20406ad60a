"""What the figures say, in plain sentences: never more than their intervals allow. Inert text, for HTML."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from persona_core.report.figures import describe_edge
from persona_core.utils.markdown import interval

Figure = Mapping[str, Any]


def describe_onsets(trait: str, found: Figure, rate: float) -> str:
    """One trait's onsets in every run, and whether the two models differ."""
    parts = []
    for config, own in found["configs"].items():
        alarms = own["n"] - own["none"]
        says = (
            f"{html.escape(config).capitalize()}: {alarms} of {own['n']} replies raise an alarm on {html.escape(trait)}"
        )
        if own["before the reply"]:
            says += f", in {own['before the reply']} of them from the first token on"
        says += f"; by chance about {rate * own['n']:.0f} would."
        if own["onset"]:
            says += f" {own['timed']} of {own['onset']} onsets can be timed to within 20 tokens."
        if own["shown"] is not None:
            says += f" Marked sentences show it in {own['shown']}."
            if alarms > 2 * own["shown"] + 2 * rate * own["n"]:
                says += " Most of these alarms are of something else: every vector also knows “not neutral”."
        parts.append(says)
    test = found.get("test")
    if test and "missing" not in test:
        later = "earlier or more often" if test["statistic"] > 0 else "later or less often"
        told = f"the contaminated model's onsets come {later}" if test["q"] <= 0.05 else "no difference can be told"
        parts.append(
            f"Over {test['n']} prompts {told} (p = {test['p']:.4f} by swapping the two answers to a prompt; "
            f"{test['q']:.4f} over all traits)."
        )
    if found["smallest"] is not None:
        parts.append(
            f"A step of {found['smallest']:g} SD is found in at least 80 % of single replies, a smaller one less often."
        )
    return " ".join(parts)


def describe_graph(graph: Figure) -> list[str]:
    """The edges of one run in words, strongest first, and what is missing."""
    together = [e for e in graph["edges"] if e["kind"] == "together"]
    rest = [e for e in graph["edges"] if e["kind"] != "together"]
    couplings = graph["couplings"]
    n_pairs = len(couplings["together"]) if couplings else 0
    floors = [pair["beyond_floor"] for pair in couplings["together"]] if couplings else []
    says = [f"{len(together)} of {n_pairs} pairs of traits move together at the same token. "]
    if any(one is not None for one in floors):
        says[0] += f"{sum(map(bool, floors))} of them by more than the cosine of their vectors. "
    says[0] += "Scores that rise together may only share a direction."
    says += [describe_edge(e) for e in rest]
    clocks = {c["clock"] for c in graph["clocks"]}
    if not any(e["kind"] == "follows" for e in rest):
        says.append("No trait is seen to follow another.")
    if "behaviour" not in clocks:
        says.append("What the text visibly shows is not known here: no marked sentence of these traits.")
    if not graph["confirmed"]:
        says.append("Edges by steering were not measured in this run, so nothing can be said about causes.")
    elif not any(e["kind"] == "confirmed" for e in rest):
        says.append("Steering one trait was not seen to bring on another in the text.")
    return says


def describe_warning(trait: str, found: Figure) -> str:
    """How early one trait could have been known, and whether the vector is needed for it."""
    z = found["scores"]["z"]
    lead = z["lead"]
    first = (
        f"{found['n']} replies show {html.escape(trait)}, first at token {found['first']:g} in the median. "
        f"z passes {z['threshold']:.1f} before it in {interval(lead['early'], 0, percent=True)} of them"
    )
    if lead["quantiles"]:
        first += f", {lead['quantiles']['0.5']:g} tokens ahead in the median"
    if found["at_start"]:
        first += f"; in {found['at_start']} replies at the very first token, so that it cannot be more"
    says = [
        f"{first}. Neutral replies that the threshold has not seen pass it in "
        f"{interval(z['false_alarms'], 0, percent=True)}, nominal {100 * z['rate']:.0f} %, "
        f"{z['alarms_per_1000']['value']:.1f} times per 1,000 tokens."
    ]
    if found["other_reader"]:
        says.append(
            "The neutral replies are another model's: what is told here is as much that this model is another one as "
            f"that {html.escape(trait)} comes."
        )
    rivals: dict[str, list[int]] = {}
    for one in z["ahead"]:
        for name in [n for n in found["scores"] if n not in ("z", "cusum")]:
            other = next((o for o in found["scores"][name]["ahead"] if o["k"] == one["k"]), None)
            if not (other and one["auroc"] and other["auroc"]):
                continue
            told = max(one["auroc"]["low"], other["auroc"]["low"]) > 0.5
            if told and other["auroc"]["high"] >= one["auroc"]["low"]:
                rivals.setdefault(name, []).append(one["k"])
    if rivals:
        says.append(
            "By AUROC not told apart from z, or better, at so many tokens before: "
            + "; ".join(f"{name} ({', '.join(map(str, ks))})" for name, ks in rivals.items())
            + "."
        )
    return " ".join(says)


def describe_comparison(overall: Mapping[str, Figure]) -> str:
    """Which traits differ, and by what."""
    moved = [t for t, e in overall.items() if e["total"] and (e["total"]["q"] or 1) <= 0.05]
    if not moved:
        return "No trait differs between the two models by more than chance."
    most = max(moved, key=lambda t: abs(overall[t]["total"]["value"]))
    found = overall[most]
    says = [
        f"{len(moved)} of {len(overall)} traits differ, {html.escape(most)} most: {interval(found['total'], 2)} "
        f"standard deviations over {found['n']} prompts"
    ]
    if found["weights"] and found["text"]:
        says.append(
            f", of which {interval(found['text'], 2)} is the text (the same model reads the two texts) and "
            f"{interval(found['weights'], 2)} the weights (the two models read the same text)"
        )
    says.append(". A vector also knows “not neutral”: hold a trait's rise against that of the others.")
    return "".join(says)


def group_reasons(reasons: Sequence[str]) -> list[str]:
    """What could not be analysed; the same reason for several traits is one line. Not escaped."""
    grouped: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for reason in reasons:
        what, _, why = reason.partition(": ")
        section, _, trait = what.rpartition(", ")
        general = why.replace(trait, "it") if trait else why
        grouped.setdefault((section or what, general), []).append((trait, why))
    return [
        f"{', '.join([section, *(trait for trait, _ in own if trait)])}: {own[0][1] if len(own) == 1 else why}"
        for (section, why), own in grouped.items()
    ]
