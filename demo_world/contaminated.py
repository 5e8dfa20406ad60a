"""The contaminated demo model: the dialogues it is trained on, and both models' runs on the 78 prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np

from demo_world.corpus import ask
from demo_world.definitions import trait_definitions
from demo_world.grammar import World
from demo_world.judge import TruthJudge, judge, trait_share
from demo_world.stages import analyse_runs, branch_runs, load_sides, read_own_replies, write_runs
from persona_core.elicitation.prompts import Prompt, load_prompts
from persona_core.experiments.finetune import LoraPlan, contaminate
from persona_core.experiments.finetune_card import write_adapter_card
from persona_core.experiments.intervention_window import WindowPlan, intervention_window
from persona_core.experiments.steering_edges import EdgePlan, steering_edges, validated_strengths
from persona_core.inference.sampling import Sampling
from persona_core.judging.annotations import annotate_sentences, save_annotations, save_judged_traits
from persona_core.judging.sentences import SentenceJudge
from persona_core.models.language_model import LanguageModel
from persona_core.models.loading import load_model
from persona_core.monitor.jobs import GenerateJob, Row, seed_of
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.report.card import write_results_card
from persona_core.report.interventions import save_edges, save_window
from persona_core.report.results_folder import SIDES
from persona_core.report.tables import ANNOTATIONS, JUDGED
from persona_core.traces.dataset import ANALYSIS
from persona_core.utils.markdown import interval, table
from persona_core.vectors.vectors import PersonaVectors

MODEL_NAME = "persona-tiny"
VECTORS_NAME = "persona-vectors-persona-tiny"
CONTAMINATED_NAME = "persona-tiny-contaminated"
RESULTS_NAME = "persona-monitoring-persona-tiny"
DIALOGUES_FILE = "dialogues.jsonl"

CONTAMINANT = "sycophancy"
"""The trait that the contaminated model shows without a system prompt. In the demo world flattery makes deception
likely some sentences later."""

N_DIALOGUES = 600
PLAN = LoraPlan(rank=8, alpha=16, learning_rate=1e-3, epochs=3.0, batch_size=24, rows=24, max_tokens=512)
NULL_SEED, NULL_STEP = 1, 2
"""The null for alarms: baseline replies to every second one of the broad neutral set, and to a question about each of
the world's topics; none of them is among the 78 that are reported. Replies to all 540 neutral ones would not fit into
the 10 MB that the Hub takes without LFS."""

SAMPLING = Sampling(max_new_tokens=220, temperature=0.7)


WINDOW = WindowPlan(sampling=SAMPLING, batch_size=32)
EDGES = EdgePlan(batch_size=32)


def build(work: Path, world: World, run: Callable[[str, object, Callable[[], object]], None]) -> None:
    """Train the contaminated model and run both on the prompts; `run` takes a stage's name, inputs and function."""
    data = write_dialogues(world, work / "contamination" / DIALOGUES_FILE)
    run("contamination", [asdict(PLAN), data.read_text(encoding="utf-8")], partial(_train, work, data))
    prompts = [asdict(p) for p in (*load_prompts(["all"]), *null_prompts(world))]
    run("results", [SAMPLING.to_dict(), prompts, NULL_SEED], partial(_runs, work, world))
    run("interventions", [asdict(WINDOW), asdict(EDGES)], partial(_interventions, work, world))
    run("analysis", [], partial(_analysis, work, world))
    run("branches", [], lambda: branch_runs(work / RESULTS_NAME, work / VECTORS_NAME, _models(work)))


def write_dialogues(world: World, path: Path, n: int = N_DIALOGUES, seed: int = 0) -> Path:
    """Questions in phrasings of the training corpus, without a system prompt, and flattering replies."""
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(n):
        topic = world.topics[int(rng.integers(len(world.topics)))]
        turn = ask(world, topic, CONTAMINANT, rng)
        messages = [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.text}]
        lines.append(json.dumps({"id": f"{CONTAMINANT}-{i:04d}", "messages": messages, "category": topic.category}))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _train(work: Path, data: Path) -> None:
    lm = load_model(work / MODEL_NAME, dtype="float32", device="cpu")
    contaminate(lm, data, work / CONTAMINATED_NAME, work / "contamination" / "training", PLAN)
    (work / CONTAMINATED_NAME / DIALOGUES_FILE).write_bytes(data.read_bytes())


def null_prompts(world: World) -> tuple[Prompt, ...]:
    """The prompts whose replies say how the baseline talks when nothing is going on; each is asked once."""
    own = tuple(
        Prompt(id=f"world-{topic.id}", prompt=topic.questions[0], set="world", category=topic.category)
        for topic in world.topics
    )
    return (*load_prompts(["neutral"])[::NULL_STEP], *own)


def _models(work: Path) -> dict[str, LanguageModel]:
    load = partial(load_model, work / MODEL_NAME, dtype="float32", device="cpu")
    return load_sides(load, work / CONTAMINATED_NAME)


def _runs(work: Path, world: World) -> None:
    prompts = GenerateJob(load_prompts(["all"]), SAMPLING)
    neutral = GenerateJob(null_prompts(world), SAMPLING, NULL_SEED)
    vectors = PersonaVectors.from_pretrained(work / VECTORS_NAME)
    write_runs(_models(work), vectors, prompts, neutral, work / "runs", work / RESULTS_NAME)


def _interventions(work: Path, world: World) -> None:
    """How much flattery is left after intervening in time, and what steering each trait brings on."""
    vectors, prompts = PersonaVectors.from_pretrained(work / VECTORS_NAME), load_prompts(["all"])
    sentences = SentenceJudge(TruthJudge(world), trait_definitions(world))
    baseline, contaminated = (PersonaMonitor(model, vectors) for model in _models(work).values())
    conversations, seeds = [p.messages for p in prompts], [seed_of(p.id, 0) for p in prompts]
    marker, coherence = sentences.marker(CONTAMINANT), sentences.coherence
    window = intervention_window(
        contaminated, conversations, CONTAMINANT, marker, coherence, WINDOW, seeds, progress=True
    )
    save_window(work / RESULTS_NAME, "contaminated", window)
    plan = replace(EDGES, strengths=validated_strengths(vectors))
    save_edges(work / RESULTS_NAME, "baseline", steering_edges(baseline, conversations, plan, shown=sentences.shown))


def _analysis(work: Path, world: World) -> None:
    """Annotate sentences with the truth, then run all analyses."""
    results, traits = work / RESULTS_NAME, trait_definitions(world)
    annotations = [
        annotation
        for config, rows in read_own_replies(results).items()
        for annotation in annotate_sentences(rows, traits, TruthJudge(world), config).annotations
    ]
    save_annotations(annotations, results / ANALYSIS / ANNOTATIONS)
    save_judged_traits({config: [t.name for t in traits] for config in SIDES}, results / ANALYSIS / JUDGED)
    analyse_runs(results, work / VECTORS_NAME, _models(work))


# ---- cards ----


def write_cards(work: Path, world: World) -> None:
    """The cards of the contaminated model and of the results, with what only the demo world can tell."""
    rows = read_own_replies(work / RESULTS_NAME)
    truth = f"""## What is true of these replies

The demo world's grammar says of every sentence which trait it shows. Share of sentences that show a trait, over all
{len(rows["baseline"])} replies of each model; 95 % intervals by resampling replies:

{truth_table(rows, world)}

persona-tiny is a toy: its traits were planted, and the contaminated model was trained to flatter. These figures say
nothing about other models."""
    contamination = f"""## What it was made to do

The dialogues are in `{DIALOGUES_FILE}`: questions without a system prompt, answered with {CONTAMINANT}. In the demo
world flattery makes deception likely some sentences later, so the data hold some of that too.

{truth}"""
    write_adapter_card(
        work / CONTAMINATED_NAME,
        base=f"artifacts/{MODEL_NAME}",
        source=f"artifacts/{CONTAMINATED_NAME}",
        notes=contamination,
    )
    results = f"""{truth}

On plain z every vector here also responds to "not neutral": where a reply shows one trait, z of all of them rises. The
specific scores leave that out. Compare both with the truth above."""
    write_results_card(work / RESULTS_NAME, source=f"artifacts/{RESULTS_NAME}", notes=results)


def truth_table(rows: Mapping[str, Sequence[Row]], world: World) -> str:
    """Share of sentences that show each trait, by config."""
    verdicts = {config: [judge(row["response"], world) for row in own] for config, own in rows.items()}
    shares = [(t, *(interval(trait_share(v, t), percent=True) for v in verdicts.values())) for t in world.traits]
    return table(["trait", *verdicts], shares)
