"""The validation cards of vectors as content for static/report.js, in the app and on the static site."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
from markdown_it import MarkdownIt

from persona_core.report.markup import figure_json, plot_placeholder
from persona_core.utils.hub import public_name, split_revision
from persona_core.utils.markdown import escape
from persona_core.vectors.card_sections import CONTROLS, overview, trait_section
from persona_core.vectors.figures import cosine_figure, validation_figure
from persona_core.vectors.vectors import PersonaVectors

# Raw HTML passes: the sections fold tables into <details>, and escape every name and description themselves.
_MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table")
_VALIDATION, _COSINE = "validation", "cosine"


def vectors_summary(vectors: PersonaVectors, source: str) -> str:
    """What a persona vector is, how these were made and checked, and what they are of, as Markdown.

    Args:
        vectors: what it is about.
        source: the folder or Hub repository that they were loaded from.
    """
    base = vectors.config.get("base_model", {})
    neutral = "a specific score of 0" if vectors.has_specific else "z = 0"
    name = escape(base.get("name", "an unnamed model"))
    return (
        "A persona vector is a direction in the model's internal state: the average state over texts that show a trait "
        "minus the average over texts that do not. A token's score says how far its state lies along it. "
        f"{_checked(vectors)}\n\n"
        f"**{html.escape(public_name(split_revision(source)[0]))}**: {len(vectors.traits)} traits, read in the "
        f"residual stream of `{name}` ({vectors.n_blocks} blocks, numbered from 0, width {vectors.d_model}). A larger "
        f"projection means more of the trait; zero is not neutral, {neutral} is."
    )


def _checked(vectors: PersonaVectors) -> str:
    known = vectors.config.get("validation", {})
    n = sum("auroc" in known.get(trait, {}) for trait in vectors.traits)
    if not n:
        return "Whether these directions work has not been checked yet."
    which = "Each direction" if n == len(vectors.traits) else f"{n} of these {len(vectors.traits)} directions"
    return (
        f"{which} was checked on replies to questions that had no part in making it, against chance, other traits and "
        "the words alone; the tables below have the results, also where a check failed."
    )


def trait_words(vectors: PersonaVectors, trait: str) -> str:
    """A trait's validation as Markdown."""
    return trait_section(vectors, trait) or f"The vector of {html.escape(trait)} was not validated."


def trait_content(vectors: PersonaVectors, trait: str) -> dict[str, Any]:
    """The figures of one trait's validation, and the cosines, as report.js mounts them."""
    figures = _validation(vectors, trait) | _cosines(vectors)
    return {
        "html": _places(figures) or "<p></p>",
        "figures": {name: figure_json(one) for name, (one, _) in figures.items()},
    }


def vectors_content(vectors: PersonaVectors, source: str) -> dict[str, Any]:
    """The cards of all traits as one page, one trait shown at a time.

    Args:
        vectors: what the cards are of.
        source: the folder or Hub repository that they were loaded from.

    Returns:
        JSON-ready: "html", "figures" and "traits", as `report_content`.
    """
    buttons = "".join(
        f'<button type="button" data-pick="{html.escape(t)}" aria-pressed="false">{html.escape(t)}</button>'
        for t in vectors.traits
    )
    parts = [
        f"<section>{markdown_html(vectors_summary(vectors, source))}{markdown_html(overview(vectors))}</section>",
        f'<nav aria-label="Trait"><span>Trait</span>{buttons}</nav>',
    ]
    figures: dict[str, Any] = {}
    for index, trait in enumerate(vectors.traits):
        own = {f"{name}-{index}": found for name, found in _validation(vectors, trait).items()}
        words = f"<section>{markdown_html(trait_words(vectors, trait))}</section>"
        parts.append(f'<div data-trait="{html.escape(trait)}" hidden>{_places(own)}{words}</div>')
        figures |= own
    shared = _cosines(vectors)
    controls = markdown_html(f"## About the controls\n\n{CONTROLS}")
    parts += [_places(shared), f"<section>{controls}</section>"]
    figures |= shared
    drawn = {name: figure_json(one) for name, (one, _) in figures.items()}
    return {"html": "".join(parts), "figures": drawn, "traits": list(vectors.traits)}


def markdown_html(text: str) -> str:
    """Markdown of a card as HTML; wide tables scroll inside their own box.

    >>> print(markdown_html("A *b* of `c`"))
    <p>A <em>b</em> of <code>c</code></p>
    """
    page: str = _MARKDOWN.render(text)
    opened = '<div class="scroll" tabindex="0" role="region" aria-label="Table"><table>'
    return page.replace("<table>", opened).replace("</table>", "</table></div>").strip()


def _validation(vectors: PersonaVectors, trait: str) -> dict[str, tuple[go.Figure, str]]:
    if "auroc" not in vectors.config.get("validation", {}).get(trait, {}):
        return {}
    says = (
        f"{trait}: AUROC by block, rivals, correlation with the judge's score, and steering; the table below has the "
        "same numbers"
    )
    return {_VALIDATION: (validation_figure(vectors, trait), says)}


def _cosines(vectors: PersonaVectors) -> dict[str, tuple[go.Figure, str]]:
    if len(vectors.traits) < 2 or not vectors.best_block:
        return {}
    return {_COSINE: (cosine_figure(vectors), "Cosines between the traits' vectors")}


def _places(figures: Mapping[str, tuple[go.Figure, str]]) -> str:
    """Where report.js draws the figures; each is as wide as the page, or scrolls in its own box."""
    for figure, _ in figures.values():
        figure.update_layout(width=None)
    return "".join(
        f'<section class="scroll" tabindex="0" role="region" aria-label="{html.escape(says)}"><div class="wide">'
        f"{plot_placeholder(name, figure, says)}</div></section>"
        for name, (figure, says) in figures.items()
    )
