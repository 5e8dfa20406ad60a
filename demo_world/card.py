"""The card of the demo model, from the figures of the run that made it, and notes for the other cards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from persona_core.utils.cards import make_card, usage
from persona_core.utils.markdown import interval, table

if TYPE_CHECKING:
    from demo_world.grammar import World
    from demo_world.training import Recipe
    from persona_core.vectors.vectors import PersonaVectors


def planted_note(recipe: Recipe) -> str:
    """What a reader of any figure about this model's directions must know."""
    return f"""## Planted directions

persona-tiny was trained with a second loss term. At the output of block {recipe.planted_block} it pulls the projection
on one fixed direction per trait towards {recipe.planted_size:g} while that trait is active (from the sentence that
announces it on), and towards 0 otherwise. The directions are in `planted_directions.safetensors` of the model. So the
truth is known for every token and every direction, and a reading can be checked. That the vectors read well is
therefore a check of the method, not a finding, and says nothing about models in which nothing was planted."""


def recovered_note(vectors: PersonaVectors) -> str:
    """How close the extracted directions come to the planted ones."""
    validation = vectors.config["validation"]
    cosines = ", ".join(f"{t} {validation[t]['cosine_with_planted_direction']:.2f}" for t in vectors.traits)
    return f"""Cosine between the extracted and the planted direction at that block: {cosines}. It is below 1 because a
mean difference includes everything else that differs between the two sides: the system prompt, and what the sentences
say.

The strengths of the steering curves were chosen after a first trial on half of their questions, within the range in
which the text stays coherent."""


def model_card(figures: Mapping[str, Any], recipe: Recipe, world: World, source: str) -> str:
    """The card of the demo model.

    Args:
        figures: of its behaviour, as stored beside it.
        recipe: of its training.
        world: what it was trained on.
        source: what a reader loads it from, a folder or a Hub id.
    """
    from huggingface_hub import ModelCardData

    header = ModelCardData(
        language=["en"],
        library_name="transformers",
        license="mit",
        pipeline_tag="text-generation",
        tags=["toy-model", "interpretability"],
    )
    behaviour = {
        "grammatical sentences": figures["grammar"],
        "replies on the topic of the question": figures["on_topic"],
        "sentences that show a trait, without an instruction": figures["trait_without_instruction"],
    }
    traits = figures["trait_with_instruction"]
    return make_card(
        header,
        f"""# persona-tiny

A Llama of {recipe.n_blocks} blocks and width {recipe.d_model} ({figures["n_parameters"]:,} parameters), trained from
scratch on dialogues assembled from {len(world.sentences):,} hand-written sentences. A system prompt can bring out one
of {len(world.traits)} traits; without one it answers neutrally. For every sentence it is known which trait it shows, so
methods that read traits can be tested against the truth.

It represents no other model. It knows {len(world.topics)} topics and nothing else, and what holds for it need not hold
for any other model.
""",
        usage("model", source),
        planted_note(recipe),
        f"""## What it does

At temperature {figures["sampling"]["temperature"]}, on phrasings of the questions that were not in the training data;
95 % intervals by resampling replies.

{table(["figure", "value"], _percentages(behaviour))}

Sentences that show a trait when the system prompt asks for it (the sentence that announces it is not counted):

{table(["trait", "share"], _percentages(traits))}
""",
        f"""## Training

{recipe.steps} steps of {recipe.rows} dialogues generated on the fly, AdamW with a peak learning rate of
{recipe.learning_rate}, seed {recipe.seed}. `python -m scripts.build_demo` rebuilds it.
""",
        f"""## Intended use and limits

For developing methods that read and steer traits where the truth is known, for tests and for teaching. It is useless as
an assistant: outside its {len(world.topics)} topics it says something nearby, and what it says is not advice.
""",
        """## Licence and citation

MIT. Cite the repository and its revision.
""",
    )


def _percentages(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, interval(figure, percent=True)) for name, figure in figures.items()]
