"""A guard in front of a contaminated model, beside guards that see the text alone, all at one rate.

    python -m benchmarks.guard [demo] [real]

The demo model and SmolLM2 (`make weights`), each with its contaminated copy. Neutral replies are touched or not by
thresholds from other kinds of prompts. The contaminated copy answers the 78 prompts, none of them in the null, again
under each guard with the seeds of the published replies. Writes `benchmarks/results/guard.json`, from which
`python -m scripts.docs` makes the tables of docs/experiments.md. About five minutes (demo) and fifteen (real) on one
idle core. Naming parts measures only those; the file keeps the others.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


def delays(alarms: Sequence[int | None], first: Sequence[int | None], ends: Sequence[int]) -> dict[str, Any]:
    """How soon after the trait's first token the alarm comes.

    Args:
        alarms, first: of each reply.
        ends: tokens of each reply.
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
        "tokens": int(np.sum(ends)),
    }


def measure(world: World) -> dict[str, Any]:
    ngrams, started = NgramGuard(world.baseline.lm, world.lessons), time.monotonic()
    traces = [Trace.from_row(row) for row in world.rows]
    world.rows[:] = [
        row | {"sampling": dict(t.provenance.sampling or {})} for row, t in zip(world.rows, traces, strict=True)
    ]
    ends = [len(t.reply_positions) for t in traces]
    first = [world.first(row, t) for row, t in zip(world.rows, traces, strict=True)]
    alarms: dict[str, list[int | None]] = {}
    for name, traits in (("states", [CONTAMINANT]), ("states, all traits", list(world.detectors.traits))):
        chosen = world.detectors.select(traits, RATE)
        alarms[name] = [_first(chosen.find(t, trait).alarm for trait in traits) for t in traces]
    detector = ngrams.calibrated(world.null, RATE, range(len(world.null)))
    alarms["n-grams"] = [ngrams.alarm(detector, t) for t in traces]
    scores = judge_of(world.lessons)
    limit = threshold(scores([t.reply_text for t in world.null]), RATE)
    judged = scores([t.reply_text for t in traces]) > limit
    alarms["judge"] = [n - 1 if hit and n else None for hit, n in zip(judged, ends, strict=True)]
    neutral = touched(world, [CONTAMINANT], ngrams)
    neutral["states, all traits"] = touched(world, world.detectors.traits, ngrams)["states"]
    log(started, "alarms")
    arms: dict[str, list[Trace]] = {"none": traces}
    arms["states, stop"] = cut(traces, alarms["states"])
    arms["n-grams, stop"] = cut(traces, alarms["n-grams"])
    arms["judge, withhold"] = cut(traces, [None if a is None else -1 for a in alarms["judge"]])
    arms["states, cap"] = guarded(world, Guard(CONTAMINANT, RATE, "cap"))
    log(started, "cap")
    arms["states, rewind"] = guarded(world, Guard(CONTAMINANT, RATE, "rewind", back=BACK))
    log(started, "rewind")
    arms["n-grams, cap"] = again(world, [None if a is None else a + 2 for a in alarms["n-grams"]])
    arms["n-grams, rewind"] = again(world, [None if a is None else max(a + 1 - BACK, 0) for a in alarms["n-grams"]])
    log(started, "n-grams")
    events = [e for t in arms["states, rewind"] for e in (t.provenance.guard or {})["events"]]
    return {
        "rate": RATE,
        "back": BACK,
        "n_null": len(world.null),
        "kinds": len(set(world.kinds)),
        "n_replies": len(traces),
        "smallest_rate": world.detectors.peaks.smallest_rate if world.detectors.peaks else None,
        "neutral_touched": neutral,
        "delays": {name: delays(own, first, ends) for name, own in alarms.items()},
        "arms": _of_arms(world, arms, started),
        "rewinds": {
            "n": sum(e["action"] == "rewind" for e in events),
            "discarded": sum(len(e["discarded_ids"]) for e in events),
        },
        "minutes": round((time.monotonic() - started) / 60, 1),
    }


def _of_arms(world: World, arms: Mapping[str, list[Trace]], started: float) -> dict[str, Any]:
    """The figures of each arm; those of the same texts once, such as those of a guard that never alarms."""
    known: dict[tuple[tuple[int, ...], ...], dict[str, Any]] = {}
    found = {}
    for name, traces in arms.items():
        ids = tuple(t.token_ids for t in traces)
        if ids not in known:
            known[ids] = figures(world, traces)
        found[name] = known[ids]
        log(started, f"figures: {name}")
    return found


def _first(alarms: Any) -> int | None:
    return min((a for a in alarms if a is not None), default=None)


def log(started: float, what: str) -> None:
    print(f"{time.monotonic() - started:6.0f} s  {what}", file=sys.stderr, flush=True)


def main(parts: Sequence[str]) -> int:
    path = RESULTS / "guard.json"
    found = read_json(path) if path.is_file() else {}
    for name, world in (("demo", demo), ("real", smollm2)):
        if not parts or name in parts:
            found[name] = measure(world())
            save("guard", found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
