"""What the report shows: figures first, sentences that say what they mean, tables last.

The offline page and the app show the same content: markup whose texts are escaped, and the figures and texts that
static/report.js draws into it.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from persona_core.report import comparison_figures, score_figures
from persona_core.report.comparison_sentences import against, describe_comparison
from persona_core.report.figure_style import interval
from persona_core.report.findings import Findings
from persona_core.report.markup import (
    folded,
    folded_section,
    listed_spans,
    reader_name,
    section,
    spans_source,
    statistic_cell,
)
from persona_core.report.report_context import ReportContext, Row
from persona_core.report.sentences import group_reasons, merged_caveats
from persona_core.report.terms import explained
from persona_core.report.three_answers import how_section, when_section, where_section

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
    """What report.js mounts, JSON-ready: "html", and what is drawn into it: "figures" and "traits", and by config the
    "tokens", "ids" and "positions" of the replies.

    Args:
        findings: of `analyse`, or of its files.
        rows: by config, those that were analysed.
    """
    return _Content(findings, rows).build()


class _Content(ReportContext):
    def build(self) -> dict[str, Any]:
        parts = [
            self._head(),
            self._nav(),
            when_section(self),
            how_section(self),
            where_section(self),
            self._comparison(),
            self._spans(),
            self._statistics(),
            self._limits(),
        ]
        return {"html": explained("".join(parts)), "figures": self.figures, "traits": self.traits, **self.replies()}

    # ---- sections ----

    def _head(self) -> str:
        about = self.summary["about"]
        runs = ", ".join(
            f"{html.escape(c)} ({about['n_replies'][c]} replies by {reader_name(about, c)})" for c in self.rows
        )
        null = about["n_replies"].get("neutral", 0)
        compared = "missing" not in self.summary["comparison"]
        most = "largest difference" if compared else "most alarms"
        how = (
            f"{against(about)} 0 is the mean of the baseline's neutral tokens, and 1 is their standard deviation. Sink "
            f"tokens are left out. Brackets are 95 % intervals over prompts. The trait with the {most} comes first."
        )
        return (
            f"<header><p>{runs}. Null: {null} neutral replies.</p>"
            f"{folded('How to read the numbers', f'<p>{how}</p>')}</header>"
        )

    def _nav(self) -> str:
        buttons = "".join(
            f'<button type="button" data-pick="{html.escape(t)}" aria-pressed="false">{html.escape(t)}</button>'
            for t in self.traits
        )
        return f'<nav aria-label="Trait"><span>Trait</span>{buttons}</nav>'

    def _comparison(self) -> str:
        found = self.summary["comparison"]
        if "missing" in found:
            return section("Two models", "", f'<p class="note">{html.escape(found["missing"])}</p>')
        says = describe_comparison(found, self.summary["statistics"])
        effects = comparison_figures.effects_figure({t: found["overall"][t] for t in self.traits}, self.score)
        table = comparison_figures.effects_table(found, self.traits)
        overall = self.plot("effects", effects, says)
        parts = {}
        moves = {}
        for trait in self.traits:
            total = found["overall"][trait]["total"]
            if total:
                moves[trait] = f"<p>{html.escape(trait)}, contaminated minus baseline: {interval(total)}.</p>"
            by_category = comparison_figures.category_figure(found["categories"][trait], self.score)
            by_prompt = comparison_figures.prompt_figure([p for p in found["prompts"] if p["trait"] == trait])
            plots = (
                ("By category", self.plot(f"categories/{trait}", by_category, f"{trait} by category")),
                ("By prompt", self.plot(f"prompts/{trait}", by_prompt, f"{trait} by prompt")),
            )
            parts[trait] = f'<div class="pair">{"".join(f"<div><h3>{h}</h3>{plot}</div>" for h, plot in plots)}</div>'
        rest = folded("More on the two models", f"{overall}{table}{self.per_trait(parts)}")
        return section("Two models", "is it the text or the weights?", f"<p>{says}</p>{self.per_trait(moves)}{rest}")

    def _spans(self) -> str:
        groups: dict[tuple[str, str, str, str], list[Mapping[str, Any]]] = {}
        for span in self.found.spans:
            at = span["start"] - self.starts.get(span["config"], {}).get(span["id"], 0)
            groups.setdefault((span["trait"], span["config"], span["of"], span["unit"]), []).append({**span, "at": at})
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
        return folded_section("Sentences", "where the trait is strongest", self.per_trait(parts) + note)

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
        return folded_section("Run statistics", "by position in the reply", self.per_trait(parts))

    def _limits(self) -> str:
        about = self.summary["about"]
        says = [html.escape(says) for says in merged_caveats(about["caveats"])] + [
            html.escape(one) for one in group_reasons(self.found.missing)
        ]
        listed = "".join(f"<li>{one}</li>" for one in says)
        rest = folded("What was left out, and why", f"<ul>{listed}</ul>" * bool(says))
        return section(
            "What this cannot say",
            "",
            "<p>A projection says which direction a state points in, not why. An alarm proves nothing, and neither "
            "does its absence: small rises go unnoticed. Each prompt has one reply: the intervals cover the choice of "
            f"prompts and seeds, not of models.</p>{rest}",
        )
