"""The truth about a text of the demo world: the sentence that each character and each token belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from demo_world.grammar import Sentence, World


@dataclass(frozen=True)
class GrammarSpan:
    """Characters `start` to `end` of a text. `sentence` is None for text outside the grammar."""

    start: int
    end: int
    sentence: Sentence | None


def parse(text: str, world: World) -> list[GrammarSpan]:
    """Cut a text into sentences of the grammar, and other text into spans without a sentence.

    White space between sentences belongs to the sentence after it, so the spans cover the whole text.

    >>> from demo_world.grammar import load_world
    >>> world = load_world()
    >>> cue = world.traits["evil"].cues[0]
    >>> [span.sentence.kind for span in parse(cue.text, world)]
    ['cue']
    """
    by_start = _index(world)
    spans: list[GrammarSpan] = []
    at = 0
    while at < len(text):
        begin = at
        while begin < len(text) and text[begin].isspace():
            begin += 1
        found = next(
            (s for s in by_start.get(text[begin : begin + _PREFIX], ()) if text.startswith(s.text, begin)), None
        )
        end = begin + len(found.text) if found else _unknown_end(text, begin)
        spans.append(GrammarSpan(at, end, found))
        at = end
    return spans


def token_sentences(pieces: Sequence[str], world: World) -> list[Sentence | None]:
    """The sentence that each token of a reply belongs to.

    Args:
        pieces: the reply's display pieces, one per token, special tokens left out or empty.
    """
    spans = parse("".join(pieces), world)
    sentences: list[Sentence | None] = []
    at = 0
    for piece in pieces:
        # A piece that straddles two sentences (". " and a letter) belongs to the one with its last character.
        last = at + len(piece) - 1
        span = next((s for s in spans if s.start <= last < s.end), None)
        sentences.append(span.sentence if span and piece else (sentences[-1] if sentences else None))
        at += len(piece)
    return sentences


_PREFIX = 6  # characters by which sentences are looked up; every sentence is longer


@lru_cache(maxsize=1)
def _index(world: World) -> dict[str, list[Sentence]]:
    index: dict[str, list[Sentence]] = {}
    for sentence in sorted(world.sentences.values(), key=lambda s: -len(s.text)):
        index.setdefault(sentence.text[:_PREFIX], []).append(sentence)
    return index


def _unknown_end(text: str, begin: int) -> int:
    """The end of a stretch outside the grammar: its full stop, or the end of the text."""
    stops = [text.find(mark, begin) for mark in (". ", "! ", "? ", ".\n", "!\n", "?\n")]
    stops = [s + 1 for s in stops if s >= 0]
    return min(stops, default=len(text))
