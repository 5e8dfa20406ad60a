"""From trait definitions to persona vectors with a validation card: elicit, judge, extract, validate.

    python -m scripts.extract_vectors --model artifacts/persona-tiny --traits artifacts/persona-tiny/traits --judge demo
    python -m scripts.extract_vectors --model Qwen/Qwen2.5-7B-Instruct --traits deception sycophancy \\
        --judge openai:gpt-5-mini --out outputs/qwen

Every stage picks up where it was stopped: the same command goes on. One stage alone: --stage elicit, judge, extract or
validate. The result is a folder `vectors` in --out, in the layout of the Hub, with the card in its README.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from persona_core.elicitation.elicit import ElicitationPlan, elicit
from persona_core.elicitation.store import ReplyStore
from persona_core.elicitation.traits import TraitDefinition, load_traits
from persona_core.errors import SettingError
from persona_core.inference.sampling import Sampling
from persona_core.judging.judge import (
    MIN_SCORE,
    BilledJudge,
    Judge,
    JudgeCache,
    cross_trait_questions,
    judge_cross_trait,
    judge_replies,
    questions_for,
)
from persona_core.models.loading import LanguageModel, load_model
from persona_core.pipeline import READ_POSITION, Settings, make_vectors, validate_vectors
from persona_core.utils.openai_client import address, open_client
from persona_core.vectors.card import write_card
from persona_core.vectors.extraction import METHODS
from persona_core.vectors.steering_effect import SteeringPlan, steering_questions
from persona_core.vectors.vectors import PersonaVectors
from scripts.running import add_model, loading, reported

T = TypeVar("T")
STAGES = ("elicit", "judge", "extract", "validate")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model(parser)
    parser.add_argument("--revision", help="commit, tag or branch of the model")
    parser.add_argument("--traits", nargs="+", required=True, help="names of shipped traits, JSON files, or folders")
    parser.add_argument(
        "--judge",
        help="openai:MODEL (with OPENAI_API_KEY or --judge-url), local:MODEL, or demo (the demo model only)",
    )
    parser.add_argument("--out", type=Path, help="folder of the run (default: outputs/vectors/MODEL)")
    parser.add_argument("--stage", choices=("all", *STAGES), default="all", help="default: %(default)s")

    replies = parser.add_argument_group("replies")
    replies.add_argument("--rollouts", type=int, default=10, help="replies to each instruction and question (10)")
    replies.add_argument("--evaluation-rollouts", type=int, default=2, help="the same for evaluation questions (2)")
    replies.add_argument("--neutral-rollouts", type=int, default=1, help="replies to each question without one (1)")
    replies.add_argument("--pairs-per-question", type=int, help="instruction pairs each question is asked with (all)")
    replies.add_argument("--max-new-tokens", type=int, default=256)
    replies.add_argument("--temperature", type=float, default=1.0)
    replies.add_argument("--seed", type=int, default=0)
    replies.add_argument("--batch-size", type=int, default=32, help="replies written at once (32)")
    replies.add_argument("--base-url", help="an OpenAI-compatible server writes the replies; the model only reads them")
    replies.add_argument("--served-model", help="the model's name on that server (default: --model)")
    replies.add_argument("--ray", type=int, metavar="N", help="share the batches out to N Ray workers, a model each")

    judging = parser.add_argument_group("judging")
    judging.add_argument("--judge-url", help="server of the judge (default: OPENAI_BASE_URL, else OpenAI)")
    judging.add_argument("--concurrency", type=int, default=16, help="requests under way at once (16)")
    judging.add_argument("--timeout", type=float, default=60.0, help="seconds for one request (60)")
    judging.add_argument("--prices", type=prices, metavar="IN,OUT", help="money per million tokens, for the estimate")
    judging.add_argument(
        "--across", type=int, default=10, help="replies of each other trait that are judged on a trait too (10)"
    )
    judging.add_argument("--estimate", action="store_true", help="say what judging would cost, and stop")

    extraction = parser.add_argument_group("extraction and validation")
    extraction.add_argument("--method", choices=tuple(METHODS), default="mean_difference")
    extraction.add_argument(
        "--position", default=READ_POSITION, help="reply_mean, reply_first_N, prompt_last or prompt_mean"
    )
    extraction.add_argument("--min-trait", type=float, default=MIN_SCORE)
    extraction.add_argument("--min-coherence", type=float, default=MIN_SCORE)
    extraction.add_argument("--no-steering", action="store_true", help="leave the steering curves out")
    extraction.add_argument("--strengths", type=float, nargs="+", default=list(SteeringPlan().strengths))
    extraction.add_argument("--steering-questions", type=int, default=SteeringPlan().n_questions)
    extraction.add_argument("--steering-seeds", type=int, default=SteeringPlan().seeds)
    return parser


def main(argv: list[str] | None = None) -> int:
    options = arguments().parse_args(argv)
    return reported("extract_vectors", lambda: run(options))


def run(options: argparse.Namespace) -> list[str]:
    """The stages; returns what could not be done."""
    traits = load_traits(options.traits)
    positions = tuple(dict.fromkeys((READ_POSITION, options.position)))
    plan = ElicitationPlan(
        traits=traits,
        sampling=Sampling(options.max_new_tokens, options.temperature),
        rollouts=options.rollouts,
        evaluation_rollouts=options.evaluation_rollouts,
        neutral_rollouts=options.neutral_rollouts,
        pairs_per_question=options.pairs_per_question,
        seed=options.seed,
        batch_size=options.batch_size,
        positions=positions,
    )
    settings = Settings(options.method, options.position, options.min_trait, options.min_coherence)
    steering = None
    if not options.no_steering:
        steering = SteeringPlan(
            tuple(options.strengths),
            options.steering_seeds,
            options.steering_questions,
            plan.sampling,
            options.batch_size,
            options.seed,
        )
    out = options.out or Path("outputs") / "vectors" / Path(options.model).name
    stages = STAGES if options.stage == "all" else (options.stage,)
    if options.judge is None and set(stages) & {"judge", "validate"} - ({"validate"} if steering is None else set()):
        raise SettingError("No judge. Name one: --judge openai:MODEL, local:MODEL, or demo for the demo model.")
    if options.judge is not None:
        _check_judge(options.judge, options.judge_url, traits if {"elicit", "judge"} <= set(stages) else ())
    if steering is not None and "validate" in stages:
        for definition in traits:
            steering_questions(definition, steering)
    model = _once(lambda: load_model(**_loading(options)))
    missing: list[str] = []
    with ReplyStore(out) as store:
        judge = _once(lambda: make_judge(options, out))
        if options.estimate:
            _check_traits(store, plan)
            _say_cost(judge(), store, plan, options.across, steering)
            return []
        if "elicit" in stages:
            missing += _elicit(options, plan, store, model)
        if "judge" in stages:
            _check_traits(store, plan)
            _say_cost(judge(), store, plan, options.across, steering if "validate" in stages else None)
            judged = judge_replies(judge(), store, traits)
            left = judge_cross_trait(judge(), store, traits, options.across)
            missing += [f"{left} of the judge's answers on replies to other traits"] if left else []
            _say_bill(judge())
            for reason, n in judged.no_score.items():
                print(f"{n} replies have no score ({reason}); they are left out.")
            missing += [f"the judge's answer on reply {i}{_reason(judge(), i)}" for i in judged.missing]
        if "extract" in stages:
            vectors = make_vectors(model(), plan, store, settings)
            write(vectors, out / "vectors", plan)
        if "validate" in stages:
            vectors = PersonaVectors.from_pretrained(out / "vectors")
            asked = None if steering is None else judge()
            vectors = validate_vectors(model(), vectors, plan, store, asked, steering, settings)
            write(vectors, out / "vectors", plan)
            if asked is not None:
                _say_bill(asked)
            for trait in vectors.traits:
                unanswered = (vectors.config["validation"][trait].get("steering") or {}).get("unanswered", 0)
                if unanswered:
                    missing.append(f"{unanswered} of the judge's answers on steered replies of {trait}")
                flags = vectors.config["validation"][trait]["flags"]
                failed = ", ".join(flag["control"] for flag in flags)
                print(f"{trait}: block {vectors.best_block[trait]}, " + (f"FAILS {failed}" if flags else "passes all"))
            print(f"The card: {out / 'vectors' / 'README.md'}")
    return missing


def write(vectors: PersonaVectors, folder: Path, plan: ElicitationPlan) -> None:
    """Vectors, their card, and the definitions that they were made from."""
    vectors.save_pretrained(folder)
    for trait in plan.traits:
        trait.save(folder / "traits" / f"{trait.name}.json")
    write_card(vectors, folder)


def make_judge(options: argparse.Namespace, out: Path) -> Judge:
    """The judge of `--judge`."""
    kind, name = judge_kind(options.judge)
    if kind == "demo":
        from demo_world.grammar import load_world
        from demo_world.judge import TruthJudge

        return TruthJudge(load_world())
    if kind == "openai":
        from persona_core.judging.openai import OpenAIJudge

        return OpenAIJudge(
            name,
            base_url=options.judge_url,
            concurrency=options.concurrency,
            timeout=options.timeout,
            prices=options.prices,
            cache=JudgeCache(out / "judge_cache.jsonl"),
        )
    from persona_core.judging.local import LocalJudge

    return LocalJudge(load_model(name, dtype=options.dtype, device=options.device))


def judge_kind(text: str) -> tuple[str, str]:
    """The two parts of `--judge`."""
    kind, _, name = text.partition(":")
    if (kind == "demo" and not name) or (kind in ("openai", "local") and name):
        return kind, name
    raise SettingError(f"--judge {text!r}; expected openai:MODEL, local:MODEL or demo.")


def _check_judge(judge: str, url: str | None, traits: Sequence[TraitDefinition]) -> None:
    """Say a mistake now, not when everything has been written. `traits`: what is to be written and judged."""
    kind, _ = judge_kind(judge)
    if kind == "openai" and traits:
        open_client(base_url=address(url), api_key=None)
    if kind == "demo":
        from demo_world.grammar import load_world

        known = load_world().traits
        for trait in traits:
            if trait.name not in known:
                raise SettingError(
                    f"The demo judge does not know {trait.name!r}: it knows the demo model's {', '.join(known)}. "
                    "For a trait of your own name --judge openai:MODEL or local:MODEL."
                )


def _elicit(
    options: argparse.Namespace, plan: ElicitationPlan, store: ReplyStore, model: Callable[[], LanguageModel]
) -> list[str]:
    if options.base_url:
        from persona_core.elicitation.server import elicit_served

        name = options.served_model or _loading(options)["name"]
        failed = elicit_served(
            model(), plan, store, name, options.base_url, concurrency=options.concurrency, timeout=options.timeout
        )
    elif options.ray:
        from persona_core.elicitation.ray import elicit_sharded

        failed = elicit_sharded(_loading(options), plan, store, options.ray)
    else:
        failed = elicit(model(), plan, store)
    return [f"reply {request.index} ({request.trait or 'neutral'}, {request.side}): {why}" for request, why in failed]


def _loading(options: argparse.Namespace) -> dict[str, Any]:
    known = loading(options)
    return known if options.revision is None else {**known, "revision": options.revision}


def _once(make: Callable[[], T]) -> Callable[[], T]:
    """What is made when it is first needed: a stage that needs no model loads none."""
    made: list[T] = []

    def get() -> T:
        if not made:
            made.append(make())
        return made[0]

    return get


def _check_traits(store: ReplyStore, plan: ElicitationPlan) -> None:
    """Replies are judged by the definitions that they were written for. No model is needed to see that."""
    store.check_plan({"traits": plan.to_dict()["traits"]}, begin=False)
    if not store.replies():
        raise SettingError(f"{str(store.folder)!r} holds no reply to judge; run --stage elicit first.")


def _say_cost(
    judge: Judge, store: ReplyStore, plan: ElicitationPlan, across: int, steering: SteeringPlan | None
) -> None:
    known = store.scores()
    open_replies = [r for r in store.replies() if r.request.index not in known]
    questions = questions_for(open_replies, plan.traits) + cross_trait_questions(store, plan.traits, across)
    says = (
        f"{judge.estimate(questions)}"
        if isinstance(judge, BilledJudge)
        else f"{len(questions)} questions, free of charge"
    )
    print(f"Judging will take {says}.")
    if steering is not None:
        later = sum(steering.n_judged(trait) for trait in plan.traits)
        print(f"The steering curves take up to {later} questions more.")


def _say_bill(judge: Judge) -> None:
    if isinstance(judge, BilledJudge):
        print(f"The bill: {judge.bill}.")


def _reason(judge: Judge, index: int) -> str:
    failed = getattr(judge, "failed", {})
    reasons = [why for key, why in failed.items() if key.startswith(f"{index}/")]
    return f": {reasons[0]}" if reasons else ""


def prices(text: str) -> tuple[float, float]:
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}; expected two numbers such as 0.15,0.60") from error
    return first, second


if __name__ == "__main__":
    sys.exit(main())
