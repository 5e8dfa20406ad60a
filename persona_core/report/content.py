"""What the report shows: figures first, sentences that say what they mean, tables last.

The offline page and the app show the same content: markup whose texts are escaped, and the figures and texts that
static/report.js draws into it.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from persona_core.report import comparison_figures, graph_figures, onset_figures, score_figures, warning_figures
from persona_core.report.comparison_sentences import against, describe_comparison
from persona_core.report.findings import Findings
from persona_core.report.markup import (
    brackets,
    figure_json,
    listed_spans,
    plot_placeholder,
    reader_name,
    section,
    spans_source,
    statistic_cell,
)
from persona_core.report.sentences import (
    SCORES,
    describe_alarms,
    describe_graph,
    describe_onsets,
    describe_warning,
    expected,
    group_reasons,
    merged_caveats,
)
from persona_core.traces.figure import shown
from persona_core.traces.trace import Trace

Row = Mapping[str, Any]
WARNING_NOTE = (
    "AUROC: the probability that a reply that will show the trait scores above a neutral one at the same position; 0.5 "
    "is chance. CUSUM: the accumulated score, from which the onset detector raises its alarm. In parentheses: the "
    "replies that are long enough, so points along the axis are of different replies."
)
COLUMNS = {
    "mean": "mean",
    "with_sinks": "mean with sink tokens",
    "between": "SD between replies",
    "within": "SD within a reply",
    "share_above": "share above the null's 95th percentile",
    "token_share": "variance explained by the token",
    "drift": "drift per 100 tokens",
    "autocorrelation": "lag-1 autocorrelation",
}


def report_content(findings: Findings, rows: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """What report.js mounts, JSON-ready: "html", and what is drawn into it: "figures", "traits", "tokens" and "ids".

    Args:
        findings: of `analyse`, or of its files.
        rows: by config, those that were analysed.
    """
    return _Content(findings, rows).build()


class _Content:
    def __init__(self, findings: Findings, rows: Mapping[str, Sequence[Row]]) -> None:
        self.found, self.summary = findings, findings.summary
        self.rows = {c: own for c, own in rows.items() if c in self.summary["how"]}
        self.traces = {c: [Trace.from_row(row) for row in own] for c, own in self.rows.items()}
        self.figures: dict[str, Any] = {}
        self.kind = self.summary["about"].get("kind", "z")
        self.score = SCORES[self.kind]
        self.traits = self._ranked()

    def _ranked(self) -> list[str]:
        """The traits, the one with the largest difference (or the most alarms) first."""
        compared = self.summary["comparison"]
        if "missing" not in compared:
            weight = {t: abs((e["total"] or {"value": 0})["value"]) for t, e in compared["overall"].items()}
        elif "missing" not in self.summary["when"]:
            weight = {
                t: sum(c["n"] - c["none"] for c in w["configs"].values()) for t, w in self.summary["when"].items()
            }
        else:
            weight = {}
        return sorted(self.summary["about"]["traits"], key=lambda t: -weight.get(t, 0))

    def plot(self, name: str, figure: go.Figure, says: str) -> str:
        """A placeholder for a figure, with what it shows in words for those who do not see it."""
        self.figures[name] = figure_json(figure)
        return plot_placeholder(name, figure, says)

    def build(self) -> dict[str, Any]:
        parts = [
            self._head(),
            self._nav(),
            self._per_trait({t: f'<div class="cards">{self._cards(t)}</div>' for t in self.traits}),
            self._when(),
            self._how(),
            self._where(),
            self._comparison(),
            self._spans(),
            self._statistics(),
            self._limits(),
        ]
        tokens = {c: [[shown(t.tokens[p]) for p in t.reply_positions] for t in own] for c, own in self.traces.items()}
        ids = {c: [html.escape(row["id"]) for row in own] for c, own in self.rows.items()}
        return {"html": "".join(parts), "figures": self.figures, "traits": self.traits, "tokens": tokens, "ids": ids}

    def _per_trait(self, parts: Mapping[str, str]) -> str:
        return "".join(f'<div data-trait="{html.escape(t)}" hidden>{part}</div>' for t, part in parts.items())

    # ---- sections ----

    def _head(self) -> str:
        about = self.summary["about"]
        runs = ", ".join(
            f"{html.escape(c)} ({about['n_replies'][c]} replies by {reader_name(about, c)})" for c in self.rows
        )
        null = about["n_replies"].get("neutral", 0)
        compared = "missing" not in self.summary["comparison"]
        most = "largest difference" if compared else "most alarms"
        return f"""<header><p>{runs}. Null: {null} neutral replies. {against(about)} 0 is the mean of the baseline's
neutral tokens, and 1 is their standard deviation. Sink tokens are left out. Brackets are 95 % intervals over
prompts. The trait with the {most} comes first.</p></header>"""

    def _cards(self, trait: str) -> str:
        cards = []
        when, compared = self.summary["when"], self.summary["comparison"]
        if "missing" not in compared and compared["overall"][trait]["total"]:
            total = compared["overall"][trait]["total"]
            says = f"{trait}, contaminated minus baseline, {self.score} {brackets(total)}"
            cards.append((f"{total['value']:+.1f} SD", says))
        if "missing" not in when:
            rate = self.summary["about"]["rate"]
            for config, own in when[trait]["configs"].items():
                alarms = f"{own['n'] - own['none']} of {own['n']}"
                annotated = "" if own["shown"] is None else f"; annotated sentences show it in {own['shown']}"
                chance = (
                    f"{expected(when[trait].get('rate', rate) * own['n'])} at the rate of neutral replies{annotated}"
                )
                of = trait if self.kind == "specific" else f"the z of {trait}"
                cards.append((alarms, f"{config}: replies with an alarm on {of}, {chance}"))
        return "".join(
            f'<div class="card"><b>{html.escape(a)}</b><span>{html.escape(b)}</span></div>' for a, b in cards
        )

    def _nav(self) -> str:
        buttons = "".join(
            f'<button type="button" data-pick="{html.escape(t)}" aria-pressed="false">{html.escape(t)}</button>'
            for t in self.traits
        )
        return f'<nav aria-label="Trait"><span>Trait</span>{buttons}</nav>'

    def _when(self) -> str:
        when = self.summary["when"]
        if "missing" in when:
            return section("When", "does the score rise?", f'<p class="note">{html.escape(when["missing"])}</p>')
        onsets: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for r in self.found.replies:
            onsets.setdefault((r["config"], r["trait"]), []).append(
                {"answer": r["answer"], "onset": r["onset"], "low": r["onset_low"], "high": r["onset_high"],
                 "doubles": r.get("doubles"), "says": r["says"]}
            )  # fmt: skip
        parts = {}
        for trait in self.traits:
            says = describe_onsets(trait, when[trait], self.summary["about"]["rate"])
            maps = []
            series = {c: [t.reply_scores(trait, self.kind) for t in traces] for c, traces in self.traces.items()}
            scale = score_figures.common_scale([z for own in series.values() for z in own])
            for config, own in series.items():
                figure = score_figures.heat_map(
                    own, [r["id"] for r in self.rows[config]], onsets[config, trait], *scale, self.score
                )
                figure.update_layout(meta={**figure.layout.meta, "config": config})
                plot = self.plot(f"heat/{config}/{trait}", figure, f"{trait} in every reply of the {config} run")
                maps.append(f"<div><h3>{html.escape(config)}</h3>{plot}</div>")
            curves = self.plot(f"free/{trait}", onset_figures.survival_figure(when[trait]["configs"]), says)
            power = onset_figures.power_figure(when[trait]["power"])
            found = self.plot(f"power/{trait}", power, "share of replies in which a step is detected, by its size")
            parts[trait] = (
                f'<p>{says}</p><div class="pair">{"".join(maps)}</div><p class="note">Each row is a reply, each column '
                "a token. A tick marks the onset, a thin line its interval; a triangle where a score that was raised "
                "at the first token more than doubles. Replies without an onset are at the bottom, sink tokens are "
                'blank.</p><div class="pair">'
                f"<div><h3>Replies without an onset so far</h3>{curves}</div>"
                f"<div><h3>What a single reply would reveal</h3>{found}</div></div>"
            )
        together = describe_alarms(self.summary["about"].get("alarms"))
        return section("When", "does the score rise?", f"<p>{together}</p>{self._per_trait(parts)}")

    def _how(self) -> str:
        parts = []
        for config, graph in self.summary["how"].items():
            if "missing" in graph:
                parts.append(f'<h3>{html.escape(config)}</h3><p class="note">{html.escape(graph["missing"])}</p>')
                continue
            says = describe_graph(graph)
            listed = "".join(f"<li>{one}</li>" for one in says)
            plots = self.plot(f"graph/{config}", graph_figures.graph_figure(graph), " ".join(says))
            matrix = graph_figures.coupling_matrix(graph)
            couplings = self.plot(f"matrix/{config}", matrix, f"couplings in the {config} run")
            parts.append(
                f'<h3>{html.escape(config)}</h3><ul>{listed}</ul><div class="pair">{plots}<div>{couplings}'
                '<p class="note">Above the diagonal: by how much the correlation at the same token exceeds that of '
                "neutral replies (difference in Fisher's z). Below: the neutral replies' own correlation, which any "
                "two directions have. In the graph, a dotted line means less than in neutral replies.</p></div></div>"
            )
        return section("How", "do traits vary together?", "".join(parts))

    def _where(self) -> str:
        parts: dict[str, str] = {}
        for trait in self.traits:
            own = []
            for config, found in self.summary["where"].items():
                reason = found.get("missing") or found.get(trait, {}).get("missing")
                if reason:
                    own.append(f'<p class="note">{html.escape(config)}: {html.escape(reason)}</p>')
                    continue
                says = describe_warning(trait, found[trait])
                scores = found[trait]["scores"]
                plots = [
                    self.plot(
                        f"{measure}/{config}/{trait}", warning_figures.warning_figure(scores, measure, label), says
                    )
                    for measure, label in (("auroc", "AUROC at the same position"), ("recall", "threshold exceeded"))
                ]
                pair = f'<div class="pair">{"".join(plots)}</div>'
                own.append(f'<h3>{html.escape(config)}</h3><p>{says}</p>{pair}<p class="note">{WARNING_NOTE}</p>')
            for config, traits in self.summary["window"].items():
                if trait in traits:
                    own.append(self._window(config, trait, traits[trait]))
            parts[trait] = "".join(own)
        return section("Where", "was there time to step in?", self._per_trait(parts))

    def _window(self, config: str, trait: str, window: Mapping[str, Any]) -> str:
        cells = window["cells"]
        plots = [
            self.plot(f"{name}/{config}/{trait}", warning_figures.window_figure(cells, name, label, top), label)
            for name, label, top in (
                ("share", "share of tokens with the trait", 1.0),
                ("coherence", "coherence", 100.0),
            )
        ]
        return (
            f"<h3>{html.escape(config)}: regenerated with an intervention starting k tokens before the trait</h3>"
            f"<p>{window['n_showing']} of {window['n_prompts']} replies show {html.escape(trait)} and were regenerated "
            "with the same seed; up to the intervention they are identical. The random arms move the state by the same "
            f'amount along a random direction.</p><div class="pair">{"".join(plots)}</div>'
        )

    def _comparison(self) -> str:
        found = self.summary["comparison"]
        if "missing" in found:
            return section("Two models", "", f'<p class="note">{html.escape(found["missing"])}</p>')
        says = describe_comparison(found, self.summary["statistics"])
        effects = comparison_figures.effects_figure({t: found["overall"][t] for t in self.traits}, self.score)
        table = comparison_figures.effects_table(found, self.traits)
        overall = self.plot("effects", effects, says)
        parts = {}
        for trait in self.traits:
            by_category = comparison_figures.category_figure(found["categories"][trait], self.score)
            by_prompt = comparison_figures.prompt_figure([p for p in found["prompts"] if p["trait"] == trait])
            plots = (
                ("By category", self.plot(f"categories/{trait}", by_category, f"{trait} by category")),
                ("By prompt", self.plot(f"prompts/{trait}", by_prompt, f"{trait} by prompt")),
            )
            parts[trait] = f'<div class="pair">{"".join(f"<div><h3>{h}</h3>{plot}</div>" for h, plot in plots)}</div>'
        return section(
            "Two models", "is it the text or the weights?", f"<p>{says}</p>{overall}{table}{self._per_trait(parts)}"
        )

    def _spans(self) -> str:
        groups: dict[tuple[str, str, str, str], list[Mapping[str, Any]]] = {}
        for span in self.found.spans:
            groups.setdefault((span["trait"], span["config"], span["of"], span["unit"]), []).append(span)
        parts = {}
        for trait in self.traits:
            lists = [
                f"<div><h3>{html.escape(spans_source(config, of))}</h3>{listed_spans(own)}</div>"
                for (name, config, of, unit), own in groups.items()
                if name == trait and unit == "sentence"
            ]
            parts[trait] = f'<div class="pair">{"".join(lists)}</div>'
        note = (
            '<p class="note">The highest of many sentences always scores high. The percentage is the share of '
            "stretches of neutral text, with as many sentences as the reply, whose highest sentence scores as high. A "
            "sentence that occurs in several replies is listed once, where it scores highest.</p>"
        )
        return section("Sentences", "where the trait is strongest", self._per_trait(parts) + note)

    def _statistics(self) -> str:
        statistics = {c: s for c, s in self.summary["statistics"].items() if "missing" not in s}
        head = "".join(f'<th scope="col">{h}</th>' for h in ("run", *COLUMNS.values()))
        parts = {}
        for trait in self.traits:
            of_trait = {c: s["traits"][trait] for c, s in statistics.items()}
            plot = self.plot(
                f"position/{trait}", score_figures.position_figure(of_trait, self.score), f"mean {trait} by position"
            )
            rows = "".join(
                f'<tr><th scope="row">{html.escape(config)}</th>'
                + "".join(f"<td>{statistic_cell(own, k)}</td>" for k in COLUMNS)
                + "</tr>"
                for config, own in of_trait.items()
            )
            label = html.escape(f"{trait}: statistics of the runs")
            parts[trait] = (
                f'{plot}<p class="note">{against(self.summary["about"])}</p>'
                f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table>'
                f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
            )
        return section("Run statistics", "by position in the reply", self._per_trait(parts))

    def _limits(self) -> str:
        about = self.summary["about"]
        says = [html.escape(says) for says in merged_caveats(about["caveats"])] + [
            html.escape(one) for one in group_reasons(self.found.missing)
        ]
        listed = "".join(f"<li>{one}</li>" for one in says)
        return section(
            "What this cannot say",
            "",
            "<p>A projection says which direction a state points in, not why. An alarm proves nothing, and neither "
            "does its absence: small rises go unnoticed. Each prompt has one reply: the intervals cover the choice of "
            f"prompts and seeds, not of models.</p><ul>{listed}</ul>",
        )
