"""The plans that the options of `persona extract` name."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from persona_core.errors import SettingError

if TYPE_CHECKING:
    from persona_core.elicitation.elicit import ElicitationPlan
    from persona_core.vectors.steering_effect import SteeringPlan


def plan_of(options: argparse.Namespace) -> ElicitationPlan:
    """The replies to elicit, or the texts to read."""
    from persona_core.elicitation.elicit import ElicitationPlan
    from persona_core.elicitation.labelled_texts import load_texts
    from persona_core.elicitation.prompts import load_prompts
    from persona_core.elicitation.texts import texts_plan
    from persona_core.elicitation.traits import load_traits
    from persona_core.inference.sampling import Sampling
    from persona_core.pipeline import READ_POSITION, SINKS_POSITION

    if not options.traits and options.texts is None:
        raise SettingError("No traits. Name them (--traits deception), or give labelled texts (--texts FILE.jsonl).")
    if options.neutral_prompts and options.texts is None:
        raise SettingError("--neutral-prompts belongs to --texts; elicited traits have replies to their own questions.")
    traits = load_traits(options.traits) if options.traits else ()
    settings: dict[str, Any] = {
        "sampling": Sampling(options.max_new_tokens, options.temperature),
        "rollouts": options.rollouts,
        "evaluation_rollouts": options.evaluation_rollouts,
        "neutral_rollouts": options.neutral_rollouts,
        "pairs_per_question": options.pairs_per_question,
        "seed": options.seed,
        "batch_size": options.batch_size,
        "positions": tuple(dict.fromkeys((READ_POSITION, SINKS_POSITION, options.position))),
        "tokens_per_reply": options.tokens_per_reply,
    }
    if options.texts is not None:
        prompts = load_prompts(options.neutral_prompts) if options.neutral_prompts else ()
        if instructed := [p.id for p in prompts if p.system is not None]:
            raise SettingError(f"--neutral-prompts: {instructed[0]!r} has a system prompt; neutral replies have none.")
        return texts_plan(
            load_texts(options.texts),
            traits,
            neutral_prompts=tuple(p.prompt for p in prompts),
            **settings,
        )
    return ElicitationPlan(traits, **settings)


def with_traits(plan: ElicitationPlan, names: Sequence[str]) -> ElicitationPlan:
    """The plan with some of its traits only."""
    return replace(plan, traits=tuple(trait for trait in plan.traits if trait.name in names))


def steering_plan_of(options: argparse.Namespace, plan: ElicitationPlan) -> SteeringPlan:
    """The steering curves."""
    from persona_core.vectors.steering_effect import SteeringPlan

    return SteeringPlan(
        tuple(options.strengths),
        options.steering_seeds,
        options.steering_questions,
        plan.sampling,
        options.batch_size,
        options.seed,
    )
