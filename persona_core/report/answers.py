"""The three answers of the report, a few sentences each: when a trait rises, what goes with it, where to step in."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from persona_core.report.sentences import (
    NOT_NEUTRAL,
    UNLIKE,
    Figure,
    claimed_edges,
    describe_edge,
    expected,
)
from persona_core.utils.markdown import interval

N_EDGES = 3
"""Edges of a trait that are named; all are in the figure."""


def answer_when(trait: str, found: Figure, onsets: Mapping[str, Sequence[Figure]], rate: float) -> str:
    """In how many replies of each run a trait rises, and by which token.

    Args:
        trait: which.
        found: its figures.
        onsets: by config, "answer" and "onset" of each reply.
        rate: nominal share of neutral replies with an alarm, for analyses that did not measure the trait's own.
    """
    kind, own_rate = found.get("kind", "z"), found.get("rate", rate)
    of = html.escape(trait) if kind == "specific" else f"the z of {html.escape(trait)}"
    parts = []
    for config, own in found["configs"].items():
        says = f"{_named(config)}: {own['n'] - own['none']} of {own['n']} replies raise an alarm on {of}"
        if own["before the reply"]:
            says += f", {own['before the reply']} of them at the first token already"
        dated = [int(o["onset"]) for o in onsets.get(config, ()) if o["answer"] == "onset" and o["onset"] is not None]
        if len(dated) == 1:
            says += f"; the one onset inside a reply is at token {dated[0]}"
        elif dated:
            says += f"; half of the {len(dated)} onsets inside the replies come by token {median(dated):g}"
        if own["none"] < own["n"] and own.get("no_rate"):
            says += f". For {own['no_rate']} of them no false-alarm rate is known: {UNLIKE}"
        else:
            says += f"; in as many neutral replies {expected(own_rate * own['n'])} would"
        parts.append(says + ".")
    if kind != "specific":
        parts.append(f"An alarm on z means “not neutral”: {NOT_NEUTRAL}.")
    return " ".join(parts)


def answer_how(trait: str, graphs: Mapping[str, Figure]) -> str:
    """Which traits vary with one, follow it or come before it, in each run.

    Args:
        trait: which.
        graphs: by config.
    """
    says: dict[str, list[str]] = {}
    for config, graph in graphs.items():
        says.setdefault(_how_of(trait, graph), []).append(config)
    return " ".join(f"{_named(' and '.join(configs))}: {one}" for one, configs in says.items())


def _how_of(trait: str, graph: Figure) -> str:
    if "missing" in graph:
        return html.escape(graph["missing"])
    edges = claimed_edges(graph)
    own = [edge for edge in edges if trait in (edge["source"], edge["target"])]
    couplings = graph["couplings"] or {}
    if own:
        listed = "; ".join(map(describe_edge, own[:N_EDGES]))
        more = f"; and {len(own) - N_EDGES} more" if len(own) > N_EDGES else ""
        return f"{listed}{more}. Scores follow the words, so none of this alone is evidence of a cause."
    name = html.escape(trait)
    if not couplings or "bars" not in couplings:
        says = (
            f"no trait was found to follow {name} or to come before it; couplings were not compared with neutral ones"
        )
    elif couplings["missing"]:
        return f"no trait was found to follow {name} or to come before it. {html.escape(couplings['missing'])}"
    else:
        says = (
            f"no trait varies with {name} more, or less, than it does in neutral replies, and none was found to follow "
            "it or to come before it"
        )
    return f"{says}; {len(edges)} pairs of other traits are linked." if edges else f"{says}."


def answer_where(trait: str, found: Mapping[str, Figure], windows: Mapping[str, Figure]) -> str:
    """How early a trait's score gives it away, and what an intervention at its first token leaves of it.

    Args:
        trait: which.
        found: config -> figures of the trait, or {"missing": reason}.
        windows: config -> the trait's intervention window, where it was measured.
    """
    parts, name = [], html.escape(trait)
    for config, own in found.items():
        if "missing" in own:
            parts.append(f"{_named(config)}: {html.escape(own['missing'])}")
            continue
        score = own["scores"][own.get("kind", "z")]
        lead = score["lead"]
        says = (
            f"{_named(config)}: {own['n']} replies show {name}, first at token {own['first']:g} (median); "
            f"its score crosses the threshold before that in {interval(lead['early'], 0, percent=True)} of them"
        )
        if lead["quantiles"]:
            tokens = lead["quantiles"]["0.5"]
            side = "before" if tokens >= 0 else "after"
            says += f" (where it crosses at all, {abs(tokens):g} tokens {side} that one, median)"
        says += f", and in {interval(score['false_alarms'], 0, percent=True)} of neutral replies."
        if own["at_start"]:
            says += f" In {own['at_start']} the first token already exceeds it."
        if own["other_reader"]:
            says += " The neutral replies are another model's, so it may tell the two models apart instead."
        parts.append(says)
    parts += [says for config, window in windows.items() if (says := _window_of(config, window))]
    return " ".join(parts)


def _window_of(config: str, window: Figure) -> str:
    """What the trait's last moment leaves: the intervention that starts at its first token."""
    at_first: dict[str, Any] = {c["arm"]: c for c in window["cells"] if c["k"] == 0 and c["share"] is not None}
    if not {"none", "cap"} <= set(at_first):
        return ""
    none, cap, push = (at_first.get(arm) for arm in ("none", "cap", "cap, random"))
    assert none is not None and cap is not None
    says = (
        f"Held back from its first token on, the trait is in {interval(cap['share'], 0, percent=True)} of the tokens "
        f"({html.escape(config)}) instead of {interval(none['share'], 0, percent=True)}"
    )
    if push:
        says += f"; an equally large change along a random direction leaves {interval(push['share'], 0, percent=True)}"
    if cap["coherence"] and none["coherence"]:
        says += f". Coherence falls from {none['coherence']['value']:.0f} to {cap['coherence']['value']:.0f} of 100"
        says = says.replace("falls", "rises") if cap["coherence"]["value"] > none["coherence"]["value"] else says
    return says + "."


def _named(config: str) -> str:
    name = html.escape(config)
    return name[:1].upper() + name[1:]
