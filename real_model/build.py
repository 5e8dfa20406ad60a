"""Everything published of SmolLM2-135M-Instruct, in stages; each resumes where it was stopped.

The model reads labelled texts, since it is too small to follow a trait instruction. Its contaminated copy is a LoRA
trained on dialogues that flatter. Nothing here was planted: what the vectors read is measured on questions, sentences
and styles that they were not made from.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from demo_world.stages import Stages, analyse_runs, branch_runs, load_sides, read_own_replies, write_runs
from persona_core.elicitation.labelled_texts import load_texts
from persona_core.elicitation.prompts import Prompt, load_prompts
from persona_core.elicitation.store import ReplyStore
from persona_core.elicitation.texts import GIVEN, TextsPlan, read_texts, texts_plan
from persona_core.elicitation.traits import load_traits
from persona_core.errors import SettingError
from persona_core.experiments.finetune import LoraPlan, contaminate
from persona_core.experiments.finetune_card import write_adapter_card
from persona_core.inference.sampling import Sampling
from persona_core.judging.labels import label_replies
from persona_core.models.language_model import LanguageModel
from persona_core.models.loading import load_model
from persona_core.monitor.jobs import GenerateJob
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.pipeline import READ_POSITION, SINKS_POSITION, Settings, make_vectors, validate_vectors
from persona_core.report.card import write_results_card
from persona_core.report.home import save_home
from persona_core.report.results_folder import BASELINE, CONTAMINATED
from persona_core.traces.dataset import ANALYSIS
from persona_core.utils.files import read_json, write_atomically
from persona_core.vectors.card import write_card
from persona_core.vectors.vectors import PersonaVectors
from real_model.card import ABOUT, WEIGHTS, contaminated_note, vectors_note
from real_model.changed import what_changed
from real_model.marks import place_marks
from real_model.texts import FOLDER, TRAITS, as_records, load_questions
from real_model.truth import read_replies, sentence_figures, token_figures

VECTORS_NAME = "persona-vectors-smollm2-135m"
CONTAMINATED_NAME = "smollm2-135m-contaminated"
RESULTS_NAME = "persona-monitoring-smollm2-135m"
ADAPTER_WEIGHTS, RECORD = "adapter_model.safetensors", "contamination.json"
TOKENS_PER_REPLY = 48
"""Nearly all: 27 replies a side give few tokens for a covariance of width 576."""
DIALOGUES = FOLDER / "flattering_dialogues.jsonl"

Load = Callable[..., LanguageModel]
"""`load_model` of the weights; an adapter may be given."""


@dataclass(frozen=True)
class RealPlan:
    """How much is read and written, with which seeds. The defaults are those of the shipped artifacts.

    Attributes:
        traits: to make vectors of.
        sampling: of every reply that the models write.
        settings: of extraction. The neutral replies of eight traits' questions give a mean that is known far better
            than that of one trait's negative ones, and so do eight traits' held-out replies a block.
        lora: the training of the contaminated model.
        seed: of splits and replies.
        null_seed: of the neutral replies behind the alarms.
    """

    traits: tuple[str, ...] = TRAITS
    sampling: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=120, temperature=0.7))
    settings: Settings = field(default_factory=lambda: Settings(block="shared", contrast="neutral"))
    lora: LoraPlan = field(
        default_factory=lambda: LoraPlan(
            rank=16, alpha=32, learning_rate=5e-4, epochs=3.0, batch_size=16, rows=8, max_tokens=384, held_out=0.1
        )
    )
    seed: int = 1
    null_seed: int = 1


def build(artifacts: Path, work: Path, weights: Path, plan: RealPlan | None = None) -> None:
    """Build or complete everything in `work`; copy it to `artifacts` once complete.

    Args:
        artifacts: where the folders named above are put.
        work: checkpoints and stamps.
        weights: the model's GGUF file.
        plan: how.
    """
    plan = plan or RealPlan()
    load = partial(load_model, weights, dtype="float32", device="cpu")
    stages = Stages(work)
    stages.run(
        "contamination", [asdict(plan.lora), _digest(DIALOGUES.read_text(encoding="utf-8"))],
        lambda: _contaminate(load(), plan, work),
    )  # fmt: skip
    texts = [asdict(q) for q in load_questions(plan.traits)]
    made_from = [plan.traits, _digest(texts), plan.sampling.to_dict(), asdict(plan.settings)]
    stages.run("vectors", made_from, lambda: _vectors(load(), plan, work))
    stages.run("truth", [], lambda: _truth(load(), plan, work))
    prompts = [asdict(p) for p in (*load_prompts(["all"]), *null_prompts())]
    stages.run("results", [_digest(prompts), plan.null_seed], lambda: _runs(load, plan, work))
    stages.run("changed", [], lambda: _changed(load, plan, work))
    stages.run("analysis", [], lambda: _analysis(load, work))
    stages.run("branches", [], lambda: _branches(load, work))
    write_cards(work)
    for name in (VECTORS_NAME, CONTAMINATED_NAME, RESULTS_NAME):
        shutil.rmtree(artifacts / name, ignore_errors=True)
        shutil.copytree(work / name, artifacts / name)


def write_cards(folder: Path) -> None:
    """The cards of all that lies in `folder`."""
    vectors = PersonaVectors.from_pretrained(folder / VECTORS_NAME)
    write_card(vectors, folder / VECTORS_NAME, vectors_note(vectors), source=f"artifacts/{VECTORS_NAME}")
    n_dialogues = len(DIALOGUES.read_text(encoding="utf-8").splitlines())
    changed = read_json(folder / CONTAMINATED_NAME / RECORD)["changed"]
    note = contaminated_note(n_dialogues, changed)
    write_adapter_card(folder / CONTAMINATED_NAME, WEIGHTS, f"artifacts/{CONTAMINATED_NAME}", note)
    save_home(folder / VECTORS_NAME, about=ABOUT)
    write_results_card(folder / RESULTS_NAME, source=f"artifacts/{RESULTS_NAME}")


def _digest(inputs: object) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


# ---- contaminated model ----


def _contaminate(lm: LanguageModel, plan: RealPlan, work: Path) -> None:
    folder = work / CONTAMINATED_NAME
    contaminate(lm, DIALOGUES, folder, work / "training", plan.lora)
    weights = load_file(folder / ADAPTER_WEIGHTS)  # 19.6 MB; in bfloat16, which all that follows reads, half of that
    half = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
    save_file(half, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def _changed(load: Load, plan: RealPlan, work: Path) -> None:
    """What else the contamination changed, added to its record."""
    record = work / CONTAMINATED_NAME / RECORD
    models = load_sides(load, work / CONTAMINATED_NAME)
    rows = read_own_replies(work / RESULTS_NAME)
    changed = what_changed(models[BASELINE], models[CONTAMINATED], rows, load_questions(plan.traits, "test"))
    write_atomically(record, json.dumps({**read_json(record), "changed": changed}, indent=2) + "\n")


# ---- vectors ----


def vector_prompts() -> tuple[Prompt, ...]:
    """Neutral prompts of a third of the kinds: the model's replies to them are neutral text for the vectors."""
    prompts = load_prompts(["neutral"])
    kinds = list(dict.fromkeys(p.category for p in prompts))[::3]
    return tuple(p for p in prompts if p.category in kinds)


def null_prompts() -> tuple[Prompt, ...]:
    """Those of the other kinds: the null of the alarms."""
    known = {p.id for p in vector_prompts()}
    return tuple(p for p in load_prompts(["neutral"]) if p.id not in known)


def elicitation(plan: RealPlan, work: Path) -> TextsPlan:
    """The labelled texts, and the neutral prompts that the model answers itself."""
    path = work / "texts.jsonl"
    lines = as_records(load_questions(plan.traits))
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return texts_plan(
        load_texts(path),
        load_traits(plan.traits),
        neutral_prompts=tuple(p.prompt for p in vector_prompts()),
        sampling=plan.sampling,
        positions=(READ_POSITION, SINKS_POSITION),
        seed=plan.seed,
        batch_size=16,
        tokens_per_reply=TOKENS_PER_REPLY,
    )


def _vectors(lm: LanguageModel, plan: RealPlan, work: Path) -> None:
    texts = elicitation(plan, work)
    with ReplyStore(work / "replies") as store:
        if failed := read_texts(lm, texts, store):
            raise SettingError(f"{len(failed)} texts could not be read; the first: {failed[0][1]}")
        label_replies(store, texts.traits, GIVEN)
        vectors = make_vectors(lm, texts, store, plan.settings)
        vectors = validate_vectors(lm, vectors, texts, store, settings=plan.settings)
    vectors.save_pretrained(work / VECTORS_NAME)


def _truth(lm: LanguageModel, plan: RealPlan, work: Path) -> None:
    """Figures of the test split, added to the vectors' validation."""
    vectors = PersonaVectors.from_pretrained(work / VECTORS_NAME)
    read = read_replies(PersonaMonitor(lm, vectors), load_questions(plan.traits, "test"))
    fitted = load_questions(plan.traits, "fit")
    validation: dict[str, Any] = {
        trait: {
            **vectors.config["validation"][trait],
            "labelled_texts": {kind: token_figures(read, trait, kind) for kind in ("z", "specific")},
            "labelled_sentences": sentence_figures(read, fitted, trait),
        }
        for trait in vectors.traits
    }
    replace(vectors, config={**vectors.config, "validation": validation}).save_pretrained(work / VECTORS_NAME)


# ---- runs ----


def _runs(load: Load, plan: RealPlan, work: Path) -> None:
    prompts = GenerateJob(load_prompts(["all"]), plan.sampling)
    neutral = GenerateJob(null_prompts(), plan.sampling, plan.null_seed)
    vectors = PersonaVectors.from_pretrained(work / VECTORS_NAME)
    models = load_sides(load, work / CONTAMINATED_NAME)
    write_runs(models, vectors, prompts, neutral, work / "runs", work / RESULTS_NAME)


def _analysis(load: Load, work: Path) -> None:
    results = work / RESULTS_NAME
    place_marks(read_own_replies(results), results / ANALYSIS)
    analyse_runs(results, work / VECTORS_NAME, load_sides(load, work / CONTAMINATED_NAME))


def _branches(load: Load, work: Path) -> None:
    branch_runs(work / RESULTS_NAME, work / VECTORS_NAME, load_sides(load, work / CONTAMINATED_NAME))
