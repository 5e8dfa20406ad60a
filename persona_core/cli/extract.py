"""From trait definitions to persona vectors with a validation card: elicit, judge, extract, validate.

If stopped, the same command resumes; with more --rollouts, questions or traits it adds to the folder. --stage elicit,
judge, extract or validate runs one stage only. The result is the folder `vectors` in --out, in the layout of the Hub,
with the card in its README.md.

examples:
  persona extract --model Qwen/Qwen2.5-7B-Instruct --traits deception sycophancy --judge openai:gpt-5-mini \\
      --out outputs/qwen
  persona extract --model artifacts/persona-tiny --traits artifacts/persona-tiny/traits \\
      --judge python:demo_world.judge:truth_judge
  persona extract --model Qwen/Qwen2.5-7B-Instruct --traits deception --label instruction --estimate
  persona extract --model Qwen/Qwen2.5-7B --texts labelled.jsonl --out outputs/base
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_core.cli.advice import usable_traits
from persona_core.cli.estimate import estimate
from persona_core.cli.extraction_plan import plan_of, steering_plan_of, with_traits
from persona_core.cli.judges import KINDS, add_judge, check_judge, cost_of, make_judge, print_bill
from persona_core.cli.options import (
    ENGINES,
    add_model,
    add_ray,
    add_reply_sampling,
    add_seed,
    add_traits,
    command_parser,
    loading,
    workers,
)
from persona_core.cli.running import execute, load
from persona_core.errors import SettingError

if TYPE_CHECKING:
    from persona_core.elicitation.elicit import ElicitationPlan
    from persona_core.elicitation.store import ReplyStore
    from persona_core.judging.judge import Judge
    from persona_core.models.language_model import LanguageModel
    from persona_core.vectors.steering_effect import SteeringPlan
    from persona_core.vectors.vectors import PersonaVectors

STAGES = ("elicit", "judge", "extract", "validate")
METHODS = ("mean_difference", "logistic_probe", "mean_difference_without_neutral_components")


def arguments() -> argparse.ArgumentParser:
    parser = command_parser("extract", __doc__)
    add_model(parser)
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0], help="vllm gives no states: see --base-url")
    parser.add_argument("--revision", help="commit, tag or branch of the model")
    add_traits(parser, required=False)
    parser.add_argument("--texts", type=Path, help="labelled texts to read instead of eliciting replies: a .jsonl file")
    parser.add_argument(
        "--neutral-prompts", nargs="+", metavar="SET",
        help="with --texts: prompts that the model answers itself, for the null (a set such as neutral, or a file)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="output folder (default: outputs/vectors/MODEL)")
    parser.add_argument("--stage", choices=("all", *STAGES), default="all", help="stage to run")

    replies = parser.add_argument_group("replies")
    replies.add_argument("--rollouts", type=int, default=10, help="replies per instruction and question")
    replies.add_argument("--evaluation-rollouts", type=int, default=2, help="the same for evaluation questions")
    replies.add_argument("--neutral-rollouts", type=int, default=1, help="replies per question without an instruction")
    replies.add_argument("--pairs-per-question", type=int, help="instruction pairs per question (default: all)")
    add_reply_sampling(replies, temperature=1.0)
    add_seed(replies)
    replies.add_argument("--batch-size", type=int, default=32, help="replies generated at once")
    replies.add_argument(
        "--tokens-per-reply", type=int, default=16, help="states of single tokens stored of each reply, to whiten by"
    )
    replies.add_argument("--base-url", help="OpenAI-compatible server that writes the replies for the model to read")
    replies.add_argument("--served-model", help="the model's name on that server (default: --model)")
    add_ray(replies)

    add_judge(parser, required=False)
    parser.add_argument(
        "--label", choices=("judge", "instruction"), default="judge",
        help="what says whether a reply shows the trait: a judge, or (without one) the side that was asked for",
    )  # fmt: skip
    parser.add_argument(
        "--cross-trait", "--across", type=int, default=10, metavar="N",
        help="replies of each other trait to judge for a trait as well",
    )  # fmt: skip
    parser.add_argument("--estimate", action="store_true", help="print tokens, minutes and money, and write nothing")

    extraction = parser.add_argument_group("extraction and validation")
    extraction.add_argument("--method", choices=METHODS, default="mean_difference", help="extraction method")
    extraction.add_argument(
        "--position",
        default="reply_mean",
        help="pooled states: reply_mean, reply_first_N, thinking_mean, prompt_last, prompt_mean",
    )
    extraction.add_argument(
        "--block", choices=("own", "shared"), default="own",
        help="the block that is read: each trait's best, or the one that is best over all traits",
    )  # fmt: skip
    extraction.add_argument(
        "--contrast", choices=("negative", "neutral"),
        help="what scores tell a trait from: the replies of the other side, or the neutral ones (default: neutral for "
        "--texts that name the parts that show the trait, with as many neutral texts as a trait has negative ones, "
        "otherwise negative)",
    )  # fmt: skip
    extraction.add_argument("--min-trait", type=float, default=50.0, help="minimum score for a reply to show the trait")
    extraction.add_argument("--min-coherence", type=float, default=50.0, help="minimum coherence of a kept reply")
    extraction.add_argument("--no-steering", action="store_true", help="skip the steering curves, which need a judge")
    extraction.add_argument(
        "--strengths",
        type=float,
        nargs="+",
        default=[-0.5, 0.5, 0.7, 0.85, 1.0, 1.2],
        help="in units of the vector's norm",
    )
    extraction.add_argument("--steering-questions", type=int, default=10, help="questions per steering curve")
    extraction.add_argument("--steering-seeds", type=int, default=3, help="replies per question and strength")
    return parser


def main(argv: list[str] | None = None) -> int:
    return execute(arguments(), run, argv)


def run(options: argparse.Namespace) -> list[str]:
    """The stages; returns what could not be done."""
    if options.engine != ENGINES[0]:
        raise SettingError(
            f"--engine {options.engine} gives projections; `persona extract` needs whole states. Let a server write "
            "the replies (--base-url), which are then read here."
        )
    from persona_core.elicitation.store import ReplyStore
    from persona_core.pipeline import Settings, make_vectors, validate_vectors
    from persona_core.vectors.vectors import PersonaVectors

    plan = plan_of(options)
    unjudged = options.texts is not None or options.label == "instruction"
    steering = None if options.no_steering or unjudged else steering_plan_of(options, plan)
    settings = Settings(
        options.method,
        options.position,
        options.min_trait,
        options.min_coherence,
        block=options.block,
        contrast=options.contrast,
    )
    out = options.out or Path("outputs") / "vectors" / Path(options.model).name
    stages = STAGES if options.stage == "all" else (options.stage,)
    _check_options(options, plan, steering, stages)
    model = cache(lambda: load(_loading(options)))  # a stage that needs no model loads none
    if options.estimate:
        estimate(options, plan, out, model, steering)
        return []
    judge = cache(lambda: make_judge(options, out))
    missing: list[str] = []
    with ReplyStore(out) as store:
        if "elicit" in stages:
            missing += _elicit(options, plan, store, model)
        if "judge" in stages:
            _check_traits(store, plan)
            if unjudged:
                _label(options, plan, store)
            else:
                _print_cost(judge(), store, plan, options.cross_trait, steering if "validate" in stages else None)
                missing += _judge(judge(), store, plan, options.cross_trait)
        if "extract" in stages:
            usable, unusable = usable_traits(plan, store, settings)
            missing += unusable
            _write(make_vectors(model(), usable, store, settings), out / "vectors", usable)
        if "validate" in stages:
            vectors = PersonaVectors.from_pretrained(out / "vectors")
            usable = with_traits(plan, vectors.traits)
            steering_judge = None if steering is None else judge()
            vectors = validate_vectors(model(), vectors, usable, store, steering_judge, steering, settings)
            _write(vectors, out / "vectors", usable)
            if steering_judge is not None:
                print_bill(steering_judge)
            missing += _print_verdicts(vectors)
            print(f"Card: {out / 'vectors' / 'README.md'}")
    return missing


def _label(options: argparse.Namespace, plan: ElicitationPlan, store: ReplyStore) -> None:
    from persona_core.elicitation.texts import GIVEN
    from persona_core.judging.labels import INSTRUCTION, label_replies

    how = INSTRUCTION if options.texts is None else GIVEN
    n = label_replies(store, plan.traits, how)
    print(f"{n:,} replies are labelled by {'their instruction' if how == INSTRUCTION else 'the file'}, not by a judge.")


def _check_options(
    options: argparse.Namespace, plan: ElicitationPlan, steering: SteeringPlan | None, stages: Sequence[str]
) -> None:
    """Refuse a run that could not finish: without a judge that a stage needs, or without questions for steering."""
    from persona_core.vectors.steering_effect import steering_questions

    unjudged = (
        "--texts" if options.texts is not None else "--label instruction" if options.label == "instruction" else ""
    )
    if unjudged and options.judge is not None:
        raise SettingError(f"{unjudged} takes the labels as they are: leave --judge out.")
    if options.texts is not None and (options.base_url or options.ray):
        raise SettingError("--texts are read here: leave --base-url and --ray out.")
    needs_judge = not unjudged and ("judge" in stages or ("validate" in stages and steering is not None))
    if options.judge is None and needs_judge and not options.estimate:
        raise SettingError(
            f"No judge. Name one: --judge {KINDS}. Or let the side that was asked for be the label: --label "
            "instruction."
        )
    if options.judge is not None:
        asks = {"elicit", "judge"} <= set(stages) and not options.estimate
        check_judge(options, plan.traits if asks else ())
    if steering is not None and "validate" in stages:
        for trait in plan.traits:
            steering_questions(trait, steering)


def _judge(judge: Judge, store: ReplyStore, plan: ElicitationPlan, cross_trait: int) -> list[str]:
    """Judge the replies; returns what the judge did not answer."""
    from persona_core.judging.replies import judge_cross_trait, judge_replies

    judged = judge_replies(judge, store, plan.traits)
    left = judge_cross_trait(judge, store, plan.traits, cross_trait)
    print_bill(judge)
    for reason, n in judged.no_score.items():
        print(f"{n} replies have no score ({reason}); they are left out.")
    missing = [f"{left} of the judge's answers about replies of other traits"] if left else []
    return missing + [f"the judge's answer about reply {i}{_reason(judge, i)}" for i in judged.missing]


def _print_verdicts(vectors: PersonaVectors) -> list[str]:
    """Print which controls each vector fails; returns what the judge did not answer about steered replies."""
    from persona_core.vectors.verdict import verdict

    missing = []
    for trait in vectors.traits:
        figures = vectors.config["validation"][trait]
        unanswered = (figures.get("steering") or {}).get("unanswered", 0)
        if unanswered:
            missing.append(f"{unanswered} of the judge's answers about steered replies of {trait}")
        print(f"{trait}: block {vectors.best_block[trait]}, {verdict(figures)}")
    return missing


def _write(vectors: PersonaVectors, folder: Path, plan: ElicitationPlan) -> None:
    """Write the vectors, their card, and the trait definitions."""
    from persona_core.vectors.card import write_card

    vectors.save_pretrained(folder)
    for trait in plan.traits:
        trait.save(folder / "traits" / f"{trait.name}.json")
    write_card(vectors, folder)


def _elicit(
    options: argparse.Namespace, plan: ElicitationPlan, store: ReplyStore, model: Callable[[], LanguageModel]
) -> list[str]:
    from persona_core.elicitation.texts import TextsPlan

    if isinstance(plan, TextsPlan):
        from persona_core.elicitation.texts import read_texts

        failed = read_texts(model(), plan, store)
    elif options.base_url:
        from persona_core.elicitation.server import elicit_served

        name = options.served_model or _loading(options)["name"]
        failed = elicit_served(
            model(), plan, store, name, options.base_url, concurrency=options.concurrency, timeout=options.timeout
        )
    elif options.ray:
        from persona_core.elicitation.ray import elicit_sharded

        failed = elicit_sharded(_loading(options), plan, store, workers(options))
    else:
        from persona_core.elicitation.elicit import elicit

        failed = elicit(model(), plan, store)
    return [f"reply {request.index} ({request.trait or 'neutral'}, {request.side}): {why}" for request, why in failed]


def _loading(options: argparse.Namespace) -> dict[str, Any]:
    arguments = loading(options)
    return arguments if options.revision is None else {**arguments, "revision": options.revision}


def _check_traits(store: ReplyStore, plan: ElicitationPlan) -> None:
    """Check, without a model, that replies are judged by the definitions they were written for."""
    store.check_plan({"traits": plan.to_dict()["traits"]}, create=False)
    if not store.replies():
        raise SettingError(f"{str(store.folder)!r} holds no replies; elicit them first (--stage elicit).")


def _print_cost(
    judge: Judge, store: ReplyStore, plan: ElicitationPlan, cross_trait: int, steering: SteeringPlan | None
) -> None:
    from persona_core.judging.replies import cross_trait_questions, questions_for

    scored = store.scores()
    unscored = [r for r in store.replies() if r.request.index not in scored]
    questions = questions_for(unscored, plan.traits) + cross_trait_questions(store, plan.traits, cross_trait)
    print(f"Judging will take {cost_of(judge, questions)}.")
    if steering is not None:
        later = sum(steering.n_judged(trait) for trait in plan.traits)
        print(f"The steering curves take up to {later} more questions.")


def _reason(judge: Judge, index: int) -> str:
    failed = getattr(judge, "failed", {})
    reasons = [why for key, why in failed.items() if key.startswith(f"{index}/")]
    return f": {reasons[0]}" if reasons else ""


if __name__ == "__main__":
    sys.exit(main())
