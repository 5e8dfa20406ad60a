"""The card of a repository of persona vectors, written from the figures in their config."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from persona_core.utils.cards import make_card, usage
from persona_core.utils.files import write_atomically
from persona_core.utils.markdown import escape
from persona_core.vectors.card_sections import CONTROLS, cosine_section, overview, token_section, trait_section
from persona_core.vectors.card_steering import steering_section
from persona_core.vectors.verdict import Figures

if TYPE_CHECKING:
    from persona_core.vectors.vectors import PersonaVectors

logger = logging.getLogger(__name__)

METHOD = "Persona Vectors (Chen et al., 2025, [arXiv 2507.21509](https://arxiv.org/abs/2507.21509))"


def write_card(
    vectors: PersonaVectors, folder: str | Path, notes: str = "", source: str | None = None, draw: bool = True
) -> Path:
    """Write the card and its pictures beside the vectors.

    Pictures need kaleido and Chrome or Chromium; without them the card is written anyway, and the log says so.

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
    write_atomically(path / "README.md", vectors_card(vectors, notes, pictures, source or path.as_posix()))
    return path / "README.md"


def _write_pictures(vectors: PersonaVectors, folder: Path) -> Sequence[str]:
    """PNG files: one per validated trait, and one of the cosines. Returns the names of those that were written."""
    validation = vectors.config.get("validation", {})
    # A trait names its picture, and a name from a stranger's file must not lead out of the folder.
    measured = [t for t in vectors.traits if "auroc" in validation.get(t, {}) and Path(t).name == t]
    if not measured:
        return ()
    from persona_core.vectors.figures import cosine_figure, validation_figure

    figures = {t: validation_figure(vectors, t) for t in measured}
    if len(vectors.traits) > 1:
        figures["cosine"] = cosine_figure(vectors)
    folder.mkdir(exist_ok=True)
    try:
        import plotly.io

        plotly.io.write_images(
            list(figures.values()),
            [folder / f"{name}.png" for name in figures],
            scale=1.5,
            width=[figure.layout.width for figure in figures.values()],  # without them 700 × 500, whatever the layout
            height=[figure.layout.height for figure in figures.values()],
        )
    except (ImportError, ValueError, RuntimeError, OSError) as error:
        logger.warning(
            "No pictures for the card (%s: %s). They need kaleido (pip install kaleido) and a Chrome or Chromium "
            "(plotly_get_chrome installs one).",
            type(error).__name__,
            str(error).splitlines()[0] if str(error) else "no message",
        )
        return ()
    return tuple(figures)


def vectors_card(
    vectors: PersonaVectors, notes: str = "", pictures: Sequence[str] = (), source: str = "path/to/these/vectors"
) -> str:
    """The card of a repository of persona vectors.

    Args:
        vectors: with the figures in their config.
        notes: Markdown before the figures: what a reader needs to interpret them.
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
        f"""Row b of a tensor belongs to the output of block b; blocks are numbered from 0 in execution order
({vectors.n_blocks} blocks, width {vectors.d_model}). A larger projection means more of the trait. Zero is not
neutral: compare with the null, or use z scores.
""",
        notes,
        _labels(extraction),
        overview(vectors),
        token_section(vectors),
        f"## Controls\n\n{CONTROLS}\n",
        *(trait_section(vectors, trait, pictures) for trait in vectors.traits),
        cosine_section(vectors, pictures),
        steering_section(vectors),
        _provenance(vectors, base, extraction, config.get("null", {})),
        """## Intended use and limits

For research on when and how traits appear in this model's states, and for steering experiments. Read the controls
before using a vector; the failed ones are listed. The vectors are for this model and this chat template only. A
projection says which direction a state has, not why; it does not measure intent, and does not justify a verdict on one
reply.
""",
        """## Licence and citation

MIT. Cite the repository and its revision, and the paper on the method.
""",
    )


def _labels(extraction: Figures) -> str:
    """What stands in place of a judge, if no judge read the replies; "judge's score" below is then that label."""
    from persona_core.judging.labels import UNJUDGED  # here: it brings torch along

    says = UNJUDGED.get(str(extraction.get("filter", {}).get("judge")))
    if not says:
        return ""
    parts = f"\n\n{PARTS}" * ("labels" in extraction)
    return f"## Labels without a judge\n\n{says} Where this card speaks of a judge's score, it is this label.{parts}\n"


PARTS = """Positive texts say which of their sentences show the trait. Below, the mean over such a text is over these
sentences alone, in every split, and the words, positions and tokens that it is compared with are theirs; the mean over
a negative text is over all of it. So an AUROC says how well sentences that show the trait are told from texts that do
not. A mean over a whole reply, as a monitor takes it, tells less: sentences that show nothing count in it too."""
"""What a card says where texts name the parts that show the trait."""


def _provenance(vectors: PersonaVectors, base: Figures, extraction: Figures, null: Figures) -> str:
    return f"""## Null

A z score is (projection - mean) / standard deviation over {null.get("n_tokens", "?")} tokens of
{null.get("n_replies", "?")} neutral replies of the same model, for each trait and block. The null covers reply tokens:
at tokens of the prompt and the chat template a z score has the same units, but its spread is not 1.

## How they were made

- method: {escape(extraction.get("method", "unknown"))}; states pooled at
  {escape(extraction.get("position", "unknown"))}
- sampling: {escape(extraction.get("sampling", {}))}, seed {escape(extraction.get("seed", "unknown"))}
- filter: {escape(extraction.get("filter", {}))}
- splits: {escape(extraction.get("splits", "unknown"))}
- tokens: {escape(extraction.get("labels", "all of each reply"))}
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
