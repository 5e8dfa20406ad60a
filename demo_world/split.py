"""Two worlds without a common sentence, topic or phrasing of a question: one to fit on, one to report on.

Any model can read texts of the grammar, and the truth about each of their tokens is known whoever reads them. A vector
fitted on sentences that it is tested on is no evidence, so everything is dealt out: topics, and with them their
sentences and questions; the trait sentences that a category's topics share; and the cues.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from demo_world.corpus import Turn, ask
from demo_world.grammar import Sentence, Topic, World
from demo_world.process import Process

T = TypeVar("T")
SEED = 7  # of the order in which topics are dealt out


@dataclass(frozen=True)
class WorldText:
    """A question with a reply of the grammar.

    Attributes:
        trait: that the reply shows from its onset on; None: neutral.
        turn: question and reply, sentence by sentence.
    """

    trait: str | None
    turn: Turn

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.turn.question}, {"role": "assistant", "content": self.turn.text}]


def half(world: World, side: int) -> World:
    """Half of the world: its even topics and sentences, or its odd ones.

    >>> from demo_world.grammar import load_world
    >>> one, other = (half(load_world(), side) for side in (0, 1))
    >>> len(one.topics), {t.id for t in one.topics} & {t.id for t in other.topics}
    (50, set())
    """
    rng = np.random.default_rng(SEED)
    categories: dict[str, list[int]] = {}
    for index, topic in enumerate(world.topics):
        categories.setdefault(topic.category, []).append(index)
    dealt = [i for indices in categories.values() for i in rng.permutation(indices)[side::2]]
    topics = tuple(replace(world.topics[i], traits=_own_and_half(world.topics[i], side)) for i in sorted(dealt))
    traits = {name: replace(words, cues=_every_second(words.cues, side)) for name, words in world.traits.items()}
    return replace(world, topics=topics, traits=traits)


def world_texts(
    world: World, side: int, n_trait: int, n_neutral: int, seed: int, linked: bool = True
) -> list[WorldText]:
    """Texts of one half: `n_trait` of each trait, then `n_neutral` neutral ones.

    Args:
        world: the whole world.
        side: which half; the second one is asked in phrasings that no training has seen.
        linked: whether a trait may bring on another.
    """
    own, rng = half(world, side), np.random.default_rng(seed)
    process = Process(linked=linked)
    found = []
    for trait in own.traits:
        for _ in range(n_trait):
            topic = own.topics[int(rng.integers(len(own.topics)))]
            found.append(WorldText(trait, ask(own, topic, trait, rng, bool(side), process)))
    for i in range(n_neutral):
        topic = own.topics[i % len(own.topics)]
        found.append(WorldText(None, ask(own, topic, None, rng, bool(side), process)))
    return found


def _own_and_half(topic: Topic, side: int) -> dict[str, tuple[Sentence, ...]]:
    """Of each trait the topic's own sentence, and half of those that it shares with its category."""
    return {name: (own, *_every_second(shared, side)) for name, (own, *shared) in topic.traits.items()}


def _every_second(items: Sequence[T], side: int) -> tuple[T, ...]:
    return tuple(items[side::2])
