"""Build the demo world's artifacts from nothing: model, vectors with null and validation, and what the app opens with.

Each stage leaves a stamp with a fingerprint of what it rests on (settings, phrase banks, earlier stages). A stage whose
stamp still fits is skipped, and one that was stopped goes on (training from its last checkpoint, elicitation from its
last finished trait). The fingerprint does not cover the code: after a change to it, start with another work folder.

Splits. Topics 0-4 of each category serve extraction, 5-7 the choice of the best block, 8-9 the figures that are
reported. Choice and report ask with phrasings that neither training nor extraction has seen.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from persona_core.cards import vectors_card
from persona_core.decode import Sampling
from persona_core.demo.card import model_card, planted_note, recovered_note
from persona_core.demo.grammar import Topic, World, load_world
from persona_core.demo.judge import judge
from persona_core.demo.marking import auroc_figures, auroc_within, mark, reply_truth
from persona_core.demo.process import Process
from persona_core.demo.training import Recipe, train
from persona_core.elicitation import write_replies
from persona_core.errors import SettingError
from persona_core.extraction import calibrate, mean_difference
from persona_core.models import LanguageModel, load_model
from persona_core.monitor import PersonaMonitor
from persona_core.token_view import trace_payload
from persona_core.trace import Trace
from persona_core.validation import share_over_replies
from persona_core.vectors import PersonaVectors
from persona_core.welcome import Example, save_welcome

logger = logging.getLogger(__name__)

MODEL_NAME = "persona-tiny"
VECTORS_NAME = "persona-vectors-persona-tiny"
EXTRACTION, CHOICE, REPORT = (0, 1, 2, 3, 4), (5, 6, 7), (8, 9)  # places of a topic within its category
SAMPLING = Sampling(max_new_tokens=220, temperature=0.7)
SPLITS = (
    "topics 0-4 of each category for extraction, 5-7 for the choice of the block, 8-9 for the figures; choice and "
    "figures ask in phrasings that training never showed. Instructions, and the trait sentences that a category "
    "shares, are the same in all splits"
)
N_TOPICS = 10  # in each category
MIN_TRAIT, MIN_COHERENCE = 50.0, 50.0  # the filter's thresholds, of 100

Conversation = list[dict[str, str]]


@dataclass(frozen=True)
class Plan:
    """How much is elicited and measured, and from which seeds. The defaults are those of the shipped artifacts."""

    recipe: Recipe = field(default_factory=Recipe)
    questions: int = 2  # phrasings of each extraction topic, for each side of each trait
    null_questions: int = 4  # phrasings of each topic that the null rests on: 4 x 100 neutral replies
    batch_size: int = 32
    seed: int = 1
    n_resamples: int = 1000


def build(artifacts: Path, work: Path, plan: Plan | None = None) -> None:
    """Build or complete everything. It is made in `work` and copied to `artifacts` when all of it is there."""
    plan, world = plan or Plan(), load_world()
    model_folder, vectors_folder = work / MODEL_NAME, work / VECTORS_NAME
    stages = _Stages(work)
    corpus = [asdict(plan.recipe), asdict(Process()), world.fingerprint]
    stages.run("model", corpus, partial(train, world, model_folder, plan.recipe, work / "training"))
    lm = load_model(str(model_folder), dtype="float32", device="cpu")
    settings = [asdict(plan), SAMPLING.to_dict()]
    stages.run("behaviour", settings, lambda: _write_json(model_folder / "behaviour.json", behaviour(lm, world, plan)))
    for trait in world.traits:
        rests_on = [EXTRACTION, MIN_TRAIT, MIN_COHERENCE]
        stages.run(f"elicit-{trait}", rests_on, partial(_elicit, lm, world, trait, plan, work))
    stages.run("vectors", [CHOICE, REPORT], partial(_vectors, lm, world, plan, work, vectors_folder))
    stages.run("welcome", [ABOUT, EXAMPLES], partial(_welcome, lm, world, vectors_folder))
    figures = json.loads((model_folder / "behaviour.json").read_text())
    (model_folder / "README.md").write_text(model_card(figures, plan.recipe, world), encoding="utf-8")
    vectors = PersonaVectors.from_pretrained(vectors_folder)
    card = vectors_card(vectors, notes=f"{planted_note(plan.recipe)}\n\n{recovered_note(vectors)}")
    (vectors_folder / "README.md").write_text(card, encoding="utf-8")
    for folder in (model_folder, vectors_folder):
        shutil.rmtree(artifacts / folder.name, ignore_errors=True)
        shutil.copytree(folder, artifacts / folder.name)


class _Stages:
    """Runs each stage once, unless what it rests on, or a stage before it, was done anew."""

    def __init__(self, work: Path) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self._work, self._anew, self._fingerprint = work, False, ""

    def run(self, name: str, rests_on: object, stage: Callable[[], object]) -> None:
        text = json.dumps([self._fingerprint, name, rests_on], sort_keys=True)
        self._fingerprint = hashlib.sha256(text.encode()).hexdigest()  # takes in all stages before
        stamp = self._work / f"{name}.done"
        if not self._anew and stamp.is_file() and stamp.read_text() == self._fingerprint:
            logger.info("%s: done before", name)
            return
        logger.info("%s ...", name)
        self._anew = True
        stamp.unlink(missing_ok=True)
        stage()
        stamp.write_text(self._fingerprint)


def topics(world: World, places: Iterable[int]) -> list[Topic]:
    """The topics at these places of each category."""
    chosen = set(places)
    return [topic for index, topic in enumerate(world.topics) if index % N_TOPICS in chosen]


def conversation(question: str, system: str | None = None) -> Conversation:
    """One question, with or without a system prompt."""
    user = {"role": "user", "content": question}
    return [{"role": "system", "content": system}, user] if system else [user]


# ---- what the model does ----


def behaviour(lm: LanguageModel, world: World, plan: Plan) -> dict[str, Any]:
    """Shares that say whether the model speaks its language, measured on phrasings that training never showed."""
    neutral = [(t, None, conversation(q)) for t in world.topics for q in t.held_out]
    instructed = [
        (topic, trait, conversation(topic.held_out[i % 2], words.positive[i % len(words.positive)]))
        for trait, words in world.traits.items()
        for i, topic in enumerate(topics(world, CHOICE + REPORT))
    ]
    figures: dict[str, Any] = {
        "sampling": SAMPLING.to_dict(),
        "seed": plan.seed,
        "n_parameters": sum(p.numel() for p in lm.model.parameters()),
    }
    verdicts = {}
    for side, asked, seed in (("neutral", neutral, plan.seed), ("instructed", instructed, plan.seed + 500_000)):
        prompts = [c for _, _, c in asked]
        replies = write_replies(lm, prompts, SAMPLING, seed, plan.batch_size, progress=f"{side} replies")
        verdicts[side] = [
            (topic, trait, judge(r.text, world)) for (topic, trait, _), r in zip(asked, replies, strict=True)
        ]
    both = [v for side in verdicts.values() for _, _, v in side]
    figures["grammar"] = _share((v.n_known, v.n_sentences) for v in both)
    figures["on_topic"] = _share((int(v.topic == topic.id), 1) for topic, _, v in verdicts["neutral"])
    figures["trait_without_instruction"] = _share(
        (sum(v.traits.values()), v.n_sentences) for _, _, v in verdicts["neutral"]
    )
    figures["trait_with_instruction"] = {
        trait: _share((v.traits[trait], v.n_sentences) for _, asked, v in verdicts["instructed"] if asked == trait)
        for trait in world.traits
    }
    return figures


def _share(pairs: Iterable[tuple[int, int]]) -> dict[str, float | int]:
    hits, totals = zip(*pairs, strict=True)
    return share_over_replies(hits, totals).to_dict()


# ---- vectors ----


def _elicit(lm: LanguageModel, world: World, trait: str, plan: Plan, work: Path) -> None:
    """Mean states of one trait's replies, both sides, each side filtered on its own."""
    words, asked = world.traits[trait], topics(world, EXTRACTION)
    kept: dict[str, np.ndarray] = {}
    counts = {}
    for side, systems in (("high", words.positive), ("low", words.negative)):
        prompts = [
            conversation(topic.questions[(i + k) % len(topic.questions)], systems[(i + k) % len(systems)])
            for i, topic in enumerate(asked)
            for k in range(plan.questions)
        ]
        seed = plan.seed + 10_000 * (1 + list(world.traits).index(trait)) + (5_000 if side == "low" else 0)
        states = []
        for reply in write_replies(lm, prompts, SAMPLING, seed, plan.batch_size, progress=f"{trait}, {side}"):
            verdict = judge(reply.text, world)
            shows = verdict.trait(trait) >= MIN_TRAIT
            if reply.n_tokens and verdict.coherence >= MIN_COHERENCE and shows == (side == "high"):
                states.append(reply.mean_state)
        kept[side] = np.stack(states) if states else np.empty((0, len(lm.blocks), lm.blocks.d_model), np.float32)
        counts[side] = {"written": len(prompts), "kept": len(states)}
    save_file(kept, str(work / f"states-{trait}.safetensors"))
    _write_json(work / f"states-{trait}.json", counts)


def _vectors(lm: LanguageModel, world: World, plan: Plan, work: Path, folder: Path) -> None:
    tensors, counts = {}, {}
    for trait in world.traits:
        states = load_file(str(work / f"states-{trait}.safetensors"))  # each [n_replies, n_blocks, d_model]
        tensors[trait] = mean_difference(states["high"], states["low"], trait)
        counts[trait] = json.loads((work / f"states-{trait}.json").read_text())
    vectors = PersonaVectors(tensors, {t: 0 for t in tensors})
    monitor = PersonaMonitor(lm, vectors, blocks="all")

    # 1. The block is chosen on one split ...
    choice = _held_out(monitor, world, CHOICE, plan, seed=plan.seed + 200_000, what="choosing blocks")
    by_block = {t: [auroc_within(mark(choice, world, t, b)) for b in vectors.blocks] for t in vectors.traits}
    best = {t: best_of(t, values) for t, values in by_block.items()}
    monitor = PersonaMonitor(lm, PersonaVectors(tensors, best), blocks="all")

    # 2. ... the null comes from neutral replies ...
    asked = [conversation(q) for t in world.topics for q in t.questions[: plan.null_questions]]
    settings = asdict(SAMPLING) | {"batch_size": plan.batch_size, "progress": True}
    neutral = monitor.generate_batch(asked, seed=plan.seed + 300_000, **settings)

    # 3. ... and the figures from another split.
    report = _held_out(monitor, world, REPORT, plan, seed=plan.seed + 400_000, what="validating")
    planted = load_file(str(work / MODEL_NAME / "planted_directions.safetensors"))  # each [d_model]
    at = plan.recipe.planted_block
    validation = {
        trait: {
            "cosine_with_planted_direction": round(float(planted[trait] @ vectors.direction(trait, at).numpy()), 4),
            **auroc_figures(mark(report, world, trait, best[trait]), plan.n_resamples),
            "auroc_within_reply_by_block_on_choice_split": [round(v, 5) for v in by_block[trait]],
            "replies": counts[trait],
        }
        for trait in vectors.traits
    }
    config = {
        "base_model": {"name": MODEL_NAME, "revision": None, "template_fingerprint": lm.chat.fingerprint},
        "extraction": {
            "method": "mean difference of reply means",
            "sampling": SAMPLING.to_dict(),
            "seed": plan.seed,
            "filter": {"trait": MIN_TRAIT, "coherence": MIN_COHERENCE, "judge": "truth of the demo world"},
            "splits": SPLITS,
        },
        "validation": validation,
        "descriptions": {t: w.description for t, w in world.traits.items()},
    }
    calibrated = calibrate(PersonaVectors(tensors, best, config=config), neutral)
    calibrated.save_pretrained(folder)


def _held_out(
    monitor: PersonaMonitor, world: World, places: Sequence[int], plan: Plan, seed: int, what: str
) -> list[tuple[str | None, Trace]]:
    """Replies to phrasings that nothing has seen, each with the trait that its system prompt asks for; all blocks."""
    questions = [(i, k, q) for i, topic in enumerate(topics(world, places)) for k, q in enumerate(topic.held_out)]
    asked: list[tuple[str | None, Conversation]] = [(None, conversation(q)) for _, _, q in questions]
    for trait, words in world.traits.items():
        systems = words.positive
        asked += [(trait, conversation(q, systems[(i + k) % len(systems)])) for i, k, q in questions]
    logger.info("%s: %d replies", what, len(asked))
    settings = SAMPLING.to_dict() | {"batch_size": plan.batch_size, "progress": True}
    traces = monitor.generate_batch([prompt for _, prompt in asked], seed=seed, **settings)
    return [(trait, trace) for (trait, _), trace in zip(asked, traces, strict=True)]


def best_of(trait: str, by_block: Sequence[float]) -> int:
    """The block with the highest AUROC; of equals the first."""
    if not np.isfinite(by_block).all():
        raise SettingError(
            f"{trait!r} has no AUROC on the choice split ({by_block}): none of its sentences, or no other."
        )
    return int(np.argmax(by_block))


# ---- what the app opens with ----

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


def _welcome(lm: LanguageModel, world: World, folder: Path) -> None:
    """Example prompts, a word about the model, and the trace that is seen first: neutral at the start, then a trait."""
    examples = []
    for label, topic_id, trait in EXAMPLES:
        topic = world.topic(topic_id)
        system = world.traits[trait].positive[0] if trait else ""
        examples.append(Example(label=label, user=topic.held_out[0], system=system))
    monitor = PersonaMonitor(lm, PersonaVectors.from_pretrained(folder))
    telling = _telling(monitor, world, examples[0])
    title = f"{examples[0].label} (a chosen example)"
    about = ABOUT.format(
        parameters=sum(p.numel() for p in lm.model.parameters()) / 1e6,
        sentences=len(world.sentences),
        topics=len(world.topics),
        traits=len(world.traits),
    )
    save_welcome(folder, about=about, examples=examples, first_view=trace_payload(telling, title=title))


def _telling(monitor: PersonaMonitor, world: World, example: Example) -> Trace:
    """Picked, not typical: of up to 40 seeds the first reply that begins neutral, turns, and ends by itself."""
    traces = []
    for seed in range(40):
        trace = monitor.generate(
            conversation(example.user, example.system), seed=seed, max_new_tokens=SAMPLING.max_new_tokens
        )
        kinds = [s.kind if s else "unknown" for s in reply_truth(trace, world)[1]]
        traces.append(trace)
        if kinds and kinds[0] == "neutral" and "trait" in kinds and "unknown" not in kinds and trace.finish == "eos":
            return trace
    return traces[0]


def _write_json(path: Path, record: Mapping[str, Any]) -> Path:
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
