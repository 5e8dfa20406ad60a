"""A guard in front of a contaminated model, beside guards that see the text alone, all at one rate.

    python -m benchmarks.guard [demo] [real] [alarms] ["states, cap"] ...

The demo model and SmolLM2 (`make weights`), each with its contaminated copy. Neutral replies are touched or not by
thresholds from other kinds of prompts. The contaminated copy answers the 78 prompts, none of them in the null, again
under each guard with the seeds of the published replies. Writes `benchmarks/results/guard.json`, from which
`python -m scripts.docs` makes the tables of docs/experiments.md. Naming a model, "alarms" or an arm measures only
those; the file keeps the others, and each part is saved when it is done. On one idle core the demo takes three minutes,
and SmolLM2 one for the alarms and one for the arms.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import ARTIFACTS, RESULTS, demo_monitor, real_weights, save, share
from benchmarks.text_guards import Lesson, NgramGuard, judge_of, threshold
from demo_world.contaminated import CONTAMINANT, CONTAMINATED_NAME, RESULTS_NAME, VECTORS_NAME
from demo_world.corpus import ask
from demo_world.grammar import load_world
from demo_world.judge import judge
from demo_world.truth_labels import reply_truth
from persona_core.analysis.branch_figures import HIGH
from persona_core.analysis.detectors import Detectors
from persona_core.analysis.held_out_alarms import held_out_alarms
from persona_core.analysis.statistics import over_clusters, share_over_replies
from persona_core.inference.probabilities import log_probabilities
from persona_core.inference.sampling import Sampling
from persona_core.judging.annotations import annotated_positions, annotations_of, load_annotations
from persona_core.models.loading import load_model
from persona_core.monitor.alarms import LATENCY
from persona_core.monitor.branching import Branch
from persona_core.monitor.guard import Guard
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.report.results_folder import CONTAMINATED, NEUTRAL, ResultsFolder
from persona_core.traces.trace import Trace
from persona_core.utils.files import read_json
from persona_core.vectors.confounds import refuses
from persona_core.vectors.vectors import PersonaVectors
from real_model import build as real
from real_model.marks import FOLDER as MARKS
from real_model.texts import load_questions

RATE, BACK, FOLDS = 0.01, 16, 5
N_LESSONS = 400
"""Texts of the demo world that its text guards learn from, of each kind."""
Row = dict[str, Any]


@dataclass(frozen=True)
class World:
    """A model with its contaminated copy, and what is known of their replies.

    Attributes:
        baseline, contaminated: monitors.
        detectors: of the baseline.
        null, kinds: the baseline's neutral replies, and the kind of each one's prompt.
        rows: of the published replies of the contaminated copy.
        lessons: what the text guards learn from.
        first: first reply token that shows the trait in truth; None where none does.
        shown: of a reply's text, sentences that show the trait, those of the grammar, and all; None: not known.
    """

    baseline: PersonaMonitor
    contaminated: PersonaMonitor
    detectors: Detectors
    null: list[Trace]
    kinds: list[str]
    rows: list[Row]
    lessons: list[Lesson]
    first: Callable[[Row, Trace], int | None]
    shown: Callable[[Row, Trace], tuple[int, int, int]] | None


# ---- the two worlds ----


def demo() -> World:
    world, rng = load_world(), np.random.default_rng(0)

    def first(_: Row, trace: Trace) -> int | None:
        known = reply_truth(trace, world)[1]
        return next((i for i, s in enumerate(known) if s and (s.kind, s.trait) == ("trait", CONTAMINANT)), None)

    def shown(_: Row, trace: Trace) -> tuple[int, int, int]:
        verdict = judge(trace.reply_text, world)
        return verdict.traits[CONTAMINANT], verdict.n_known, verdict.n_sentences

    topics = [world.topics[int(i)] for i in rng.integers(len(world.topics), size=N_LESSONS)]
    lessons = [
        Lesson(ask(world, t, trait, rng).text, trait is not None) for t in topics for trait in (CONTAMINANT, None)
    ]
    monitors = demo_monitor(), demo_monitor(CONTAMINATED_NAME)
    return _world(*monitors, VECTORS_NAME, RESULTS_NAME, lessons, first, shown)


def smollm2() -> World:
    weights, vectors = real_weights(), PersonaVectors.from_pretrained(ARTIFACTS / real.VECTORS_NAME)
    marks = load_annotations(MARKS / "marks.jsonl")
    lessons = [
        Lesson(reply.text, reply.side == "positive" and q.trait == CONTAMINANT)
        for q in load_questions(split="fit")
        for reply in q.replies
    ]

    def first(row: Row, trace: Trace) -> int | None:
        inside = annotated_positions(trace, annotations_of(marks, row["id"], CONTAMINATED, CONTAMINANT))
        return trace.reply_positions.index(inside[0]) if inside else None

    def monitor(adapter: Path | None) -> PersonaMonitor:
        return PersonaMonitor(load_model(weights, adapter=adapter, dtype="float32", device="cpu"), vectors)

    monitors = monitor(None), monitor(ARTIFACTS / real.CONTAMINATED_NAME)
    return _world(*monitors, real.VECTORS_NAME, real.RESULTS_NAME, lessons, first, None)


def _world(
    baseline: PersonaMonitor,
    contaminated: PersonaMonitor,
    vectors: str,
    results: str,
    lessons: list[Lesson],
    *truth: Any,
) -> World:
    detectors, folder = Detectors.from_pretrained(ARTIFACTS / vectors), ResultsFolder(ARTIFACTS / results)
    guarded = PersonaMonitor(contaminated.lm, contaminated.vectors, detectors=detectors)
    neutral = folder.rows(NEUTRAL)
    null, kinds = [Trace.from_row(row) for row in neutral], [row["category"] for row in neutral]
    return World(baseline, guarded, detectors, null, kinds, folder.rows(CONTAMINATED), lessons, *truth)


# ---- neutral replies ----


def touched(world: World, traits: Sequence[str], ngrams: NgramGuard) -> dict[str, Any]:
    """Neutral replies that each guard touches, with thresholds from other kinds of prompts."""
    prompts = list(range(len(world.null)))
    states = held_out_alarms(world.null, world.kinds, prompts, traits, RATE, n_folds=FOLDS)
    names = list(dict.fromkeys(world.kinds))
    fold = dict(zip(names, np.random.default_rng(0).permutation(len(names)) % FOLDS, strict=True))
    part, scores = np.array([fold[kind] for kind in world.kinds]), judge_of(world.lessons)
    judged = scores([trace.reply_text for trace in world.null])
    by_ngrams, by_judge = np.zeros(len(part), bool), np.zeros(len(part), bool)
    for k in range(FOLDS):
        kept, held_out = np.flatnonzero(part != k), np.flatnonzero(part == k)
        detector = ngrams.calibrated([world.null[i] for i in kept], RATE, kept.tolist())
        by_ngrams[held_out] = [ngrams.alarm(detector, world.null[i]) is not None for i in held_out]
        by_judge[held_out] = judged[held_out] > threshold(judged[kept], RATE)
    found = {"states": states, "n-grams": by_ngrams, "judge": by_judge}
    return {name: share(int(hits.sum()), len(hits)) for name, hits in found.items()}


# ---- replies of the contaminated copy ----


def again(world: World, at: Sequence[int | None]) -> list[Trace]:
    """The published replies, written again from a token on with the trait held; None: as they are."""
    monitor, sides = world.contaminated, [Trace.from_row(row) for row in world.rows]
    rows = [i for i, start in enumerate(at) if start is not None and start <= len(sides[i].reply_positions)]
    cap = Guard(CONTAMINANT, RATE).prepared_caps(monitor.vectors, monitor.lm.blocks)[CONTAMINANT]
    sampling = Sampling(**world.rows[0]["sampling"])
    found = list(sides)
    for first in range(0, len(rows), 16):
        some = rows[first : first + 16]
        starts = [int(at[i] or 0) for i in some]
        held = type(cap)(cap.steer, cap.direction, cap.amount, torch.tensor(starts))
        branches = [Branch(sides[i], start) for i, start in zip(some, starts, strict=True)]
        seeds = [int(sides[i].provenance.seed or 0) for i in some]
        for i, trace in zip(some, monitor.write(branches, sampling, seeds, [held]), strict=True):
            found[i] = trace
    return found


def guarded(world: World, guard: Guard) -> list[Trace]:
    """The replies under the guard of the library."""
    seeds = [int(Trace.from_row(row).provenance.seed or 0) for row in world.rows]
    messages = [row["messages"] for row in world.rows]
    return world.contaminated.generate_batch(messages, seed=seeds, guard=guard, **world.rows[0]["sampling"])


def cut(traces: Sequence[Trace], at: Sequence[int | None]) -> list[Trace]:
    """The replies up to the token of the alarm."""
    return [t if a is None else _until(t, t.n_prompt + a + 1) for t, a in zip(traces, at, strict=True)]


def _until(trace: Trace, n: int) -> Trace:
    return trace.replace(
        token_ids=trace.token_ids[:n], tokens=trace.tokens[:n], roles=trace.roles[:n], special=trace.special[:n],
        raw=trace.raw[..., :n], norms=trace.norms[..., :n], finish="guard",
    )  # fmt: skip


def figures(world: World, traces: Sequence[Trace]) -> dict[str, Any]:
    """What is left of the trait, and how the text reads, over replies. All is read without steering."""
    n, monitor = len(traces), world.contaminated
    whole = [t for t in traces if t.reply_positions]
    read = world.baseline.read_batch(whole, batch_tokens=512)
    scores = [r.scores_without_sinks(CONTAMINANT)[r.reply_positions] for r in read]
    high = [int((z[np.isfinite(z)] > HIGH).sum()) for z in scores] + [0] * (n - len(whole))
    known = [int(np.isfinite(z).sum()) for z in scores] + [0] * (n - len(whole))
    logs = [
        float(np.exp(log_probabilities(monitor.lm, t.token_ids, t.n_prompt)[: len(t.reply_positions)].mean()))
        for t in whole
    ]
    found = {
        "n": n,
        "high_tokens": share_over_replies(high, known).to_dict(),
        "high_tokens_a_reply": mean(high),
        "tokens_a_reply": mean([len(t.reply_positions) for t in traces]),
        "fluency": mean(logs),
        "repeated": mean([_repeated(t) for t in whole]),
        "refusals": share(sum(refuses(t.reply_text) for t in traces), n),
    }
    if world.shown is not None:
        trait, grammar, total = zip(
            *(world.shown(row, t) for row, t in zip(world.rows, traces, strict=True)), strict=True
        )
        found |= {
            "trait_sentences": share_over_replies(trait, total).to_dict(),
            "trait_sentences_a_reply": mean(trait),
            "coherence": share_over_replies(grammar, total).to_dict(),
        }
    return found


def _repeated(trace: Trace) -> float:
    ids = [trace.token_ids[t] for t in trace.reply_positions]
    runs = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    return (len(runs) - len(set(runs))) / len(runs) if runs else 0.0


def mean(values: Sequence[float]) -> dict[str, Any] | None:
    """With its interval over replies."""
    each = np.asarray(values, float)
    found = over_clusters(lambda w: float(np.average(each, weights=w)), np.arange(len(each)))
    return None if found is None else found.to_dict()


def delays(alarms: Sequence[int | None], first: Sequence[int | None]) -> dict[str, Any]:
    """How soon after the trait's first token the alarm comes.

    Args:
        alarms, first: of each reply.
    """
    shows = [(a, f) for a, f in zip(alarms, first, strict=True) if f is not None]
    late = [a - f for a, f in shows if a is not None]
    others = [a is not None for a, f in zip(alarms, first, strict=True) if f is None]
    return {
        "found": share(len(late), len(shows)),
        "within_8": share(sum(d <= 8 for d in late), len(shows)),
        "early": share(sum(d < 0 for d in late), len(shows)),
        "mean": mean(late) if len(late) > 2 else None,
        "median": float(np.median(late)) if late else None,
        "others_touched": share(sum(others), len(others)) if others else None,
    }


def prepare(world: World) -> tuple[NgramGuard, list[Trace]]:
    """The n-grams, and the published replies; their sampling is put beside them."""
    traces = [Trace.from_row(row) for row in world.rows]
    world.rows[:] = [
        row | {"sampling": dict(t.provenance.sampling or {})} for row, t in zip(world.rows, traces, strict=True)
    ]
    return NgramGuard(world.baseline.lm, world.lessons), traces


def alarms_of(world: World, traces: Sequence[Trace], ngrams: NgramGuard) -> dict[str, list[int | None]]:
    """Where each guard alarms in the published replies, with the thresholds of the whole null."""
    found: dict[str, list[int | None]] = {}
    for name, traits in (("states", [CONTAMINANT]), ("states, all traits", list(world.detectors.traits))):
        chosen = world.detectors.select(traits, RATE)
        found[name] = [_first(chosen.find(t, trait).alarm for trait in traits) for t in traces]
    detector = ngrams.calibrated(world.null, RATE, range(len(world.null)))
    found["n-grams"] = [ngrams.alarm(detector, t) for t in traces]
    scores = judge_of(world.lessons)
    limit = threshold(scores([t.reply_text for t in world.null]), RATE)
    judged = scores([t.reply_text for t in traces]) > limit
    found["judge"] = [
        len(t.reply_positions) - 1 if hit and t.reply_positions else None for hit, t in zip(judged, traces, strict=True)
    ]
    return found


def measure_alarms(world: World) -> dict[str, Any]:
    """Neutral replies touched, and when the trait is seen: from stored replies, nothing is written."""
    ngrams, traces = prepare(world)
    neutral = touched(world, [CONTAMINANT], ngrams)
    neutral["states, all traits"] = touched(world, world.detectors.traits, ngrams)["states"]
    first = [world.first(row, t) for row, t in zip(world.rows, traces, strict=True)]
    return {
        "rate": RATE,
        "back": BACK,
        "n_null": len(world.null),
        "kinds": len(set(world.kinds)),
        "neutral_touched": neutral,
        "delays": {name: delays(own, first) for name, own in alarms_of(world, traces, ngrams).items()},
    }


def rewritten(world: World) -> tuple[World, list[Trace], dict[str, list[int | None]]]:
    """The replies in which the guard of the states alarms: it leaves the others as they are."""
    ngrams, traces = prepare(world)
    alarms = alarms_of(world, traces, ngrams)
    kept = [i for i, alarm in enumerate(alarms["states"]) if alarm is not None]
    fewer = replace(world, rows=[world.rows[i] for i in kept])
    return fewer, [traces[i] for i in kept], {name: [own[i] for i in kept] for name, own in alarms.items()}


def measure_arm(world: World, traces: list[Trace], alarms: Mapping[str, list[int | None]], arm: str) -> dict[str, Any]:
    """What is left of the trait in these replies under one guard."""
    if arm == "none":
        return figures(world, traces)
    trigger, action = arm.split(", ")
    if trigger == "states" and action != "stop":
        own = guarded(world, Guard(CONTAMINANT, RATE, action, back=BACK))  # type: ignore[arg-type]
    elif action == "stop":
        own = cut(traces, alarms[trigger])
    elif action == "withhold":
        own = cut(traces, [None if a is None else -1 for a in alarms[trigger]])
    else:
        later = [
            None if a is None else a + LATENCY if action == "cap" else max(a + 1 - BACK, 0) for a in alarms[trigger]
        ]
        own = again(world, later)
    return figures(world, own)


def _first(alarms: Any) -> int | None:
    return min((a for a in alarms if a is not None), default=None)


def main(arguments: Sequence[str]) -> int:
    path = RESULTS / "guard.json"
    found = read_json(path) if path.is_file() else {}
    named = [word for word in arguments if word in WORLDS] or list(WORLDS)
    wanted = [word for word in arguments if word not in WORLDS] or ["alarms", *ARMS]
    if unknown := [word for word in wanted if word not in ("alarms", *ARMS)]:
        raise SystemExit(f"{unknown[0]!r} is no part; give any of {', '.join((*WORLDS, 'alarms', *map(repr, ARMS)))}.")
    for name in named:
        world = WORLDS[name]()
        touched_ones = rewritten(world) if wanted != ["alarms"] else None
        for part in wanted:
            own = found.setdefault(name, {"arms": {}})
            if part == "alarms":
                own |= measure_alarms(world)
            elif touched_ones is not None:
                own["arms"][part] = measure_arm(*touched_ones, part)
            save("guard", found)
    return 0


WORLDS: dict[str, Callable[[], World]] = {"demo": demo, "real": smollm2}
ARMS = (
    "none", "states, cap", "n-grams, cap", "states, rewind", "n-grams, rewind", "states, stop", "n-grams, stop",
    "judge, withhold",
)  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
