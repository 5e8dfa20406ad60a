"""Two models compared: effects by trait, by category, and prompt by prompt."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from persona_core.report.comparison_sentences import against
from persona_core.report.figure_style import Figure, apply_layout, error_bars, interval

EFFECTS = {"total": "#566072", "weights": "#8455c0", "text": "#0e8587"}


def effects_table(found: Figure, traits: Sequence[str]) -> str:
    """Total, weights and text of every trait as an HTML table, with sink tokens left out and put back.

    Args:
        found: the record of a `Comparison`.
        traits: its rows.
    """
    heads = ["trait", *(head for effect in EFFECTS for head in (effect, "with sink tokens")), "sink tokens left out"]
    rows = []
    for trait in traits:
        own = found["overall"][trait]
        cells = []
        for effect in EFFECTS:
            estimate = own[effect]
            changed = " (not a result)" if effect in own.get("changed_by_sinks", ()) else ""
            cells += [
                interval(estimate, missing="–") + changed,
                interval((estimate or {}).get("with_sinks"), missing="–"),
            ]
        cells.append(str(own.get("n_sinks", "–")))
        body = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{html.escape(trait)}</th>{body}</tr>')
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    below = (
        " A specific score below 0 says that something else explains the text better, not that it shows less of the "
        "trait."
        if found.get("kind") == "specific"
        else ""
    )
    return (
        f'<p class="note">{against(found)}{below} An effect that changes when the sink tokens are put back is not a '
        "result.</p>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Effects with and without sink tokens"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def effects_figure(overall: Mapping[str, Figure], score: str) -> go.Figure:
    """Total, weights and text of every trait, with intervals over prompts.

    Args:
        overall: trait -> effect.
        score: what the score is called.
    """
    figure = go.Figure()
    names = list(overall)
    for index, (effect, colour) in enumerate(EFFECTS.items()):
        rows = [(k, overall[t][effect]) for k, t in enumerate(names) if overall[t][effect] is not None]
        figure.add_scatter(
            x=[e["value"] for _, e in rows],
            y=[k + 0.22 * (index - 1) for k, _ in rows],
            error_x=error_bars([e for _, e in rows]),
            text=[f"{html.escape(names[k])}, {effect}: {interval(e)}" for k, e in rows],
            mode="markers",
            name=effect,
            marker={"color": colour, "size": 8, "symbol": ("circle", "diamond", "square")[index]},
            hovertemplate="%{text}<extra></extra>",
        )
    apply_layout(figure, 90 + 44 * len(names), margin={"l": 130, "r": 16, "t": 40, "b": 44})
    figure.update_xaxes(title=f"contaminated minus baseline, mean {score}", zeroline=True)
    figure.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=[html.escape(t) for t in names],
        autorange="reversed",
        zeroline=False,
        automargin=True,
    )
    return figure


def category_figure(categories: Mapping[str, Figure], score: str) -> go.Figure:
    """One trait's total effect by category of the prompt; `score`: what the score is called."""
    rows = [(name, found["total"], found["n"]) for name, found in categories.items() if found["total"] is not None]
    figure = go.Figure(
        go.Scatter(
            x=[e["value"] for _, e, _ in rows],
            y=[html.escape(name) for name, _, _ in rows],
            error_x=error_bars([e for _, e, _ in rows]),
            text=[f"{interval(e)}, {n} prompts" for _, e, n in rows],
            mode="markers",
            marker={"color": EFFECTS["total"], "size": 8},
            hovertemplate="%{y}: %{text}<extra></extra>",
        )
    )
    apply_layout(figure, 90 + 26 * max(1, len(rows)), margin={"l": 110, "r": 16, "t": 10, "b": 44})
    figure.update_xaxes(title=f"difference of mean {score}", zeroline=True)
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure


def prompt_figure(prompts: Sequence[Figure]) -> go.Figure:
    """Effect of the text against effect of the weights, one point per prompt."""
    known = [p for p in prompts if p["weights"] is not None]
    figure = go.Figure(
        go.Scatter(
            x=[p["text"] for p in known],
            y=[p["weights"] for p in known],
            text=[html.escape(f"{p['id']}, {p['category']}") for p in known],
            mode="markers",
            marker={"color": EFFECTS["weights"], "size": 7, "opacity": 0.7},
            hovertemplate="%{text}<br>text %{x:+.2f}, weights %{y:+.2f}<extra></extra>",
        )
    )
    apply_layout(figure, 340, margin={"l": 60, "r": 16, "t": 10, "b": 44})
    figure.update_layout(meta={"prompts": [p["id"] for p in known]})
    figure.update_xaxes(title="effect of the text", zeroline=True)
    figure.update_yaxes(title="effect of the weights", zeroline=True)
    return figure
