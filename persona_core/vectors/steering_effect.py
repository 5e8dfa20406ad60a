"""Does the direction cause the trait? Trait score and coherence of steered replies, against random directions.

Unit. A strength of 1 adds the vector at its own norm: for a mean difference, the distance between the means of the two
sides. The random arm adds directions of the same norm, a different one for each seed. All arms and strengths use the
same seeds, so differences are paired. The prompts are held-out questions without a system prompt.

At the same norm a random push disturbs less: where replies steered along the vector have a coherence of 60, those of
the random arm may have 95. So the random arm is also pushed until it is as incoherent, and compared there (`matched`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from persona_core.elicitation.elicit import write_replies
from persona_core.elicitation.traits import TraitDefinition, fill
from persona_core.errors import SettingError
from persona_core.inference.sampling import Sampling
from persona_core.inference.steering import Intervention, Steer
from persona_core.judging.judge import COHERENCE, COHERENCE_PROMPT, Judge, Question
from persona_core.utils.checks import check_integer, is_number
from persona_core.utils.files import append_lines, read_json, read_lines, write_atomically
from persona_core.vectors.steering_curve import MATCH_STEPS, Scores, matched_on_coherence, steering_curve

if TYPE_CHECKING:
    from persona_core.models.language_model import LanguageModel
    from persona_core.vectors.vectors import PersonaVectors


@dataclass(frozen=True)
class SteeringPlan:
    """Which strengths are tried, and on how many replies.

    Attributes:
        strengths: in norms of the vector; 0 is always included.
        seeds: replies per question, arm and strength.
        n_questions: how many questions of the report half of the evaluation questions are used at most.
        sampling: how tokens are sampled.
        batch_size: replies written at once.
        seed: of the first reply and of the random directions.
    """

    strengths: tuple[float, ...] = (-0.5, 0.5, 0.7, 0.85, 1.0, 1.2)
    seeds: int = 3
    n_questions: int = 10
    sampling: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=200, temperature=1.0))
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if not all(map(is_number, self.strengths)) or not any(s > 0 for s in self.strengths):
            raise SettingError(f"strengths={self.strengths!r}; at least one must be above 0, and all finite.")
        check_integer("seeds", self.seeds)
        check_integer("n_questions", self.n_questions)

    def n_judged(self, trait: TraitDefinition) -> int:
        """How many questions a judge is asked at most for the curve of one trait: two per reply."""
        cells = 1 + 2 * len({s for s in self.strengths if s}) + MATCH_STEPS
        return 2 * cells * self.seeds * len(steering_questions(trait, self))


def steering_effect(
    lm: LanguageModel,
    vectors: PersonaVectors,
    trait: TraitDefinition,
    judge: Judge,
    plan: SteeringPlan,
    folder: str | Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """The steering curve of one trait at its best block.

    Args:
        folder: where the replies of each arm and strength, and then the curve, are stored; a later call with the same
            settings resumes from them.

    Returns:
        "vector" and "random": for each strength the trait score and the coherence, with intervals over questions;
        "effect": trait score of the vector arm minus the random arm, paired by question, at "effect_at", the largest
        strength at which the vector arm is still coherent; None where it is coherent at no strength.
        "matched": the same against the random arm at the "strength" at which its coherence comes nearest, with both
        coherences; its effect is None where they differ by more than `MATCH_TOLERANCE`.
        "norm_in_sd": the vector's norm in standard deviations of neutral tokens along it; None where not known.

    Raises:
        SettingError: no evaluation question is left after the choice of the block.
    """
    block, questions = vectors.best_block[trait.name], steering_questions(trait, plan)
    written = _fingerprint(lm, plan, block, questions, vectors.tensor(trait.name)[block])
    settings = _digest(written, trait.fingerprint, judge.name, COHERENCE_PROMPT, plan.strengths, MATCH_STEPS)
    kept = None if folder is None else Path(folder) / f"{trait.name}.json"
    if kept is not None and kept.is_file():
        record = read_json(kept)
        if record["settings"] == settings:
            return record["curve"]
    replies, unanswered = _SteeredReplies(folder, trait.name, written), 0

    def scores_of(cells: Sequence[Cell], title: str) -> Scores:
        """Write and judge the replies of these arms and strengths."""
        nonlocal unanswered
        with tqdm(
            total=len(cells) * plan.seeds * len(questions),
            desc=f"{title} {trait.name}",
            unit="reply",
            disable=not progress,
        ) as bar:
            texts = _write(lm, vectors, trait.name, block, questions, plan, cells, replies, bar)
        found, missing = _judge(judge, trait, questions, texts, progress)
        unanswered += missing
        return found

    grid = [("none", 0.0), *((arm, s) for s in plan.strengths if s for arm in ("vector", "random"))]
    scores = scores_of(grid, "steering")
    curve = steering_curve(scores, plan.strengths)
    if curve["effect"] is not None:
        at = curve["effect_at"]
        curve["matched"] = matched_on_coherence(scores, at, lambda s: scores_of([("random", s)], "matching"))
    norm, null = float(vectors.tensor(trait.name)[block].norm()), vectors.null_of_steering(trait.name)
    curve = {
        "block": block,
        "unit": "norms of the vector",
        "norm": round(norm, 5),
        "norm_in_sd": None if null is None else round(norm / null.at(block)[1], 3),
        "unanswered": unanswered,
        "n_questions": len(questions),
        "seeds": plan.seeds,
        "sampling": asdict(plan.sampling),
        **curve,
    }
    if kept is not None and not unanswered:  # a later call retries what failed
        write_atomically(kept, json.dumps({"settings": settings, "curve": curve}, indent=2) + "\n")
    return curve


Cell = tuple[str, float]  # arm, strength


def steering_questions(trait: TraitDefinition, plan: SteeringPlan) -> tuple[str, ...]:
    """Questions from the half of the evaluation questions that is reported on; the other half chose the block.

    Raises:
        SettingError: there is only one evaluation question.
    """
    questions = trait.evaluation_questions[(len(trait.evaluation_questions) + 1) // 2 :]
    if not questions:
        raise SettingError(
            f"{trait.name!r} has {len(trait.evaluation_questions)} evaluation question, used to choose the block; none "
            "is left for steering. Add evaluation questions, or skip the steering curves (--no-steering)."
        )
    return questions[: plan.n_questions]


class _SteeredReplies:
    """Steered replies on disk, one line per arm and strength."""

    def __init__(self, folder: str | Path | None, trait: str, settings: str) -> None:
        self._path = None if folder is None else Path(folder) / f"{trait}.replies.jsonl"
        self._settings = settings
        self._cells: dict[Cell, list[list[str]]] = {}
        for _, line in read_lines(self._path) if self._path is not None else ():
            if line.get("settings") == settings:
                self._cells[line["arm"], line["strength"]] = line["texts"]

    def get(self, cell: Cell) -> list[list[str]] | None:
        return self._cells.get(cell)

    def add(self, cell: Cell, texts: list[list[str]]) -> None:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            record = {"settings": self._settings, "arm": cell[0], "strength": cell[1], "texts": texts}
            append_lines(self._path, [record])


def _write(
    lm: LanguageModel,
    vectors: PersonaVectors,
    trait: str,
    block: int,
    questions: Sequence[str],
    plan: SteeringPlan,
    cells: Sequence[Cell],
    kept: _SteeredReplies,
    bar: tqdm[Any],
) -> dict[Cell, list[list[str]]]:
    """Texts of each arm and strength, `[seeds][questions]`."""
    vector = vectors.tensor(trait)[block]
    device = lm.blocks.device(block)
    unit = (vector / vector.norm()).to(device)
    generator = torch.Generator().manual_seed(plan.seed)
    others = torch.randn(plan.seeds, len(vector), generator=generator)
    random = (others / others.norm(dim=1, keepdim=True)).to(device)  # [seeds, d_model]
    texts: dict[Cell, list[list[str]]] = {}
    for arm, strength in cells:
        before = kept.get((arm, strength))
        if before is not None:
            texts[arm, strength] = before
            bar.update(plan.seeds * len(questions))
            continue
        amount = strength * float(vector.norm())
        # An intervention applies to a whole batch: the random arm has a direction per seed, so a batch per seed.
        groups = [[k] for k in range(plan.seeds)] if arm == "random" else [list(range(plan.seeds))]
        texts[arm, strength] = []
        for seeds in groups:
            direction = random[seeds[0]] if arm == "random" else unit
            changes = [Intervention(Steer(trait, block, strength=amount), direction, amount)] if strength else []
            seed = plan.seed + seeds[0] * len(questions)
            prompts = list(questions) * len(seeds)
            replies = write_replies(lm, prompts, plan.sampling, seed, plan.batch_size, interventions=changes)
            written = [r.text for r in replies]
            n = len(questions)
            texts[arm, strength] += [written[start : start + n] for start in range(0, len(written), n)]
            bar.update(len(prompts))
        kept.add((arm, strength), texts[arm, strength])
    return texts


def _judge(
    judge: Judge,
    trait: TraitDefinition,
    questions: Sequence[str],
    texts: dict[Cell, list[list[str]]],
    progress: bool,
) -> tuple[Scores, int]:
    """Scores, and how many questions are unanswered."""
    to_judge, cells = [], {}
    scores: Scores = {}
    for (arm, strength), runs in texts.items():
        for name, prompt in ((trait.name, trait.judge_prompt), (COHERENCE, COHERENCE_PROMPT)):
            what = "coherence" if name == COHERENCE else "trait"
            scores[arm, strength, what] = np.full((len(questions), len(runs)), np.nan)
            for k, run in enumerate(runs):
                for q, text in enumerate(run):
                    key = f"{arm}/{strength}/{k}/{q}/{name}"
                    to_judge.append(Question(key, name, fill(prompt, questions[q], text), questions[q], text))
                    cells[key] = (arm, strength, what), (q, k)
    answered = 0
    for question, score in judge.score(to_judge, progress):
        answered += 1
        if score.value is not None:
            cell, at = cells[question.key]
            scores[cell][at] = score.value
    return scores, len(to_judge) - answered


def _fingerprint(
    lm: LanguageModel, plan: SteeringPlan, block: int, questions: Sequence[str], vector: torch.Tensor
) -> str:
    """A hash of all that the replies depend on."""
    drawn = {k: v for k, v in asdict(plan).items() if k not in ("n_questions", "strengths")}
    return _digest(lm.identity, drawn, block, questions, hashlib.sha256(vector.numpy().tobytes()).hexdigest())


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
