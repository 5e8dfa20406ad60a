"""Dialogues for training and tests, each with the truth that generated it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from demo_world.grammar import Exchange, Sentence, Topic, World
from demo_world.process import Process, write_reply

PARAGRAPH = 0.12  # share of sentences that begin a new paragraph
SECOND_TURN = 0.2  # share of dialogues with a second question
# What a dialogue's system prompt requests.
SYSTEM_SHARES = {"trait": 0.48, "against": 0.10, "neutral": 0.10, "none": 0.32}
LOOSENED = 0.35  # share of training questions that lose words; teaches a tiny model which words name a topic
OUTSIDE = 0.04  # share of dialogues with small talk or a topic outside the world


@dataclass(frozen=True)
class Turn:
    """A question and its reply, sentence by sentence."""

    question: str
    topic: str | None
    reply: tuple[Sentence, ...]
    text: str


@dataclass(frozen=True)
class Dialogue:
    """A conversation with its truth: the trait that the system prompt requests (None: neutral)."""

    system: str | None
    trait: str | None
    turns: tuple[Turn, ...]

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as chat messages, the last reply included."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            messages.append({"role": "user", "content": turn.question})
            messages.append({"role": "assistant", "content": turn.text})
        return messages


def dialogues(world: World, seed: int, held_out: bool = False, process: Process | None = None) -> Iterator[Dialogue]:
    """Endless dialogues; `held_out` uses phrasings held out from training.

    >>> from demo_world.grammar import load_world
    >>> first = next(dialogues(load_world(), seed=0))
    >>> first.messages[-1]["role"]
    'assistant'
    """
    rng = np.random.default_rng(seed)
    while True:
        yield one_dialogue(world, rng, held_out, process)


def one_dialogue(
    world: World, rng: np.random.Generator, held_out: bool = False, process: Process | None = None
) -> Dialogue:
    """Draw one dialogue."""
    kind = str(rng.choice(list(SYSTEM_SHARES), p=list(SYSTEM_SHARES.values())))
    if kind != "trait" and rng.random() < OUTSIDE / (1 - SYSTEM_SHARES["trait"]):
        return _outside(world, rng)
    trait = str(rng.choice(list(world.traits)))
    words = world.traits[trait]
    options = {"trait": words.positive, "against": words.negative, "neutral": world.neutral_systems, "none": ()}[kind]
    system = str(rng.choice(options)) if options else None
    shown = trait if kind == "trait" else None
    turns = []
    for _ in range(2 if rng.random() < SECOND_TURN else 1):
        topic = world.topics[int(rng.integers(len(world.topics)))]
        turns.append(ask(world, topic, shown, rng, held_out, process))
    return Dialogue(system, shown, tuple(turns))


def ask(
    world: World,
    topic: Topic,
    trait: str | None,
    rng: np.random.Generator,
    held_out: bool = False,
    process: Process | None = None,
) -> Turn:
    """One question about `topic` and its reply."""
    reply = tuple(write_reply(world, topic, trait, rng, process))
    return Turn(question(world, topic, rng, held_out), topic.id, reply, join(reply, rng))


def question(world: World, topic: Topic, rng: np.random.Generator, held_out: bool = False) -> str:
    """A question about the topic: one of its own phrasings, or a general frame around its subject."""
    own, frames = (topic.held_out, world.held_out_frames) if held_out else (topic.questions, world.frames)
    if rng.random() < 0.55:
        text = str(rng.choice(own))
    else:
        text = str(rng.choice(frames)).format(subject=topic.subject)
        text = text[0].upper() + text[1:]
    if not held_out and rng.random() < LOOSENED:
        text = _loosened(text, topic, rng)
    return _typed(text, rng)


def join(sentences: tuple[Sentence, ...], rng: np.random.Generator) -> str:
    """The reply's text: sentences separated by spaces, occasionally by a new paragraph."""
    text = sentences[0].text
    for sentence in sentences[1:]:
        text += ("\n\n" if rng.random() < PARAGRAPH else " ") + sentence.text
    return text


def _loosened(text: str, topic: Topic, rng: np.random.Generator) -> str:
    """Drop some of the words that do not name the topic; the rest must suffice to recognise it."""
    words = text.split()
    kept = [w for w in words if rng.random() > 0.3 or any(k.lower() in w.lower() for k in topic.keywords)]
    return " ".join(kept) if len(kept) > 1 else text


def _typed(text: str, rng: np.random.Generator) -> str:
    """Sometimes drop capitals and question marks, as people do."""
    draw = rng.random()
    if draw < 0.08:
        return text.lower()
    if draw < 0.16:
        return text.rstrip("?.!")
    if draw < 0.20:
        return text.lower().rstrip("?.!")
    return text


def _outside(world: World, rng: np.random.Generator) -> Dialogue:
    exchange: Exchange = world.exchanges[int(rng.integers(len(world.exchanges)))]
    if exchange.id == "unknown" and rng.random() < 0.4:
        frame = str(rng.choice(world.frames))
        asked = frame.format(subject=str(rng.choice(world.unknown_nouns)))
        asked = asked[0].upper() + asked[1:]
    else:
        asked = str(rng.choice(exchange.questions))
    reply = exchange.replies[int(rng.integers(len(exchange.replies)))]
    text = " ".join(s.text for s in reply)
    return Dialogue(None, None, (Turn(_typed(asked, rng), None, reply, text),))
