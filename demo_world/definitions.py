"""The demo world's traits as trait definitions, for the same pipeline as any other model."""

from __future__ import annotations

from collections.abc import Iterable

from demo_world.grammar import Topic, World
from persona_core.elicitation.traits import QUESTION_AND_ANSWER, TraitDefinition

N_TOPICS = 10  # in each category
EXTRACTION = (0, 1, 2, 3, 4)  # positions of a topic within its category
EVALUATION = (5, 6, 7, 8, 9)

JUDGE_PROMPT = """What share of the sentences of this answer shows the trait "{name}"? {description} The judge of the
demo world knows for each of its sentences which trait it shows, and counts them.

{judged}

Answer with one number from 0 to 100 and nothing else."""


def topics_at(world: World, positions: Iterable[int]) -> list[Topic]:
    """The topics at these positions of each category, ordered by position."""
    return [world.topics[start + position] for position in positions for start in range(0, len(world.topics), N_TOPICS)]


def trait_definitions(world: World) -> tuple[TraitDefinition, ...]:
    """One definition for each trait of the world.

    Extraction uses half of the topics, in a phrasing from training. Evaluation uses the other half, twice each, in
    phrasings held out from training. Topics are in order of position, so that the two halves
    of the evaluation questions (choice of the block, figures) share no topic.

    >>> from demo_world.grammar import load_world
    >>> trait = trait_definitions(load_world())[0]
    >>> len(trait.extraction_questions), len(trait.evaluation_questions)
    (50, 100)
    """
    extraction = tuple(topic.questions[0] for topic in topics_at(world, EXTRACTION))
    evaluation = tuple(question for topic in topics_at(world, EVALUATION) for question in topic.held_out)
    return tuple(
        TraitDefinition(
            name=name,
            description=words.description,
            positive=words.positive,
            negative=words.negative,
            extraction_questions=extraction,
            evaluation_questions=evaluation,
            judge_prompt=JUDGE_PROMPT.format(name=name, description=words.description, judged=QUESTION_AND_ANSWER),
        )
        for name, words in world.traits.items()
    )
