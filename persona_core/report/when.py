"""When each trait's score rises, in every run: detectors calibrated on the neutral replies, onsets, survival curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from persona_core.analysis import interaction
from persona_core.analysis.detection_power import power
from persona_core.analysis.detectors import Detectors, calibrate_detectors, prompt_keys
from persona_core.analysis.onset import Onset
from persona_core.analysis.onset_calibration import MIN_PROMPTS, calibrate_onset
from persona_core.analysis.precedence import relative_series
from persona_core.analysis.series import reply_scores
from persona_core.analysis.statistics import false_discovery
from persona_core.analysis.survival import Lifetime, compare_cohorts, lifetime, survival
from persona_core.errors import SettingError
from persona_core.report.analysed_runs import NO_NULL, AnalysedRuns
from persona_core.report.results_folder import NEUTRAL, SIDES
from persona_core.traces.trace import Kind, Trace

SHIFTS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
"""Steps, in standard deviations, whose detection power is reported."""
POWER_AT = 20
"""Token of the reply at which they are planted; half-way in shorter neutral replies."""


def when(runs: AnalysedRuns, rate: float, onsets: dict[str, dict[str, list[Onset]]]) -> dict[str, Any]:
    """Each trait's onsets in every run; calibrates the runs' detectors, and fills `onsets`: config, trait, reply."""
    answered = prompt_keys(runs.neutral)
    if len(set(answered)) < MIN_PROMPTS:
        raise SettingError(f"Neutral replies to {len(set(answered))} different prompts. {NO_NULL}")
    kinds = [str(row["category"]) for row in runs.rows[NEUTRAL]]
    runs.detectors = detectors = calibrate_detectors(
        runs.neutral, runs.traits, rate, runs.seed, kinds=kinds, kind=runs.kind, measured=True
    )
    if len(runs.traits) > 1:
        null = clock_series(runs.kind, runs.neutral)
        runs.clock = {
            t: calibrate_onset([r[k] for r in null], rate, seed=runs.seed, prompts=answered, kind=runs.kind)
            for k, t in enumerate(runs.traits)
        }
    for config in runs.configs:
        onsets[config] = {t: [detectors.find(trace, t) for trace in runs.traces[config]] for t in runs.traits}
    found: dict[str, dict[str, Any]] = {}
    at = min(POWER_AT, int(np.median([len(t.reply_positions) for t in runs.neutral])) // 2)
    for trait in runs.traits:
        detector = detectors.of(trait)
        own_null = reply_scores(runs.neutral, trait, detector.kind)
        lives = {
            config: [lifetime(o, len(t.reply_positions)) for o, t in zip(own[trait], runs.traces[config], strict=True)]
            for config, own in onsets.items()
        }
        test = None
        if set(SIDES) <= set(lives):
            pairs = _paired(runs)
            sides = [[lives[side][pair[k]] for pair in pairs] for k, side in enumerate(SIDES)]
            test = runs.attempt(f"when, {trait}", partial(_cohort_test, sides, runs.seed))
        found[trait] = {
            "kind": detector.kind,
            "threshold": round(detector.threshold, 4),
            "rate": round(detector.rate, 5),
            "n_nulls": detector.n_nulls,
            "n_prompts": detector.n_prompts,
            "smallest": detector.smallest,
            "power": [power(detector, own_null, shift, at).to_dict() for shift in SHIFTS],
            "configs": {
                config: {
                    "n": len(own[trait]),
                    **{a: sum(o.answer == a for o in own[trait]) for a in ("onset", "before the reply", "none")},
                    "doubles": sum(o.doubles is not None for o in own[trait]),
                    "falls": sum(o.falls is not None for o in own[trait]),
                    "timed": sum(o.timed for o in own[trait]),
                    "no_rate": sum(bool(o.no_rate) for o in own[trait]),
                    "shown": _n_showing(runs, config, trait),
                    "survival": runs.attempt(f"when, {trait}, {config}", partial(_curve, lives[config])),
                }
                for config, own in onsets.items()
            },
            "test": test,
        }
    tests = [one["test"] for one in found.values() if one["test"] is not None and "missing" not in one["test"]]
    for one, q in zip(tests, false_discovery([one["p"] for one in tests]), strict=True):  # one test for each trait
        one["q"] = q
    return found


def clock_series(kind: Kind, traces: Sequence[Trace]) -> list[np.ndarray]:
    """What the activation clock runs on: specific scores as they are, z less the mean of the other traits.

    On plain z all traits alarm together, because every vector also responds to "not neutral".

    Returns:
        `[n_traits, n_reply_tokens]` each.
    """
    series = interaction.trait_series(traces, kind=kind)
    return series if kind == "specific" else relative_series(series)


def alarms_of_any(detectors: Detectors, onsets: Mapping[str, Mapping[str, Sequence[Onset]]]) -> dict[str, Any]:
    """Replies in which any of the traits alarms, and the share of neutral replies in which one does.

    Returns:
        "rate" (nominal), "neutral" (the share on the neutral replies, with "low", "high" and "n_prompts"), "held_out"
        (shares on prompts, or kinds of prompts, that had no part in the calibration), and by config "replies" ("n",
        "any" with an alarm, "no_rate" for which no rate is known).
    """
    rate = detectors.rate()
    replies = {}
    for config, own in onsets.items():
        each = list(zip(*own.values(), strict=True))  # the onsets of every reply
        alarmed = [[o for o in reply if o.alarm is not None] for reply in each]
        unknown = sum(bool(own) and all(o.no_rate for o in own) for own in alarmed)
        replies[config] = {"n": len(each), "any": sum(map(bool, alarmed)), "no_rate": unknown}
    return {
        "rate": detectors.rate_any,
        "neutral": rate and asdict(rate),
        "held_out": {} if detectors.card is None else {k: dict(v) for k, v in detectors.card.held_out.items()},
        "replies": replies,
    }


def _cohort_test(sides: Sequence[Sequence[Lifetime]], seed: int) -> dict[str, Any]:
    return compare_cohorts(sides[0], sides[1], seed=seed).to_dict()


def _curve(lifetimes: Sequence[Lifetime]) -> dict[str, Any]:
    return survival(lifetimes).to_dict()


def _n_showing(runs: AnalysedRuns, config: str, trait: str) -> int | None:
    """Replies with an annotated sentence; None where the trait was not annotated."""
    if trait not in runs.judged.get(config, ()):
        return None
    return len({m.id for m in runs.annotations if m.config == config and m.trait == trait})


def _paired(runs: AnalysedRuns) -> list[tuple[int, int]]:
    """Indices of the two runs' replies to each common prompt."""
    second = {i: k for k, i in enumerate(runs.ids(SIDES[1]))}
    return [(k, second[i]) for k, i in enumerate(runs.ids(SIDES[0])) if i in second]
