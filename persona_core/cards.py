"""Model cards for the Hub, written from an artifact's own figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

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
    rows = []
    for trait in vectors.traits:
        figures = validation.get(trait, {})
        kept = figures.get("replies", {})
        counts = " / ".join(f"{kept[s]['kept']} of {kept[s]['written']}" for s in ("high", "low") if s in kept)
        strict = figures.get("token_auroc_cue_as_negative")
        rows.append(
            f"| {trait} | {vectors.best_block[trait]} | {interval(figures['token_auroc'])} "
            f"| {interval(strict) if strict else ''} | {counts} |"
            if "token_auroc" in figures
            else f"| {trait} | {vectors.best_block.get(trait, '')} | not validated | | {counts} |"
        )
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
({vectors.n_blocks} blocks, width {vectors.d_model}). A positive projection means more of the trait.

{notes}

## How well they read

Token AUROC: how well the projection at the chosen block tells tokens of the trait's sentences from all other tokens of
a reply, on {replies} held-out replies. Splits: {extraction.get("splits", "unknown")}.

95 % intervals by resampling replies. A sentence that announces the trait without showing it (its cue) is left out in
the first column and counts as "not the trait" in the second.

| trait | block | token AUROC | with the cue as a negative | replies kept, high / low |
|---|---|---|---|---|
{chr(10).join(rows)}

## Null

A z score is (projection - mean) / standard deviation over {null.get("n_tokens", "?")} tokens of
{null.get("n_replies", "?")} neutral replies of the same model, for each trait and block.

## How they were made

- {extraction.get("method", "unknown method")}
- sampling: {extraction.get("sampling", {})}
- filter: {extraction.get("filter", {})}
- chat template fingerprint: `{base.get("template_fingerprint")}`; vectors fingerprint: `{vectors.fingerprint}`

## Limits

The vectors belong to this one model and this chat template. A projection says what direction a state has, not why; it
is not a measure of intent.
"""
