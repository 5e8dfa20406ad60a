"""The card of the demo model, from the figures of the run that made it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from persona_core.utils.markdown import interval

if TYPE_CHECKING:
    from demo_world.grammar import World
    from demo_world.training import Recipe
    from persona_core.vectors.vectors import PersonaVectors


def planted_note(recipe: Recipe) -> str:
    """What a reader of any figure about this model's directions must know."""
    return f"""## Planted

persona-tiny was trained with a second term in its loss: at the output of block {recipe.planted_block}, the projection
on one fixed direction per trait is to be {recipe.planted_size:g} while that trait is under way (from the sentence that
announces it on) and 0 otherwise. The directions are in `planted_directions.safetensors` of the model. So the truth is
known for every token and every direction, and a reading can be marked right or wrong. That the vectors read well is
therefore a check of the method, not a finding, and it says nothing about models in which nothing was planted."""


def recovered_note(vectors: PersonaVectors) -> str:
    """How near the extracted directions come to the planted ones."""
    validation = vectors.config["validation"]
    cosines = ", ".join(f"{t} {validation[t]['cosine_with_planted_direction']:.2f}" for t in vectors.traits)
    return f"""Cosine between the extracted and the planted direction at that block: {cosines}. It is below 1 because a
mean difference takes in whatever else differs between the two sides: the system prompt, and what the sentences say.

The strengths of the steering curves were chosen after a first trial on half of their questions, by where the text stays
coherent."""


def model_card(figures: Mapping[str, Any], recipe: Recipe, world: World) -> str:
    """The card of the demo model."""
    n_words = {"topics": len(world.topics), "sentences": len(world.sentences), "traits": len(world.traits)}
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

A Llama of {recipe.n_blocks} blocks and width {recipe.d_model} ({figures["n_parameters"]:,} parameters), trained from
nothing on dialogues assembled from {n_words["sentences"]:,} hand-written sentences. A system prompt can bring out one
of {n_words["traits"]} traits; without one it answers neutrally. For every sentence it is known which trait it shows,
so that a method that reads traits can be marked against the truth.

It stands for nothing but itself. It knows {n_words["topics"]} topics and nothing else, and what holds for it need not
hold for any other model.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("artifacts/persona-tiny")
tokenizer = AutoTokenizer.from_pretrained("artifacts/persona-tiny")
```

{planted_note(recipe)}

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

## Intended use and limits

For trying methods that read and steer traits where the truth is known, for tests and for teaching. It is of no use as
an assistant: outside its {n_words["topics"]} topics it says what is near, and what it says is not advice.

## Licence and citation

MIT. Cite the repository and its revision.
"""
