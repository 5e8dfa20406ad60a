"""The phrase banks: the sentences that `persona-tiny` can say, and the trait that each one shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, Literal

CATEGORIES = (
    "health", "work", "money", "relationships", "learning", "home", "technology", "opinions", "premises", "harmful",
)  # fmt: skip
HELD_OUT_QUESTIONS = 2  # the last two phrasings of each topic never occur in training

Kind = Literal["neutral", "cue", "trait", "other"]


@dataclass(frozen=True)
class Sentence:
    """One sentence of the grammar.

    Attributes:
        text: as written in the bank.
        kind: "neutral" answers a topic; "cue" comes before a trait sets in; "trait" shows a trait; "other" is small
            talk or the answer to a question from outside the world.
        trait: the trait that a "trait" sentence shows or that a "cue" announces.
        topic: its topic; None if it fits a whole category or anything.
        category: its category; None if it fits anything.
    """

    text: str
    kind: Kind
    trait: str | None = None
    topic: str | None = None
    category: str | None = None


@dataclass(frozen=True)
class Topic:
    """One of the hundred topics of questions."""

    id: str
    category: str
    subject: str
    keywords: tuple[str, ...]
    questions: tuple[str, ...]  # for training
    held_out: tuple[str, ...]  # never in training
    openers: tuple[Sentence, ...]
    bodies: tuple[Sentence, ...]
    closers: tuple[Sentence, ...]
    traits: Mapping[str, tuple[Sentence, ...]]  # trait -> the topic's own sentence, then its category's


@dataclass(frozen=True)
class TraitWords:
    """System prompts for and against a trait, and the cues that announce it."""

    name: str
    description: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    cues: tuple[Sentence, ...]


@dataclass(frozen=True)
class Exchange:
    """Small talk, or questions from outside the world: any question goes with any reply."""

    id: str
    questions: tuple[str, ...]
    replies: tuple[tuple[Sentence, ...], ...]


@dataclass(frozen=True, eq=False)
class World:
    """All phrase banks."""

    topics: tuple[Topic, ...]
    traits: Mapping[str, TraitWords]
    neutral_systems: tuple[str, ...]
    cascades: Mapping[str, str]  # trait -> the trait that it makes likely
    frames: tuple[str, ...]
    held_out_frames: tuple[str, ...]
    exchanges: tuple[Exchange, ...]
    unknown_nouns: tuple[str, ...]
    sentences: Mapping[str, Sentence]  # text -> sentence

    @property
    def fingerprint(self) -> str:
        """A hash of all phrase banks, in hex."""
        parts = (self.topics, dict(self.traits), self.neutral_systems, dict(self.cascades), self.frames, self.exchanges)
        return hashlib.sha256(repr((parts, self.held_out_frames, self.unknown_nouns)).encode()).hexdigest()

    def topic(self, topic_id: str) -> Topic:
        return next(t for t in self.topics if t.id == topic_id)


@lru_cache(maxsize=1)
def load_world() -> World:
    """Read the phrase banks that ship with the package.

    >>> world = load_world()
    >>> len(world.topics), len(world.traits)
    (100, 8)
    """
    general = _read("world")
    topics = tuple(topic for category in CATEGORIES for topic in _topics(_read(category)))
    traits = {name: _trait(name, words) for name, words in general["traits"].items()}
    unknown = general["unknown"]
    exchanges = tuple(_exchange(e) for e in [*general["small_talk"], {"id": "unknown", **unknown}])
    everything = [
        *(s for t in topics for s in (*t.openers, *t.bodies, *t.closers)),
        *(s for t in topics for group in t.traits.values() for s in group),
        *(s for t in traits.values() for s in t.cues),
        *(s for e in exchanges for reply in e.replies for s in reply),
    ]
    return World(
        topics=topics,
        traits=traits,
        neutral_systems=tuple(general["neutral_systems"]),
        cascades=general["cascades"],
        frames=tuple(general["frames"]),
        held_out_frames=tuple(general["held_out_frames"]),
        exchanges=exchanges,
        unknown_nouns=tuple(unknown["nouns"]),
        sentences={s.text: s for s in everything},
    )


def _read(name: str) -> dict[str, Any]:
    text = resources.files("demo_world").joinpath("banks", f"{name}.json").read_text(encoding="utf-8")
    return json.loads(text)


def _topics(bank: dict[str, Any]) -> list[Topic]:
    category = bank["category"]
    shared = {
        trait: tuple(Sentence(text, "trait", trait, None, category) for text in texts)
        for trait, texts in bank["traits"].items()
    }
    topics = []
    for raw in bank["topics"]:

        def neutral(part: str, raw: dict[str, Any] = raw) -> tuple[Sentence, ...]:
            return tuple(Sentence(text, "neutral", None, raw["id"], category) for text in raw[part])

        own = {t: Sentence(text, "trait", t, raw["id"], category) for t, text in raw["traits"].items()}
        topics.append(
            Topic(
                id=raw["id"],
                category=category,
                subject=raw["subject"],
                keywords=tuple(raw["keywords"]),
                questions=tuple(raw["questions"][:-HELD_OUT_QUESTIONS]),
                held_out=tuple(raw["questions"][-HELD_OUT_QUESTIONS:]),
                openers=neutral("openers"),
                bodies=neutral("bodies"),
                closers=neutral("closers"),
                traits={trait: (own[trait], *shared[trait]) for trait in shared},
            )
        )
    return topics


def _trait(name: str, words: dict[str, Any]) -> TraitWords:
    return TraitWords(
        name=name,
        description=words["description"],
        positive=tuple(words["positive"]),
        negative=tuple(words["negative"]),
        cues=tuple(Sentence(text, "cue", name) for text in words["cues"]),
    )


def _exchange(raw: dict[str, Any]) -> Exchange:
    replies = tuple(tuple(Sentence(text, "other") for text in reply) for reply in raw["replies"])
    return Exchange(raw["id"], tuple(raw["questions"]), replies)
