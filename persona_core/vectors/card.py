"""The card of a repository of persona vectors, written from the figures in their config."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_core.utils.cards import make_card, usage
from persona_core.utils.files import write_whole
from persona_core.utils.markdown import escape, interval, table

if TYPE_CHECKING:
    from persona_core.vectors.vectors import PersonaVectors

logger = logging.getLogger(__name__)

METHOD = "Persona Vectors (Chen et al., 2025, [arXiv 2507.21509](https://arxiv.org/abs/2507.21509))"
Figure = Mapping[str, Any]

CONTROLS = """A failed control is named here and in `config.json`. It does not make a vector useless; it says what the
vector cannot show.

- **auroc**: on held-out questions the projection does not tell replies with the trait from those without.
- **random_directions**: random directions do as well, by AUROC and by correlation with the judge's score.
- **shuffled_labels**: vectors made from shuffled labels separate the sides as far.
- **split_half**: two halves of the questions give different vectors (cosine below 0.9).
- **own_minus_best_other**: over replies of all traits, another trait's vector correlates about as well with this
  trait's scores.
- **length**, **refusal**: the length of a reply, or whether it declines, predicts the trait as well as the vector does.
- **position**, **token_identity**: a score made only of token positions, or only of which tokens there are regardless
  of context, predicts the trait as well as the vector does; or the score mostly follows the position.
- **steering**: pushing along the vector does not bring out the trait more than a random push of the same size."""


def write_card(
    vectors: PersonaVectors, folder: str | Path, notes: str = "", source: str | None = None, draw: bool = True
) -> Path:
    """Write the card and its pictures beside the vectors.

    Pictures need kaleido and Chrome or Chromium; without them the card is written all the same, and the log says so.

    Args:
        vectors: what the card describes.
        folder: where to write.
        notes: as in `vectors_card`.
        source: what a reader loads the vectors from; None: the folder.
        draw: whether to draw the pictures; otherwise those in the folder are used.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    drawn = sorted(picture.stem for picture in (path / "figures").glob("*.png"))
    pictures = _write_pictures(vectors, path / "figures") if draw else drawn
    write_whole(path / "README.md", vectors_card(vectors, notes, pictures, source or path.as_posix()))
    return path / "README.md"


def _write_pictures(vectors: PersonaVectors, folder: Path) -> Sequence[str]:
    """PNG files: one per validated trait, and one of the cosines. Returns the names of those that were written."""
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
        notes: Markdown before the figures: what a reader must know to interpret them.
        pictures: names of the PNG files in `figures/`.
        source: what a reader loads the vectors from, a folder or a Hub id.
    """
    from huggingface_hub import ModelCardData

    config = vectors.config
    base, extraction = config.get("base_model", {}), config.get("extraction", {})
    name = base.get("name", "unknown")
    header = ModelCardData(
        base_model=name,
        library_name="persona-trace",
        license="mit",
        tags=["persona-vectors", "interpretability", "activation-steering"],
    )
    return make_card(
        header,
        f"""# Persona vectors of {escape(name)}

One direction per trait and block in the residual stream of `{escape(name)}`: {_how(extraction.get("method"))}. The
method is that of {METHOD}.
""",
        usage("vectors", source, trait=vectors.traits[0]),
        f"""Row b of a tensor belongs to the output of block b; blocks are numbered from 0 in running order
({vectors.n_blocks} blocks, width {vectors.d_model}). A larger projection means more of the trait. Zero is not
neutral: compare with the null, or use z scores.
""",
        notes,
        overview(vectors),
        _token_section(vectors),
        f"## Controls\n\n{CONTROLS}\n",
        *(trait_section(vectors, trait, pictures) for trait in vectors.traits),
        _cosines(vectors, pictures),
        _provenance(vectors, base, extraction, config.get("null", {})),
        """## Intended use and limits

For research on when and how traits show in this model's states, and for steering it in experiments. Read the controls
before using a vector; failed ones are named. The vectors belong to this model and this chat template only. A projection
says what direction a state has, not why; it does not measure intent, and does not justify a verdict on a single reply.
""",
        """## Licence and citation

MIT. Cite the repository and its revision, and the paper on the method.
""",
    )


def _provenance(vectors: PersonaVectors, base: Figure, extraction: Figure, null: Figure) -> str:
    return f"""## Null

A z score is (projection - mean) / standard deviation over {null.get("n_tokens", "?")} tokens of
{null.get("n_replies", "?")} neutral replies of the same model, for each trait and block. The null is of reply tokens:
at tokens of the prompt and of the chat template a z score has the same units, but its spread is not 1.

## How they were made

- method: {escape(extraction.get("method", "unknown"))}; states pooled at
  {escape(extraction.get("position", "unknown"))}
- sampling: {escape(extraction.get("sampling", {}))}, seed {escape(extraction.get("seed", "unknown"))}
- filter: {escape(extraction.get("filter", {}))}
- splits: {escape(extraction.get("splits", "unknown"))}
- chat template fingerprint: `{base.get("template_fingerprint")}`; vectors fingerprint: `{vectors.fingerprint}`
"""


def _how(method: str | None) -> str:
    """What the direction is, for a sentence."""
    difference = "the mean state over replies that show the trait, minus the mean state over replies that do not"
    if method in (None, "mean_difference"):
        return difference
    if method == "mean_difference_without_neutral_components":
        return f"{difference}, without the directions in which neutral replies vary most"
    if method == "logistic_probe":
        return "the weights of a logistic regression of replies that show the trait against replies that do not"
    return f"the result of the method {escape(method)!r}"


def overview(vectors: PersonaVectors) -> str:
    """All traits in one table, as Markdown, with what its columns mean."""
    validation = vectors.config.get("validation", {})
    if not any("auroc" in validation.get(t, {}) for t in vectors.traits):
        return "## How well they read\n\nThese vectors were not validated: there is no evidence yet that they work.\n"
    rows = table(
        ["trait", "block", "AUROC", "split-half cosine", "r", "steering", "controls"],
        [
            (escape(trait), vectors.best_block.get(trait), *_overview_cells(validation.get(trait, {})))
            for trait in vectors.traits
        ],
    )
    return f"""## How well they read

On replies to questions used neither for the extraction nor for the choice of the block. 95 % intervals by resampling
questions.

- **AUROC**: how well the mean projection of a reply tells replies with the trait (judge's score 50 or more) from
  others.
- **split-half cosine**: between the vectors of two random halves of the extraction questions; mean and range (2.5 to
  97.5 %) over random halvings. An AUROC of 1 has an interval without width: no resample contains an error either.
- **r**: correlation of the mean projection with the judge's score.
- **steering**: by how many points of the judge's score a push along the vector exceeds a random push of the same size.

{rows}
"""


def _overview_cells(f: Figure) -> tuple[str, ...]:
    if "auroc" not in f:
        return ("not validated", "", "", "", "")
    failed = ", ".join(flag["control"] for flag in f.get("flags", []))
    return (
        interval(f["auroc"], 3),
        interval(f["split_half_cosine"], 3),
        interval(f["correlation"]["all"], 3),
        interval((f.get("steering") or {}).get("effect"), 1),
        f"**fails: {failed}**" if failed else "passes every control",
    )


def trait_section(vectors: PersonaVectors, trait: str, pictures: Sequence[str] = ()) -> str:
    """A trait's validation as Markdown: the controls it fails, and its figures; "" if it was not validated."""
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
        ("... among replies instructed to show the trait", interval(f["correlation"]["high"])),
        ("... among replies instructed to show the opposite", interval(f["correlation"]["low"])),
        ("correlation, minus that of the best other vector", _other(f.get("own_minus_best_other"))),
        ("split-half cosine", interval(f["split_half_cosine"])),
        (
            "random directions: 95th percentile of the AUROC and of the correlation with the score",
            f"{_number(nulls['random_directions']['auroc_95'])}, "
            f"{_number(nulls['random_directions']['correlation_95'])}",
        ),
        (
            "distance between the sides along the vector; 95th percentile with shuffled labels",
            f"{_number(nulls['shuffled_labels']['gap'])}; {_number(nulls['shuffled_labels']['gap_95'])}",
        ),
        ("words alone (n-grams): AUROC", interval((f.get("text_baseline") or {}).get("auroc"))),
        ("length alone: AUROC", interval(c["length"]["auroc"])),
        ("projection and length, within each side: r", interval(c["length"]["correlation"])),
        ("declining alone: AUROC", interval(c["refusal"]["auroc"])),
        ("token positions alone: AUROC", interval(c["position"]["auroc"])),
        ("variance over neutral tokens explained by position", f"{100 * c['position']['r2']:.1f} %"),
        ("tokens without their context: AUROC", interval(c["token_identity"]["auroc"])),
        ("variance over neutral tokens explained by the token", f"{100 * c['token_identity']['r2']:.1f} %"),
    ]
    lines += ["", table(["figure", "value"], rows), ""]
    correlations = block.get("correlation") or [None] * len(f["auroc_by_block"])
    by_block = table(
        ["block", "AUROC", "r with the score, choice split"],
        [
            (b, interval(auroc), "" if r is None else f"{r:.4f}")
            for b, (auroc, r) in enumerate(zip(f["auroc_by_block"], correlations, strict=False))
        ],
    )
    return "\n".join([*lines, *_folded("By block", by_block), *_steering(f.get("steering"))])


def _folded(title: str, *paragraphs: str) -> list[str]:
    lines = [f"<details><summary>{title}</summary>", ""]
    for paragraph in paragraphs:
        lines += [paragraph, ""]
    return [*lines, "</details>", ""]


def _steering(steering: Figure | None) -> list[str]:
    if steering is None:
        return ["Steering was not measured.", ""]
    head = (
        f"Steering at block {steering['block']}: a strength of 1 is the vector's norm, {steering['norm']:.3g}. "
        f"{steering['n_questions']} questions, {steering['seeds']} seeds, no system prompt."
    )
    curve = table(
        ["strength", "trait, vector", "coherence, vector", "trait, random", "coherence, random"],
        [
            (
                f"{vector['strength']:g}",
                *(interval(arm[s], 1) for arm in (vector, random) for s in ("trait", "coherence")),
            )
            for vector, random in zip(steering["vector"], steering["random"], strict=True)
        ],
    )
    effect = f"{interval(steering['effect'], 1)} points"
    if steering["effect"] is None:
        effect = "unknown, since at no strength were the replies coherent and scored"
    return _folded("Steering", head, curve, f"Vector minus random at strength {steering['effect_at']:g}: {effect}.")


def _token_section(vectors: PersonaVectors) -> str:
    """How well single tokens are told apart, where the truth is known for every token (the demo world)."""
    validation = vectors.config.get("validation", {})
    known = [t for t in vectors.traits if "token_auroc" in validation.get(t, {})]
    if not known:
        return ""
    rows = table(
        ["trait", "block", "within reply", "all tokens", "prompt alone", "cue as negative"],
        [
            (
                escape(trait),
                vectors.best_block.get(trait),
                interval(f["token_auroc_within_reply"]),
                interval(f["token_auroc"]),
                f"{f['system_prompt_alone']:.4f}",
                interval(f["token_auroc_cue_as_negative"]),
            )
            for trait, f in ((trait, validation[trait]) for trait in known)
        ],
    )
    return f"""## How well they read single tokens

Here the truth is known for every token. Token AUROC: how well the projection at the chosen block tells tokens of
sentences that show the trait from other tokens.

- **within reply**: only replies whose system prompt demands the trait; the tokens that show it against the neutral
  tokens of the same replies. This says *when*.
- **all tokens**: against all other tokens of {validation[known[0]]["token_auroc"]["n"]} held-out replies, most of
  which have another system prompt. A score that depends only on the system prompt reaches the value under "prompt
  alone".
- **cue as negative**: the same, with the sentence that announces a trait without showing it (its cue) counted as "not
  the trait". The other columns leave it out.

95 % intervals by resampling replies.

{rows}
"""


def _cosines(vectors: PersonaVectors, pictures: Sequence[str]) -> str:
    validation = vectors.config.get("validation", {})
    known = [t for t in vectors.traits if "cosine" in validation.get(t, {})]
    if len(known) < 2:
        return ""
    if "cosine" in pictures:
        body = "![Cosines between the vectors](figures/cosine.png)"
    else:
        body = table(
            ["", *map(escape, known)],
            [(escape(t), *("1" if o == t else _cosine(validation[t]["cosine"].get(o)) for o in known)) for t in known],
        )
    return f"## Cosines between traits\n\nEach row at the best block of its trait.\n\n{body}\n"


def _cosine(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _kept(replies: Figure) -> str:
    names = {"high": "positive", "low": "negative"}  # the stored keys
    counts = (f"{names.get(side, side)} {kept['kept']} of {kept['written']}" for side, kept in replies.items())
    return "; ".join(counts) or "unknown"


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"


def _other(figure: Figure | None) -> str:
    return "no other trait" if figure is None else f"{interval(figure)} (other: {escape(figure['other'])})"
