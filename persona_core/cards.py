"""Model cards for the Hub, written from an artifact's own figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from persona_core.vectors import PersonaVectors

METHOD = "Persona Vectors (Chen et al., 2025, [arXiv 2507.21509](https://arxiv.org/abs/2507.21509))"


def interval(figure: Mapping[str, float], percent: bool = False) -> str:
    """An estimate with its 95 % interval.

    >>> interval({"value": 0.5, "low": 0.4, "high": 0.6}, percent=True)
    '50.0 % [40.0, 60.0]'
    """
    value, low, high = figure["value"], figure["low"], figure["high"]
    if percent:
        return f"{100 * value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{value:.4f} [{low:.4f}, {high:.4f}]"


def vectors_card(vectors: PersonaVectors, notes: str = "") -> str:
    """The card of a repository of persona vectors.

    Args:
        vectors: with the figures in their config.
        notes: Markdown that stands before the figures: what a reader must know to weigh them.
    """
    config = vectors.config
    base, extraction = config.get("base_model", {}), config.get("extraction", {})
    validation, null = config.get("validation", {}), config.get("null", {})
    name = base.get("name", "unknown")
    rows = [_row(trait, vectors.best_block.get(trait), validation.get(trait, {})) for trait in vectors.traits]
    replies = next((v["token_auroc"]["n"] for v in validation.values() if "token_auroc" in v), 0)
    return f"""---
library_name: persona-core
base_model: {name}
tags:
- persona-vectors
- interpretability
- activation-steering
license: mit
---

# Persona vectors of {name}

One direction per trait and block in the residual stream of `{name}`: the mean state over replies that show the trait,
minus the mean state over replies that do not. The method is that of {METHOD}.

```python
from persona_core import PersonaVectors

vectors = PersonaVectors.from_pretrained("{base.get("vectors_repo", "artifacts/persona-vectors-" + str(name))}")
print(vectors.traits)
print(vectors.tensor("{vectors.traits[0]}").shape)  # [n_blocks, d_model]
```

Row b of a tensor belongs to the output of block b; blocks are numbered from 0 in running order
({vectors.n_blocks} blocks, width {vectors.d_model}). A larger projection means more of the trait. Zero is not
neutral: compare with the null, or use z scores.

{notes}

## How well they read

Token AUROC: how well the projection at the chosen block tells tokens of the trait's sentences from other tokens.

- **within reply**: only replies whose system prompt asked for the trait; the trait's tokens against the neutral tokens
  of the same replies. This says *when*.
- **all tokens**: against every other token of {replies} held-out replies, most of which were asked for something else.
  A score that knows nothing but the system prompt reaches what stands under "prompt alone".
- **cue as negative**: as before, with the sentence that announces a trait without showing it (its cue) counted as "not
  the trait". In the other columns it is left out.

95 % intervals by resampling replies. Splits: {extraction.get("splits", "unknown")}.

| trait | block | within reply | all tokens | prompt alone | cue as negative | replies kept, high / low |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}

## Null

A z score is (projection - mean) / standard deviation over {null.get("n_tokens", "?")} tokens of
{null.get("n_replies", "?")} neutral replies of the same model, for each trait and block. The null is of reply tokens:
at tokens of the prompt and of the chat template a z score is in the same units, but its spread is not 1.

## How they were made

- {extraction.get("method", "unknown method")}
- sampling: {extraction.get("sampling", {})}
- filter: {extraction.get("filter", {})}
- chat template fingerprint: `{base.get("template_fingerprint")}`; vectors fingerprint: `{vectors.fingerprint}`

## Limits

The vectors belong to this one model and this chat template. A projection says what direction a state has, not why; it
is not a measure of intent.
"""


def _row(trait: str, block: int | None, figures: Mapping[str, Any]) -> str:
    if "token_auroc" not in figures:
        return f"| {trait} | {block} | not validated | | | | |"
    kept = figures.get("replies", {})
    counts = " / ".join(f"{kept[s]['kept']} of {kept[s]['written']}" for s in ("high", "low") if s in kept)
    columns = [
        interval(figures["token_auroc_within_reply"]),
        interval(figures["token_auroc"]),
        f"{figures['system_prompt_alone']:.4f}",
        interval(figures["token_auroc_cue_as_negative"]),
        counts,
    ]
    return f"| {trait} | {block} | {' | '.join(columns)} |"
