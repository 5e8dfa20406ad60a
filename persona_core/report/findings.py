"""Every analysis of a results folder in one go: when, how, where, the comparison, the statistics, the top spans.

Rows in, plain records out. What cannot be said is said: a section without enough to rest on holds `{"missing": why}`
in place of figures, and the reasons are listed in `Findings.missing`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from tqdm import tqdm

from persona_core.analysis import interaction
from persona_core.analysis.clocks import Clock, activation_times, behaviour_times, follows, relative_series
from persona_core.analysis.comparison import Comparison, compare, token_differences
from persona_core.analysis.confirmed import Confirmation, PairEffect
from persona_core.analysis.detectors import Detectors, calibrate_detectors
from persona_core.analysis.early_warning import early_warning
from persona_core.analysis.graph import graph
from persona_core.analysis.onset import Onset, OnsetDetector
from persona_core.analysis.onset_calibration import LEAST_NULLS, calibrate_onset, power
from persona_core.analysis.run_statistics import NORMAL_95, run_statistics
from persona_core.analysis.series import checked, reply_scores
from persona_core.analysis.spans import Span, difference_series, score_series, top_sentences, top_windows
from persona_core.analysis.survival import Lifetime, lifetime, survival
from persona_core.analysis.survival import compare as compare_cohorts
from persona_core.errors import SettingError
from persona_core.marks import Judged, Mark, judged_of, marks_of, places
from persona_core.prompts import prompt_of
from persona_core.results import to_trace, traits_of
from persona_core.statistics import Estimate, false_discovery
from persona_core.trace import Trace
from persona_core.warning_baselines import (
    entropy_scores,
    last_prompt_scores,
    ngram_scores,
    position_scores,
    random_direction_scores,
)

if TYPE_CHECKING:
    from persona_core.models import LanguageModel

FORMAT_VERSION = 1
NEUTRAL, REPLAY = "neutral", "replay"
SIDES = ("baseline", "contaminated")
SHIFTS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
"""Steps, in standard deviations, whose chance to be found is reported."""
POWER_AT = 20
"""Token of the reply at which they are planted, or half-way where neutral replies are shorter."""
WIDTHS = (5, 20)
"""Tokens of the windows among which the highest are looked for, beside sentences."""
N_SPANS = 12
N_SEARCHED = 120
"""Of these many, the first 12 that differ in their text."""
N_RANDOM = 3
"""Random directions that are tried where the model is at hand."""
LEAST_SHOWING = 10
"""Replies that show a trait, for a figure about what was known before."""

Row = Mapping[str, Any]
T = TypeVar("T")
NO_NULL = (
    f"Alarms need at least {LEAST_NULLS} neutral replies of the same model: python -m scripts.monitor ... --config "
    f"{NEUTRAL} --repeats 5 --seed 1 --out the same folder."
)
NO_MARKS = "No sentence is marked: python -m scripts.mark says which of them show a trait."


@dataclass(frozen=True, eq=False)
class Findings:
    """What the analyses say.

    Attributes:
        summary: all figures, JSON-ready: "about", "statistics", "when", "how", "where", "comparison".
        replies: one record for each reply and trait: onset, mean, maximum, first marked token, effects of its prompt.
        differences: one record for each text that both models have read: trait -> z of the contaminated reader minus z
            of the baseline, token by token.
        spans: highest windows and sentences, by config and trait.
        detectors: calibrated on the neutral replies; None without enough of them.
        missing: what could not be analysed, and why.
    """

    summary: dict[str, Any]
    replies: list[dict[str, Any]]
    differences: list[dict[str, Any]]
    spans: list[dict[str, Any]]
    detectors: Detectors | None
    missing: tuple[str, ...]


@dataclass(eq=False)
class _Runs:
    """The rows as traces, and what is found on the way."""

    rows: Mapping[str, Sequence[Row]]
    traces: Mapping[str, list[Trace]]
    traits: tuple[str, ...]
    marks: Sequence[Mark]
    judged: Judged
    seed: int
    missing: list[str] = field(default_factory=list)
    models: Mapping[str, LanguageModel] = field(default_factory=dict)
    detectors: Detectors | None = None
    relative: Mapping[str, OnsetDetector] = field(default_factory=dict)
    null_scores: dict[str, Any] = field(default_factory=dict)  # of the neutral replies: the same for every run

    @property
    def configs(self) -> list[str]:
        """Runs with one reply to a prompt: all but the replay and the null."""
        return [c for c in self.rows if c not in (NEUTRAL, REPLAY)]

    @property
    def neutral(self) -> list[Trace]:
        return self.traces.get(NEUTRAL, [])

    def ids(self, config: str) -> list[str]:
        """The prompt of each reply."""
        return [prompt_of(row["id"]) for row in self.rows[config]]

    def attempt(self, what: str, analysis: Callable[[], T]) -> T | dict[str, str]:
        """An analysis, or why there is none."""
        try:
            return analysis()
        except SettingError as error:
            self.missing.append(f"{what}: {error}")
            return {"missing": str(error)}


def analyse(
    rows: Mapping[str, Sequence[Row]],
    *,
    marks: Sequence[Mark] = (),
    judged: Judged | None = None,
    vectors: Mapping[str, np.ndarray] | None = None,
    interventions: Mapping[str, Any] | None = None,
    models: Mapping[str, LanguageModel] | None = None,
    rate: float = 0.05,
    seed: int = 0,
    progress: bool = True,
) -> Findings:
    """Analyse the rows of a results folder.

    Args:
        rows: by config; "neutral" is the null, "replay" each model reading the other's replies.
        marks: which sentences show a trait.
        judged: config -> traits whose sentences were looked at; None: those that are marked.
        vectors: trait -> direction `[d_model]`, all of one block: the floor of couplings.
        interventions: what `scripts.intervene` has measured.
        models: config -> its reader, where it is at hand: next-token entropy and random directions are then held
            against the vectors as well.
        rate: share of neutral replies that may alarm.
        seed: of every split, shuffle and bootstrap.
        progress: show a bar.

    Raises:
        SettingError: no run to analyse, rows of different traits, a run of several models or vectors, or a score
            that is not finite.
    """
    if not 0 < rate < 1 or seed < 0:
        raise SettingError(f"rate={rate!r}, seed={seed!r}; the rate lies between 0 and 1, a seed counts from 0.")
    traces = {c: [to_trace(row) for row in own] for c, own in rows.items()}
    without_z = [c for c, own in traces.items() if not all(t.calibrated for t in own)]
    rows = {c: own for c, own in rows.items() if c not in without_z}
    traces = {c: own for c, own in traces.items() if c not in without_z}
    traits = traits_of([row for own in rows.values() for row in own]) if rows else ()
    judged = judged_of(marks) if judged is None else judged
    runs = _Runs(rows, traces, traits, marks, judged, seed, models=models or {})
    runs.missing += [
        f"{c}: its rows have no null, so no z; scripts.monitor reads with calibrated vectors" for c in without_z
    ]
    if not runs.configs:
        raise SettingError(
            f"Nothing to analyse: of {', '.join((*traces, *without_z)) or 'nothing'} no run has z scores."
        )
    _check(runs)
    ids = {(config, row["id"]) for config, own in rows.items() for row in own}
    strange = [m for m in marks if (m.config, m.id) not in ids or m.trait not in traits]
    if strange:
        one = strange[0]
        runs.missing.append(
            f"marks: {len(strange)} of {len(marks)} belong to no reply or trait here, such as {one.trait!r} in "
            f"{one.id!r} of {one.config!r}"
        )
    summary: dict[str, Any] = {"format_version": FORMAT_VERSION, "seed": seed}
    sections = ("statistics", "when", "how", "where", "comparison", "spans")
    with tqdm(sections, desc="analysing", unit="part", disable=not progress) as bar:
        bar.set_postfix_str("statistics")
        summary["statistics"] = _statistics(runs)
        bar.update()
        bar.set_postfix_str("when")
        onsets: dict[str, dict[str, list[Onset]]] = {}
        summary["when"] = runs.attempt("when", lambda: _when(runs, rate, onsets))
        bar.update()
        bar.set_postfix_str("how")
        steered = (interventions or {}).get("confirmed", {})
        tables = {c: [confirmation(table) for table in steered.get(c, ())] for c in runs.configs}
        summary["how"] = {
            c: runs.attempt(f"how, {c}", partial(_how, runs, c, vectors, tables[c])) for c in runs.configs
        }
        bar.update()
        bar.set_postfix_str("where")
        summary["where"] = {c: runs.attempt(f"where, {c}", partial(_where, runs, c, rate)) for c in runs.configs}
        summary["window"] = (interventions or {}).get("window", {})
        bar.update()
        bar.set_postfix_str("comparison")
        compared = _comparison(runs)
        summary["comparison"] = compared.to_dict() if isinstance(compared, Comparison) else compared
        differences = _differences(runs)
        bar.update()
        bar.set_postfix_str("spans")
        spans = _spans(runs)
        bar.update()
    summary["about"] = _about(runs, rate)
    replies = _replies(runs, onsets, compared if isinstance(compared, Comparison) else None)
    return Findings(summary, replies, differences, spans, runs.detectors, tuple(runs.missing))


def _check(runs: _Runs) -> None:
    """What no analysis could make sense of is refused at once."""
    for config in runs.configs:
        ids = runs.ids(config)
        if len(set(ids)) < len(ids):
            again = next(i for i in ids if ids.count(i) > 1)
            raise SettingError(
                f"The run {config!r} answers the prompt {again!r} several times; a run that is analysed has one reply "
                f"to a prompt. Several belong into the config {NEUTRAL!r}."
            )
    for config, traces in runs.traces.items():
        try:
            for trait in runs.traits:
                if config != REPLAY:
                    reply_scores(traces, trait)  # of one model, one set of vectors, one block
                for row, trace in zip(runs.rows[config], traces, strict=True):
                    checked(trace.scores(trait)[trace.own], f"{trait} in the row {row['id']!r}")
            for row, trace in zip(runs.rows[config], traces, strict=True):
                _marked(runs, config, row, trace)  # marks of another text
        except SettingError as error:
            raise SettingError(f"{config}: {error}") from error


def _about(runs: _Runs, rate: float) -> dict[str, Any]:
    first = runs.traces[runs.configs[0]][0]
    caveats = [
        {"config": config, "caveat": caveat, "replies": sum(caveat in runs.detectors.caveats(t) for t in traces)}
        for config, traces in runs.traces.items()
        if runs.detectors is not None and config in runs.configs
        for caveat in dict.fromkeys(c for t in traces for c in runs.detectors.caveats(t))
    ]
    return {
        "traits": list(runs.traits),
        "best_block": {t: first.best_block.get(t) for t in runs.traits},
        "vectors": first.provenance.vectors,
        "readers": {
            c: ", ".join(dict.fromkeys(str(row["reader"] or "unknown") for row in own)) for c, own in runs.rows.items()
        },
        "n_replies": {c: len(own) for c, own in runs.rows.items()},
        "n_marks": len(runs.marks),
        "sampling": dict(first.provenance.sampling or {}),
        "rate": rate,
        "caveats": caveats,
        "missing": list(runs.missing),
    }


# ---- the sections ----


def _statistics(runs: _Runs) -> dict[str, Any]:
    def of(config: str) -> dict[str, Any]:
        return run_statistics(runs.traces[config], runs.ids(config), neutral=runs.neutral, seed=runs.seed).to_dict()

    configs = [c for c in runs.rows if c != REPLAY]
    return {c: runs.attempt(f"statistics, {c}", partial(of, c)) for c in configs}


def _when(runs: _Runs, rate: float, onsets: dict[str, dict[str, list[Onset]]]) -> dict[str, Any]:
    """Fills `onsets`: config -> trait -> of each reply."""
    if len(runs.neutral) < LEAST_NULLS:
        raise SettingError(f"{len(runs.neutral)} neutral replies. {NO_NULL}")
    runs.detectors = detectors = calibrate_detectors(runs.neutral, runs.traits, rate, runs.seed)
    if len(runs.traits) > 1:
        null = relative_series(interaction.trait_series(runs.neutral))
        runs.relative = {
            t: calibrate_onset([r[k] for r in null], rate, seed=runs.seed) for k, t in enumerate(runs.traits)
        }
    for config in runs.configs:
        onsets[config] = {t: [detectors.find(trace, t) for trace in runs.traces[config]] for t in runs.traits}
    found: dict[str, dict[str, Any]] = {}
    at = min(POWER_AT, int(np.median([len(t.own) for t in runs.neutral])) // 2)
    for trait in runs.traits:
        detector = detectors.of(trait)
        own_null = reply_scores(runs.neutral, trait)
        lives = {
            config: [lifetime(o, len(t.own)) for o, t in zip(own[trait], runs.traces[config], strict=True)]
            for config, own in onsets.items()
        }
        test = None
        if set(SIDES) <= set(lives):
            pairs = _paired(runs)
            sides = [[lives[side][pair[k]] for pair in pairs] for k, side in enumerate(SIDES)]
            test = runs.attempt(f"when, {trait}", partial(_cohort_test, sides, runs.seed))
        found[trait] = {
            "threshold": round(detector.threshold, 4),
            "n_nulls": detector.n_nulls,
            "smallest": detector.smallest,
            "power": [power(detector, own_null, shift, at).to_dict() for shift in SHIFTS],
            "configs": {
                config: {
                    "n": len(own[trait]),
                    **{a: sum(o.answer == a for o in own[trait]) for a in ("onset", "before the reply", "none")},
                    "timed": sum(o.timed for o in own[trait]),
                    "shown": _n_showing(runs, config, trait),
                    "survival": runs.attempt(f"when, {trait}, {config}", partial(_curve, lives[config])),
                }
                for config, own in onsets.items()
            },
            "test": test,
        }
    tests = [one["test"] for one in found.values() if one["test"] is not None and "missing" not in one["test"]]
    for one, q in zip(tests, false_discovery([one["p"] for one in tests]), strict=True):  # a test for every trait
        one["q"] = q
    return found


def _cohort_test(sides: Sequence[Sequence[Lifetime]], seed: int) -> dict[str, Any]:
    return compare_cohorts(sides[0], sides[1], seed=seed).to_dict()


def _curve(lifetimes: Sequence[Lifetime]) -> dict[str, Any]:
    return survival(lifetimes).to_dict()


def _n_showing(runs: _Runs, config: str, trait: str) -> int | None:
    """Replies with a marked sentence; None where nobody looked."""
    if trait not in runs.judged.get(config, ()):
        return None
    return len({m.id for m in runs.marks if m.config == config and m.trait == trait})


def _paired(runs: _Runs) -> list[tuple[int, int]]:
    """Places of the replies to one prompt in the two runs."""
    second = {i: k for k, i in enumerate(runs.ids(SIDES[1]))}
    return [(k, second[i]) for k, i in enumerate(runs.ids(SIDES[0])) if i in second]


def _how(
    runs: _Runs, config: str, vectors: Mapping[str, np.ndarray] | None, tables: Sequence[Confirmation]
) -> dict[str, Any]:
    traces, traits = runs.traces[config], runs.traits
    series = interaction.trait_series(traces)
    floor = interaction.cosines({t: vectors[t] for t in traits}) if vectors is not None else None
    couplings = interaction.couple(traits, series, floor=floor, seed=runs.seed)
    clocks: list[Clock] = []
    if runs.relative:
        # On z itself every trait's alarm goes off with any other's, for every vector also knows "not neutral".
        times = activation_times(traits, relative_series(series), runs.relative)
        clocks.append(follows(traits, times, "activation", seed=runs.seed))
    shown = [_marked(runs, config, row, trace) for row, trace in zip(runs.rows[config], traces, strict=True)]
    looked_for = [t for t in traits if t in runs.judged.get(config, ())]
    if len(looked_for) > 1:
        clocks.append(follows(looked_for, behaviour_times(looked_for, shown), "behaviour", seed=runs.seed))
    return graph(traits, couplings, clocks, tables).to_dict()


def _marked(runs: _Runs, config: str, row: Row, trace: Trace) -> list[tuple[str, int, int]]:
    """(trait, first token, token after the last) of each mark, counted over the reply's own tokens."""
    place = {t: k for k, t in enumerate(trace.own)}
    found = []
    for trait in runs.traits:
        for mark in marks_of(runs.marks, row["id"], config, trait):
            tokens = [place[t] for t in places(trace, [mark])]
            if tokens:
                found.append((trait, tokens[0], tokens[-1] + 1))
    return found


def _where(runs: _Runs, config: str, rate: float) -> dict[str, Any]:
    if not runs.judged.get(config):
        raise SettingError(NO_MARKS)
    if runs.detectors is None:
        raise SettingError(NO_NULL)
    return {t: runs.attempt(f"where, {config}, {t}", partial(_warning, runs, config, t, rate)) for t in runs.traits}


def _warning(runs: _Runs, config: str, trait: str, rate: float) -> dict[str, Any]:
    """The trait's own z and CUSUM as warnings, and what needs no vector beside them."""
    if trait not in runs.judged.get(config, ()):
        raise SettingError(f"Nobody looked for {trait} in the sentences of this run: scripts.mark does.")
    showing: list[tuple[Trace, int, str]] = []
    for row, trace in zip(runs.rows[config], runs.traces[config], strict=True):
        first = [start for name, start, _ in _marked(runs, config, row, trace) if name == trait]
        if first:
            showing.append((trace, min(first), prompt_of(row["id"])))
    if len(showing) < LEAST_SHOWING:
        raise SettingError(
            f"{len(showing)} of {len(runs.rows[config])} replies show {trait}; a figure about what came before needs "
            f"{LEAST_SHOWING}."
        )
    traces, first = [one[0] for one in showing], [one[1] for one in showing]
    groups = [one[2] for one in showing], runs.ids(NEUTRAL)
    assert runs.detectors is not None
    detector = runs.detectors.of(trait)
    z = reply_scores(traces, trait), reply_scores(runs.neutral, trait)
    scores = {
        "z": z,
        "cusum": tuple([detector.cusum(one) for one in side] for side in z),
        "position": (position_scores(traces), position_scores(runs.neutral)),
        "other traits": (_of_others(runs, traces, trait), _of_others(runs, runs.neutral, trait)),
        "last prompt token": (last_prompt_scores(traces, trait), last_prompt_scores(runs.neutral, trait)),
    }
    scores |= _with_model(runs, config, trait, traces)
    words = runs.attempt(f"where, {trait}, n-grams", lambda: ngram_scores(traces, runs.neutral, groups))
    if not isinstance(words, dict):
        scores["n-grams"] = words
    found = {
        name: early_warning(shows, first, null, rate=rate, groups=groups, seed=runs.seed).to_dict()
        for name, (shows, null) in scores.items()
    }
    passed = found["z"]["threshold"]
    return {
        "n": len(showing),
        "first": float(np.median(first)),
        "at_start": sum(bool(one[0] > passed) for one in z[0]),
        "other_reader": traces[0].provenance.reading_model != runs.neutral[0].provenance.reading_model,
        "scores": found,
    }


def _of_others(runs: _Runs, traces: Sequence[Trace], trait: str) -> list[np.ndarray]:
    """Mean z of all other traits, `[n_own]` a reply: a warning that knows "not neutral", and nothing of this trait."""
    others = [reply_scores(traces, t) for t in runs.traits if t != trait] or [reply_scores(traces, trait)]
    return [np.mean(series, axis=0) for series in zip(*others, strict=True)]


def _with_model(runs: _Runs, config: str, trait: str, traces: Sequence[Trace]) -> dict[str, tuple[Any, Any]]:
    """Scores that take the model: its own doubt, and directions that mean nothing. Each text by its own reader."""
    if not {config, SIDES[0]} <= set(runs.models):
        return {}
    own, baseline = runs.models[config], runs.models[SIDES[0]]
    if "entropy" not in runs.null_scores:
        runs.null_scores["entropy"] = entropy_scores(baseline, runs.neutral)
    found: dict[str, tuple[Any, Any]] = {"entropy": (entropy_scores(own, traces), runs.null_scores["entropy"])}
    block = runs.neutral[0].best_block[trait]
    shows = random_direction_scores(own, block, traces, runs.neutral, N_RANDOM, runs.seed, null_reader=baseline)
    key = f"random/{block}"
    if key not in runs.null_scores:
        runs.null_scores[key] = random_direction_scores(
            baseline, block, runs.neutral, runs.neutral, N_RANDOM, runs.seed
        )
    for k, (one, null) in enumerate(zip(shows, runs.null_scores[key], strict=True), 1):
        found[f"random direction {k}"] = (one, null)
    return found


def _comparison(runs: _Runs) -> Comparison | dict[str, str]:
    if not set(SIDES) <= set(runs.rows):
        runs.missing.append(reason := f"comparison: it needs the configs {' and '.join(SIDES)}.")
        return {"missing": reason}
    baseline, contaminated = (runs.rows[side] for side in SIDES)
    replay = runs.rows.get(REPLAY, ())
    return runs.attempt("comparison", lambda: compare(baseline, contaminated, replay, seed=runs.seed))


def _both_read(runs: _Runs) -> Iterable[tuple[Row, Trace, Trace]]:
    """Each text that both models have read: its row, as read by the baseline, as read by the contaminated model."""
    if not {*SIDES, REPLAY} <= set(runs.rows):
        return
    readers = [runs.rows[side][0]["reader"] for side in SIDES]
    by_text: dict[tuple[str, str], dict[str, tuple[Row, Trace]]] = {}
    for config in (*SIDES, REPLAY):
        for row, trace in zip(runs.rows[config], runs.traces[config], strict=True):
            by_text.setdefault((row["id"], row["writer"]), {})[row["reader"]] = (row, trace)
    for found in by_text.values():
        if set(readers) <= set(found):
            row, first = found[readers[0]]
            yield row, first, found[readers[1]][1]


def _differences(runs: _Runs) -> list[dict[str, Any]]:
    found = []
    for row, first, second in _both_read(runs):
        series = {t: token_differences(first, second, t).round(4).tolist() for t in runs.traits}
        kept = {k: row[k] for k in ("id", "set", "category", "writer", "n_prompt", "tokens")}
        found.append({**kept, "differences": series})
    return found


def _spans(runs: _Runs) -> list[dict[str, Any]]:
    """The highest windows and sentences of each run by z, and of each text by the difference of its readers."""
    found: list[dict[str, Any]] = []
    for trait in runs.traits:
        null = score_series({f"{k}": t for k, t in enumerate(runs.neutral)}, trait) if runs.neutral else []
        searched = {
            (config, "z"): score_series(dict(zip(runs.ids(config), runs.traces[config], strict=True)), trait)
            for config in runs.configs
        }
        texts = list(_both_read(runs))
        for config in SIDES if texts else ():
            writer = runs.rows[config][0]["writer"]
            own = [(row["id"], a, b) for row, a, b in texts if row["writer"] == writer]
            firsts, seconds = {i: a for i, a, _ in own}, {i: b for i, _, b in own}
            searched[config, "difference"] = difference_series(firsts, seconds, trait)
        for (config, of), series in searched.items():
            against = null if of == "z" else []
            tops = {"sentence": top_sentences(series, N_SEARCHED, against)}
            tops |= {f"{width} tokens": top_windows(series, width, N_SEARCHED, against) for width in WIDTHS}
            for unit, top in tops.items():
                texts_of = [s.trace.reply_text for s in series]
                for rank, span in enumerate(_each_text_once(top.spans), 1):
                    same = sum(span.text.strip() in text for text in texts_of)
                    record = {"config": config, "of": of, "unit": unit, "rank": rank, "replies": same}
                    found.append({**record, **span.to_dict()})
    return found


def _each_text_once(spans: Sequence[Span]) -> list[Span]:
    """The first `N_SPANS` that differ in what they say: a phrase that comes often would fill the list."""
    first: dict[str, Span] = {}
    for span in spans:
        first.setdefault(span.text.strip(), span)
    return list(first.values())[:N_SPANS]


# ---- reply by reply ----


def _replies(
    runs: _Runs, onsets: Mapping[str, Mapping[str, Sequence[Onset]]], compared: Comparison | None
) -> list[dict[str, Any]]:
    effects = {(p.id, p.trait): p for p in compared.prompts} if compared is not None else {}
    thresholds = {t: _high(runs, t) for t in runs.traits}  # as the statistics take it
    found = []
    for config in runs.configs:
        for place, (row, trace) in enumerate(zip(runs.rows[config], runs.traces[config], strict=True)):
            shown = _marked(runs, config, row, trace)
            for trait in runs.traits:
                z = trace.scores(trait)[trace.own].astype(float)
                onset = onsets[config][trait][place] if config in onsets else None
                first = [start for name, start, _ in shown if name == trait]
                effect = effects.get((row["id"], trait))
                found.append(
                    {
                        **{k: row[k] for k in ("id", "set", "category", "reader", "writer", "n_reply")},
                        "config": config,
                        "trait": trait,
                        "mean": float(z.mean()) if len(z) else None,
                        "max": float(z.max()) if len(z) else None,
                        "share_above": float((z > thresholds[trait]).mean()) if len(z) else None,
                        "answer": onset and onset.answer,
                        "alarm": onset and onset.alarm,
                        "onset": onset and onset.onset,
                        "onset_low": onset and onset.low,
                        "onset_high": onset and onset.high,
                        "onset_size": onset and onset.size,
                        "timed": onset and onset.timed,
                        "says": onset and str(onset),
                        "first_shown": min(first, default=None),
                        "total": effect and effect.total,
                        "weights": effect and effect.weights,
                        "text": effect and effect.text,
                    }
                )
    return found


def _high(runs: _Runs, trait: str) -> float:
    """Above which a token counts as high: the 95th percentile of neutral tokens, or of a normal distribution."""
    if not runs.neutral:
        return NORMAL_95
    return float(np.quantile(np.concatenate(reply_scores(runs.neutral, trait)), 0.95))


def confirmation(record: Mapping[str, Any]) -> Confirmation:
    """A table of steering as `Confirmation.to_dict` has written it."""

    def effect(one: Mapping[str, Any]) -> PairEffect:
        fields = {k: one[k] for k in ("source", "target", "vector", "random", "p", "q")}
        return PairEffect(estimate=one["estimate"] and Estimate(**one["estimate"]), **fields)

    return Confirmation(record["measure"], tuple(effect(one) for one in record["effects"]), int(record["n_flips"]))
