"""The hidden process that decides which sentence follows which: onset, persistence, cascade.

A reply is a walk through states. It begins neutral, or with the trait that the system prompt requests. A trait's onset
is announced by a cue; then the trait persists from sentence to sentence. While it lasts it may bring on another trait
(a cascade), announced by its own cue. Without an instruction the process stays neutral.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from demo_world.grammar import Sentence, Topic, World


@dataclass(frozen=True)
class Process:
    """The numbers of the hidden process. The defaults are those of the corpus that `persona-tiny` was trained on.

    Attributes:
        onset: probability that an instructed trait sets in after 0, 1, 2, ... neutral sentences.
        persistence: probability that a trait lasts for one more sentence.
        cascade: probability that an instructed trait brings on its follower.
        cascade_lag: trait sentences before the follower may set in.
        cued: whether a cue comes before a trait's first sentence.
        drift: without onset: the trait's share rises from sentence to sentence, from 0 to `drift`.
        linked: whether traits bring on others at all.
    """

    onset: tuple[float, ...] = (0.72, 0.18, 0.10)
    persistence: float = 0.97
    cascade: float = 0.22
    cascade_lag: int = 2
    cued: bool = True
    drift: float = 0.0
    linked: bool = True


# Where a naive method must fail: no cue before the onset; a slow rise instead of an onset; no trait brings on another.
VARIANTS = {
    "cued": Process(),
    "uncued": Process(cued=False),
    "drift": Process(cued=False, drift=0.9, linked=False),
    "independent": Process(linked=False),
}


def write_reply(
    world: World, topic: Topic, trait: str | None, rng: np.random.Generator, process: Process | None = None
) -> list[Sentence]:
    """One reply about `topic`, showing `trait` (None: neutral), as a list of sentences.

    >>> from demo_world.grammar import load_world
    >>> world = load_world()
    >>> reply = write_reply(world, world.topic("quit-job"), None, np.random.default_rng(0))
    >>> {sentence.kind for sentence in reply}
    {'neutral'}
    """
    process = process or Process()
    opener = _pick(topic.openers, rng)
    bodies = [topic.bodies[i] for i in rng.permutation(len(topic.bodies))]
    closer = _pick(topic.closers, rng)
    if trait is None:
        return [opener, *bodies[: rng.integers(3, 6)], closer]
    if process.drift:
        return _drifting(topic, trait, [opener, *bodies], closer, rng, process)

    # 1. Neutral until the onset.
    neutral = iter([opener, *bodies])
    onset = int(rng.choice(len(process.onset), p=process.onset))
    reply = [next(neutral) for _ in range(onset)]

    # 2. The instructed trait, for as long as it persists.
    own = _shuffled(topic.traits[trait], rng)
    length = len(own)
    follower = world.cascades.get(trait) if process.linked and rng.random() < process.cascade else None
    if process.cued:
        reply.append(_pick(world.traits[trait].cues, rng))
    spoken = 0
    for sentence in own[:length]:
        reply.append(sentence)
        spoken += 1
        if rng.random() > process.persistence or (follower and spoken >= process.cascade_lag):
            break

    # 3. The trait that it brings on.
    if follower and spoken >= process.cascade_lag:
        if process.cued:
            reply.append(_pick(world.traits[follower].cues, rng))
        reply += _shuffled(topic.traits[follower], rng)[: rng.integers(2, 4)]

    # 4. A trait that ends early leaves room for the topic.
    elif spoken < length:
        reply.append(next(neutral))
    if rng.random() < 0.2:
        reply.append(closer)
    return reply


def _drifting(
    topic: Topic, trait: str, neutral: list[Sentence], closer: Sentence, rng: np.random.Generator, process: Process
) -> list[Sentence]:
    own, plain = iter(_shuffled(topic.traits[trait], rng)), iter(neutral)
    length = int(rng.integers(6, 9))
    shares = np.linspace(0.0, process.drift, length)
    picked = [next(own, None) if rng.random() < share else next(plain, None) for share in shares]
    return [*(s for s in picked if s is not None), closer]


def _pick(sentences: tuple[Sentence, ...], rng: np.random.Generator) -> Sentence:
    return sentences[int(rng.integers(len(sentences)))]


def _shuffled(sentences: tuple[Sentence, ...], rng: np.random.Generator) -> list[Sentence]:
    return [sentences[i] for i in rng.permutation(len(sentences))]
