"""The report: figures first, sentences that say what they mean, tables last.

`report_content` is what both the offline page and the app show: markup that holds no text but escaped text, and the
figures and texts that page.js draws into it.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from persona_core.report import figures as draw
from persona_core.report import sentences
from persona_core.report.findings import Findings
from persona_core.traces.figure import shown
from persona_core.traces.trace import Trace
from persona_core.traces.view.standalone import POLICY, inline_json, plotlyjs
from persona_core.utils.files import read_asset

Row = Mapping[str, Any]
WARNING_NOTE = (
    "AUROC: the chance that a reply that will show the trait scores above a neutral one at the same place; 0.5 is "
    "chance. CUSUM: z added up, what the onset detector alarms on. In parentheses: replies that are long enough; along "
    "the axis they are not the same ones."
)
N_SHOWN = 8
"""Spans that the page lists of each search; the file holds all."""


def report_page(findings: Findings, rows: Mapping[str, Sequence[Row]], title: str = "What the replies say") -> str:
    """The report as one HTML page that works offline; write it as UTF-8.

    Args:
        findings: of `analyse`.
        rows: by config, those that were analysed.
        title: heading.
    """
    content = report_content(findings, rows)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>{styles()}
{_PAGE_STYLE}</style>
</head>
<body class="report">
<main>
<h1>{html.escape(title)}</h1>
<noscript><p>The report needs JavaScript. All of its figures are in findings.json, beside this page.</p></noscript>
<div id="report"></div>
</main>
<script type="application/json" id="data">{inline_json(content)}</script>
<script>{plotlyjs()}</script>
<script>{script()}
{_MOUNT}</script>
</body>
</html>
"""


def report_content(findings: Findings, rows: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """What page.js mounts, JSON-ready: "html", and what is drawn into it: "figures", "traits", "tokens" and "ids".

    Args:
        findings: of `analyse`, or of its files.
        rows: by config, those that were analysed.
    """
    return _Content(findings, rows).build()


def styles() -> str:
    """The report's CSS; every rule nests under `.report`."""
    return read_asset("persona_core.report", "page.css")


def script() -> str:
    """The report's JavaScript: declares `mountReport(root, content, options)` and mounts nothing."""
    return read_asset("persona_core.report", "page.js")


_PAGE_STYLE = """
html { scroll-padding-top: 64px; }
@media (prefers-reduced-motion: no-preference) { html { scroll-behavior: smooth; } }
body { margin: 0; background: var(--ground); }
main { max-width: 1180px; margin: 0 auto; padding: 24px 16px 64px; }
"""
_MOUNT = """
(() => {
  const prefers = matchMedia("(prefers-color-scheme: dark)");
  const theme = () => document.documentElement.classList.toggle("dark", prefers.matches);
  theme();
  prefers.addEventListener("change", theme);
  const content = JSON.parse(document.getElementById("data").textContent);
  let wanted = "";
  try { wanted = decodeURIComponent(location.hash.slice(1)); } catch { /* a hash that is none: the first trait */ }
  mountReport(document.getElementById("report"), content, {
    plotly: Promise.resolve(window.Plotly),
    trait: wanted,
    onTrait: (trait) => history.replaceState(null, "", "#" + encodeURIComponent(trait)),
  });
})();
"""


class _Content:
    def __init__(self, findings: Findings, rows: Mapping[str, Sequence[Row]]) -> None:
        self.found, self.summary = findings, findings.summary
        self.rows = {c: own for c, own in rows.items() if c in self.summary["how"]}
        self.traces = {c: [Trace.from_row(row) for row in own] for c, own in self.rows.items()}
        self.figures: dict[str, Any] = {}
        self.traits = self._by_weight()

    def _by_weight(self) -> list[str]:
        """The traits, the one with the largest difference (or the most onsets) first: it is shown first."""
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
        """A place for a figure, with what it shows in words for those who do not see it."""
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
        runs = ", ".join(f"{html.escape(c)} ({about['n_replies'][c]} replies of {_name(about, c)})" for c in self.rows)
        null = about["n_replies"].get("neutral", 0)
        return f"""<header><p>{runs}. Null: {null} neutral replies. z: 0 is how the baseline talks when nothing is going
on, 1 is a standard deviation of its single tokens. Brackets are 95 % intervals over prompts. The trait with the largest
difference comes first.</p></header>"""

    def _cards(self, trait: str) -> str:
        cards = []
        when, compared = self.summary["when"], self.summary["comparison"]
        if "missing" not in compared and compared["overall"][trait]["total"]:
            total = compared["overall"][trait]["total"]
            cards.append((f"{total['value']:+.1f} SD", f"{trait}, contaminated minus baseline {_ends(total)}"))
        if "missing" not in when:
            rate = self.summary["about"]["rate"]
            for config, own in when[trait]["configs"].items():
                alarms = f"{own['n'] - own['none']} of {own['n']}"
                shown = "" if own["shown"] is None else f"; marked sentences show it in {own['shown']}"
                chance = f"about {rate * own['n']:.0f} by chance{shown}"
                cards.append((alarms, f"{config}: replies with an alarm on {trait}, {chance}"))
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
            return _section("When", "does it set in?", f'<p class="note">{html.escape(when["missing"])}</p>')
        onsets: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for r in self.found.replies:
            onsets.setdefault((r["config"], r["trait"]), []).append(
                {"answer": r["answer"], "onset": r["onset"], "low": r["onset_low"], "high": r["onset_high"],
                 "says": r["says"]}
            )  # fmt: skip
        parts = {}
        for trait in self.traits:
            says = sentences.describe_onsets(trait, when[trait], self.summary["about"]["rate"])
            maps = []
            series = {c: [t.scores(trait)[t.reply_positions] for t in traces] for c, traces in self.traces.items()}
            scale = draw.common_scale([z for own in series.values() for z in own])
            for config, own in series.items():
                figure = draw.heat_map(own, [r["id"] for r in self.rows[config]], onsets[config, trait], *scale)
                figure.update_layout(meta={**figure.layout.meta, "config": config})
                plot = self.plot(f"heat/{config}/{trait}", figure, f"{trait} in every reply of the {config} run")
                maps.append(f"<div><h3>{html.escape(config)}</h3>{plot}</div>")
            curves = self.plot(f"free/{trait}", draw.survival_figure(when[trait]["configs"]), says)
            found = self.plot(f"power/{trait}", draw.power_figure(when[trait]["power"]), "what size of step is found")
            parts[trait] = (
                f'<p>{says}</p><div class="pair">{"".join(maps)}</div><p class="note">A row is a reply, a column a '
                "token. A bar marks the onset, a thin line its interval; replies without one are at the bottom.</p>"
                f'<div class="pair"><div><h3>Replies in which it has not set in yet</h3>{curves}</div>'
                f"<div><h3>What a single reply would show</h3>{found}</div></div>"
            )
        return _section("When", "does it set in?", self._per_trait(parts))

    def _how(self) -> str:
        parts = []
        for config, graph in self.summary["how"].items():
            if "missing" in graph:
                parts.append(f'<h3>{html.escape(config)}</h3><p class="note">{html.escape(graph["missing"])}</p>')
                continue
            says = sentences.describe_graph(graph)
            listed = "".join(f"<li>{one}</li>" for one in says)
            plots = self.plot(f"graph/{config}", draw.graph_figure(graph), " ".join(says))
            matrix = self.plot(f"matrix/{config}", draw.coupling_matrix(graph), f"coupling in the {config} run")
            parts.append(
                f'<h3>{html.escape(config)}</h3><ul>{listed}</ul><div class="pair">{plots}<div>{matrix}<p class="note">'
                "Above the diagonal: coupling at the same token. Below: the cosine of the vectors at one block, its "
                "floor.</p></div></div>"
            )
        return _section("How", "do traits go together?", "".join(parts))

    def _where(self) -> str:
        parts: dict[str, str] = {}
        for trait in self.traits:
            own = []
            for config, found in self.summary["where"].items():
                reason = found.get("missing") or found.get(trait, {}).get("missing")
                if reason:
                    own.append(f'<p class="note">{html.escape(config)}: {html.escape(reason)}</p>')
                    continue
                says = sentences.describe_warning(trait, found[trait])
                scores = found[trait]["scores"]
                plots = [
                    self.plot(f"{measure}/{config}/{trait}", draw.warning_figure(scores, measure, label), says)
                    for measure, label in (("auroc", "AUROC at the same place"), ("recall", "threshold passed by then"))
                ]
                pair = f'<div class="pair">{"".join(plots)}</div>'
                own.append(f'<h3>{html.escape(config)}</h3><p>{says}</p>{pair}<p class="note">{WARNING_NOTE}</p>')
            for config, traits in self.summary["window"].items():
                if trait in traits:
                    own.append(self._window(config, trait, traits[trait]))
            parts[trait] = "".join(own)
        return _section("Where", "could one have stepped in?", self._per_trait(parts))

    def _window(self, config: str, trait: str, window: Mapping[str, Any]) -> str:
        cells = window["cells"]
        plots = [
            self.plot(f"{name}/{config}/{trait}", draw.window_figure(cells, name, label, top), label)
            for name, label, top in (
                ("share", "share of tokens with the trait", 1.0),
                ("coherence", "coherence", 100.0),
            )
        ]
        return (
            f"<h3>{html.escape(config)}: written again, held from k tokens before it on</h3>"
            f"<p>{window['n_showing']} of {window['n_prompts']} replies show {html.escape(trait)} and were written "
            "again with the same seed; up to that token they are the same. The random arms move the state as far, but "
            f'along a random direction.</p><div class="pair">{"".join(plots)}</div>'
        )

    def _comparison(self) -> str:
        found = self.summary["comparison"]
        if "missing" in found:
            return _section("Two models", "", f'<p class="note">{html.escape(found["missing"])}</p>')
        says = sentences.describe_comparison(found["overall"])
        overall = self.plot("effects", draw.effects_figure({t: found["overall"][t] for t in self.traits}), says)
        parts = {
            t: '<div class="pair"><div><h3>By category</h3>'
            + self.plot(f"categories/{t}", draw.category_figure(found["categories"][t]), f"{t} by category")
            + "</div><div><h3>Prompt by prompt</h3>"
            + self.plot(
                f"prompts/{t}", draw.prompt_figure([p for p in found["prompts"] if p["trait"] == t]), f"{t} by prompt"
            )
            + "</div></div>"
            for t in self.traits
        }
        return _section("Two models", "the text, or the weights?", f"<p>{says}</p>{overall}{self._per_trait(parts)}")

    def _spans(self) -> str:
        groups: dict[tuple[str, str, str, str], list[Mapping[str, Any]]] = {}
        for span in self.found.spans:
            groups.setdefault((span["trait"], span["config"], span["of"], span["unit"]), []).append(span)
        parts = {}
        for trait in self.traits:
            lists = [
                f"<div><h3>{html.escape(_of(config, of))}</h3>{_listed(own)}</div>"
                for (name, config, of, unit), own in groups.items()
                if name == trait and unit == "sentence"
            ]
            parts[trait] = f'<div class="pair">{"".join(lists)}</div>'
        note = (
            '<p class="note">The highest of many sentences are always high. “Unusual” is the share of stretches of '
            "neutral text, with as many sentences as the reply has, whose highest is as high. A sentence is listed "
            "once, where it is highest.</p>"
        )
        return _section("Sentences", "in which it is strongest", self._per_trait(parts) + note)

    def _statistics(self) -> str:
        statistics = {c: s for c, s in self.summary["statistics"].items() if "missing" not in s}
        parts = {
            t: self.plot(
                f"position/{t}",
                draw.position_figure({c: s["traits"][t] for c, s in statistics.items()}),
                f"{t} by place",
            )
            for t in self.traits
        }
        columns = ("mean", "between", "within", "share_above", "token_share", "drift", "autocorrelation")
        heads = (
            "mean",
            "SD of replies",
            "SD in a reply",
            "above the null's 95 %",
            "told by the token",
            "drift per 100",
            "lag-1 correlation",
        )
        head = "".join(f'<th scope="col">{h}</th>' for h in ("run", *heads))

        def table(trait: str) -> str:
            rows = "".join(
                f'<tr><th scope="row">{html.escape(c)}</th>'
                + "".join(
                    f"<td>{'–' if s['traits'][trait][k] is None else draw.interval(s['traits'][trait][k])}</td>"
                    for k in columns
                )
                + "</tr>"
                for c, s in statistics.items()
            )
            label = html.escape(f"{trait}: figures of the runs")
            return (
                f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table><thead><tr>{head}</tr>'
                f"</thead><tbody>{rows}</tbody></table></div>"
            )

        tables = {t: part + table(t) for t, part in parts.items()}
        return _section("The runs in figures", "by place in the reply", self._per_trait(tables))

    def _limits(self) -> str:
        about = self.summary["about"]
        says = [html.escape(f"{c['config']}: {c['replies']} replies: {c['caveat']}.") for c in about["caveats"]] + [
            html.escape(one) for one in sentences.group_reasons(self.found.missing)
        ]
        listed = "".join(f"<li>{one}</li>" for one in says)
        return _section(
            "What this cannot say",
            "",
            "<p>A projection says what direction a state has, not why. An alarm is no proof, and no alarm is none "
            "either: small rises go unnoticed. One reply to each prompt: the intervals take in the choice of prompts "
            f"and seeds, not of models.</p><ul>{listed}</ul>",
        )


def figure_json(figure: go.Figure) -> dict[str, Any]:
    """A figure as JSON, without Plotly's template: page.js knows the theme."""
    record: dict[str, Any] = json.loads(figure.to_json())
    record["layout"].pop("template", None)
    return record


def plot_placeholder(name: str, figure: go.Figure, says: str) -> str:
    """Where page.js draws a figure; its height is kept free, so that nothing jumps when it is drawn."""
    return (
        f'<div class="plot" data-figure="{html.escape(name)}" data-height="{figure.layout.height:g}" role="img" '
        f'aria-label="{html.escape(says)}"></div>'
    )


def _section(title: str, question: str, body: str) -> str:
    return f"<section><h2>{title} <small>{question}</small></h2>{body}</section>"


def _name(about: Mapping[str, Any], config: str) -> str:
    return html.escape(about["readers"].get(config) or "an unknown model")


def _ends(estimate: Mapping[str, Any]) -> str:
    return f"[{estimate['low']:.1f}, {estimate['high']:.1f}]"


def _of(config: str, of: str) -> str:
    return f"{config}, by z" if of == "z" else f"{config}'s text, by the difference of the two readers"


def _listed(spans: Sequence[Mapping[str, Any]]) -> str:
    items = []
    for s in spans[:N_SHOWN]:
        share = s["unusual"]
        unusual = "" if share is None else ", unusual < 0.01" if share < 0.01 else f", unusual {share:.2f}"
        often = "" if s["replies"] <= 1 else f", in {s['replies']} replies"
        text, where = html.escape(s["text"].strip()), html.escape(s["id"] + often + unusual)
        items.append(f'<li><b>{s["value"]:+.1f}</b><span><q dir="auto">{text}</q><small>{where}</small></span></li>')
    return f'<ol class="spans">{"".join(items)}</ol>'
