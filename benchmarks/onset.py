"""How often the onset detector is wrong: false alarms, misses and distances, where the truth is known.

    python -m benchmarks.onset

Simulated series (white noise, AR(0.65), a common drift over positions; nulls of short replies only), neutral replies of
the demo model to prompts that had no part in the calibration, and texts of its grammar in which a trait begins at a
known token. The rate is over all traits watched. Other statistics are compared at the same rate. Writes
`benchmarks/results/onset.json`, from which `python -m scripts.docs` makes its tables. About five minutes on two cores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from benchmarks.alarm_statistics import compare
from benchmarks.common import ARTIFACTS, demo_monitor, save, share
from demo_world.contaminated import RESULTS_NAME, SAMPLING
from demo_world.corpus import ask
from demo_world.grammar import World, load_world
from demo_world.process import VARIANTS
from demo_world.truth_labels import reply_truth
from persona_core.analysis.detection_power import power, with_rise
from persona_core.analysis.detectors import Detectors, calibrate_detectors
from persona_core.analysis.onset import OnsetDetector
from persona_core.analysis.onset_calibration import calibrate_onset, calibrate_onsets
from persona_core.analysis.series import reply_scores, shared_kind
from persona_core.analysis.statistics import bounded
from persona_core.analysis.survival import Lifetime, compare_cohorts, lifetime, survival
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.traces.dataset import load_results
from persona_core.traces.trace import Trace

N_NULLS, N_HELD_OUT, N_TEXTS = 400, 400, 120
SEEDS, TEXTS_SEED = 5, 8
TEXTS = ("cued", "from the start", "uncued", "drift")
EARLIEST = 5  # tokens: an onset before that cannot be told from "from the start"
NEAR = 2

Series = list[np.ndarray]


def main() -> int:
    world = load_world()
    monitor = demo_monitor()
    figures = {
        "vectors": monitor.vectors.fingerprint,
        "rate": 0.05,
        "n_nulls": N_NULLS,
        "n_held_out": N_HELD_OUT,
        "near": NEAR,
        "simulated": simulated(),
        "lengths": lengths(),
        "intervals": intervals(),
        "cohorts": cohorts(monitor.vectors.traits),
        "model": neutral_replies(monitor, world),
        "texts": {name: texts(monitor, world, name) for name in TEXTS},
        "statistics": {name: statistics(monitor, world, name) for name in ("cued", "uncued")},
    }
    save("onset", figures)
    return 0


def simulated() -> dict[str, Any]:
    """False alarms on series of three kinds, and the naive rule for contrast; and what size of step can be found."""
    found: dict[str, Any] = {}
    for name, phi, slope in (("white noise", 0.0, 0.0), ("AR(0.65)", 0.65, 0.0), ("AR(0.65), drifting", 0.65, 0.02)):
        alarms = naive = total = 0
        steps: dict[float, list[tuple[float, float | None]]] = {}
        for seed in range(SEEDS):
            rng = np.random.default_rng(seed)
            draw = _drawing(rng, phi, slope)
            detector = calibrate_onset([draw() for _ in range(N_NULLS)], seed=seed)
            held_out = [draw() for _ in range(N_HELD_OUT)]
            alarms += n_alarms(detector, held_out)
            naive += sum(first_tokens_rule(z) for z in held_out)
            total += len(held_out)
            for shift in (0.5, 1.0, 1.5, 2.0):
                tried = power(detector, held_out, shift, at=30)
                steps.setdefault(shift, []).append((tried.found, tried.delay))
        found[name] = {
            "false_alarms": share(alarms, total),
            "naive_rule": share(naive, total),
            "power": {
                str(shift): {
                    "found": round(float(np.mean([f for f, _ in tried])), 3),
                    "delay": float(np.median([d for _, d in tried if d is not None])),
                }
                for shift, tried in steps.items()
            },
        }
    return found


def _drawing(
    rng: np.random.Generator, phi: float, slope: float, tokens: tuple[int, int] = (40, 140)
) -> Callable[[], np.ndarray]:
    def draw() -> np.ndarray:
        n = int(rng.integers(*tokens))
        noise = rng.normal(0, np.sqrt(1 - phi**2), n + 60)
        x = np.zeros(n + 60)
        for t in range(1, n + 60):
            x[t] = phi * x[t - 1] + noise[t]
        return x[60:] + slope * np.minimum(np.arange(n), 30)

    return draw


def first_tokens_rule(z: np.ndarray) -> bool:
    """A rule used elsewhere: any later token above mean + 1 SD of the first three."""
    return bool((z[3:] > z[:3].mean() + z[:3].std()).any())


def lengths() -> list[dict[str, Any]]:
    """False alarms on replies longer than those of the null, AR(0.65): with a known rate, and with none."""
    found = []
    for null, test in (((10, 31), (200, 300)), ((40, 81), (81, 141)), ((40, 141), (40, 141))):
        known = unknown = total = 0
        for seed in range(SEEDS):
            rng = np.random.default_rng(seed)
            nulls = [_drawing(rng, 0.65, 0.0, null)() for _ in range(N_NULLS)]
            nulls[0] = _drawing(rng, 0.65, 0.0, (299, 300))()
            detector = calibrate_onset(nulls, seed=seed)
            draw = _drawing(rng, 0.65, 0.0, test)
            alarms = [detector.find(draw()).alarm for _ in range(N_HELD_OUT)]
            known += sum(a is not None and a < detector.supported for a in alarms)
            unknown += sum(a is not None and a >= detector.supported for a in alarms)
            total += len(alarms)
        found.append(
            {"null": null, "test": test, "alarms": share(known, total), "alarms_without_a_rate": share(unknown, total)}
        )
    return found


def neutral_replies(monitor: PersonaMonitor, world: World) -> dict[str, Any]:
    """False alarms on neutral replies that the demo model wrote, to prompts that had no part in the calibration."""
    questions = [q for topic in world.topics for q in topic.held_out]
    prompts = [questions[i % len(questions)] for i in range(N_NULLS + N_HELD_OUT)]
    traces = monitor.generate_batch(prompts, batch_size=64, seed=10_000, progress=True, **SAMPLING.to_dict())
    first = set(questions[::2])
    halves = [[i for i, p in enumerate(prompts) if (p in first) == side] for side in (True, False)]
    alarmed = np.zeros((len(traces), len(monitor.vectors.traits)), bool)
    stated = []
    for own, other in (halves, halves[::-1]):
        detectors = calibrate_detectors([traces[i] for i in own])
        for i in other:
            alarmed[i] = [detectors.find(traces[i], t).alarm is not None for t in detectors.traits]
            stated.append(bool(detectors.card and not detectors.card.outside(traces[i], 0)))
    clusters = np.array([questions.index(p) for p in prompts])
    held_out = bounded(lambda w: float(w @ alarmed.any(1) / w.sum()), clusters)
    return {
        "any_trait": None if held_out is None else held_out.to_dict(),
        "no_rate_is_known": share(len(stated) - sum(stated), len(stated)),
        "n_prompts": len(questions),
        "by_trait": {
            trait: {
                "false_alarms": share(int(alarmed[:, k].sum()), len(traces)),
                "naive_rule": share(sum(map(first_tokens_rule, reply_scores(traces, trait))), len(traces)),
            }
            for k, trait in enumerate(monitor.vectors.traits)
        },
    }


def intervals() -> list[dict[str, Any]]:
    """How often the interval of an onset covers the position of a planted rise, by its form and size, AR(0.65)."""
    found = []
    for form in ("sudden step", "rise"):
        for size in (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0):
            covered = timed = answers = near = total = 0
            widths: list[int] = []
            for seed in range(SEEDS):
                rng = np.random.default_rng([seed, int(10 * size)])
                draw = _drawing(rng, 0.65, 0.0)
                detector = calibrate_onset([draw() for _ in range(N_NULLS)], seed=seed)
                for _ in range(N_HELD_OUT):
                    z = draw()
                    at = int(rng.integers(1, len(z)))
                    step = z + size * (np.arange(len(z)) >= at)
                    onset = detector.find(step if form == "sudden step" else with_rise(z, at, size, rng))
                    total += 1
                    if onset.onset is not None and onset.low is not None and onset.high is not None:
                        answers += 1
                        covered += onset.low <= at <= onset.high
                        near += abs(onset.onset - at) <= NEAR
                        timed += onset.timed
                        widths.append(onset.high - onset.low)
            found.append({
                "form": form,
                "size": size,
                "answered": share(answers, total),
                "covered": share(covered, answers),
                "near": share(near, answers),
                "timed": share(timed, answers),
                "width": float(np.median(widths)),
            })  # fmt: skip
    return found


def cohorts(traits: Sequence[str]) -> dict[str, Any]:
    """Onsets of the published runs: the same model against itself, and the contaminated model against the baseline."""
    rows = {
        config: load_results(ARTIFACTS / RESULTS_NAME, config) for config in ("baseline", "contaminated", "neutral")
    }
    traces = {config: [Trace.from_row(row) for row in found] for config, found in rows.items()}
    n = len(rows["baseline"])
    # Parts of the null, dealt at random, so that no part has other kinds of prompts than the others.
    dealt = [traces["neutral"][i] for i in np.random.default_rng(0).permutation(len(traces["neutral"]))]
    again = [dealt[start : start + n] for start in range(0, len(dealt) - n + 1, n)]
    same, against = [], {}
    for trait in traits:
        # The detector is calibrated on replies that are not compared: two of the parts are left out each time.
        for one, other in combinations(range(len(again)), 2):
            rest = [t for k, part in enumerate(again) if k not in (one, other) for t in part] + traces["baseline"]
            detectors = calibrate_detectors(rest, [trait])
            first, second = (_lifetimes(detectors, again[k], trait) for k in (one, other))
            same.append(compare_cohorts(first, second, seed=one).p)
        detectors = calibrate_detectors(traces["neutral"], [trait])
        sides = [_lifetimes(detectors, traces[c], trait) for c in ("baseline", "contaminated")]
        against[trait] = {
            "test": compare_cohorts(sides[0], sides[1]).to_dict(),
            "onsets": [share(sum(one.onset for one in side), n) for side in sides],
            "median": [survival(side).median for side in sides],
        }
    p = np.array(same)
    return {
        "same_model": {"n_tests": len(p), "below_0.05": round(float((p <= 0.05).mean()), 4)},
        "contaminated_against_baseline": against,
    }


def _lifetimes(detectors: Detectors, traces: Sequence[Trace], trait: str) -> list[Lifetime]:
    return [lifetime(detectors.find(trace, trait), len(trace.reply_positions)) for trace in traces]


@dataclass(frozen=True)
class Planted:
    """A text in which a trait begins at a known token of the reply."""

    trace: Trace
    trait: str
    positions: list[int]
    first: int


def planted_texts(monitor: PersonaMonitor, world: World, variant: str) -> tuple[list[Trace], list[Planted]]:
    """Neutral texts of the grammar and texts with an onset, read without a system prompt."""
    process = VARIANTS["cued" if variant == "from the start" else variant]
    if variant == "from the start":
        process = replace(process, onset=(1.0,))
    elif variant != "drift":  # after one or two neutral sentences, so that there is something to find
        process = replace(process, onset=(0.0, 0.5, 0.5))
    rng = np.random.default_rng(TEXTS_SEED)

    def text(trait: str | None) -> list[dict[str, str]]:
        topic = world.topics[int(rng.integers(len(world.topics)))]
        turn = ask(world, topic, trait, rng, held_out=True, process=process)
        return [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.text}]

    nulls = monitor.read_batch([text(None) for _ in range(N_NULLS)])
    found = []
    for trait in monitor.vectors.traits:
        for trace in monitor.read_batch([text(trait) for _ in range(N_TEXTS)]):
            positions, sentences = reply_truth(trace, world)
            truth = [i for i, s in enumerate(sentences) if s and s.kind in ("cue", "trait") and s.trait == trait]
            if truth and (truth[0] < EARLIEST) == (variant == "from the start"):
                found.append(Planted(trace, trait, positions, truth[0]))
    return nulls, found


def texts(monitor: PersonaMonitor, world: World, variant: str) -> dict[str, Any]:
    """Onsets in texts of the grammar, at one rate over all traits.

    The estimator was chosen on texts of seed 7, and is measured on others.
    """
    nulls, planted = planted_texts(monitor, world, variant)
    kind = shared_kind(nulls)
    detectors, _ = calibrate_onsets({t: reply_scores(nulls, t, kind) for t in monitor.vectors.traits}, kind=kind)
    distances: list[int] = []
    missed = early = covered = timed = others = 0
    for one in planted:
        answer = detectors[one.trait].find(one.trace.reply_scores(one.trait, kind).astype(float))
        others += any(
            detectors[t].find(one.trace.reply_scores(t, kind).astype(float)).alarm is not None
            for t in detectors
            if t != one.trait
        )
        if answer.answer == "none":
            missed += 1
        elif answer.onset is None:
            early += 1
        else:
            distances.append(answer.onset - one.first)
            timed += answer.timed
            covered += answer.low is not None and answer.high is not None and answer.low <= one.first <= answer.high
    n = len(planted)
    return {
        "n": n,
        "kind": kind,
        "near": share(sum(abs(d) <= NEAR for d in distances), n),
        "missed": share(missed, n),
        "before_the_reply": share(early, n),
        "another_trait_alarms": share(others, n),
        "covered": share(covered, len(distances)) if distances else None,
        "timed": share(timed, len(distances)) if distances else None,
        "distance": [float(q) for q in np.quantile(distances, [0.05, 0.5, 0.95])] if distances else None,
    }


def statistics(monitor: PersonaMonitor, world: World, variant: str) -> list[dict[str, Any]]:
    """Other statistics on the same texts, at the same rate over all traits."""
    nulls, planted = planted_texts(monitor, world, variant)
    kind = shared_kind(nulls)
    series = {t: reply_scores(nulls, t, kind) for t in monitor.vectors.traits}
    detectors, _ = calibrate_onsets(series, kind=kind)
    longest = max(map(len, next(iter(series.values()))))
    neutral = {
        t: np.array([np.pad(detectors[t].adjusted(z), (0, longest - len(z)), constant_values=np.nan) for z in own])
        for t, own in series.items()
    }
    texts_ = [
        (one.trait, detectors[one.trait].adjusted(one.trace.reply_scores(one.trait, kind).astype(float)), one.first)
        for one in planted
    ]
    return compare(neutral, texts_, rate=0.05)


def n_alarms(detector: OnsetDetector, series: Sequence[np.ndarray]) -> int:
    return sum(detector.find(z).answer != "none" for z in series)


if __name__ == "__main__":
    raise SystemExit(main())
