"""Model cards for the Hub, written from an artifact's own figures."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from persona_core.utils.markdown import escape, interval
from persona_core.vectors.vectors import PersonaVectors

logger = logging.getLogger(__name__)

METHOD = "Persona Vectors (Chen et al., 2025, [arXiv 2507.21509](https://arxiv.org/abs/2507.21509))"
Figure = Mapping[str, Any]

CONTROLS = """A control that fails is named here and in `config.json`; it does not make a vector useless, it says what
the vector cannot show.

- **auroc**: on held-out questions the projection does not tell replies with the trait from those without.
- **random_directions**: random directions do as well, by AUROC and by correlation with the judge's score.
- **shuffled_labels**: vectors made from shuffled labels lie as far apart.
- **split_half**: two halves of the questions give different vectors (cosine below 0.9).
- **own_minus_best_other**: over replies of all traits, another trait's vector goes with this trait's scores
  about as well.
- **length**, **refusal**: the length of a reply, or whether it declines, tells the trait as well as the vector.
- **position**, **token_identity**: a score made of nothing but where tokens stand, or of which tokens there are
  regardless of what comes before them, tells the trait as well as the vector; or the score mostly follows the position.
- **steering**: pushing along the vector does not bring the trait out more than a random push of the same size."""


def write_card(vectors: PersonaVectors, folder: str | Path, notes: str = "", source: str | None = None) -> Path:
    """Write the card and its pictures beside the vectors.

    Pictures need kaleido and a Chrome or Chromium; without them the card is written all the same, and the log says so.

    Args:
        notes: as in `vectors_card`.
        source: what a reader loads the vectors from; None: the folder.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    pictures = _write_pictures(vectors, path / "figures")
    card = path / "README.md"
    card.write_text(vectors_card(vectors, notes, pictures, source or path.as_posix()), encoding="utf-8")
    return card


def _write_pictures(vectors: PersonaVectors, folder: Path) -> Sequence[str]:
    """PNG files, one for each trait that has figures, and one of the cosines; the names of those that were written."""
    measured = [t for t in vectors.traits if "auroc" in vectors.config.get("validation", {}).get(t, {})]
    if not measured:
        return ()
    from persona_core.vectors.figures import cosine_figure, validation_figure

    figures = {t: validation_figure(vectors, t) for t in measured}
    if len(vectors.traits) > 1:
        figures["cosine"] = cosine_figure(vectors)
    folder.mkdir(exist_ok=True)
    try:
        import plotly.io

        plotly.io.write_images(list(figures.values()), [folder / f"{name}.png" for name in figures], scale=1.5)
    except (ImportError, ValueError, RuntimeError, OSError) as error:
        logger.warning(
            "No pictures for the card (%s: %s). They need kaleido (pip install kaleido) and a Chrome or Chromium "
            "(plotly_get_chrome installs one).",
            type(error).__name__,
            str(error).splitlines()[0] if str(error) else "",
        )
        return ()
    return tuple(figures)


def vectors_card(
    vectors: PersonaVectors, notes: str = "", pictures: Sequence[str] = (), source: str = "path/to/these/vectors"
) -> str:
    """The card of a repository of persona vectors.

    Args:
        vectors: with the figures in their config.
        notes: Markdown that stands before the figures: what a reader must know to weigh them.
        pictures: names of the PNG files in `figures/`.
        source: what a reader loads them from, a folder or a Hub id.
    """
    config = vectors.config
    base, extraction = config.get("base_model", {}), config.get("extraction", {})
    null = config.get("null", {})
    name = base.get("name", "unknown")
    parts = [
        f"""---
library_name: persona-core
base_model: {name}
tags:
- persona-vectors
- interpretability
- activation-steering
license: mit
---

# Persona vectors of {name}

One direction per trait and block in the residual stream of `{name}`: {_how(extraction.get("method"))}. After {METHOD}.

```python
from persona_core.vectors.vectors import PersonaVectors
from persona_core import PersonaVectors

vectors = PersonaVectors.from_pretrained("{source}")
print(vectors.traits)
print(vectors.tensor("{vectors.traits[0]}").shape)  # [n_blocks, d_model]
```

Row b of a tensor belongs to the output of block b; blocks are numbered from 0 in running order
({vectors.n_blocks} blocks, width {vectors.d_model}). A larger projection means more of the trait. Zero is not
neutral: compare with the null, or use z scores.
""",
        notes,
        overview(vectors),
        _token_table(vectors),
        f"## Controls\n\n{CONTROLS}\n",
        *(trait_section(vectors, trait, pictures) for trait in vectors.traits),
        _cosines(vectors, pictures),
        f"""## Null

A z score is (projection - mean) / standard deviation over {null.get("n_tokens", "?")} tokens of
{null.get("n_replies", "?")} neutral replies of the same model, for each trait and block. The null is of reply tokens:
at tokens of the prompt and of the chat template a z score is in the same units, but its spread is not 1.

## How they were made

- method: {escape(extraction.get("method", "unknown"))}, states pooled at {escape(extraction.get("position", "unknown"))}
- sampling: {escape(extraction.get("sampling", {}))}, seed {escape(extraction.get("seed", "unknown"))}
- filter: {escape(extraction.get("filter", {}))}
- splits: {escape(extraction.get("splits", "unknown"))}
- chat template fingerprint: `{base.get("template_fingerprint")}`; vectors fingerprint: `{vectors.fingerprint}`

## Intended use and limits

For research on when and how traits show in this model's states, and for steering it in experiments. Read the controls
before using a vector; those that failed are named. The vectors belong to this one model and this chat template. A
projection says what direction a state has, not why; it is not a measure of intent, and no ground for a verdict on a
single reply.

## Licence and citation

MIT. Cite the repository and its revision, and the paper that the method is after.
""",
    ]
    return "\n".join(part.strip("\n") + "\n" for part in parts if part)


def _how(method: str | None) -> str:
    """What the direction is, in words."""
    difference = "the mean state over replies that show the trait, minus the mean state over replies that do not"
    if method in (None, "mean_difference"):
        return difference
    if method == "mean_difference_without_neutral_components":
        return f"{difference}, without the directions in which neutral replies vary most"
    if method == "logistic_probe":
        return "that of a logistic regression of replies that show the trait against replies that do not"
    return f"found by the method {escape(method)!r}"


def overview(vectors: PersonaVectors) -> str:
    """All traits in one table, as Markdown, with what its columns mean."""
    validation = vectors.config.get("validation", {})
    if not any("auroc" in validation.get(t, {}) for t in vectors.traits):
        return "## How well they read\n\nThese vectors were not validated: nothing here says whether to believe them.\n"
    rows = []
    for trait in vectors.traits:
        f = validation.get(trait, {})
        if "auroc" not in f:
            rows.append(f"| {escape(trait)} | {vectors.best_block.get(trait)} | not validated | | | | |")
            continue
        failed = ", ".join(flag["control"] for flag in f.get("flags", []))
        steering = f.get("steering")
        columns = [
            interval(f["auroc"], digits=3),
            interval(f["split_half_cosine"], digits=3),
            interval(f["correlation"]["all"], digits=3),
            "not measured" if steering is None else interval(steering["effect"], digits=1),
            f"**fails: {failed}**" if failed else "passes every control",
        ]
        rows.append(f"| {escape(trait)} | {vectors.best_block.get(trait)} | {' | '.join(columns)} |")
    return f"""## How well they read

On replies to questions that neither the extraction nor the choice of the block has seen. 95 % intervals by resampling
questions.

- **AUROC**: how well the mean projection of a reply tells replies with the trait (judge's score 50 or more) from
  others.
- **split-half cosine**: between vectors of two random halves of the extraction questions; mean and range (2.5 to
  97.5 %) over random halvings. An AUROC of 1 has an interval without width: no resample shows an error either.
- **r**: correlation of the mean projection with the judge's score.
- **steering**: by how many points of the judge's score pushing along the vector beats a random push of the same size.

| trait | block | AUROC | split-half cosine | r | steering | controls |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}
"""


def trait_section(vectors: PersonaVectors, trait: str, pictures: Sequence[str] = ()) -> str:
    """A trait's validation as Markdown: what it fails, its figures; "" where it was not validated."""
    f = vectors.config.get("validation", {}).get(trait, {})
    if "auroc" not in f:
        return ""
    description = vectors.config.get("descriptions", {}).get(trait, "")
    lines = [f"## {escape(trait)}", "", escape(description), ""]
    lines += [f"- ⚠ **{flag['control']}**: {escape(flag['says'])}" for flag in f.get("flags", [])]
    lines += [f"- note: {escape(note)}" for note in f.get("notes", [])]
    if trait in pictures:
        lines += ["", f"![Validation of {escape(trait)}](figures/{trait}.png)"]
    block = f.get("block", {})
    c, nulls = f["confounds"], f["nulls"]
    rows = [
        ("block", f"{block.get('chosen')} ({escape(block.get('rule', 'unknown rule'))})"),
        ("replies kept", _kept(f.get("replies", {}))),
        ("AUROC", interval(f["auroc"])),
        ("correlation with the score, all replies", interval(f["correlation"]["all"])),
        ("... among replies asked for the trait", interval(f["correlation"]["high"])),
        ("... among replies asked for the contrary", interval(f["correlation"]["low"])),
        ("own minus best other correlation", _other(f.get("own_minus_best_other"))),
        ("split-half cosine", interval(f["split_half_cosine"])),
        (
            "random directions: 95 % of AUROCs, of correlations with the score below",
            f"{_number(nulls['random_directions']['auroc_95'])}, "
            f"{_number(nulls['random_directions']['correlation_95'])}",
        ),
        (
            "distance of the sides along the vector; 95 % of shuffled labels below",
            f"{_number(nulls['shuffled_labels']['gap'])}; {_number(nulls['shuffled_labels']['gap_95'])}",
        ),
        ("words alone (n-grams): AUROC", interval((f.get("text_baseline") or {}).get("auroc"))),
        ("length alone: AUROC", interval(c["length"]["auroc"])),
        ("projection and length, within sides: r", interval(c["length"]["correlation"])),
        ("declining alone: AUROC", interval(c["refusal"]["auroc"])),
        ("tokens' positions alone: AUROC", interval(c["position"]["auroc"])),
        ("variance over neutral tokens that goes with position", f"{100 * c['position']['r2']:.1f} %"),
        ("tokens without their context: AUROC", interval(c["token_identity"]["auroc"])),
        ("variance over neutral tokens that goes with the token", f"{100 * c['token_identity']['r2']:.1f} %"),
    ]
    lines += ["", "| figure | value |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows), ""]
    by_block = [
        f"| {b} | {interval(a)} | {'' if s is None else f'{s:.4f}'} |"
        for b, (a, s) in enumerate(
            zip(f["auroc_by_block"], block.get("correlation") or [None] * len(f["auroc_by_block"]), strict=False)
        )
    ]
    lines += [
        "<details><summary>By block</summary>",
        "",
        "| block | AUROC | r with the score, choice split |",
        "|---|---|---|",
        *by_block,
        "",
        "</details>",
        "",
    ]
    return "\n".join([*lines, *_steering(f.get("steering"))])


def _steering(steering: Figure | None) -> list[str]:
    if steering is None:
        return ["Steering was not measured.", ""]
    head = (
        f"Steering at block {steering['block']}: a strength of 1 is the vector's norm, {steering['norm']:.3g}. "
        f"{steering['n_questions']} questions, {steering['seeds']} seeds, no system prompt."
    )
    rows = []
    for own, other in zip(steering["vector"], steering["random"], strict=True):
        cells = [interval(arm[what], digits=1) for arm in (own, other) for what in ("trait", "coherence")]
        rows.append(f"| {own['strength']:g} | {' | '.join(cells)} |")
    effect = f"{interval(steering['effect'], digits=1)} points"
    if steering["effect"] is None:
        effect = "not told, since at no strength were the replies coherent and scored"
    return [
        "<details><summary>Steering</summary>",
        "",
        head,
        "",
        "| strength | trait, vector | coherence, vector | trait, random | coherence, random |",
        "|---|---|---|---|---|",
        *rows,
        "",
        f"Vector minus random at strength {steering['effect_at']:g}: {effect}.",
        "",
        "</details>",
        "",
    ]


def _token_table(vectors: PersonaVectors) -> str:
    """Where every token's truth is known (the demo world): how well single tokens are told apart."""
    validation = vectors.config.get("validation", {})
    known = [t for t in vectors.traits if "token_auroc" in validation.get(t, {})]
    if not known:
        return ""
    rows = []
    for trait in known:
        f = validation[trait]
        columns = [
            interval(f["token_auroc_within_reply"]),
            interval(f["token_auroc"]),
            f"{f['system_prompt_alone']:.4f}",
            interval(f["token_auroc_cue_as_negative"]),
        ]
        rows.append(f"| {escape(trait)} | {vectors.best_block.get(trait)} | {' | '.join(columns)} |")
    return f"""## How well they read single tokens

Here the truth is known for every token. Token AUROC: how well the projection at the chosen block tells tokens of the
trait's sentences from other tokens.

- **within reply**: only replies whose system prompt asked for the trait; the trait's tokens against the neutral tokens
  of the same replies. This says *when*.
- **all tokens**: against every other token of {validation[known[0]]["token_auroc"]["n"]} held-out replies, most of
  which were asked for something else. A score that knows nothing but the system prompt reaches what stands under
  "prompt alone".
- **cue as negative**: as before, with the sentence that announces a trait without showing it (its cue) counted as "not
  the trait". In the other columns it is left out.

95 % intervals by resampling replies.

| trait | block | within reply | all tokens | prompt alone | cue as negative |
|---|---|---|---|---|---|
{chr(10).join(rows)}
"""


def _cosines(vectors: PersonaVectors, pictures: Sequence[str]) -> str:
    validation = vectors.config.get("validation", {})
    known = [t for t in vectors.traits if "cosine" in validation.get(t, {})]
    if len(known) < 2:
        return ""
    if "cosine" in pictures:
        body = "![Cosines between the vectors](figures/cosine.png)\n"
    else:
        rows = [
            f"| {escape(t)} | "
            + " | ".join("1" if o == t else _cosine(validation[t]["cosine"].get(o)) for o in known)
            + " |"
            for t in known
        ]
        body = "\n".join([f"| | {' | '.join(map(escape, known))} |", "|---" * (len(known) + 1) + "|", *rows, ""])
    return f"## Cosines between traits\n\nEach row at the block of its trait.\n\n{body}"


def _cosine(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _kept(replies: Figure) -> str:
    return "; ".join(f"{side} {replies[side]['kept']} of {replies[side]['written']}" for side in replies) or "unknown"


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"


def _other(figure: Figure | None) -> str:
    return "no other trait" if figure is None else f"{interval(figure)} (other: {escape(figure['other'])})"
