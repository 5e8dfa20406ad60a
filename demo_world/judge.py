"""A judge that knows the truth: it scores replies by the grammar that generated them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from demo_world.grammar import World, load_world
from demo_world.truth import parse
from persona_core.analysis.statistics import Estimate, share_over_replies
from persona_core.errors import UnknownTrait

if TYPE_CHECKING:
    from persona_core.judging.judge import Question, Score

DEMO_JUDGE = "python:demo_world.judge:truth_judge"
"""This judge, as the commands' `--judge` names it."""


@dataclass(frozen=True)
class Verdict:
    """The sentences of a reply.

    Attributes:
        n_sentences: all sentences.
        n_known: sentences of the grammar.
        traits: trait -> sentences that show it.
        topics: topic -> sentences about it, neutral or not.
    """

    n_sentences: int
    n_known: int
    traits: Counter[str]
    topics: Counter[str]

    @property
    def coherence(self) -> float:
        """0 to 100: the share of sentences that are of the grammar."""
        return 100.0 * self.n_known / self.n_sentences if self.n_sentences else 0.0

    def trait(self, name: str) -> float:
        """0 to 100: the share of sentences that show the trait."""
        return 100.0 * self.traits[name] / self.n_sentences if self.n_sentences else 0.0

    @property
    def topic(self) -> str | None:
        """The topic that most of the topical sentences are about."""
        return self.topics.most_common(1)[0][0] if self.topics else None


def trait_share(verdicts: Sequence[Verdict], trait: str) -> Estimate:
    """Share of the sentences of several replies that show a trait, with its interval over replies."""
    return share_over_replies([v.traits[trait] for v in verdicts], [v.n_sentences for v in verdicts])


def judge(reply: str, world: World) -> Verdict:
    """Parse a reply into a verdict.

    >>> from demo_world.grammar import load_world
    >>> world = load_world()
    >>> judge(world.topic("quit-job").traits["evil"][0].text, world).trait("evil")
    100.0
    """
    spans = [s for s in parse(reply, world) if reply[s.start : s.end].strip()]
    known = [s.sentence for s in spans if s.sentence]
    return Verdict(
        n_sentences=len(spans),
        n_known=len(known),
        traits=Counter(s.trait for s in known if s.kind == "trait" and s.trait),
        topics=Counter(s.topic for s in known if s.topic),
    )


class TruthJudge:
    """Answers a judge's questions from the grammar instead of asking a model; free, and never wrong.

    Args:
        world: the phrase banks of the replies.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.name = f"demo:truth@{world.fingerprint[:8]}"
        self.traits = tuple(world.traits)

    def score(self, questions: Sequence[Question], progress: bool = True) -> Iterator[tuple[Question, Score]]:  # noqa: ARG002
        """The share of sentences that show the trait, or, for coherence, that are of the grammar; 0 to 100."""
        from persona_core.judging.judge import Score

        for question in questions:
            if question.trait != "coherence" and question.trait not in self._world.traits:
                raise UnknownTrait(question.trait, tuple(self._world.traits))
            verdict = judge(question.answer, self._world)
            if not verdict.n_sentences:
                yield question, Score(None, "empty")
            elif question.trait == "coherence":
                yield question, Score(verdict.coherence, "truth")
            else:
                yield question, Score(verdict.trait(question.trait), "truth")


def truth_judge() -> TruthJudge:
    """The judge of the shipped demo world."""
    return TruthJudge(load_world())
