"""Judging the replies of a store: each on its own trait and for coherence, some on the other traits too."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from persona_core.elicitation.store import CROSS_TRAIT_FILE, CrossTraitScore, Reply, ReplyScore, ReplyStore
from persona_core.elicitation.traits import TraitDefinition, fill
from persona_core.errors import SettingError, UnknownTrait
from persona_core.judging.judge import COHERENCE, COHERENCE_PROMPT, Judge, Question, Score
from persona_core.utils.files import read_json, write_atomically

T = TypeVar("T")

JUDGE_FILE = "judge.json"


@dataclass(frozen=True)
class JudgingResult:
    """The outcome of judging a store.

    Attributes:
        scored: how many replies have both scores.
        no_score: replies that were judged but lack a score: reason -> how many.
        missing: indices of replies that the judge did not answer; a second run asks again.
    """

    scored: int
    no_score: Mapping[str, int]
    missing: tuple[int, ...]


def _question(reply: Reply, name: str, prompt: str) -> Question:
    user, text = reply.request.user, reply.text
    return Question(f"{reply.request.index}/{name}", name, fill(prompt, user, text), user, text)


def questions_for(replies: Sequence[Reply], traits: Sequence[TraitDefinition]) -> list[Question]:
    """Two questions for each reply to an instruction: on its trait, and on its coherence."""
    definitions = {trait.name: trait for trait in traits}
    found = []
    for reply in replies:
        request = reply.request
        if request.trait is None:
            continue
        if request.trait not in definitions:
            raise UnknownTrait(request.trait, tuple(definitions))
        for name, prompt in (
            (request.trait, definitions[request.trait].judge_prompt),
            (COHERENCE, COHERENCE_PROMPT),
        ):
            found.append(_question(reply, name, prompt))
    return found


def judge_replies(
    judge: Judge, store: ReplyStore, traits: Sequence[TraitDefinition], progress: bool = True
) -> JudgingResult:
    """Judge every reply to an instruction that has no scores yet, and keep the scores in the store.

        with ReplyStore("outputs/candour") as store:
            result = judge_replies(OpenAIJudge("gpt-4.1-mini"), store, load_traits(["traits/candour.json"]))

    Args:
        judge: such as `persona_core.judging.openai.OpenAIJudge` or `persona_core.judging.local.LocalJudge`.
        store: the replies; a run that was interrupted resumes from it.
        traits: the definitions that the replies were elicited with.
        progress: whether to show a progress bar.

    Raises:
        SettingError: another judge, or another judge prompt, scored the store before.
        UnknownTrait: the store holds replies of a trait that is not among `traits`.
    """
    check_judge(store, judge.name, traits)
    known = store.scores()
    replies = {r.request.index: r for r in store.replies() if r.request.trait is not None}
    open_replies = [reply for index, reply in replies.items() if index not in known]
    answers: dict[int, dict[str, Score]] = {}
    with _kept_in_batches(store.add_scores) as keep:
        for question, score in judge.score(questions_for(open_replies, traits), progress):
            index = int(question.key.split("/")[0])
            scores_of = answers.setdefault(index, {})
            scores_of["coherence" if question.trait == COHERENCE else "trait"] = score
            if len(scores_of) == 2:
                trait, coherence = scores_of["trait"], scores_of["coherence"]
                how = trait.how if trait.value is None or coherence.value is not None else f"coherence: {coherence.how}"
                keep(ReplyScore(index, trait.value, coherence.value, how, replies[index].fingerprint))
    scores = store.scores()
    without: dict[str, int] = {}
    for index in replies:
        if index in scores and (scores[index].trait is None or scores[index].coherence is None):
            without[scores[index].how] = without.get(scores[index].how, 0) + 1
    missing = tuple(i for i in replies if i not in scores)
    return JudgingResult(len(replies) - sum(without.values()) - len(missing), without, missing)


@contextmanager
def _kept_in_batches(keep: Callable[[list[T]], None], size: int = 64) -> Iterator[Callable[[T], None]]:
    """Collects scores and stores them together, with one flush to disk; after an error too."""
    waiting: list[T] = []

    def add(score: T) -> None:
        waiting.append(score)
        if len(waiting) >= size:
            keep(waiting)
            waiting.clear()

    try:
        yield add
    finally:
        keep(waiting)


def cross_trait_replies(store: ReplyStore, traits: Sequence[TraitDefinition], n: int) -> dict[str, list[Reply]]:
    """For each trait, `n` positive replies of every other trait, to the evaluation questions that are reported on."""
    chosen = {}
    for trait in traits:
        first = (len(trait.evaluation_questions) + 1) // 2
        positive = store.replies(split="evaluation", trait=trait.name, side="positive")
        reported = [r for r in positive if r.request.question >= first and r.n_tokens]
        step = max(1, len(reported) // n) if n else 1
        chosen[trait.name] = reported[::step][:n]
    return {t.name: [r for o in traits if o.name != t.name for r in chosen[o.name]] for t in traits}


def cross_trait_questions(store: ReplyStore, traits: Sequence[TraitDefinition], n: int) -> list[Question]:
    """One question for each of `cross_trait_replies` that has no score yet."""
    known, found = store.cross_trait_scores(), []
    replies = cross_trait_replies(store, traits, n)
    for trait in traits:
        for reply in replies[trait.name]:
            if (reply.request.index, trait.name) not in known:
                found.append(_question(reply, trait.name, trait.judge_prompt))
    return found


def judge_cross_trait(
    judge: Judge, store: ReplyStore, traits: Sequence[TraitDefinition], n: int = 10, progress: bool = True
) -> int:
    """Judge replies on traits other than their own, to see later whether a vector tells its trait from the others.

    Returns:
        How many questions the judge did not answer; a second run asks them again.
    """
    check_judge(store, judge.name, traits)
    questions, replies = cross_trait_questions(store, traits, n), {r.request.index: r for r in store.replies()}
    answered = 0
    with _kept_in_batches(store.add_cross_trait_scores) as keep:
        for question, score in judge.score(questions, progress):
            index = int(question.key.split("/")[0])
            keep(CrossTraitScore(index, question.trait, score.value, replies[index].fingerprint))
            answered += 1
    return len(questions) - answered


def check_judge(store: ReplyStore, name: str, traits: Sequence[TraitDefinition]) -> None:
    """Record the judge and its prompts, or check that they match the record: scores of two judges are never mixed.

    Raises:
        SettingError: the judge or a prompt differs.
    """
    path = store.folder / JUDGE_FILE
    prompts = {COHERENCE: COHERENCE_PROMPT, **{trait.name: trait.judge_prompt for trait in traits}}
    prints = {of: hashlib.sha256(prompt.encode()).hexdigest()[:16] for of, prompt in prompts.items()}
    before = read_json(path) if path.is_file() else {"judge": name, "prompts": {}}
    known = before.get("prompts")
    known = known if isinstance(known, dict) else {}
    if before.get("judge") != name or any(known.get(of, prints[of]) != prints[of] for of in prints):
        raise SettingError(
            f"The replies in {str(store.folder)!r} were judged by {before.get('judge')!r}; now it is {name!r}, or a "
            f"judge prompt has changed. To judge again, delete scores.jsonl, {CROSS_TRAIT_FILE} and {JUDGE_FILE} there."
        )
    now = {"judge": name, "prompts": {**known, **prints}}
    if now != before or not path.is_file():
        write_atomically(path, json.dumps(now, indent=2) + "\n")


def judge_of(store: ReplyStore) -> str:
    """The name of the judge that scored the store."""
    path = store.folder / JUDGE_FILE
    return str(read_json(path).get("judge")) if path.is_file() else "unknown"
