"""What the scores of a real model are worth: SmolLM2-135M-Instruct reads texts whose truth is known.

    make weights
    python -m benchmarks.real_truth

Vectors are fitted on one half of the demo world and reported on the other (no sentence, topic or phrasing is in both).
Alarms are calibrated on the model's own replies to neutral prompts and counted on replies to other prompts, and to
other kinds of prompts. Writes `benchmarks/results/real_truth.json`, from which `python -m scripts.docs` makes the
tables of docs/real_model.md. Under 20 minutes on two cores.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import couplings
from benchmarks.common import real_weights, save, share, share_by_cluster
from benchmarks.labelled_states import NEUTRAL, LabelledStates, labels_of, read_states, reply_states
from benchmarks.real_directions import choose_block, fit, tried
from demo_world.grammar import World, load_world
from demo_world.split import WorldText, world_texts
from demo_world.truth_labels import reply_truth
from persona_core.analysis.detectors import Detectors, calibrate_detectors
from persona_core.analysis.statistics import over_clusters, rank_auroc
from persona_core.elicitation.elicit import write_replies
from persona_core.elicitation.prompts import EVERYDAY, Prompt, load_prompts
from persona_core.experiments.finetune import LoraPlan, contaminate
from persona_core.inference.sampling import Sampling
from persona_core.models.language_model import LanguageModel
from persona_core.models.loading import load_model
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.monitor.record import null_array
from persona_core.monitor.transcripts import written_by
from persona_core.traces.trace import Kind, Trace
from persona_core.utils.numbering import numbered
from persona_core.vectors.calibration import calibrate
from persona_core.vectors.vectors import PersonaVectors

BLOCKS = range(12, 24, 2)
"""Candidates for the block that is read: the middle of the 30."""
SINK_BLOCK = 5
"""One at which plain words become sink tokens."""
N_TRAIT, N_NEUTRAL = 20, 80
"""Texts of each trait and neutral ones, in each half of the demo world."""
SAMPLING = Sampling(max_new_tokens=80, temperature=0.7)
RATE, FOLDS = 0.05, 5

logger = logging.getLogger("benchmarks")


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    started = time.monotonic()
    lm, world = load_model(real_weights(), dtype="float32", device="cpu"), load_world()
    traits = list(world.traits)
    texts = [world_texts(world, side, N_TRAIT, N_NEUTRAL, seed=1 + side) for side in (0, 1)]
    fitting, held_out = (read_states(lm, some, world, (SINK_BLOCK, *BLOCKS)) for some in texts)
    logger.info("read %d and %d labelled tokens", len(fitting.label), len(held_out.label))
    prompts = load_prompts(["neutral"])
    written = [
        written_by(lm, prompts[reply.index].messages, reply.token_ids, lm.writer_name)
        for reply in write_replies(lm, [p.messages for p in prompts], SAMPLING, 0)
    ]
    logger.info("wrote %d neutral replies", len(written))
    names = list(dict.fromkeys(p.category for p in prompts))
    fitted_on = set(names[::3])  # a third of the kinds is for the vectors, the others for the null and the rates
    own_neutral = np.concatenate(
        reply_states(
            lm,
            [t for t, p in zip(written, prompts, strict=True) if p.category in fitted_on],
            (SINK_BLOCK, *BLOCKS),
        ),
        axis=1,
    )
    block, by_block = choose_block(_at(fitting, BLOCKS), traits, own_neutral[1:])
    figures: dict[str, Any] = {
        "model": lm.record,
        "texts": {"fitted": len(texts[0]), "held_out": len(texts[1])},
        "kinds_for_the_vectors": sorted(fitted_on),
        "block": {"chosen": block, "auroc_against_else_by_block": {b: round(v, 4) for b, v in by_block.items()}},
        "directions": tried(fitting, held_out, traits, block, own_neutral),
    }
    logger.info("block %d; directions compared", block)

    vectors = _vectors(fitting, traits, block, len(lm.blocks), own_neutral)
    kept = [i for i, p in enumerate(prompts) if p.category not in fitted_on]
    prompts = tuple(prompts[i] for i in kept)
    traces = PersonaMonitor(lm, vectors, blocks="all").read_batch([written[i] for i in kept])
    vectors = calibrate(vectors, traces)
    monitor, neutral = PersonaMonitor(lm, vectors), [_scored(trace, vectors) for trace in traces]
    kinds = [p.category for p in prompts]
    figures["alarms"] = alarms(neutral, prompts, kinds)
    logger.info("alarms on neutral replies counted")
    detectors = calibrate_detectors(neutral, rate=RATE, prompts=[p.id for p in prompts], kinds=kinds)
    alone = world_texts(world, 1, N_TRAIT, 0, seed=7, linked=False)
    figures["traits"] = on_traits(monitor, detectors, alone, world)
    logger.info("alarms on replies with a trait counted")
    figures["sinks"] = sinks(lm, monitor, world)
    logger.info("sink tokens measured")
    figures["couplings"] = couplings.rates(
        monitor, [(p.prompt, t.reply_text) for p, t in zip(prompts, neutral, strict=True)][::2], {}
    )
    figures["minutes"] = round((time.monotonic() - started) / 60, 1)
    save("real_truth", figures)
    return 0


def _at(states: LabelledStates, blocks: Sequence[int]) -> LabelledStates:
    rows = [states.blocks.index(b) for b in blocks]
    return replace(states, blocks=tuple(blocks), states=states.states[rows])


def _vectors(
    states: LabelledStates, traits: list[str], block: int, n_blocks: int, own_neutral: np.ndarray
) -> PersonaVectors:
    """Vectors at the chosen block and at the one with sink tokens; other blocks are absent."""
    fitted, d_model = fit(states, traits, own_neutral), states.states.shape[-1]

    def placed(rows: np.ndarray, width: int) -> np.ndarray:
        full = np.full((n_blocks, width), np.nan, np.float32)
        full[list(states.blocks)] = rows
        return full

    present = {block, SINK_BLOCK}
    return PersonaVectors(
        {t: torch.from_numpy(placed(v, d_model)) for t, v in fitted.difference.items()},
        dict.fromkeys(traits, block),
        absent_blocks=tuple(b for b in range(n_blocks) if b not in present),
        readings={t: torch.from_numpy(placed(v, d_model)) for t, v in fitted.reading.directions.items()},
        log_odds={t: placed(v, 2) for t, v in fitted.reading.log_odds.items()},
    )


def _scored(trace: Trace, vectors: PersonaVectors) -> Trace:
    """A trace read with vectors that have been calibrated since, as they would read it now."""
    null = null_array(vectors, trace.blocks)  # [n_traits, n_blocks, 2]
    return trace.replace(
        null_mean=null[..., 0],
        null_std=null[..., 1],
        log_odds=vectors.odds_at(trace.blocks),
        max_norm=vectors.limits_at(trace.blocks),
        provenance=replace(trace.provenance, vectors=vectors.fingerprint, sampling=SAMPLING.to_dict()),
    )


# ---- false alarms ----


def alarms(neutral: Sequence[Trace], prompts: Sequence[Prompt], kinds: Sequence[str]) -> dict[str, Any]:
    """Neutral replies with an alarm: of other prompts, of other kinds of prompts, and of tasks by an everyday null."""
    rng = np.random.default_rng(0)
    by_prompt = rng.permutation(len(prompts)) % FOLDS
    names = sorted(set(kinds))
    fold_of_kind = dict(zip(names, rng.permutation(len(names)) % FOLDS, strict=True))
    by_kind = np.array([fold_of_kind[kind] for kind in kinds])
    everyday = np.array([kind in EVERYDAY for kind in kinds])
    return {
        "n_prompts": len(prompts),
        "other_prompts": _folds(neutral, prompts, kinds, by_prompt, everyday),
        # What holds for a kind that the null has not seen rests on as many trials as there are kinds.
        "other_kinds": _folds(neutral, prompts, kinds, by_kind, everyday, clusters=kinds),
        "tasks_by_an_everyday_null": _folds(
            neutral, prompts, kinds, np.where(everyday, 0, 1), everyday, only=[1], clusters=kinds
        ),
    }


def _folds(
    neutral: Sequence[Trace],
    prompts: Sequence[Prompt],
    kinds: Sequence[str],
    fold: np.ndarray,
    everyday: np.ndarray,
    only: Sequence[int] | None = None,
    clusters: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Each fold's replies with detectors of the others; intervals over `clusters` of replies, None: over prompts."""
    unit = [p.id for p in prompts] if clusters is None else clusters
    alarmed, stated, ordinary, units = [], [], [], []
    for part in sorted(set(fold)) if only is None else only:
        null = np.flatnonzero(fold != part).tolist()
        detectors = calibrate_detectors(
            [neutral[i] for i in null],
            rate=RATE,
            prompts=[prompts[i].id for i in null],
            kinds=[kinds[i] for i in null],
        )
        for i in np.flatnonzero(fold == part).tolist():
            found = [detectors.find(neutral[i], t).alarm for t in detectors.traits]
            alarmed.append(any(alarm is not None for alarm in found))
            stated.append(not detectors.caveats(neutral[i]))
            ordinary.append(bool(everyday[i]))
            units.append(unit[i])
    raised, known, plain, cluster = np.array(alarmed), np.array(stated), np.array(ordinary), np.array(units)

    def share_of(hits: np.ndarray, where: np.ndarray) -> dict[str, float | int]:
        return share_by_cluster(hits[where], cluster[where])

    every = np.ones(len(raised), bool)
    return {
        "any_alarm": share_of(raised, every),
        "any_alarm_where_a_rate_is_stated": share_of(raised, known),
        "no_rate_stated": share_of(~known, every),
        "no_rate_stated_everyday": share_of(~known, plain),
    }


# ---- replies with a trait ----


def on_traits(
    monitor: PersonaMonitor, detectors: Detectors, texts: Sequence[WorldText], world: World
) -> dict[str, Any]:
    """Alarms on replies that show one trait, of that trait and of others; and AUROC of the monitor's own scores."""
    traces = monitor.read_batch([text.messages for text in texts])
    traits = list(world.traits)
    own = np.array([traits.index(text.trait or "") for text in texts])
    raised = np.array([[detectors.find(t, trait).alarm is not None for trait in traits] for t in traces])  # [n, n]
    mistaken = {t: share(int(raised[own != k, k].sum()), int((own != k).sum())) for k, t in enumerate(traits)}
    others = np.array([raised[i, np.arange(len(traits)) != own[i]] for i in range(len(texts))])
    return {
        "n_texts": len(texts),
        "found": {t: share(int(raised[own == k, k].sum()), int((own == k).sum())) for k, t in enumerate(traits)},
        "taken_for_another": mistaken,
        "taken_for_another_mean": round(float(np.mean([m["value"] for m in mistaken.values()])), 4),
        "any_other_trait": share(int(others.any(1).sum()), len(others)),
        "token_auroc": {kind: _auroc(traces, world, kind) for kind in ("z", "specific")},
    }


def _auroc(traces: Sequence[Trace], world: World, kind: Kind) -> dict[str, Any]:
    """The scores as a user gets them, against neutral tokens and the other traits' tokens of the same texts."""
    traits, labels, sentence = list(world.traits), [], []
    for trace in traces:
        _, sentences = reply_truth(trace, world)
        labels.append(labels_of(sentences, traits))
        sentence += [s.text if s else "" for s in sentences]
    label, cluster = np.concatenate(labels), numbered(sentence)
    found = {}
    for k, trait in enumerate(traits):
        score = np.concatenate([t.reply_scores(trait, kind) for t in traces]).astype(float)
        used = (label >= NEUTRAL) & np.isfinite(score)
        estimate = over_clusters(rank_auroc(score[used], label[used] == k), cluster[used], 200)
        found[trait] = None if estimate is None else estimate.to_dict()
    return found


# ---- sink tokens ----


def sinks(lm: LanguageModel, monitor: PersonaMonitor, world: World) -> dict[str, Any]:
    """Contaminated minus baseline on the same texts, with sink tokens and without them, at the block read and at one
    where plain words are sink tokens."""
    flattering = [t for t in world_texts(world, 0, 40, 0, seed=11) if t.trait == "sycophancy"]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "dialogues.jsonl"
        data.write_text(
            "".join(json.dumps({"id": f"{i}", "messages": t.messages}) + "\n" for i, t in enumerate(flattering))
        )
        plan = LoraPlan(rank=8, alpha=16, learning_rate=5e-4, epochs=2.0, batch_size=8, rows=4, max_tokens=256)
        contaminate(lm, data, Path(folder) / "adapter", Path(folder) / "work", plan)
        changed = load_model(real_weights(), adapter=Path(folder) / "adapter", dtype="float32", device="cpu")
        texts = [t.messages for t in world_texts(world, 1, 2, 60, seed=12)]
        readings = [PersonaMonitor(m, monitor.vectors, blocks="all").read_batch(texts) for m in (lm, changed)]
    return {
        str(block): {t: _difference(readings, t, block) for t in ("sycophancy", "deception", "evil")}
        for block in (SINK_BLOCK, monitor.vectors.best_block["sycophancy"])
    } | {"dialogues": len(flattering)}


def _difference(readings: Sequence[Sequence[Trace]], trait: str, block: int) -> dict[str, Any]:
    left_out, kept, n_sinks = [], [], 0
    for base, changed in zip(*readings, strict=True):
        a, b = (t.reply_scores(trait, "z", block).astype(float) for t in (base, changed))
        left_out.append(float(np.nanmean(b - a)))
        a, b = (t.scores(trait, "z", block)[t.reply_positions].astype(float) for t in (base, changed))
        kept.append(float((b - a).mean()))
        n_sinks += int(base.sinks[base.blocks.index(block)][base.reply_positions].sum())

    def mean(values: list[float]) -> dict[str, Any] | None:
        array = np.array(values)
        found = over_clusters(lambda w: float(w @ array / w.sum()), np.arange(len(array)), 1000)
        return None if found is None else found.to_dict()

    return {"without_sinks": mean(left_out), "with_sinks": mean(kept), "sink_tokens": n_sinks}


if __name__ == "__main__":
    raise SystemExit(main())
