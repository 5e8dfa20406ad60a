"""Validation figures of persona vectors as Markdown: the sections of their card, which the app shows too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from persona_core.utils.markdown import escape, interval, table
from persona_core.vectors.verdict import Figures, control_words, verdict

if TYPE_CHECKING:
    from persona_core.vectors.vectors import PersonaVectors


CONTROLS = """A failed control is named here and in `config.json`. It does not make a vector useless; it says what the
vector cannot show. "Passes every control" stands only where each one was measured.

- **auroc**: on held-out questions the projection does not separate replies with the trait from those without.
- **random directions**: random directions do as well, both by AUROC and by correlation with the judge's score.
- **another trait's vector**: on this trait's own replies the vector of another trait does as well.
- **other traits' replies**: replies that show another trait have as high a specific score, or clearly more than a tenth
  of them (the interval's lower end) one above 95 % of the neutral replies. Then it says "not neutral" rather than which
  trait.
- **own minus best other**: over replies of all traits, another trait's vector correlates about as well with this
  trait's scores.
- **words alone**: counting words separates the replies as well as the vector does.
- **wordings held out**, **styles held out**: a direction from the other instruction wordings, or from replies of
  another length or layout, does not separate the replies that were left out.
- **shuffled labels**: vectors made from shuffled labels separate the two sides equally well.
- **split half**: two halves of the questions give different vectors (cosine below 0.9).
- **length**, **declining**: the length of a reply, or whether it declines, predicts the trait as well as the vector.
- **position**, **tokens without context**: a score based only on token positions, or only on token ids regardless of
  context, predicts the trait as well as the vector does; or the score mostly follows the position.
- **sink tokens**: the AUROC changes when tokens with a huge norm are counted.
- **steering**: pushing along the vector does not bring out the trait more than a random push of the same size, or than
  one that leaves the replies equally coherent."""


def overview(vectors: PersonaVectors) -> str:
    """All traits in two tables, as Markdown, with what their columns mean."""
    validation = vectors.config.get("validation", {})
    if not any("auroc" in validation.get(t, {}) for t in vectors.traits):
        return "## How well they read\n\nThese vectors were not validated: there is no evidence yet that they work.\n"
    known = [(t, validation[t]) for t in vectors.traits if "auroc" in validation.get(t, {})]
    rows = table(
        ["trait", "block", "AUROC", "r", "split-half cosine", "steering", "verdict"],
        [
            (escape(trait), vectors.best_block.get(trait), *_overview_cells(validation.get(trait, {})))
            for trait in vectors.traits
        ],
    )
    beside = table(
        ["trait", "AUROC", "best other vector", "random directions", "words alone", "wordings held out",
         "sink tokens: with minus without", "false positives, other traits", "... by the specific score"],
        [(escape(trait), *_beside(f)) for trait, f in known],
    )  # fmt: skip
    return f"""## How well they read

Measured on replies to questions used neither for extraction nor for choosing the block. 95 % intervals over questions.

- **AUROC**: how well a reply's mean projection separates replies with the trait (judge's score 50 or more) from
  others. Without a single error the interval is Clopper and Pearson's with a question as one trial: conservative.
- **r**: correlation of the mean projection with the judge's score.
- **split-half cosine**: between the vectors of two random halves of the extraction questions; mean and range (2.5 to
  97.5 %) over random halvings.
- **steering**: points on the judge's scale by which a push along the vector beats a random push that leaves the replies
  equally coherent (in older cards: of the same size).

{rows}

What that AUROC is worth. The two sides differ in more than the trait, so a direction that knows nothing of it may do
well too. In the same units, on the same replies:

- **best other vector**: another trait's vector. **random directions**: 5 % of them reach this.
- **words alone**: a classifier that counts words. **wordings held out**: each reply is scored along a direction made
  without the instruction it was written under.
- **sink tokens**: what the AUROC gains or loses when tokens with a huge norm are counted like others.
- **false positives, other traits**: the share of replies showing another trait that score above 95 % of the neutral
  replies, by the plain score and by the specific one, which takes out what all traits share. Statements are made on
  the latter.

{beside}
"""


def _overview_cells(f: Figures) -> tuple[str, ...]:
    if "auroc" not in f:
        return ("not validated", "", "", "", "")
    found = verdict(f)
    return (
        interval(f["auroc"], 3),
        interval(f["correlation"]["all"], 3),
        interval(f["split_half_cosine"], 3),
        interval(_steering_effect(f.get("steering")), 1),
        f"**{found}**" if found.failed else str(found),
    )


def _steering_effect(steering: Figures | None) -> Figures | None:
    """At equal coherence; of older curves, at the same size."""
    if steering is None:
        return None
    matched: Figures | None = steering.get("matched")
    return steering["effect"] if matched is None else matched["effect"]


def _beside(f: Figures) -> tuple[str, ...]:
    theirs = f.get("other_traits") or {}
    return (
        interval(f["auroc"], 3),
        interval((f.get("best_other_vector") or {}).get("auroc"), 3),
        _number(f["nulls"]["random_directions"]["auroc_95"]),
        interval((f.get("text_baseline") or {}).get("auroc"), 3),
        interval((f.get("wordings") or {}).get("auroc"), 3),
        interval((f.get("sinks") or {}).get("with_minus_without"), 3),
        interval(theirs.get("taken"), 0, percent=True),
        interval((theirs.get("specific") or {}).get("taken"), 0, percent=True),
    )


def trait_section(vectors: PersonaVectors, trait: str, pictures: Sequence[str] = ()) -> str:
    """A trait's validation as Markdown: the controls it fails, and its figures; "" if it was not validated."""
    f = vectors.config.get("validation", {}).get(trait, {})
    if "auroc" not in f:
        return ""
    description = vectors.config.get("descriptions", {}).get(trait, "")
    lines = [f"## {escape(trait)}", "", escape(description), ""]
    lines += [f"This vector {verdict(f)}.", ""]
    lines += [f"- ⚠ **{control_words(flag['control'])}**: {escape(flag['says'])}" for flag in f.get("flags", [])]
    lines += [f"- note: {escape(note)}" for note in f.get("notes", [])]
    if trait in pictures:
        lines += ["", f"![Validation of {escape(trait)}](figures/{trait}.png)"]
    block = f.get("block", {})
    c, nulls, theirs, styles = f["confounds"], f["nulls"], f.get("other_traits") or {}, f.get("styles") or {}
    specific = theirs.get("specific") or {}
    rows = [
        ("block", f"{block.get('chosen')} ({escape(block.get('rule', 'unknown rule'))})"),
        ("replies kept", _kept(f.get("replies", {}))),
        ("AUROC", interval(f["auroc"])),
        ("best other vector on these replies: AUROC", _best_other(f.get("best_other_vector"))),
        ("... own minus other", interval((f.get("best_other_vector") or {}).get("own_minus_other"))),
        ("own replies against those of other traits: AUROC", interval(theirs.get("auroc"))),
        ("... replies above 95 % of the neutral ones: own", interval(theirs.get("found"), percent=True)),
        ("... the same, other traits", interval(theirs.get("taken"), percent=True)),
        ("by the specific score: own replies against those of other traits, AUROC", interval(specific.get("auroc"))),
        ("... replies above 95 % of the neutral ones: own", interval(specific.get("found"), percent=True)),
        ("... the same, other traits", interval(specific.get("taken"), percent=True)),
        ("instruction wordings held out: AUROC", _groups(f.get("wordings"))),
        ("length held out: AUROC", _groups(styles.get("length"))),
        ("layout held out (lists and the like, prose): AUROC", _groups(styles.get("layout"))),
        ("with sink tokens: AUROC", interval((f.get("sinks") or {}).get("with"))),
        ("... minus without", interval((f.get("sinks") or {}).get("with_minus_without"))),
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
        ("... vector minus words", interval((f.get("text_baseline") or {}).get("vector_minus_text"))),
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


def _steering(steering: Figures | None) -> list[str]:
    if steering is None:
        return ["Steering was not measured.", ""]
    deviations = steering.get("norm_in_sd")
    spread = "" if deviations is None else f" ({deviations:.3g} standard deviations of neutral tokens along it)"
    head = (
        f"Steering at block {steering['block']}: a strength of 1 is the vector's norm, {steering['norm']:.3g}{spread}. "
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
        effect = "unknown: at no strength were the replies both coherent and scored"
    says = f"Vector minus random at strength {steering['effect_at']:g}: {effect}."
    return _folded("Steering", head, curve, says, *_matched(steering.get("matched")))


def _matched(matched: Figures | None) -> list[str]:
    """The comparison with random pushes at equal coherence, as a sentence."""
    if matched is None:
        return []
    coherence = f"{interval(matched['coherence_random'], 1)} against {interval(matched['coherence_vector'], 1)}"
    if matched["effect"] is None:
        return [
            f"At equal coherence: unknown. The nearest random push, at strength {matched['strength']:.3g}, has a "
            f"coherence of {coherence} along the vector."
        ]
    return [
        f"Vector minus random at equal coherence: {interval(matched['effect'], 1)} points. The random push has a "
        f"strength of {matched['strength']:.3g} there, and a coherence of {coherence} along the vector."
    ]


def token_section(vectors: PersonaVectors) -> str:
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

The truth is known for every token here. Token AUROC: how well the projection at the chosen block separates tokens of
sentences that show the trait from other tokens.

- **within reply**: only replies whose system prompt demands the trait; the tokens that show it against the neutral
  tokens of the same replies. This says *when*.
- **all tokens**: against all other tokens of {validation[known[0]]["token_auroc"]["n"]} held-out replies, most of
  which have another system prompt. A score that depends only on the system prompt would reach the value under
  "prompt alone".
- **cue as negative**: the same, with the sentence that announces a trait without showing it (its cue) counted as "not
  the trait". The other columns leave it out.

95 % intervals by resampling replies.

{rows}
"""


def cosine_section(vectors: PersonaVectors, pictures: Sequence[str] = ()) -> str:
    """Cosines between the traits' vectors, as a picture or a table; "" where there are none."""
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


def _kept(replies: Figures) -> str:
    names = {"high": "positive", "low": "negative"}  # the stored keys
    counts = (f"{names.get(side, side)} {kept['kept']} of {kept['written']}" for side, kept in replies.items())
    return "; ".join(counts) or "unknown"


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"


def _best_other(figure: Figures | None) -> str:
    return "not measured" if figure is None else f"{interval(figure['auroc'])} ({escape(figure['other'])})"


def _groups(found: Figures | None) -> str:
    """The figure over all groups, and of each: `0.98 [0.91, 1.00] (short 0.99, long 0.97)`."""
    if found is None:
        return "not measured"
    each = ", ".join(
        f"{escape(name)} {'unknown' if one['auroc'] is None else format(one['auroc']['value'], '.3f')}"
        for name, one in found["groups"].items()
    )
    return f"{interval(found['auroc'], missing='unknown')} ({each})"


def _other(figure: Figures | None) -> str:
    return "not measured" if figure is None else f"{interval(figure)} (other: {escape(figure['other'])})"
