"""The figures in sentences that claim no more than their intervals allow. Inert text, for HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from persona_core.analysis.couplings import MIN_EXCESS
from persona_core.utils.markdown import interval

Figure = Mapping[str, Any]
N_SHOWN = 5
"""Pairs at the same token that are described; the figure shows all."""
SIGNIFICANT = 0.05
"""The largest q at which a difference is called one."""

SCORES = {"specific": "specific score", "z": "z"}
"""What the kinds of scores are called."""

NUMBER = re.compile(r"\d+(?:\.\d+)?")
CLOCKS = {"series": "scores, token by token", "activation": "onsets of scores", "behaviour": "what the text shows"}
CHANGES = {"falls": "fall by more than half", "doubles": "more than double"}
UNLIKE = "their model, prompt, length or sampling differs from that of the neutral ones"
NOT_NEUTRAL = "z also rises with every other departure from neutral text, so it does not tell which trait"


def expected(n: float) -> str:
    """An expected number of replies, in words.

    >>> expected(0.03), expected(1.24)
    ('fewer than 0.1', 'about 1.2')
    """
    return "fewer than 0.1" if n < 0.1 else f"about {n:.1f}"


def describe_onsets(trait: str, found: Figure, rate: float) -> str:
    """One trait's onsets in every run, and whether the two models differ.

    Args:
        trait: which.
        found: its figures.
        rate: nominal share of neutral replies with an alarm, for analyses that did not measure the trait's own.
    """
    name, kind = html.escape(trait), found.get("kind", "z")
    own_rate = found.get("rate", rate)
    of = name if kind == "specific" else f"the z of {name}"
    parts = []
    for config, own in found["configs"].items():
        alarms = own["n"] - own["none"]
        says = f"{html.escape(config).capitalize()}: {alarms} of {own['n']} replies raise an alarm on {of}"
        if own["before the reply"]:
            says += f", {own['before the reply']} of them at the first token already"
            later = [f"{own[key]} {does} later" for key, does in CHANGES.items() if own.get(key)]
            says += f" ({', '.join(later)})" * bool(later)
        says += f"; at the rate of neutral replies {expected(own_rate * own['n'])} would."
        if own.get("no_rate"):
            says += f" For {own['no_rate']} of these replies no rate is known: {UNLIKE}."
        if own["onset"]:
            says += f" {own['timed']} of {own['onset']} onsets can be timed to within 20 tokens."
        if own["shown"] is not None:
            says += f" Annotated sentences show it in {own['shown']} replies."
            if alarms > 2 * own["shown"] + 2 * own_rate * own["n"]:
                says += " The text does not account for most of these alarms."
        parts.append(says)
    if kind != "specific":
        parts.append(f"An alarm on z means “not neutral”: {NOT_NEUTRAL}.")
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
    together, rest = ([e for e in edges if (e["kind"] == "together") == same] for same in (True, False))
    together.sort(key=lambda e: -abs(e["estimate"]["value"]))
    says = [*describe_couplings(graph), *map(describe_edge, (*together[:N_SHOWN], *rest))]
    if len(together) > N_SHOWN:
        says.append(f"The other {len(together) - N_SHOWN} pairs are in the figure.")
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
        "follow the words, so this is no evidence that one trait causes another. Couplings are of z, not of specific "
        "scores: a specific score has the other traits subtracted from it, so a coupling of two would be built in."
    ]
    if graph.get("other_reader"):
        says.append("The neutral replies are another model's, so a difference may be due to the weights.")
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
    lag = "" if edge["lag"] is None else f", {edge['lag']:g} token{'' if edge['lag'] == 1 else 's'} later"
    series = edge["clock"] == "series"  # the estimate is then the excess over neutral replies
    negative = estimate is not None and estimate["value"] < 0
    more = "less" if negative else "more"
    if edge["kind"] == "together":
        says = f"{source} and {target} vary together {more} than in neutral replies"
    elif edge["kind"] == "follows" and series:
        says = f"{target} varies with {source}{lag}, {more} than in neutral replies ({CLOCKS['series']})"
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


def describe_alarms(alarms: Figure | None) -> str:
    """How many replies of each run raise any alarm, beside the share of neutral replies that do."""
    if not alarms or not alarms["neutral"]:
        return ""
    says = [
        f"{html.escape(config).capitalize()}: {own['any']} of {own['n']} replies raise an alarm on at least one trait"
        + f"; for {own['no_rate']} of them no rate is known: {UNLIKE}" * bool(own["no_rate"])
        + "."
        for config, own in alarms["replies"].items()
    ]
    neutral = alarms["neutral"]
    says.append(
        f"Of neutral replies {interval(neutral, 1, percent=True)} do (nominal {100 * alarms['rate']:g} % over all "
        f"traits together; {neutral['n_prompts']} prompts)."
    )
    for what, share in alarms["held_out"].items():
        if {"value", "low", "high"} <= set(share):
            figure = interval(share, 1, percent=True)
            groups = "kinds of prompts" if what == "kinds" else html.escape(what)
            says.append(f"Of replies to {groups} left out of the calibration, {figure} do.")
    return " ".join(says)


def describe_warning(trait: str, found: Figure) -> str:
    """How early one trait could have been known, and whether that takes its vector."""
    kind, name = found.get("kind", "z"), html.escape(trait)
    own, label = found["scores"][kind], SCORES[kind]
    lead = own["lead"]
    says = [
        f"{found['n']} replies show {name}, first at token {found['first']:g} (median). Its {label} exceeds "
        f"{own['threshold']:.1f} before that token in {interval(lead['early'], 0, percent=True)} of them."
    ]
    if lead["quantiles"]:
        tokens = lead["quantiles"]["0.5"]
        where = f"{abs(tokens):g} tokens {'before' if tokens >= 0 else 'after'} it"
        says.append(f"Where there is an alarm, it comes {where} (median).")
    if found["at_start"]:
        says.append(f"In {found['at_start']} replies the first token already exceeds it.")
    says.append(
        f"Of neutral replies that the threshold was not chosen on, {interval(own['false_alarms'], 0, percent=True)} "
        f"exceed it (nominal {100 * own['rate']:.0f} %, for this score by itself), "
        f"{own['alarms_per_1000']['value']:.1f} times per 1,000 tokens."
    )
    if (watched := found.get("detector")) and watched["any"]:
        says.append(
            f"The onset detectors, with all traits watched, alarm in {interval(watched['any'], 1, percent=True)} of "
            f"neutral replies, on {name} in {100 * watched['rate']:.1f} %."
        )
    if found["other_reader"]:
        says.append(
            "The neutral replies are another model's, so the warning may tell the two models apart rather than "
            f"announce {name}."
        )
    rivals: dict[str, list[int]] = {}
    for one in own["ahead"]:
        for rival in [n for n in found["scores"] if n not in (kind, "cusum")]:
            other = next((o for o in found["scores"][rival]["ahead"] if o["k"] == one["k"]), None)
            if not (other and one["auroc"] and other["auroc"]):
                continue
            informative = max(one["auroc"]["low"], other["auroc"]["low"]) > 0.5
            if informative and other["auroc"]["high"] >= one["auroc"]["low"]:
                rivals.setdefault(rival, []).append(one["k"])
    if rivals:
        listed = "; ".join(f"{rival} ({', '.join(map(str, ks))})" for rival, ks in rivals.items())
        says.append(
            f"The AUROC of the {label} is not clearly above that of (tokens before the trait in parentheses): {listed}."
        )
    return " ".join(says)


def merged_caveats(caveats: Sequence[Figure]) -> list[str]:
    """Why a stated rate may not hold, one line for each config and reason. Not escaped.

    Reasons that differ in their numbers alone become one, with the range of each number.

    Args:
        caveats: "config", "caveat" and "replies", how many have it.

    >>> merged_caveats([{"config": "a", "replies": 1, "caveat": f"{n} tokens, more than 90"} for n in (120, 95)])
    ['a: 2 replies: 95 to 120 tokens, more than 90.']
    """
    grouped: dict[tuple[str, str], list[tuple[list[str], int]]] = {}
    for one in caveats:
        numbers = NUMBER.findall(one["caveat"])
        grouped.setdefault((one["config"], NUMBER.sub("{}", one["caveat"])), []).append((numbers, one["replies"]))
    found = []
    for (config, form), own in grouped.items():
        ranges = [sorted(set(column), key=float) for column in zip(*(numbers for numbers, _ in own), strict=True)]
        words = [values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}" for values in ranges]
        n = sum(replies for _, replies in own)
        pieces = form.split("{}")
        says = "".join(piece + word for piece, word in zip(pieces, [*words, ""], strict=True))
        found.append(f"{config}: {n} {'reply' if n == 1 else 'replies'}: {says}.")
    return found


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
