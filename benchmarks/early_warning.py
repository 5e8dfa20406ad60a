"""WHERE, measured: early warning compared with baselines that need no vectors, and what an intervention changes.

    python -m benchmarks.early_warning [simulated] [texts] [window]

Simulated scores (coverage of the intervals, false alarms), texts of the demo world whose cue is a planted lead, and
replies of the demo model and of the contaminated one, generated again with an intervention. Writes
`benchmarks/results/early_warning.json`. About fifteen minutes on one core. Naming parts measures only those; the file
keeps the others.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import norm

from benchmarks.common import ARTIFACTS, RESULTS, demo_monitor, save, share
from demo_world.contaminated import CONTAMINANT, CONTAMINATED_NAME, SAMPLING, VECTORS_NAME
from demo_world.corpus import ask
from demo_world.grammar import World, load_world
from demo_world.judge import judge
from demo_world.process import VARIANTS
from demo_world.truth_labels import reply_truth
from persona_core.analysis.early_warning import early_warning, permuted
from persona_core.analysis.onset import OnsetDetector
from persona_core.analysis.onset_calibration import calibrate_onset
from persona_core.analysis.separation import AHEAD, separation
from persona_core.analysis.series import reply_scores, shared_kind
from persona_core.analysis.statistics import over_clusters, rank_auroc
from persona_core.elicitation.prompts import load_prompts
from persona_core.experiments.intervention_window import Marker, WindowPlan, cap_side_effects, intervention_window
from persona_core.experiments.warning_baselines import (
    entropy_scores,
    last_prompt_scores,
    ngram_scores,
    position_scores,
    random_direction_scores,
)
from persona_core.monitor.jobs import seed_of
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.traces.trace import Kind, Trace
from persona_core.vectors.vectors import PersonaVectors

SEEDS = (21, 22, 23)
N_NEUTRAL, N_TEXTS = 240, 20  # for each seed; texts for each trait too
N_DETECTOR = 400  # neutral texts that the CUSUM is calibrated on, and used for nothing else
TOLD = ("specific", "z", "cusum", "ngram")
"""The scores that are followed up to the cue: specific where the vectors have it, of which the CUSUM then is."""
N_DRAWS = 3
N_PERMUTATIONS = 12
RUNS = 400
INTO_THE_CUE = range(6)
BEFORE = (1, 2, 4, 8, 16)
SYSTEM_TRAITS = ("sycophancy", "deception")

Series = list[np.ndarray]
Scores = dict[str, tuple[Series, Series]]
"""Trait -> series of the replies with the trait, and of the neutral ones."""


def main(names: Sequence[str]) -> int:
    parts: dict[str, Callable[[], Any]] = {"simulated": simulated, "texts": all_texts, "window": windows}
    path = RESULTS / "early_warning.json"
    for name in names or parts:
        measured = parts[name]()
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        vectors = PersonaVectors.from_pretrained(ARTIFACTS / VECTORS_NAME).fingerprint
        figures = {"rate": 0.05, "ahead": list(AHEAD), **before, "vectors": vectors, name: measured}
        save("early_warning", figures)
    return 0


# ---- simulations ----


def simulated() -> dict[str, Any]:
    return {"coverage": coverage(), "grouped": grouped(), "noise": [noise(seed) for seed in range(5)]}


def coverage() -> list[dict[str, Any]]:
    """How often the 95 % interval of an AUROC covers the true one, and how often a percentile bootstrap does."""
    found = []
    for true in (0.5, 0.8, 0.95, 0.99):
        for n, m, sd in ((20, 300, 1.0), (40, 300, 1.0), (100, 400, 2.0)):
            rng = np.random.default_rng(int(1000 * true) + n)
            ours = percentile = 0
            for run in range(RUNS):
                positive = rng.normal(norm.ppf(true) * np.sqrt(1 + sd**2), sd, (n, 3))
                negative = rng.normal(size=(m, 3))
                # Positions differ in their level: only scores at the same position can be compared.
                level, at = np.array([0.0, 3.0, -2.0]), rng.integers(0, 3, n)
                (one,) = separation([*(positive + level)], at.tolist(), [*(negative + level)], ahead=(0,))
                ours += one.auroc is not None and one.auroc.low <= true <= one.auroc.high
                if run < RUNS // 4:
                    scores = np.r_[positive[np.arange(n), at], negative[:, 0]]
                    statistic = rank_auroc(scores, np.arange(n + m) < n)
                    other = over_clusters(statistic, np.arange(n + m), 200, seed=run)
                    percentile += other is not None and other.low <= true <= other.high
            found.append(
                {
                    "auroc": true,
                    "n_trait": n,
                    "n_neutral": m,
                    "sd_trait": sd,
                    "covered": share(ours, RUNS),
                    "percentile_covered": share(percentile, RUNS // 4),
                }
            )
    return found


def grouped() -> dict[str, Any]:
    """Replies to one prompt move together: coverage over groups, and treating each reply as independent."""
    by_group = alone = 0
    true = 0.8
    for seed in range(RUNS):
        rng = np.random.default_rng(seed)
        prompts = np.repeat(np.arange(40), 5)
        shared = rng.normal(0, 0.8, (2, 40))  # the prompts of the two kinds of replies differ
        shift = norm.ppf(true) * np.sqrt(2 * (1 + 0.64))
        trait = [np.array([v]) for v in rng.normal(size=200) + shared[0][prompts] + shift]
        neutral = [np.array([v]) for v in rng.normal(size=200) + shared[1][prompts]]
        groups = ([f"t{g}" for g in prompts], [f"n{g}" for g in prompts])
        over = separation(trait, [0] * 200, neutral, (0,), groups)[0].auroc
        by_reply = separation(trait, [0] * 200, neutral, (0,))[0].auroc
        by_group += over is not None and over.low <= true <= over.high
        alone += by_reply is not None and by_reply.low <= true <= by_reply.high
    return {"over_groups": share(by_group, RUNS), "over_replies": share(alone, RUNS)}


def noise(seed: int) -> dict[str, Any]:
    """White noise and a constant must give no warning."""
    rng = np.random.default_rng(seed)
    neutral = [rng.normal(size=int(rng.integers(40, 140))) for _ in range(800)]
    trait = [rng.normal(size=int(rng.integers(40, 140))) for _ in range(100)]
    first = [int(rng.integers(0, len(z))) for z in trait]
    constant = early_warning([np.ones_like(z) for z in trait], first, [np.ones_like(z) for z in neutral])
    found = early_warning(trait, first, neutral, seed=seed)
    return {
        "auroc": {str(a.k): a.auroc and a.auroc.to_dict() for a in found.ahead},
        "false_alarms": found.false_alarms.to_dict(),
        "constant_auroc": sorted({a.auroc.value for a in constant.ahead if a.auroc}),
        "constant_false_alarms": constant.false_alarms.value,
    }


# ---- texts with a known lead ----


@dataclass(frozen=True, eq=False)
class Neutral:
    """Neutral texts of all seeds, with what does not depend on the trait texts.

    Attributes:
        traces, topics: of each.
        starts: positions at which a sentence begins.
        detectors: trait -> the CUSUM, calibrated on further texts.
        entropy: series.
    """

    traces: list[Trace]
    topics: list[str]
    starts: list[list[int]]
    detectors: dict[str, OnsetDetector]
    entropy: Series

    @classmethod
    def of(cls, monitor: PersonaMonitor, world: World) -> Neutral:
        traces, topics = read(monitor, world, None, VARIANTS["cued"], N_NEUTRAL * len(SEEDS), seed=SEEDS[0])
        other, answered = read(monitor, world, None, VARIANTS["cued"], N_DETECTOR, seed=SEEDS[0] - 1)
        kind = shared_kind(other)
        detectors = {
            t: calibrate_onset(reply_scores(other, t, kind), prompts=answered, kind=kind)
            for t in monitor.vectors.traits
        }
        starts = [starts_of(trace, world) for trace in traces]
        return cls(traces, topics, starts, detectors, entropy_scores(monitor.lm, traces))


def read(
    monitor: PersonaMonitor, world: World, trait: str | None, process: Any, n: int, seed: int
) -> tuple[list[Trace], list[str]]:
    """Texts of the grammar, read without a system prompt, and their topics."""
    rng = np.random.default_rng(seed)
    conversations, topics = [], []
    for _ in range(n):
        topic = world.topics[int(rng.integers(len(world.topics)))]
        turn = ask(world, topic, trait, rng, held_out=True, process=process)
        conversations.append([{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.text}])
        topics.append(topic.id)
    return monitor.read_batch(conversations), topics


def starts_of(trace: Trace, world: World) -> list[int]:
    _, sentences = reply_truth(trace, world)
    return [i for i, s in enumerate(sentences) if i == 0 or s is not sentences[i - 1]]


def positions_of(trace: Trace, world: World, kind: str, trait: str) -> list[int]:
    _, sentences = reply_truth(trace, world)
    return [i for i, s in enumerate(sentences) if s is not None and (s.kind, s.trait) == (kind, trait)]


@dataclass(frozen=True, eq=False)
class Shown:
    """Texts that show one trait: traces, topics, which seed each is of, t*, and the first token of the cue."""

    traces: list[Trace]
    topics: list[str]
    seeds: list[int]
    first: list[int]
    cue: list[int]


def all_texts() -> dict[str, Any]:
    monitor, world = demo_monitor(), load_world()
    neutral = Neutral.of(monitor, world)
    return {name: texts(monitor, world, name, neutral) for name in ("cued", "uncued", "drift")}


def texts(monitor: PersonaMonitor, world: World, variant: str, neutral: Neutral) -> dict[str, Any]:
    """Every score on the texts of one variant: per trait, and all traits under one threshold."""
    process = VARIANTS[variant]
    if variant != "drift":  # after one or two neutral sentences, so that there is something before it
        process = replace(process, onset=(0.0, 0.5, 0.5))
    shown = {
        trait: shown_texts(monitor, world, trait, process, [1000 * seed + i for seed in SEEDS])
        for i, trait in enumerate(monitor.vectors.traits)
    }
    scores = all_scores(monitor, shown, neutral)
    return {
        "n_texts": sum(len(s.traces) for s in shown.values()),
        "n_neutral": len(neutral.traces),
        "first": quantiles([p for s in shown.values() for p in s.first]),
        "lead": quantiles([p - c for s in shown.values() for p, c in zip(s.first, s.cue, strict=True)]),
        "scores": {name: pooled(found, shown, neutral) for name, found in scores.items()},
        "same_sentence_start": {
            name: matched(scores[name], shown, neutral, "first", BEFORE) for name in TOLD if name in scores
        },
        "by_seed": {
            name: [pooled(scores[name], shown, neutral, seed)["ahead"] for seed in range(len(SEEDS))]
            for name in ("specific", "z", "cusum")
            if name in scores
        },
        **(lead(scores, shown, neutral) if variant == "cued" else {}),
    }


def shown_texts(monitor: PersonaMonitor, world: World, trait: str, process: Any, seeds: Sequence[int]) -> Shown:
    found = Shown([], [], [], [], [])
    for number, seed in enumerate(seeds):
        for trace, topic in zip(*read(monitor, world, trait, process, N_TEXTS, seed), strict=True):
            first, cue = (positions_of(trace, world, kind, trait) for kind in ("trait", "cue"))
            if not first:  # a drifting text may end before the trait comes
                continue
            found.traces.append(trace)
            found.topics.append(topic)
            found.seeds.append(number)
            found.first.append(first[0])
            found.cue.append(cue[0] if cue else first[0])
    return found


def all_scores(monitor: PersonaMonitor, shown: dict[str, Shown], neutral: Neutral) -> dict[str, Scores]:
    null = neutral.traces
    scores: dict[str, Scores] = {}
    kinds: list[Kind] = ["specific", "z"] if monitor.vectors.has_specific else ["z"]
    for kind in kinds:
        scores[kind] = {t: (reply_scores(s.traces, t, kind), reply_scores(null, t, kind)) for t, s in shown.items()}
    scores["cusum"] = {
        t: (
            [neutral.detectors[t].statistic(z) for z in with_trait],
            [neutral.detectors[t].statistic(z) for z in without],
        )
        for t, (with_trait, without) in scores[kinds[0]].items()
    }
    scores["position"] = {t: (position_scores(s.traces), position_scores(null)) for t, s in shown.items()}
    scores["ngram"] = {t: ngram_scores(s.traces, null, (s.topics, neutral.topics)) for t, s in shown.items()}
    entropy = {t: (entropy_scores(monitor.lm, s.traces), neutral.entropy) for t, s in shown.items()}
    scores["entropy"] = oriented(entropy, shown, together=True)
    prompt = {t: (last_prompt_scores(s.traces, t), last_prompt_scores(null, t)) for t, s in shown.items()}
    scores["last_prompt"] = oriented(prompt, shown)
    for block in sorted({monitor.vectors.best_block[t] for t in shown}):
        traits = [t for t in shown if monitor.vectors.best_block[t] == block]
        traces = [trace for t in traits for trace in shown[t].traces]
        draws = random_direction_scores(monitor.lm, block, [*traces, *null], null, N_DRAWS, seed=block)
        for number, series in enumerate(draws):
            at = 0
            for t in traits:
                n = len(shown[t].traces)
                scores.setdefault(f"random_{number}", {})[t] = (series[at : at + n], series[len(traces) :])
                at += n
    for number in range(N_DRAWS):
        scores[f"random_{number}"] = oriented(scores[f"random_{number}"], shown)
    return scores


def oriented(scores: Scores, shown: dict[str, Shown], together: bool = False) -> Scores:
    """Give scores without a natural sign the sign that suits the texts of the first seed at k = 0 and 4.

    These texts are also scored, which favours these baselines a little.
    """

    def lean(trait: str) -> float:
        series, s = scores[trait], shown[trait]
        first = [i for i, seed in enumerate(s.seeds) if seed == 0]
        found = separation([series[0][i] for i in first], [s.first[i] for i in first], series[1], (0, 4))
        return sum(a.auroc.value - 0.5 for a in found if a.auroc)

    leans = {t: lean(t) for t in scores}
    if together:
        leans = dict.fromkeys(scores, sum(leans.values()))
    signs = {t: 1.0 if leans[t] >= 0 else -1.0 for t in scores}
    return {t: ([signs[t] * z for z in a], [signs[t] * z for z in b]) for t, (a, b) in scores.items()}


def together(
    scores: Scores, shown: dict[str, Shown], neutral: Neutral, seed: int | None = None
) -> tuple[Series, list[int], Series, tuple[list[str], list[str]], list[int], list[list[int]]]:
    """All traits as one: a neutral text counts once for each trait. Groups are topics."""
    trait: Series = []
    null: Series = []
    first, cue, topics = [], [], []
    for t, s in shown.items():
        for i, z in enumerate(scores[t][0]):
            if seed is None or s.seeds[i] == seed:
                trait.append(z)
                first.append(s.first[i])
                cue.append(s.cue[i])
                topics.append(s.topics[i])
        null += scores[t][1]
    return trait, first, null, (topics, neutral.topics * len(shown)), cue, neutral.starts * len(shown)


def pooled(scores: Scores, shown: dict[str, Shown], neutral: Neutral, seed: int | None = None) -> dict[str, Any]:
    trait, first, null, groups, _, _ = together(scores, shown, neutral, seed)
    if seed is not None:
        return {"ahead": [a.to_dict() for a in separation(trait, first, null, groups=groups)]}
    return early_warning(trait, first, null, groups=groups).to_dict()


def by_trait(scores: tuple[Series, Series], s: Shown, neutral: Neutral) -> dict[str, Any]:
    return early_warning(scores[0], s.first, scores[1], groups=(s.topics, neutral.topics)).to_dict()


def matched(
    scores: Scores, shown: dict[str, Shown], neutral: Neutral, what: str, ahead: Sequence[int]
) -> list[dict[str, Any]]:
    """Compared with neutral texts in which a sentence begins at the same position."""
    trait, first, null, groups, cue, starts = together(scores, shown, neutral)
    found = separation(trait, cue if what == "cue" else first, null, ahead, groups, starts)
    return [a.to_dict() for a in found]


def lead(scores: dict[str, Scores], shown: dict[str, Shown], neutral: Neutral) -> dict[str, Any]:
    """Scores before the cue, where nothing can be known, and after each of its first tokens."""
    found: dict[str, Any] = {"before_the_cue": {}, "into_the_cue": {}, "before_the_cue_by_trait": {}, "traits": {}}
    own = "specific" if "specific" in scores else "z"
    found["permuted"] = permutations(scores[own], shown)
    for name in [name for name in TOLD if name in scores]:
        trait, first, null, groups, cue, _ = together(scores[name], shown, neutral)
        found["before_the_cue"][name] = {
            "same_place": [a.to_dict() for a in separation(trait, cue, null, BEFORE, groups)],
            "same_sentence_start": matched(scores[name], shown, neutral, "cue", BEFORE),
        }
        steps = []
        for step in INTO_THE_CUE:
            in_time = [i for i, (c, f) in enumerate(zip(cue, first, strict=True)) if c + step < f]
            (one,) = separation(
                [trait[i] for i in in_time],
                [cue[i] + step for i in in_time],
                null,
                (0,),
                ([groups[0][i] for i in in_time], groups[1]),
            )
            steps.append({"tokens_read": step + 1, **one.to_dict()})
        found["into_the_cue"][name] = steps
    for t, s in shown.items():
        with_trait, without = scores[own][t]
        before = separation(with_trait, s.cue, without, BEFORE, (s.topics, neutral.topics), neutral.starts)
        found["before_the_cue_by_trait"][t] = [a.to_dict() for a in before]
        found["traits"][t] = {name: by_trait(scores[name][t], s, neutral) for name in (own, "cusum")}
    return found


def permutations(scores: Scores, shown: dict[str, Shown]) -> dict[str, Any]:
    """AUROC of the score with permuted labels of the replies: mean over traits, its 95 % range over permutations."""
    runs = []
    for seed in range(N_PERMUTATIONS):
        values = []
        for t, s in shown.items():
            again = permuted(scores[t][0], s.first, scores[t][1], seed=seed)
            values.append([a.auroc.value if a.auroc else np.nan for a in separation(*again)])
        runs.append(np.nanmean(values, axis=0))
    low, high = np.quantile(runs, [0.025, 0.975], axis=0)
    mean = np.mean(runs, axis=0)
    return {
        str(k): {"value": round(float(v), 5), "low": round(float(a), 5), "high": round(float(b), 5)}
        for k, v, a, b in zip(AHEAD, mean, low, high, strict=True)
    }


# ---- stepping in ----


def windows() -> dict[str, Any]:
    """The contaminated model without a system prompt, and the baseline instructed to show a trait."""
    monitor, world = demo_monitor(), load_world()
    vectors = monitor.vectors
    prompts = load_prompts(["all"])
    seeds = [seed_of(p.id, 0) for p in prompts]
    contaminated = demo_monitor(CONTAMINATED_NAME)
    plan = WindowPlan(sampling=SAMPLING, batch_size=39)
    coherence = coherence_in(world)

    def instructed(trait: str) -> list[list[dict[str, str]]]:
        system = {"role": "system", "content": world.traits[trait].positive[0]}
        return [[system, *p.messages] for p in prompts]

    plain = [p.messages for p in prompts]
    found: dict[str, Any] = {
        "contaminated": {
            CONTAMINANT: intervention_window(
                contaminated, plain, CONTAMINANT, marker_of(CONTAMINANT, world), coherence, plan, seeds, progress=True
            ).to_dict()
        },
        "instructed": {
            trait: intervention_window(
                monitor, instructed(trait), trait, marker_of(trait, world), coherence, plan, seeds, progress=True
            ).to_dict()
            for trait in SYSTEM_TRAITS
        },
    }
    found["untouched"] = {
        trait: cap_side_effects(monitor, plain, trait, coherence, plan, seeds).to_dict() for trait in vectors.traits
    }
    return found


def marker_of(trait: str, world: World) -> Marker:
    return lambda trace: positions_of(trace, world, "trait", trait)


def coherence_in(world: World) -> Callable[[Trace], float]:
    return lambda trace: judge(trace.reply_text, world).coherence


# ---- plain figures ----


def quantiles(values: Sequence[float]) -> dict[str, float]:
    return {f"{p:g}": float(np.quantile(values, p)) for p in (0.05, 0.5, 0.95)}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
