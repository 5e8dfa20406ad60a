"""The sections When, How and Where: an answer and one figure for the chosen trait, the rest folded away."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from persona_core.report import graph_figures, onset_figures, score_figures, warning_figures
from persona_core.report.answers import answer_how, answer_when, answer_where
from persona_core.report.markup import answer, folded, section
from persona_core.report.report_context import ReportContext
from persona_core.report.sentences import (
    claimed_edges,
    describe_alarms,
    describe_graph,
    describe_onsets,
    describe_warning,
)

WARNING_NOTE = (
    "AUROC: the probability that a reply that will show the trait scores above a neutral one at the same position; 0.5 "
    "is chance. CUSUM: the accumulated score, from which the onset detector raises its alarm. In parentheses: the "
    "replies that are long enough, so points along the axis are of different replies."
)
WINDOW = (("share", "share of tokens with the trait", 1.0), ("coherence", "coherence", 100.0))
"""What is drawn of an intervention: its name, its label, and the end of the axis."""
HEAT_NOTE = (
    '<p class="note">Each row is a reply, each column a token. A tick marks the onset, a thin line its interval; a '
    "triangle where a score that was raised at the first token more than doubles. Replies without an onset are at the "
    'bottom, sink tokens are blank.<span class="if-opens"> Click a token to read its reply there.</span></p>'
)
MATRIX_NOTE = (
    '<p class="note">Above the diagonal: by how much the correlation at the same token exceeds that of neutral replies '
    "(difference in Fisher's z). Below: the neutral replies' own correlation, which any two directions have.</p>"
)
GRAPH_NOTE = '<p class="note">A dotted line means less than in neutral replies.</p>'


def when_section(page: ReportContext) -> str:
    """When a trait rises: the heat map of the last run; the other runs, the curves and the power folded."""
    when = page.summary["when"]
    if "missing" in when:
        return section("When", "does the score rise?", f'<p class="note">{html.escape(when["missing"])}</p>')
    onsets: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for r in page.found.replies:
        onsets.setdefault((r["config"], r["trait"]), []).append(
            {"answer": r["answer"], "onset": r["onset"], "low": r["onset_low"], "high": r["onset_high"],
             "doubles": r.get("doubles"), "says": r["says"]}
        )  # fmt: skip
    rate = page.summary["about"]["rate"]
    answers, more = {}, {}
    for trait in page.traits:
        own = {config: onsets[config, trait] for config in page.traces}
        maps = _heat_maps(page, trait, own)
        *others, last = maps
        says = describe_onsets(trait, when[trait], rate)
        answers[trait] = answer(f"<p>{answer_when(trait, when[trait], own, rate)}</p>{HEAT_NOTE}", maps[last], last)
        curves = page.plot(f"free/{trait}", onset_figures.survival_figure(when[trait]["configs"]), says)
        power = onset_figures.power_figure(when[trait]["power"])
        found = page.plot(f"power/{trait}", power, "share of replies in which a step is detected, by its size")
        beside = "".join(f"<div><h3>{html.escape(config)}</h3>{maps[config]}</div>" for config in others)
        more[trait] = (
            f'<p>{says}</p><div class="pair">{beside}'
            f"<div><h3>Replies without an onset so far</h3>{curves}</div>"
            f"<div><h3>What a single reply would reveal</h3>{found}</div></div>"
        )
    together = describe_alarms(page.summary["about"].get("alarms"))
    rest = folded("More on when", (f"<p>{together}</p>" if together else "") + page.per_trait(more))
    return section("When", "does the score rise?", page.per_trait(answers) + rest)


def _heat_maps(page: ReportContext, trait: str, onsets: Mapping[str, list[dict[str, Any]]]) -> dict[str, str]:
    """By config, where the heat map of its replies is drawn; all have one scale."""
    series = {c: [t.reply_scores(trait, page.kind) for t in traces] for c, traces in page.traces.items()}
    scale = score_figures.common_scale([z for own in series.values() for z in own])
    maps = {}
    for config, own in series.items():
        ids = [r["id"] for r in page.rows[config]]
        figure = score_figures.heat_map(own, ids, onsets[config], *scale, page.score)
        figure.update_layout(meta={**figure.layout.meta, "config": config})
        maps[config] = page.plot(f"heat/{config}/{trait}", figure, f"{trait} in every reply of the {config} run")
    return maps


def how_section(page: ReportContext) -> str:
    """What varies with a trait: the graph of the run with most edges, or where there is none a matrix of couplings."""
    graphs = page.summary["how"]
    known = {config: graph for config, graph in graphs.items() if "missing" not in graph}
    answers = {trait: f"<p>{answer_how(trait, graphs)}</p>" for trait in page.traits}
    if not known:
        return section("How", "do traits vary together?", page.per_trait(answers))
    most = max(reversed(known), key=lambda config: len(claimed_edges(known[config])))
    figures, says = {}, {}
    for config, graph in known.items():
        says[config] = describe_graph(graph)
        matrix = graph_figures.coupling_matrix(graph)
        drawn = [(page.plot(f"matrix/{config}", matrix, f"couplings in the {config} run"), MATRIX_NOTE)]
        if claimed_edges(graph):
            links = page.plot(f"graph/{config}", graph_figures.graph_figure(graph), " ".join(says[config]))
            drawn.insert(0, (links, GRAPH_NOTE))
        figures[config] = drawn
    (first, note), *rest = figures[most]
    figures[most] = rest
    parts = []
    for config, drawn in figures.items():
        listed = "".join(f"<li>{one}</li>" for one in says[config])
        pair = "".join(f"<div>{plot}{below}</div>" for plot, below in drawn)
        parts.append(f'<h3>{html.escape(config)}</h3><ul>{listed}</ul><div class="pair">{pair}</div>')
    shown = answer(page.per_trait(answers) + note, first, most)
    return section("How", "do traits vary together?", shown + folded("More on how", "".join(parts)))


def where_section(page: ReportContext) -> str:
    """Whether there was time to step in: what an intervention leaves, or else how early the score gives it away."""
    answers = {}
    for trait in page.traits:
        found = {
            config: {"missing": own["missing"]} if "missing" in own else own.get(trait, {"missing": "not analysed"})
            for config, own in page.summary["where"].items()
        }
        windows = {config: own[trait] for config, own in page.summary["window"].items() if trait in own}
        plots = _where_plots(page, trait, found, windows)
        says = f"<p>{answer_where(trait, found, windows)}</p>"
        first = plots.pop(next((k for k in plots if k[0] == "share"), None) or next(iter(plots), ("", "")), None)
        answers[trait] = says if first is None else answer(says, *first)
        parts = [
            f'<h3>{html.escape(config)}</h3><p>{describe_warning(trait, own)}</p><p class="note">{WARNING_NOTE}</p>'
            for config, own in found.items()
            if "missing" not in own
        ]
        parts += [_window_note(config, trait, window) for config, window in windows.items()]
        pair = "".join(f"<div><h3>{html.escape(name)}</h3>{plot}</div>" for plot, name in plots.values())
        rest = "".join(parts) + f'<div class="pair">{pair}</div>' if parts else ""
        answers[trait] += folded("More on where", rest)
    return section("Where", "was there time to step in?", page.per_trait(answers))


def _where_plots(
    page: ReportContext, trait: str, found: Mapping[str, Any], windows: Mapping[str, Any]
) -> dict[tuple[str, str], tuple[str, str]]:
    """(measure, config) -> where its figure is drawn, and its heading."""
    plots = {}
    for config, own in found.items():
        if "missing" in own:
            continue
        says = describe_warning(trait, own)
        for measure, label in (("recall", "replies above the threshold"), ("auroc", "told apart from neutral (AUROC)")):
            figure = warning_figures.warning_figure(own["scores"], measure, label)
            plots[measure, config] = page.plot(f"{measure}/{config}/{trait}", figure, says), f"{config}: {label}"
    for config, window in windows.items():
        for measure, label, top in WINDOW:
            figure = warning_figures.window_figure(window["cells"], measure, label, top)
            heading = f"{config}: {label} after an intervention"
            plots[measure, config] = page.plot(f"{measure}/{config}/{trait}", figure, label), heading
    return plots


def _window_note(config: str, trait: str, window: Mapping[str, Any]) -> str:
    return (
        f"<h3>{html.escape(config)}: regenerated with an intervention starting k tokens before the trait</h3>"
        f"<p>{window['n_showing']} of {window['n_prompts']} replies show {html.escape(trait)} and were regenerated "
        "with the same seed; up to the intervention they are identical. The random arms move the state by the same "
        "amount along a random direction.</p>"
    )
