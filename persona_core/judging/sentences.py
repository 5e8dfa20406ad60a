"""A judge over the sentences of replies that are just being made: where each shows a trait, and whether it is coherent.

`marks.mark_sentences` marks a published run once and for all. Here the replies are those of an experiment (steered,
capped, written again): many are alike, so each answer is kept and no sentence is asked about twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from persona_core.analysis.spans import sentences
from persona_core.elicitation.traits import TraitDefinition, fill
from persona_core.errors import UnknownTrait
from persona_core.judging.annotations import Mark, places
from persona_core.judging.judge import COHERENCE, COHERENCE_PROMPT, MIN_SCORE, Judge, Question
from persona_core.traces.trace import Trace

Ask = tuple[str, str, str]  # the trait or "coherence", the question, the answer


class SentenceJudge:
    """Answers what an experiment asks of a reply.

    Args:
        judge: scores from 0 to 100.
        traits: definitions of the traits that may be asked for.

    Attributes:
        missing: questions that the judge did not answer, or answered with no score: those sentences count as showing
            nothing. A second run of the experiment asks again.
    """

    def __init__(self, judge: Judge, traits: Sequence[TraitDefinition]) -> None:
        self._judge = judge
        self._prompts = {t.name: t.judge_prompt for t in traits} | {COHERENCE: COHERENCE_PROMPT}
        self._scores: dict[Ask, float | None] = {}
        self.traits = tuple(t.name for t in traits)
        self.missing: set[Ask] = set()

    def marker(self, trait: str) -> Callable[[Trace], list[int]]:
        """A function from a reply to the places in it, from 0, of the tokens that show the trait.

        Raises:
            UnknownTrait: no definition was given.
        """
        if trait not in self.traits:
            raise UnknownTrait(trait, self.traits)
        return lambda trace: self._places(trace, trait)

    def shown(self, trace: Trace) -> dict[str, bool] | None:
        """Which traits a reply shows in any sentence; None for an incoherent one, which shows nothing."""
        level = self.coherence(trace)
        if level is None or level < MIN_SCORE:
            return None
        question, said = _asked(trace), [one for one, _ in _said(trace)]
        self._ask([(trait, question, one) for trait in self.traits for one in said])
        return {t: any(self._shows(t, question, one) for one in said) for t in self.traits}

    def coherence(self, trace: Trace) -> float | None:
        """0 to 100 for a whole reply, with what was asked; None where there is no score."""
        text, question = trace.reply_text, _asked(trace)
        if not text.strip():
            return 0.0
        self._ask([(COHERENCE, question, text)])
        return self._scores.get((COHERENCE, question, text))

    def _places(self, trace: Trace, trait: str) -> list[int]:
        question, said = _asked(trace), _said(trace)
        self._ask([(trait, question, one) for one, _ in said])
        marks = [Mark("", "", trait, a, b) for one, (a, b) in said if self._shows(trait, question, one)]
        return [t - trace.n_prompt for t in places(trace, marks)]

    def _shows(self, trait: str, question: str, sentence: str) -> bool:
        score = self._scores.get((trait, question, sentence))
        return score is not None and score >= MIN_SCORE

    def _ask(self, asks: Sequence[Ask]) -> None:
        """Put what is not known yet to the judge."""
        new = [ask for ask in dict.fromkeys(asks) if ask not in self._scores]
        questions = [
            Question(str(k), name, fill(self._prompts[name], question, answer), question, answer)
            for k, (name, question, answer) in enumerate(new)
        ]
        answers = {q.key: score.value for q, score in self._judge.score(questions, progress=False)} if new else {}
        for k, ask in enumerate(new):
            self._scores[ask] = answers.get(str(k))
            if self._scores[ask] is None:
                self.missing.add(ask)


def _said(trace: Trace) -> list[tuple[str, tuple[int, int]]]:
    """The sentences of a reply, with their characters."""
    text = trace.reply_text
    return [(text[a:b].strip(), (a, b)) for a, b in sentences(text) if text[a:b].strip()]


def _asked(trace: Trace) -> str:
    """What the user said last before the reply."""
    users = [t for t in range(trace.n_prompt) if trace.roles[t] == "user"]
    last = [t for k, t in enumerate(users) if users[-1] - t == len(users) - 1 - k]  # the last unbroken stretch
    return "".join(trace.tokens[t] for t in last).strip()
