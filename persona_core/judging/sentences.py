"""A judge for replies of a running experiment: where each shows a trait, and whether it is coherent.

`annotations.annotate_sentences` annotates a published run once. The replies of an experiment (steered, capped,
regenerated) are often alike, so scores are cached and no sentence is judged twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from persona_core.analysis.spans import sentences
from persona_core.elicitation.traits import TraitDefinition, fill
from persona_core.errors import UnknownTrait
from persona_core.judging.annotations import Annotation, annotated_positions
from persona_core.judging.judge import COHERENCE, COHERENCE_PROMPT, MIN_SCORE, Judge, Question
from persona_core.traces.trace import Trace

Ask = tuple[str, str, str]  # the trait or "coherence", the question, the answer


class SentenceJudge:
    """Judges replies sentence by sentence.

    Args:
        judge: scores from 0 to 100.
        traits: definitions of the traits to judge.

    Attributes:
        missing: questions without an answer or without a score. Their sentences count as not showing the trait; a
            second run of the experiment asks again.
    """

    def __init__(self, judge: Judge, traits: Sequence[TraitDefinition]) -> None:
        self._judge = judge
        self._prompts = {t.name: t.judge_prompt for t in traits} | {COHERENCE: COHERENCE_PROMPT}
        self._scores: dict[Ask, float | None] = {}
        self.traits = tuple(t.name for t in traits)
        self.missing: set[Ask] = set()

    def marker(self, trait: str) -> Callable[[Trace], list[int]]:
        """A function from a reply to the indices of its tokens that show the trait, counted from the reply's start.

        Raises:
            UnknownTrait: the trait is not among `traits`.
        """
        if trait not in self.traits:
            raise UnknownTrait(trait, self.traits)
        return lambda trace: self._positions(trace, trait)

    def shown(self, trace: Trace) -> dict[str, bool] | None:
        """Whether a reply shows each trait in any sentence; None for an incoherent reply, which shows nothing."""
        level = self.coherence(trace)
        if level is None or level < MIN_SCORE:
            return None
        question, found = _last_user_message(trace), [one for one, _ in _sentences(trace)]
        self._ask([(trait, question, one) for trait in self.traits for one in found])
        return {t: any(self._shows(t, question, one) for one in found) for t in self.traits}

    def coherence(self, trace: Trace) -> float | None:
        """Coherence of a whole reply, 0 to 100; None where there is no score."""
        text, question = trace.reply_text, _last_user_message(trace)
        if not text.strip():
            return 0.0
        self._ask([(COHERENCE, question, text)])
        return self._scores.get((COHERENCE, question, text))

    def _positions(self, trace: Trace, trait: str) -> list[int]:
        question, found = _last_user_message(trace), _sentences(trace)
        self._ask([(trait, question, one) for one, _ in found])
        shown = [Annotation("", "", trait, a, b) for one, (a, b) in found if self._shows(trait, question, one)]
        return [t - trace.n_prompt for t in annotated_positions(trace, shown)]

    def _shows(self, trait: str, question: str, sentence: str) -> bool:
        score = self._scores.get((trait, question, sentence))
        return score is not None and score >= MIN_SCORE

    def _ask(self, asks: Sequence[Ask]) -> None:
        """Have the judge answer what is not known yet."""
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


def _sentences(trace: Trace) -> list[tuple[str, tuple[int, int]]]:
    """The sentences of a reply, with their character offsets."""
    text = trace.reply_text
    return [(text[a:b].strip(), (a, b)) for a, b in sentences(text) if text[a:b].strip()]


def _last_user_message(trace: Trace) -> str:
    """The last user message before the reply."""
    users = [t for t in range(trace.n_prompt) if trace.roles[t] == "user"]
    last = [t for k, t in enumerate(users) if users[-1] - t == len(users) - 1 - k]  # the last unbroken stretch
    return "".join(trace.tokens[t] for t in last).strip()
