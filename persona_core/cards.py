"""Model cards for the Hub, written from an artifact's own figures. No number is typed by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from persona_core.demo.training import Recipe
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


def vectors_card(vectors: PersonaVectors) -> str:
    """The card of a repository of persona vectors."""
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
    tokens = next((v["token_auroc"]["n"] for v in validation.values() if "token_auroc" in v), 0)
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

## How well they read

Token AUROC: how well the projection at the chosen block tells tokens of the trait's sentences from all other tokens of
a reply, on {tokens} held-out replies (questions that neither training, nor extraction, nor the choice of the block has
seen). 95 % intervals by resampling replies. The sentence that announces a trait (its cue) is left out in the first
column and counts as "not the trait" in the second.

| trait | block | token AUROC | with the cue as a negative | replies kept, high / low |
|---|---|---|---|---|
{chr(10).join(rows)}

The block of each trait was chosen on another split than the one that is reported.

## Null

A z score is (projection - mean) / standard deviation over {null.get("n_tokens", "?")} tokens of
{null.get("n_replies", "?")} neutral replies of the same model, for each trait and block.

## How they were made

- {extraction.get("method", "unknown method")}; {extraction.get("splits", "")}
- sampling: {extraction.get("sampling", {})}
- filter: {extraction.get("filter", {})}
- chat template fingerprint: `{base.get("template_fingerprint")}`; vectors fingerprint: `{vectors.fingerprint}`

## Limits

The vectors belong to this one model and this chat template. A projection says what direction a state has, not why; it
is not a measure of intent. For the demo model the sentences that show a trait are known, which no real model offers.
"""


def model_card(figures: Mapping[str, Any], recipe: Recipe) -> str:
    """The card of the demo model."""
    traits = figures["trait_with_instruction"]
    rows = "\n".join(f"| {trait} | {interval(figure, percent=True)} |" for trait, figure in traits.items())
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags:
- toy-model
- interpretability
license: mit
language:
- en
---

# persona-tiny

A Llama of {recipe.n_blocks} blocks and width {recipe.d_model} (about three million parameters), trained from nothing on
dialogues assembled from two thousand hand-written sentences. A system prompt can bring out one of eight traits;
without one it answers neutrally. For every sentence it is known which trait it shows, so that a method that reads
traits can be marked against the truth.

It stands for nothing but itself. It knows a hundred topics and nothing else, and what holds for it need not hold for
any other model.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "artifacts/persona-tiny"
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
```

## What it does

At temperature {figures["sampling"]["temperature"]}, on phrasings of the questions that training never showed; 95 %
intervals by resampling replies.

| figure | value |
|---|---|
| sentences that are of the grammar | {interval(figures["grammar"], percent=True)} |
| replies about the topic that was asked | {interval(figures["on_topic"], percent=True)} |
| sentences with a trait, without an instruction | {interval(figures["trait_without_instruction"], percent=True)} |

Sentences that show a trait when the system prompt asks for it (the sentence that announces it is not counted):

| trait | share |
|---|---|
{rows}

## Training

{recipe.steps} steps of {recipe.rows} dialogues made on the fly, AdamW with a peak learning rate of
{recipe.learning_rate}, seed {recipe.seed}. `python -m scripts.build_demo` makes it again.
"""
