"""Vectors made by instruction, as in Persona Vectors (arXiv 2507.21509), on a model that hardly follows instructions.

    make weights
    python -m benchmarks.instructed_vectors

SmolLM2-135M-Instruct writes 100 replies for each of the eight shipped traits: to 20 extraction and 20 evaluation
questions under an instruction for the trait and under one against it, and to 20 without any, of at most 48 tokens each.
Vectors are made of them with the side of the instruction as the label, and held against those from labelled texts, each
on the other's held-out set. The same model judges every sixth question's replies: no larger one is at hand offline.

So few because all of it takes 22 minutes of one core: 9 to write 800 replies, 4 to calibrate two sets of vectors, 4 to
read the held-out texts, 5 to judge 128 replies. It resumes from `outputs/instructed_vectors`. Writes
`benchmarks/results/instructed_vectors.json`, from which `python -m scripts.docs` makes two tables of
docs/real_model.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import ARTIFACTS, ROOT, real_weights, save
from benchmarks.vector_comparison import Scores, aurocs, compare
from demo_world.stages import Stages
from persona_core.elicitation.elicit import ElicitationPlan, elicit
from persona_core.elicitation.store import Reply, ReplyScore, ReplyStore
from persona_core.elicitation.traits import load_traits
from persona_core.errors import SettingError
from persona_core.inference.sampling import Sampling
from persona_core.judging.judge import MIN_SCORE
from persona_core.judging.labels import label_replies
from persona_core.judging.local import LocalJudge
from persona_core.judging.replies import judge_replies
from persona_core.models.language_model import LanguageModel
from persona_core.models.loading import load_model
from persona_core.pipeline import Settings, make_vectors
from persona_core.utils.files import read_json
from persona_core.utils.numbering import numbered
from persona_core.vectors.extraction import MIN_REPLIES
from persona_core.vectors.vectors import PersonaVectors
from real_model.build import VECTORS_NAME
from real_model.texts import TRAITS, TextQuestion, load_questions

WORK = ROOT / "outputs" / "instructed_vectors"
CONTRASTS = ("negative", "neutral")
JUDGED_EVERY = 6
"""Replies to every sixth question of each split are judged: five would give one of the five instruction pairs only."""


@dataclass(frozen=True, repr=False)
class InstructedPlan(ElicitationPlan):
    """Neutral replies to the extraction questions only: the vectors see nothing of the evaluation questions."""

    @property
    def questions(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(q for t in self.traits for q in t.extraction_questions))


def default_plan() -> InstructedPlan:
    return InstructedPlan(
        load_traits(TRAITS),
        Sampling(max_new_tokens=48, temperature=0.7),  # at 1.0 this model's replies are word salad
        rollouts=1,
        evaluation_rollouts=1,
        pairs_per_question=1,
        seed=1,
        batch_size=16,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=Path, default=ARTIFACTS / VECTORS_NAME, help="those from labelled texts")
    options = parser.parse_args()
    given = PersonaVectors.from_pretrained(options.vectors)
    lm = load_model(real_weights(), dtype="float32", device="cpu")
    save("instructed_vectors", measure(lm, default_plan(), given, load_questions(split="test"), WORK))
    return 0


def measure(
    lm: LanguageModel, plan: InstructedPlan, given: PersonaVectors, questions: Sequence[TextQuestion], work: Path
) -> dict[str, Any]:
    """All figures; what is there already is taken from `work`."""
    stages = Stages(work)
    with ReplyStore(work / "replies") as store:
        if failed := elicit(lm, plan, store):
            raise SettingError(f"{len(failed)} replies could not be written; the first: {failed[0][1]}")
        stages.run("vectors", [lm.identity, plan.to_dict()], lambda: _make_vectors(lm, plan, store, work))
        ours = {c: PersonaVectors.from_pretrained(work / c) for c in CONTRASTS}
        stages.run(
            "compared", [given.fingerprint, [q.id for q in questions]],
            lambda: _write(work / "compared.json", compare(lm, store, {"texts": given, **ours}, questions)),
        )  # fmt: skip
        stages.run("judged", JUDGED_EVERY, lambda: _write(work / "judged.json", judged(lm, plan, store, work)))
    return {
        "model": lm.record,
        "sampling": plan.sampling.to_dict(),
        "replies": len(plan.requests()),
        "block": dict(given.best_block),
        "vectors": given.fingerprint,
        "judged": read_json(work / "judged.json"),
        **read_json(work / "compared.json"),
    }


def _write(path: Path, figures: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(figures), encoding="utf-8")


def _make_vectors(lm: LanguageModel, plan: InstructedPlan, store: ReplyStore, work: Path) -> None:
    label_replies(store, plan.traits)
    for contrast in CONTRASTS:
        made = make_vectors(lm, plan, store, Settings(block="shared", contrast=contrast))
        made.save_pretrained(work / contrast)


# ---- the judge ----


def judged(lm: LanguageModel, plan: InstructedPlan, store: ReplyStore, work: Path) -> dict[str, Any]:
    """What the local judge says: as a user gets it, and with a number read from any answer.

    The second says whether it sees any difference, even where it would rather not answer with a number.
    """
    some = [r for r in store.replies() if r.request.trait is not None and r.request.question % JUDGED_EVERY == 0]
    with ReplyStore(work / "judged") as its:
        if not its.replies():
            its.add("judged", some, {"none": np.zeros((len(some), 1, 1), np.float32)})
        judge_replies(LocalJudge(lm, min_mass=0.0), its, plan.traits)
        any_number = its.scores()
    as_it_is = {i: s if s.how == "logprobs" else replace(s, trait=None) for i, s in any_number.items()}
    return {
        "judge": LocalJudge(lm).name,
        "as_it_is": _outcome(some, as_it_is),
        "any_number": {**_outcome(some, any_number), **_seen(some, any_number)},
    }


def _outcome(replies: Sequence[Reply], scores: Mapping[int, ReplyScore]) -> dict[str, Any]:
    """Counts by trait and in all, and how many traits the filter leaves too few extraction replies of for a vector."""
    by_trait = {name: [r for r in replies if r.request.trait == name] for name in {r.request.trait: 0 for r in replies}}
    counts = {str(name): kept(own, scores) for name, own in by_trait.items()}
    extraction = [kept([r for r in own if r.request.split == "extraction"], scores) for own in by_trait.values()]
    sides = [side for trait in counts.values() for side in trait.values()]
    return {
        "replies": len(replies),
        "without_score": sum(side["no_score"] for side in sides),
        "kept": sum(side["kept"] for side in sides),
        "too_few_for_a_vector": sum(min(s["kept"] for s in one.values()) < MIN_REPLIES for one in extraction),
        "by_trait": counts,
    }


def kept(replies: Sequence[Reply], scores: Mapping[int, ReplyScore]) -> dict[str, dict[str, int]]:
    """Side -> how many replies were judged, have no score, are incoherent or on the wrong side, and are kept."""
    names = ("judged", "no_score", "incoherent", "off_side", "kept")
    found = {side: dict.fromkeys(names, 0) for side in ("positive", "negative")}
    for reply in replies:
        side, score = reply.request.side, scores[reply.request.index]
        found[side]["judged"] += 1
        if score.trait is None or score.coherence is None:
            found[side]["no_score"] += 1
        elif score.coherence < MIN_SCORE:
            found[side]["incoherent"] += 1
        else:
            found[side]["kept" if (score.trait >= MIN_SCORE) == (side == "positive") else "off_side"] += 1
    return found


def _seen(replies: Sequence[Reply], scores: Mapping[int, ReplyScore]) -> dict[str, Any]:
    """AUROC of the judge's score of the trait between the two instructions, and the highest scores."""
    known = [(r, s) for r in replies if (s := scores[r.request.index]).trait is not None]
    by_trait: dict[str, Scores] = {}
    for name in dict.fromkeys(str(r.request.trait) for r, _ in known):
        own = [(r, s) for r, s in known if r.request.trait == name]
        by_trait[name] = (
            np.array([s.trait for _, s in own], float),
            np.array([r.request.side == "positive" for r, _ in own]),
            numbered((r.request.split, r.request.question) for r, _ in own),
        )
    coherence = [s.coherence for _, s in known if s.coherence is not None]
    return {
        "auroc": aurocs(by_trait, shared_questions=False),
        "highest": {
            "trait": max((float(s.trait or 0) for _, s in known), default=None),
            "coherence": max(coherence, default=None),
        },
    }


if __name__ == "__main__":
    raise SystemExit(main())
