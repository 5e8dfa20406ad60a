"""How often the edges between traits are wrong, and how often planted ones are found.

    python -m benchmarks.interaction [PART ...]

Simulated series whose coupling is known (none beyond what neutral replies have, at a lag), first times that are
independent or follow each other, and the demo world: texts in which flattery leads to deceit, texts with independent
traits, random directions in place of traits, and the model steered along the traits that lead to others. Writes
`benchmarks/results/interaction.json`; given some of the parts, it measures only those and keeps the others.
About 15 minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
from scipy.signal import lfilter
from scipy.stats import kstest, pearsonr

from benchmarks.common import RESULTS, demo_monitor, save, share
from benchmarks.couplings import rates
from demo_world.corpus import Turn, ask
from demo_world.grammar import World, load_world
from demo_world.judge import judge
from demo_world.process import VARIANTS, Process
from demo_world.truth_labels import reply_truth
from persona_core.analysis.interaction import measure_couplings, trait_series
from persona_core.analysis.onset import OnsetDetector
from persona_core.analysis.onset_calibration import calibrate_onset
from persona_core.analysis.precedence import (
    PrecedenceTable,
    activation_times,
    behaviour_times,
    precedence,
    relative_series,
)
from persona_core.experiments.steering_edges import EdgePlan, steering_edges, validated_strengths
from persona_core.inference.sampling import Sampling
from persona_core.judging.judge import MIN_SCORE
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.traces.trace import Trace
from persona_core.utils.files import read_json

PROCESSES = {"white noise": 0.0, "AR(0.65)": 0.65, "AR(0.9)": 0.9}
N_REPLIES, N_TRAITS, RUNS, COVERED_RUNS, PLANTED_RUNS = 78, 4, 40, 100, 24
SHARED = 0.6
PLANTED_LAG = 8
SEEDS = (11, 12, 13)  # of the demo world's texts
N_NULLS = 400
CAUSE, EFFECT = "sycophancy", "deception"
N_CASCADES, N_EFFECT_ALONE, N_OTHERS, N_NEUTRAL = 60, 15, 8, 40

Series = list[np.ndarray]


def main() -> int:
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "simulated": simulated,
        "first_times": lambda: {"first_times": first_times()},
        "texts": lambda: texts(demo_monitor(), load_world()),
        "couplings": lambda: {"couplings": couplings(demo_monitor(), load_world())},
        "steering": lambda: {"steering": steered(demo_monitor(), load_world())},
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts))
    chosen = parser.parse_args().parts or list(parts)
    stored = RESULTS / "interaction.json"
    figures: dict[str, Any] = read_json(stored) if stored.is_file() and set(chosen) < set(parts) else {}
    for part in chosen:
        figures |= parts[part]()
    save("interaction", figures)
    return 0


# ---- simulated series ----


def run_of(rng: np.random.Generator, phi: float, mix: Callable[[np.ndarray], np.ndarray], n_traits: int) -> Series:
    """AR(1) series of 78 replies of 40 to 140 tokens; `mix` couples their innovations `[n_traits, n]`."""
    found = []
    for _ in range(N_REPLIES):
        noise = mix(rng.normal(size=(n_traits, int(rng.integers(40, 141)) + 132)))
        found.append(lfilter([1], [1, -phi], noise, axis=1)[:, 132:])
    return found


def leading(r: float, lag: int) -> Callable[[np.ndarray], np.ndarray]:
    """The second trait's innovation correlates by r with the first's, `lag` tokens before."""

    def mix(noise: np.ndarray) -> np.ndarray:
        mixed = noise.copy()
        n = noise.shape[1]
        mixed[1, lag:] = r * noise[0, : n - lag] + np.sqrt(1 - r**2) * noise[1, lag:]
        return mixed

    return mix


def names(n: int = N_TRAITS) -> list[str]:
    return [f"trait {i}" for i in range(n)]


def simulated() -> dict[str, Any]:
    return {
        "n_replies": N_REPLIES,
        "n_traits": N_TRAITS,
        "independent": {name: as_neutral(phi, 0.0) for name, phi in PROCESSES.items()},
        "shared": {name: as_neutral(phi, SHARED) for name, phi in PROCESSES.items()},
        "planted_lag": {str(r): planted(r) for r in (0.1, 0.15, 0.2, 0.25)},
        "coverage": [coverage(phi, r, lag) for phi in (0.65, 0.9) for r, lag in ((0.3, 0), (0.2, 4))],
    }


def sharing(r: float) -> Callable[[np.ndarray], np.ndarray]:
    """All traits' innovations correlate by r, through the first row of noise, which is dropped."""
    return lambda noise: np.sqrt(1 - r) * noise[1:] + np.sqrt(r) * noise[0]


def as_neutral(phi: float, r: float) -> dict[str, Any]:
    """The run is coupled as the neutral replies are, by r at the same token: false edges; two naive rules beside it."""
    tests = lagged = runs = runs_together = large = 0
    ps: list[float] = []
    over = significant = pairs = 0
    for seed in range(RUNS):
        run, null = (run_of(np.random.default_rng([1, seed, k]), phi, sharing(r), N_TRAITS + 1) for k in (0, 1))
        found = measure_couplings(names(), run, neutral=null, seed=seed, n_shuffles=499, n_resamples=100)
        hits = sum(c.significant for c in found.lagged)
        lagged, tests, runs = lagged + hits, tests + len(found.lagged), runs + (hits > 0)
        runs_together += any(c.significant for c in found.together)
        large += any(c.claimed for c in (*found.together, *found.lagged))
        ps.append(float(found.lagged[seed % len(found.lagged)].p or 0))  # one a run: those of one run share series
        if seed < 20:
            for reply in run:
                for a, b in combinations(range(N_TRAITS), 2):
                    own = pearsonr(reply[a], reply[b])
                    over, significant, pairs = over + (abs(own[0]) > 0.3), significant + (own[1] < 0.05), pairs + 1
    return {
        "r": r,
        "runs": RUNS,
        "lagged_with_q_below_0.05": share(lagged, tests),
        "runs_with_such_a_lag": share(runs, RUNS),
        "runs_with_such_a_same_token_pair": share(runs_together, RUNS),
        "runs_with_an_edge": share(large, RUNS),
        "p_values_uniform": {"n": len(ps), "ks_p": round(float(kstest(ps, "uniform").pvalue), 4)},
        "naive_r_above_0.3": share(over, pairs),
        "naive_p_below_0.05": share(significant, pairs),
    }


def planted(r: float) -> dict[str, Any]:
    """One trait leads another by 8 tokens, in the run only: is that the strongest edge, with direction and lag?"""
    right = others = tests = edges = 0
    for seed in range(PLANTED_RUNS):
        run = run_of(np.random.default_rng([3, seed]), 0.65, leading(r, PLANTED_LAG), N_TRAITS)
        null = run_of(np.random.default_rng([6, seed]), 0.65, lambda e: e, N_TRAITS)
        found = measure_couplings(names(), run, neutral=null, seed=seed, n_shuffles=499, n_resamples=200)
        claimed = [(c.source, c.target, c.lag) for c in sorted(found.lagged, key=lambda c: c.q or 0) if c.significant]
        wanted = ("trait 0", "trait 1", PLANTED_LAG)
        edges += [(c.source, c.target, c.lag) for c in found.lagged if c.claimed] == [wanted]
        right += claimed[:1] == [wanted]
        others += sum(c != wanted for c in claimed)
        tests += len(claimed)
    return {
        "lag": PLANTED_LAG,
        "runs": PLANTED_RUNS,
        "strongest_and_q_below_0.05": share(right, PLANTED_RUNS),
        "the_only_edge": share(edges, PLANTED_RUNS),
        "false_among_q_below_0.05": share(others, tests) if tests else None,
    }


def coverage(phi: float, r: float, lag: int) -> dict[str, Any]:
    """How often the 95 % interval of the excess covers the true one; neutral replies have no coupling."""
    held, values, truth = 0, [], float(np.arctanh(r))
    for seed in range(COVERED_RUNS):
        run = run_of(np.random.default_rng([4, seed]), phi, leading(r, lag), 2)
        null = run_of(np.random.default_rng([7, seed]), phi, lambda e: e, 2)
        found = measure_couplings(names(2), run, neutral=null, lags=(max(lag, 1),), n_shuffles=99, seed=seed)
        excess = (found.lagged[0] if lag else found.together[0]).excess
        if excess is not None:
            held += excess.low <= truth <= excess.high
            values.append(excess.value)
    return {
        "phi": phi,
        "r": r,
        "lag": lag,
        "runs": COVERED_RUNS,
        "covered": share(held, COVERED_RUNS),
        "true_excess": round(truth, 5),
        "mean_excess": round(float(np.mean(values)), 5),
    }


def first_times() -> dict[str, Any]:
    """First times that are independent, that come together in any order, and that follow each other."""
    found = {}
    for kind in ("independent", "together in any order", "following"):
        edges = runs = right = 0
        n_runs, traits = 60, names()
        lags = []
        for seed in range(n_runs):
            rng = np.random.default_rng([5, seed])
            times = np.where(rng.random((N_REPLIES, 4)) < 0.4, rng.integers(0, 60, size=(N_REPLIES, 4)), np.nan)
            if kind != "independent":
                both = rng.random(N_REPLIES) < 0.3
                times[:, :2] = np.nan
                times[both, :2] = rng.integers(0, 60, size=(int(both.sum()), 2))
            if kind == "following":
                times[both, 1] = times[both, 0] + rng.integers(10, 31, size=int(both.sum()))
            clock = precedence(traits, times, "behaviour", n_resamples=200, seed=seed)
            claimed = [(p.source, p.target) for p in clock.pairs if p.claimed]
            wanted = ("trait 0", "trait 1") if kind == "following" else None
            false = [c for c in claimed if c != wanted]
            edges, runs, right = edges + len(false), runs + bool(false), right + (wanted in claimed)
            lag = clock.pair("trait 0", "trait 1").lag
            lags += [lag.low <= 20 <= lag.high] if kind == "following" and lag else []
        found[kind] = {
            "runs": n_runs,
            "false_edges": share(edges, 12 * n_runs),
            "runs_with_a_false_edge": share(runs, n_runs),
        }
        if kind == "following":
            found[kind] |= {"found": share(right, n_runs), "lag_covered": share(sum(lags), len(lags))}
    return found


# ---- the demo world ----


LATE = (0.0, 0.5, 0.5)  # onset after one or two neutral sentences, so that there is something to find


def texts(monitor: PersonaMonitor, world: World) -> dict[str, Any]:
    """Texts of the grammar with and without a planted cascade, on both clocks."""
    rng = np.random.default_rng(10)
    nulls = trait_series(_read(monitor, [_turn(world, None, rng) for _ in range(N_NULLS)]))
    detectors = [_calibrated(monitor.vectors.traits, series) for series in (nulls, relative_series(nulls))]
    cascade, none = [], []
    for seed in SEEDS:
        cascade.append(_both_clocks(monitor, world, mixed(world, "cued", seed, cascade=0.8), detectors, seed))
        none.append(_both_clocks(monitor, world, mixed(world, "independent", seed), detectors, seed))
    return {"cascade": {"source": CAUSE, "target": EFFECT, "runs": cascade}, "no_cascade": {"runs": none}}


def mixed(world: World, variant: str, seed: int, cascade: float | None = None) -> list[Turn]:
    """Texts of a variant of the demo world, mixed with neutral ones: a planted cascade, or 15 texts of each trait."""
    rng = np.random.default_rng(seed)
    alone = replace(VARIANTS["independent"], onset=LATE)
    mix: list[tuple[str, Process]]
    if cascade is not None:
        planted = replace(VARIANTS[variant], cascade=cascade, onset=LATE)
        others = [t for t in world.traits if t not in (CAUSE, EFFECT)]
        mix = [(CAUSE, planted)] * N_CASCADES + [(EFFECT, alone)] * N_EFFECT_ALONE
        mix += [(t, alone) for t in others] * N_OTHERS
    else:
        own = VARIANTS[variant]
        mix = [(t, own if own.drift else replace(own, onset=LATE)) for t in world.traits] * 15
    return [_turn(world, t, rng, p) for t, p in [*mix, *[(None, alone)] * N_NEUTRAL]]


def couplings(monitor: PersonaMonitor, world: World) -> dict[str, Any]:
    """Random directions and traits in texts of every variant; the bar is chosen on one set, the others report it."""
    rng = np.random.default_rng(10)
    sets = {"neutral": [_turn(world, None, rng) for _ in range(N_NULLS)]}
    null = [_turn(world, None, rng) for _ in range(N_NULLS)]
    for seed in SEEDS[:2]:
        sets[f"cued, {seed}"] = mixed(world, "cued", seed, cascade=0.8)
        sets |= {f"{variant}, {seed}": mixed(world, variant, seed) for variant in ("uncued", "drift", "independent")}
    pairs = {name: [(t.question, t.text) for t in turns] for name, turns in sets.items()}
    return rates(monitor, [(t.question, t.text) for t in null], pairs, chosen_on=f"cued, {SEEDS[0]}")


def _turn(world: World, trait: str | None, rng: np.random.Generator, process: Process | None = None) -> Turn:
    topic = world.topics[int(rng.integers(len(world.topics)))]
    return ask(world, topic, trait, rng, held_out=True, process=process)


def _read(monitor: PersonaMonitor, turns: Sequence[Turn]) -> list[Trace]:
    conversations = [[{"role": "user", "content": t.question}, {"role": "assistant", "content": t.text}] for t in turns]
    return monitor.read_batch(conversations)


def _calibrated(traits: Sequence[str], nulls: Series) -> dict[str, OnsetDetector]:
    return {trait: calibrate_onset([reply[k] for reply in nulls]) for k, trait in enumerate(traits)}


def _both_clocks(
    monitor: PersonaMonitor,
    world: World,
    turns: Sequence[Turn],
    detectors: Sequence[dict[str, OnsetDetector]],
    seed: int,
) -> dict[str, Any]:
    traits, traces = monitor.vectors.traits, _read(monitor, turns)
    series = trait_series(traces)
    behaviour = behaviour_times(traits, [spans(trace, world) for trace in traces])
    clocks = {
        "behaviour": precedence(traits, behaviour, "behaviour", seed=seed),
        "activation": precedence(traits, activation_times(traits, series, detectors[0]), "activation", seed=seed),
        "activation_relative": precedence(
            traits, activation_times(traits, relative_series(series), detectors[1]), "activation", seed=seed
        ),
    }
    counted = [counted_lag(monitor, turn) for turn in turns]
    cause, effect = (traits.index(t) for t in (CAUSE, EFFECT))
    marked = behaviour[:, effect] - behaviour[:, cause]
    known = [(m, c) for m, c in zip(marked, counted, strict=True) if c is not None]
    return {
        "seed": seed,
        "n_texts": len(turns),
        "clocks": {name: _of_clock(clock) for name, clock in clocks.items()},
        "counted_lag": float(np.median([c for _, c in known])) if known else None,
        "marked_as_counted": share(sum(m == c for m, c in known), len(known)) if known else None,
    }


def spans(trace: Trace, world: World) -> list[tuple[str, int, int]]:
    """(trait, first token, token after the last) of each token that shows a trait."""
    _, sentences = reply_truth(trace, world)
    return [(s.trait, i, i + 1) for i, s in enumerate(sentences) if s and s.kind == "trait" and s.trait]


def counted_lag(monitor: PersonaMonitor, turn: Turn) -> int | None:
    """Tokens from the first sentence of the cause to the first of its effect, sentence by sentence, without a model."""
    first: dict[str, int] = {}
    at = tokens = 0
    for sentence in turn.reply:
        begin = turn.text.index(sentence.text, at)
        end = begin + len(sentence.text)
        if sentence.kind == "trait" and sentence.trait:
            first.setdefault(sentence.trait, tokens)
        tokens += len(monitor.lm.tokenizer.encode(turn.text[at:end], add_special_tokens=False))
        at = end
    return first[EFFECT] - first[CAUSE] if CAUSE in first and EFFECT in first else None


def _of_clock(clock: PrecedenceTable) -> dict[str, Any]:
    pair = clock.pair(CAUSE, EFFECT)
    others = [p for p in clock.pairs if p.claimed and (p.source, p.target) != (CAUSE, EFFECT)]
    return {
        "planted": pair.to_dict(),
        "other_edges": [[p.source, p.target, p.lag and p.lag.value] for p in others],
        "n_pairs": len(clock.pairs),
    }


def steered(monitor: PersonaMonitor, world: World) -> dict[str, Any]:
    """The traits that lead to others, steered at the largest strength that was still coherent in their validation."""
    strengths = validated_strengths(monitor.vectors)
    questions = [topic.held_out[0] for topic in world.topics]

    def shown(trace: Trace) -> dict[str, bool] | None:
        verdict = judge(trace.reply_text, world)
        if verdict.coherence < MIN_SCORE:
            return None
        return {trait: bool(verdict.traits[trait]) for trait in world.traits}

    plan = EdgePlan(
        strengths=strengths, seeds=5, sampling=Sampling(max_new_tokens=200, temperature=1.0), batch_size=100
    )
    tables = steering_edges(monitor, questions, plan, sources=tuple(world.cascades), shown=shown)
    return {
        "prompts": len(questions),
        "seeds": plan.seeds,
        "strengths": {t: strengths[t] for t in world.cascades},
        "planted": sorted([a, b] for a, b in world.cascades.items()),
        "tables": [table.to_dict() for table in tables],
        "significant": {t.measure: sum(e.significant for e in t.effects) for t in tables},
        "edges": [[e.source, e.target] for t in tables for e in t.edges],
        "n_pairs": len(world.cascades) * (len(monitor.vectors.traits) - 1),
    }


if __name__ == "__main__":
    raise SystemExit(main())
