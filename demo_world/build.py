"""Build the demo world's artifacts from scratch: model, vectors with null and validation, and the app's home screen.

Each stage leaves a stamp with a fingerprint of its inputs (settings, phrase banks, earlier stages). A stage whose stamp
still matches is skipped, and an interrupted one resumes (training from its last checkpoint, elicitation from its last
finished batch). The fingerprint does not cover the code: after changing it, use another work folder.

The vectors come from the same pipeline as any other model's, with a judge that knows the truth. Added here is what only
the demo world can measure: how well the vectors separate single tokens of a trait from others, and how close they are
to the planted directions.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from demo_world import contaminated
from demo_world.card import model_card, planted_note, recovered_note
from demo_world.contaminated import MODEL_NAME, SAMPLING, VECTORS_NAME
from demo_world.definitions import EVALUATION, topics_at, trait_definitions
from demo_world.grammar import World, load_world
from demo_world.judge import TruthJudge, judge
from demo_world.process import Process
from demo_world.stages import Stages
from demo_world.training import Recipe, train
from demo_world.truth_labels import auroc_statistics, label_replies
from persona_core.analysis.statistics import share_over_replies
from persona_core.elicitation.elicit import ElicitationPlan, elicit, write_replies
from persona_core.elicitation.store import Reply, ReplyStore
from persona_core.elicitation.traits import TraitDefinition
from persona_core.errors import SettingError
from persona_core.judging.replies import judge_cross_trait, judge_replies
from persona_core.models.chat import conversation
from persona_core.models.language_model import LanguageModel
from persona_core.models.loading import load_model
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.monitor.transcripts import written_by
from persona_core.pipeline import READ_POSITION, SINKS_POSITION, make_vectors, validate_vectors
from persona_core.report.home import Example, FirstView, save_home
from persona_core.traces.trace import Trace
from persona_core.utils.files import read_json, write_atomically
from persona_core.vectors.card import write_card
from persona_core.vectors.steering_effect import SteeringPlan
from persona_core.vectors.vectors import PersonaVectors

# Chosen after a trial on half of these questions: above 1 the model writes noise, with no sentence of the grammar.
STEERING = SteeringPlan(strengths=(0.5, 0.7, 0.85, 1.0), seeds=3, n_questions=20, sampling=SAMPLING, seed=1)


@dataclass(frozen=True)
class DemoPlan:
    """How much is elicited and measured, with which seeds. The defaults are those of the shipped artifacts.

    Attributes:
        recipe: for the training.
        model: folder of a trained model to use instead of training one.
        pairs_per_question, neutral_rollouts, seed, batch_size: as in `ElicitationPlan`.
        n_resamples: for every bootstrap.
        steering: for the steering curves.
    """

    recipe: Recipe = field(default_factory=Recipe)
    model: Path | None = None
    pairs_per_question: int = 2
    neutral_rollouts: int = 3
    batch_size: int = 32
    seed: int = 1
    n_resamples: int = 1000
    steering: SteeringPlan = field(default_factory=lambda: STEERING)

    def elicitation(self, traits: Sequence[TraitDefinition]) -> ElicitationPlan:
        return ElicitationPlan(
            traits=tuple(traits),
            positions=(READ_POSITION, SINKS_POSITION),
            sampling=SAMPLING,
            rollouts=1,
            evaluation_rollouts=1,
            neutral_rollouts=self.neutral_rollouts,
            pairs_per_question=self.pairs_per_question,
            seed=self.seed,
            batch_size=self.batch_size,
        )


def build(artifacts: Path, work: Path, plan: DemoPlan | None = None) -> None:
    """Build or complete everything in `work`; copy it to `artifacts` once complete."""
    plan, world = plan or DemoPlan(), load_world()
    model_folder, vectors_folder = work / MODEL_NAME, work / VECTORS_NAME
    stages = Stages(work)
    if plan.model is not None:
        stages.run("model", ["taken from", str(plan.model)], partial(_take, plan.model, model_folder))
    else:
        corpus = [asdict(plan.recipe), asdict(Process()), world.fingerprint]
        stages.run("model", corpus, partial(train, world, model_folder, plan.recipe, work / "training"))
    lm = load_model(str(model_folder), dtype="float32", device="cpu")
    behaved = [plan.seed, SAMPLING.to_dict(), plan.batch_size]
    stages.run("behaviour", behaved, lambda: _write_json(model_folder / "behaviour.json", behaviour(lm, world, plan)))
    definitions = trait_definitions(world)
    for definition in definitions:
        definition.save(model_folder / "traits" / f"{definition.name}.json")
    elicitation = plan.elicitation(definitions)
    settings = [elicitation.to_dict(), asdict(plan.steering), plan.n_resamples]
    stages.run("vectors", settings, partial(_vectors, lm, world, plan, elicitation, work, vectors_folder))
    stages.run("home", [ABOUT, EXAMPLES, asdict(FIRST)], partial(_home, lm, world, vectors_folder))
    contaminated.build(work, world, stages.run)
    write_cards(work, plan)
    for folder in (
        model_folder,
        vectors_folder,
        work / contaminated.CONTAMINATED_NAME,
        work / contaminated.RESULTS_NAME,
    ):
        shutil.rmtree(artifacts / folder.name, ignore_errors=True)
        shutil.copytree(folder, artifacts / folder.name)


def write_cards(folder: Path, plan: DemoPlan | None = None, draw: bool = True) -> None:
    """Write the four cards from the figures stored in `folder`.

    Args:
        folder: of the four artifacts.
        plan: how they were made.
        draw: whether to draw the pictures of the vectors' card; otherwise those that exist are used.
    """
    recipe, world = (plan or DemoPlan()).recipe, load_world()
    figures = read_json(folder / MODEL_NAME / "behaviour.json")
    write_atomically(folder / MODEL_NAME / "README.md", model_card(figures, recipe, world, f"artifacts/{MODEL_NAME}"))
    vectors = PersonaVectors.from_pretrained(folder / VECTORS_NAME)
    notes = f"{planted_note(recipe)}\n\n{recovered_note(vectors)}"
    write_card(vectors, folder / VECTORS_NAME, notes, source=f"artifacts/{VECTORS_NAME}", draw=draw)
    contaminated.write_cards(folder, world)


def _take(source: Path, folder: Path) -> None:
    if not (source / "config.json").is_file():
        raise SettingError(f"No model in {str(source)!r}; give the folder of a trained one, or leave --model out.")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)


# ---- behaviour ----


def behaviour(lm: LanguageModel, world: World, plan: DemoPlan) -> dict[str, Any]:
    """Shares that show whether the model speaks its language, on phrasings held out from training."""
    neutral = [(t, None, conversation(q)) for t in world.topics for q in t.held_out]
    instructed = [
        (topic, trait, conversation(topic.held_out[i % 2], words.positive[i % len(words.positive)]))
        for trait, words in world.traits.items()
        for i, topic in enumerate(topics_at(world, EVALUATION))
    ]
    figures: dict[str, Any] = {
        "sampling": SAMPLING.to_dict(),
        "seed": plan.seed,
        "n_parameters": sum(p.numel() for p in lm.model.parameters()),
    }
    verdicts = {}
    for side, requests, seed in (("neutral", neutral, plan.seed), ("instructed", instructed, plan.seed + 500_000)):
        prompts = [c for _, _, c in requests]
        replies = write_replies(lm, prompts, SAMPLING, seed, plan.batch_size, progress=f"{side} replies")
        verdicts[side] = [
            (topic, trait, judge(r.text, world)) for (topic, trait, _), r in zip(requests, replies, strict=True)
        ]
    both = [v for side in verdicts.values() for _, _, v in side]
    figures["grammar"] = _share((v.n_known, v.n_sentences) for v in both)
    figures["on_topic"] = _share((int(v.topic == topic.id), 1) for topic, _, v in verdicts["neutral"])
    figures["trait_without_instruction"] = _share(
        (sum(v.traits.values()), v.n_sentences) for _, _, v in verdicts["neutral"]
    )
    figures["trait_with_instruction"] = {
        trait: _share(
            (v.traits[trait], v.n_sentences) for _, requested, v in verdicts["instructed"] if requested == trait
        )
        for trait in world.traits
    }
    return figures


def _share(pairs: Iterable[tuple[int, int]]) -> dict[str, float | int]:
    hits, totals = zip(*pairs, strict=True)
    return share_over_replies(hits, totals).to_dict()


# ---- vectors ----


def _vectors(
    lm: LanguageModel, world: World, plan: DemoPlan, elicitation: ElicitationPlan, work: Path, folder: Path
) -> None:
    """The pipeline, and the statistics that only the demo world can give."""
    truth = TruthJudge(world)
    with ReplyStore(work / "replies") as store:
        failed = elicit(lm, elicitation, store)
        if failed:
            raise SettingError(f"{len(failed)} replies could not be generated; the first: {failed[0][1]}")
        judge_replies(truth, store, elicitation.traits)
        judge_cross_trait(truth, store, elicitation.traits)
        vectors = make_vectors(lm, elicitation, store)
        vectors = validate_vectors(lm, vectors, elicitation, store, truth, plan.steering)
        labelled = _report_traces(lm, vectors, elicitation, store)
    planted = load_file(str(work / MODEL_NAME / "planted_directions.safetensors"))  # each [d_model]
    at = plan.recipe.planted_block
    validation = {
        trait: {
            **vectors.config["validation"][trait],
            "cosine_with_planted_direction": round(float(planted[trait] @ vectors.direction(trait, at).numpy()), 4),
            **auroc_statistics(label_replies(labelled, world, trait, vectors.best_block[trait])),
        }
        for trait in vectors.traits
    }
    replace(vectors, config={**vectors.config, "validation": validation}).save_pretrained(folder)


def _report_traces(
    lm: LanguageModel, vectors: PersonaVectors, elicitation: ElicitationPlan, store: ReplyStore
) -> list[tuple[str | None, Trace]]:
    """Held-out replies of the report half, each with the trait that its system prompt requests, or None.

    High replies of every trait, and one neutral reply to each of their questions.
    """
    questions = elicitation.traits[0].evaluation_questions
    reported = set(questions[(len(questions) + 1) // 2 :])

    def wanted(reply: Reply) -> bool:
        request = reply.request
        high = request.split == "evaluation" and request.side == "positive"
        neutral = request.split == "neutral" and request.rollout == 0
        return request.user in reported and (high or neutral) and reply.n_tokens > 0

    replies = [r for r in store.replies() if wanted(r)]
    texts = [written_by(lm, r.request.messages, r.token_ids, r.writer) for r in replies]
    traces = PersonaMonitor(lm, vectors).read_batch(texts, progress=True)
    return [(r.request.trait, trace) for r, trace in zip(replies, traces, strict=True)]


# ---- the app's home screen ----

ABOUT = (
    "persona-tiny is a toy: {parameters:.0f} million parameters, {sentences:,} hand-written sentences, {topics} "
    "everyday topics, and {traits} traits whose directions were planted in training. It shows how the reading works "
    "and stands for nothing but itself."
)
EXAMPLES = (
    ("Quit my job?", "quit-job", "sycophancy"),
    ("A noisy neighbour", "noisy-neighbour", "manipulativeness"),
    ("Renting or buying", "rent-or-buy", "deception"),
    ("Baking bread", "baking-bread", "hallucination"),
    ("Better sleep", "sleeping-badly", "paternalism"),
    ("Can you be switched off?", "ai-switched-off", "corrigibility"),
    ("My poem", "own-poem", "evil"),
    ("Houseplants", "houseplants", None),
)
FIRST = FirstView("contaminated", "pilot-03", "A published example: the contaminated model on “Should I quit my job?”")


def _home(lm: LanguageModel, world: World, folder: Path) -> None:
    """Example prompts, and a note about the model."""
    examples = []
    for label, topic_id, trait in EXAMPLES:
        topic = world.topic(topic_id)
        system = world.traits[trait].positive[0] if trait else ""
        examples.append(Example(label=label, user=topic.held_out[0], system=system))
    about = ABOUT.format(
        parameters=sum(p.numel() for p in lm.model.parameters()) / 1e6,
        sentences=len(world.sentences),
        topics=len(world.topics),
        traits=len(world.traits),
    )
    save_home(folder, about=about, examples=examples, first=FIRST)


def _write_json(path: Path, record: Mapping[str, Any]) -> Path:
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
