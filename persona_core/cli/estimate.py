"""`persona extract --estimate`: tokens, minutes and money of a run, before anything is written."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from persona_core.cli.judges import cost_of, make_judge

if TYPE_CHECKING:
    from persona_core.elicitation.elicit import ElicitationPlan
    from persona_core.elicitation.store import ElicitationRequest, ReplyStore
    from persona_core.elicitation.trial import Trial
    from persona_core.judging.judge import Judge, Question
    from persona_core.models.language_model import LanguageModel
    from persona_core.vectors.steering_effect import SteeringPlan

JUDGED_IN_TRIAL = 4


def estimate(
    options: argparse.Namespace,
    plan: ElicitationPlan,
    out: Path,
    model: Callable[[], LanguageModel],
    steering: SteeringPlan | None,
) -> None:
    """Print what the run of these options would take; where nothing is there yet, no folder is made."""
    from persona_core.elicitation.store import ReplyStore
    from persona_core.utils.workdir import PLAN_FILE

    served = options.base_url is not None
    if not (out / PLAN_FILE).is_file():  # nothing is written, the folder included
        judge = None if options.judge is None else make_judge(options, None)
        print_estimate(model, judge, None, plan, options.cross_trait, steering, served)
        return
    judge = None if options.judge is None else make_judge(options, out)
    with ReplyStore(out) as store:
        print_estimate(model, judge, store, plan, options.cross_trait, steering, served)


def print_estimate(
    model: Callable[[], LanguageModel],
    judge: Judge | None,
    store: ReplyStore | None,
    plan: ElicitationPlan,
    cross_trait: int,
    steering: SteeringPlan | None,
    served: bool,
) -> None:
    """Print what a run would take.

    Args:
        model: loads the model; called only where replies are still to be written here.
        judge: None: nothing is judged.
        store: the replies that are there; None: none are.
        steering: None: no steering curves.
        served: a server writes the replies, at its own speed.
    """
    from persona_core.elicitation.growing import missing_requests
    from persona_core.elicitation.texts import TextsPlan
    from persona_core.elicitation.trial import try_plan

    given = plan.given() if isinstance(plan, TextsPlan) else {}
    missing = missing_requests(store, [r for r in plan.requests() if r.index not in given])
    steered = 0 if steering is None or judge is None else sum(steering.n_judged(t) // 2 for t in plan.traits)
    replies = [] if store is None else store.replies()
    print(f"{len(replies):,} replies are there; {len(missing):,} are to be written.")
    if given:
        print(f"{len(given):,} given texts are read, once each.")
    trial: Trial | None = None
    if missing and served:
        print(f"The server writes up to {len(missing) * plan.sampling.max_new_tokens:,} tokens.")
    elif missing:
        trial = try_plan(model(), plan, missing)
        about = "about" if trial.reply_tokens < plan.sampling.max_new_tokens else "up to"
        print(
            f"Writing them takes {about} {duration(trial.seconds_for(len(missing)))} here, for {about} "
            f"{trial.tokens_for(len(missing)):,} tokens ({trial.reply_tokens:.0f} a reply; a trial wrote "
            f"{trial.n_replies} replies at once, {trial.tokens_a_second:,.0f} tokens a second)."
        )
        if steered:
            took = duration(trial.seconds_for(steered))
            print(f"The steering curves take up to {steered:,} more replies, {about} {took}.")
    if judge is None:
        print("Nothing is judged; --judge adds what that takes.")
        return
    questions = _questions(store, plan, missing, trial, cross_trait)
    print(f"Judging will take {cost_of(judge, questions)}{_time_of(judge, questions)}.")
    if steering is not None:
        print(f"The steering curves take up to {2 * steered} more questions.")


def _questions(
    store: ReplyStore | None,
    plan: ElicitationPlan,
    missing: Sequence[ElicitationRequest],
    trial: Trial | None,
    cross_trait: int,
) -> list[Question]:
    """What a judge will be asked: about replies that are there, and about such as the trial lets expect."""
    from persona_core.elicitation.store import Reply
    from persona_core.judging.judge import Question
    from persona_core.judging.replies import cross_trait_questions, questions_for

    tokens, characters = (trial.reply_tokens, trial.characters_a_token) if trial else (plan.sampling.max_new_tokens, 4)
    length = round(tokens * characters)
    expected = [
        Reply(r, f"{r.index} ".ljust(length, "x"), (), round(tokens), "expected", 0, "") for r in missing if r.trait
    ]
    found = questions_for(expected, plan.traits)
    if store is not None:
        scored = store.scores()
        found += questions_for([r for r in store.replies() if r.request.index not in scored], plan.traits)
        found += cross_trait_questions(store, plan.traits, cross_trait)
    if missing:
        others = len(plan.traits) - 1
        for trait in plan.traits:
            question = trait.evaluation_questions[0]
            for k in range(cross_trait * others):
                answer = f"{trait.name} {k} ".ljust(length, "x")
                prompt = trait.judge_question(question, answer)
                found.append(Question(f"{trait.name}/{k}", trait.name, prompt, question, answer))
    return found


def _time_of(judge: Judge, questions: Sequence[Question]) -> str:
    """How long a judge on this machine takes, from a few of the questions; "" for others, whose answers cost money."""
    from persona_core.judging.local import LocalJudge

    if not isinstance(judge, LocalJudge) or len(questions) < JUDGED_IN_TRIAL:
        return ""
    first = questions[: 2 * JUDGED_IN_TRIAL : 2]  # of one rubric
    list(judge.score(first, progress=False))  # reads the rubric and tries the model, once
    started = time.monotonic()
    list(judge.score(first, progress=False))
    seconds = (time.monotonic() - started) / len(first) * len(questions)
    return f", about {duration(seconds)} on this machine"


def duration(seconds: float) -> str:
    """A time in the unit that one would say it in.

    >>> duration(40), duration(600), duration(20_000)
    ('40 seconds', '10 minutes', '5.6 hours')
    """
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:,.1f} hours"
