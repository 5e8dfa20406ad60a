"""All analyses of a results folder in one go: when, how, where, the comparison, the statistics, the top spans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from persona_core.analysis.comparison import compare_runs, token_differences
from persona_core.analysis.comparison_results import Comparison
from persona_core.analysis.interventional import InterventionalEffects
from persona_core.analysis.onset import Onset
from persona_core.analysis.run_statistics import NORMAL_95, run_statistics
from persona_core.analysis.series import reply_scores
from persona_core.errors import SettingError
from persona_core.judging.annotations import Annotation, JudgedTraits, annotated_traits
from persona_core.report.analysed_runs import AnalysedRuns, Row, check_runs, read_by_both, with_one_kind
from persona_core.report.findings import FORMAT_VERSION, Findings
from persona_core.report.how import how
from persona_core.report.results_folder import REPLAY, SIDES
from persona_core.report.top_spans import find_top_spans
from persona_core.report.when import alarms_of_any, when
from persona_core.report.where import where
from persona_core.traces.dataset import traits_of
from persona_core.traces.statements import with_not_neutral
from persona_core.traces.trace import UNITS, Trace

if TYPE_CHECKING:
    from persona_core.models.language_model import LanguageModel


def analyse(
    rows: Mapping[str, Sequence[Row]],
    *,
    annotations: Sequence[Annotation] = (),
    judged: JudgedTraits | None = None,
    interventions: Mapping[str, Any] | None = None,
    models: Mapping[str, LanguageModel] | None = None,
    rate: float = 0.05,
    seed: int = 0,
    progress: bool = True,
) -> Findings:
    """Analyse the rows of a results folder.

    Args:
        rows: by config; "neutral" is the null, "replay" each model reading the other's replies.
        annotations: sentences that show a trait.
        judged: config -> traits that its sentences were annotated for; None: those of the annotations.
        interventions: what `persona intervene` measured.
        models: config -> its reader, if available: the vectors are then also compared with next-token entropy and
            random directions, and couplings with those of random directions.
        rate: share of neutral replies in which any of the traits may raise an alarm.
        seed: of every split, shuffle and bootstrap.
        progress: show a bar.

    Raises:
        SettingError: no run to analyse, rows of different traits, a run of several models or vectors, or a score
            that is not finite.
    """
    if not 0 < rate < 1 or seed < 0:
        raise SettingError(
            f"rate={rate!r}, seed={seed!r}; the rate must lie between 0 and 1, the seed must be at least 0."
        )
    traces = {c: [Trace.from_row(row) for row in own] for c, own in rows.items()}
    without_z = [c for c, own in traces.items() if not all(t.calibrated for t in own)]
    rows = {c: own for c, own in rows.items() if c not in without_z}
    traces = {c: own for c, own in traces.items() if c not in without_z}
    traits = traits_of([row for own in rows.values() for row in own]) if rows else ()
    judged = annotated_traits(annotations) if judged is None else judged
    mixed = {c for c, own in traces.items() if own and not all(t.has_specific for t in own)}
    runs = AnalysedRuns(rows, with_one_kind(traces), traits, annotations, judged, seed, models=models or {})
    runs.missing += [
        f"{c}: its rows have no null, so no z; read them with calibrated vectors (persona monitor)" for c in without_z
    ]
    if mixed:
        runs.missing.append(
            f"specific scores: not in {', '.join(sorted(mixed))}, so all figures are of z, which says “not neutral” "
            "rather than which trait; read them with vectors that have specific scores"
        )
    if not runs.configs:
        raise SettingError(
            f"Nothing to analyse: no run with z scores among {', '.join((*traces, *without_z)) or 'no configs'}."
        )
    check_runs(runs)
    ids = {(config, row["id"]) for config, own in rows.items() for row in own}
    unmatched = [m for m in annotations if (m.config, m.id) not in ids or m.trait not in traits]
    if unmatched:
        one = unmatched[0]
        runs.missing.append(
            f"annotations: {len(unmatched)} of {len(annotations)} match no reply or trait here, such as "
            f"{one.trait!r} in {one.id!r} of {one.config!r}"
        )
    summary: dict[str, Any] = {"format_version": FORMAT_VERSION, "seed": seed}
    sections = ("statistics", "when", "how", "where", "comparison", "spans")
    with tqdm(sections, desc="analysing", unit="part", disable=not progress) as bar:
        bar.set_postfix_str("statistics")
        summary["statistics"] = _statistics(runs)
        bar.update()
        bar.set_postfix_str("when")
        onsets: dict[str, dict[str, list[Onset]]] = {}
        summary["when"] = runs.attempt("when", lambda: when(runs, rate, onsets))
        bar.update()
        bar.set_postfix_str("how")
        steered = (interventions or {}).get("confirmed", {})
        tables = {c: [InterventionalEffects.from_dict(table) for table in steered.get(c, ())] for c in runs.configs}
        summary["how"] = {c: runs.attempt(f"how, {c}", partial(how, runs, c, tables[c])) for c in runs.configs}
        bar.update()
        bar.set_postfix_str("where")
        summary["where"] = {c: runs.attempt(f"where, {c}", partial(where, runs, c, rate)) for c in runs.configs}
        summary["window"] = (interventions or {}).get("window", {})
        bar.update()
        bar.set_postfix_str("comparison")
        compared = _comparison(runs)
        summary["comparison"] = compared.to_dict() if isinstance(compared, Comparison) else compared
        differences = _differences(runs)
        bar.update()
        bar.set_postfix_str("spans")
        spans = runs.attempt("spans", lambda: find_top_spans(runs))
        bar.update()
    summary["about"] = _about(runs, rate, onsets)
    replies = _replies(runs, onsets, compared if isinstance(compared, Comparison) else None)
    top = [] if isinstance(spans, dict) else spans
    return Findings(summary, replies, differences, top, runs.detectors, tuple(runs.missing))


def _about(runs: AnalysedRuns, rate: float, onsets: Mapping[str, Mapping[str, Sequence[Onset]]]) -> dict[str, Any]:
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
        "n_marks": len(runs.annotations),
        "sampling": dict(first.provenance.sampling or {}),
        "kind": runs.kind,
        "unit": UNITS[runs.kind],
        "against": list(runs.traits),
        "rate": rate,
        "alarms": None if runs.detectors is None else alarms_of_any(runs.detectors, onsets),
        "caveats": caveats,
        "missing": list(runs.missing),
    }


# ---- the sections ----


def _statistics(runs: AnalysedRuns) -> dict[str, Any]:
    def of(config: str) -> dict[str, Any]:
        traces, ids = runs.traces[config], runs.ids(config)
        return run_statistics(traces, ids, neutral=runs.neutral, seed=runs.seed, kind=runs.kind).to_dict()

    configs = [c for c in runs.rows if c != REPLAY]
    return {c: runs.attempt(f"statistics, {c}", partial(of, c)) for c in configs}


def _comparison(runs: AnalysedRuns) -> Comparison | dict[str, str]:
    if not set(SIDES) <= set(runs.rows):
        runs.missing.append(reason := f"comparison: it needs the configs {' and '.join(SIDES)}.")
        return {"missing": reason}
    baseline, contaminated = (runs.rows[side] for side in SIDES)
    replay = runs.rows.get(REPLAY, ())
    return runs.attempt(
        "comparison", lambda: compare_runs(baseline, contaminated, replay, seed=runs.seed, kind=runs.kind)
    )


def _differences(runs: AnalysedRuns) -> list[dict[str, Any]]:
    found = []
    for row, first, second in read_by_both(runs):
        series = {t: _plain(token_differences(first, second, t)) for t in runs.traits}
        kept = {k: row[k] for k in ("id", "set", "category", "writer", "n_prompt", "tokens")}
        found.append({**kept, "differences": series})
    return found


def _plain(values: np.ndarray) -> list[float | None]:
    """Four digits; None at sink tokens."""
    return [None if np.isnan(v) else v for v in values.round(4).tolist()]


# ---- reply by reply ----


def _replies(
    runs: AnalysedRuns, onsets: Mapping[str, Mapping[str, Sequence[Onset]]], compared: Comparison | None
) -> list[dict[str, Any]]:
    effects = {(p.id, p.trait): p for p in compared.prompts} if compared is not None else {}
    thresholds = {t: _high_threshold(runs, t) for t in runs.traits}  # the one of the run statistics
    found = []
    for config in runs.configs:
        replies = zip(runs.rows[config], runs.traces[config], runs.shown[config], strict=True)
        for index, (row, trace, shown) in enumerate(replies):
            own = {t: onsets[config][t][index] for t in runs.traits} if config in onsets else {}
            says = with_not_neutral(trace, {t: onset.to_dict() for t, onset in own.items()})
            for trait in runs.traits:
                scores = trace.reply_scores(trait, runs.kind).astype(float)
                known = scores[np.isfinite(scores)]
                plain = trace.reply_scores(trait, "z").astype(float)
                onset = own.get(trait)
                first = [start for name, start, _ in shown if name == trait]
                effect = effects.get((row["id"], trait))
                found.append(
                    {
                        **{k: row[k] for k in ("id", "set", "category", "reader", "writer", "n_reply")},
                        "config": config,
                        "trait": trait,
                        "kind": runs.kind,
                        "n_sinks": len(scores) - len(known),
                        "mean": float(known.mean()) if len(known) else None,
                        "max": float(known.max()) if len(known) else None,
                        "mean_z": float(np.nanmean(plain)) if len(known) else None,
                        "share_above": float((known > thresholds[trait]).mean()) if len(known) else None,
                        "answer": onset and onset.answer,
                        "alarm": onset and onset.alarm,
                        "onset": onset and onset.onset,
                        "onset_low": onset and onset.low,
                        "onset_high": onset and onset.high,
                        "onset_size": onset and onset.size,
                        "doubles": onset and onset.doubles,
                        "falls": onset and onset.falls,
                        "timed": onset and onset.timed,
                        "no_rate": onset and "; ".join(onset.no_rate),
                        "says": says[trait]["says"] if onset else None,
                        "first_shown": min(first, default=None),
                        "total": effect and effect.total,
                        "weights": effect and effect.weights,
                        "text": effect and effect.text,
                    }
                )
    return found


def _high_threshold(runs: AnalysedRuns, trait: str) -> float:
    """Above which a token counts as high: the 95th percentile of neutral tokens, or of a normal distribution."""
    if not runs.neutral:
        return NORMAL_95
    return float(np.nanquantile(np.concatenate(reply_scores(runs.neutral, trait, runs.kind)), 0.95))
