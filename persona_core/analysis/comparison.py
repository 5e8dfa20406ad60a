"""A model and a changed copy of it: what differs by the text, and what by the weights.

Two models write a reply to each prompt and each reads both replies: four cells, reader by writer, named by two letters,
the reader first (B the baseline, C the contaminated model).

- total: CC - BB, the difference of running both models
- weights: the readers differ on the same text, the mean of CB - BB and CC - BC
- text: the texts differ under the same reader, the mean of BC - BB and CC - CB

The total is the sum of the other two, prompt by prompt. Everything is paired by prompt, and the weights effect by token
as well: two readers of the same ids are compared at each token, and a token that is a sink for either reader counts for
neither (`persona_core.inference.sinks`). The same figures with those tokens put back stand beside them: an effect that
they change is not a result. In SmolLM2, five such tokens turned a difference of 0.015 into one of 0.098.

Scores are specific where all rows have them: what a trait does not share with the others. Else they are z, which also
rises with every other departure from neutral text. `Comparison.kind` says which.

Intervals resample prompts, never tokens: the tokens of one reply are not independent. The p-value of an effect comes
from flipping the signs of whole prompts at random (Fisher 1935). Swapping the two models flips every sign and changes
nothing else, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from persona_core.analysis.comparison_results import EFFECTS, Comparison, Effect, PromptEffect
from persona_core.analysis.paired_rows import (
    ReplyReading,
    Row,
    by_prompt,
    kind_of_rows,
    null_of,
    one_per_prompt,
    reader_of,
    refuse_mixed,
    refuse_mixed_rows,
)
from persona_core.analysis.series import checked, refuse_smoothed, shared_kind
from persona_core.analysis.statistics import Estimate, false_discovery, over_clusters, sign_flip_p
from persona_core.errors import SettingError
from persona_core.traces.trace import Kind, Trace


def compare_runs(
    baseline: Sequence[Row],
    contaminated: Sequence[Row],
    replay: Sequence[Row] = (),
    traits: Sequence[str] | None = None,
    n_resamples: int = 1000,
    n_permutations: int = 9999,
    seed: int = 0,
    kind: Kind | None = None,
) -> Comparison:
    """The whole comparison: overall, by category, and prompt by prompt.

    Args:
        baseline, contaminated: rows of the two runs on the same prompts.
        replay: rows in which each model reads the other's replies; without them only the total is known.
        traits: which; None: all.
        n_resamples: of the bootstrap over prompts.
        n_permutations: of the signs; for up to 13 prompts all are tried.
        seed: of both.
        kind: of the scores; None: "specific" where all rows have it, else "z".

    Raises:
        SettingError: no prompt in common, or rows that do not belong together.
    """
    if not baseline or not contaminated:
        raise SettingError("The runs have no prompt in common: one of them is empty.")
    against = tuple(baseline[0]["traits"])
    names = against if traits is None else tuple(traits)
    kind = kind or kind_of_rows((*baseline, *contaminated, *replay), against)
    records = {trait: prompt_effects(trait, baseline, contaminated, replay, kind) for trait in names}

    def tested(prompts: Mapping[Any, Sequence[PromptEffect]]) -> dict[Any, Effect]:
        return _with_fdr({key: _effect(own, n_resamples, n_permutations, seed) for key, own in prompts.items()})

    groups = list(dict.fromkeys(p.category for own in records.values() for p in own))
    cells = tested({(t, c): [p for p in own if p.category == c] for t, own in records.items() for c in groups})
    plain = None
    if kind == "specific":
        plain = tested({t: prompt_effects(t, baseline, contaminated, replay, "z") for t in names})
    used = {p.id for own in records.values() for p in own}
    ids = dict.fromkeys(row["id"] for row in (*baseline, *contaminated))
    return Comparison(
        baseline=reader_of(baseline)[0],
        contaminated=reader_of(contaminated)[0],
        overall=tested(records),
        categories={t: {c: cells[t, c] for c in groups} for t in names},
        prompts=tuple(p for own in records.values() for p in own),
        left_out=tuple(i for i in ids if i not in used),
        kind=kind,
        against=against,
        plain=plain,
    )


def effect(
    trait: str,
    baseline: Sequence[Row],
    contaminated: Sequence[Row],
    replay: Sequence[Row] = (),
    n_resamples: int = 1000,
    seed: int = 0,
    kind: Kind | None = None,
) -> Effect:
    """How far the contaminated model differs from the baseline in one trait; `compare_runs` without the tests.

    Args:
        trait: which.
        baseline, contaminated: rows of the two runs on the same prompts.
        replay: rows in which each model reads the other's replies; without them only the total is known.
        kind: of the scores, as in `compare_runs`.

    Raises:
        SettingError: no prompt in common, or rows that do not belong together.
    """
    return _effect(prompt_effects(trait, baseline, contaminated, replay, kind), n_resamples, 0, seed)


def prompt_effects(
    trait: str,
    baseline: Sequence[Row],
    contaminated: Sequence[Row],
    replay: Sequence[Row] = (),
    kind: Kind | None = None,
) -> list[PromptEffect]:
    """The effects on each prompt that all cells have. Arguments as in `effect`.

    Raises:
        SettingError: no prompt in common; rows of different vectors, blocks or nulls; a replay that read other ids.
    """
    rows = (*baseline, *contaminated, *replay)
    if rows:
        kind = kind or kind_of_rows(rows, rows[0]["traits"])
    kind = kind or "z"
    refuse_mixed_rows(rows, trait, kind)
    bb, cc = by_prompt(baseline, trait, kind), by_prompt(contaminated, trait, kind)
    cells = [bb, cc]
    if replay:
        of_b, of_c = reader_of(baseline), reader_of(contaminated)
        if of_b == of_c:
            raise SettingError(
                f"Both runs were read by {of_b[0]!r}, so a replay does not tell whose replies it read. Leave it out."
            )
        for reader, writer in ((of_c, of_b), (of_b, of_c)):
            own = [r for r in replay if reader_of([r]) == reader and r["writer"] == writer[0]]
            cells.append(by_prompt(own, trait, kind))
    # Ordered by both runs, so that swapping them changes no draw of the bootstrap.
    order = [{i: k for k, i in enumerate(cell)} for cell in (bb, cc)]
    shared = [i for i in bb if all(i in cell for cell in cells)]
    ids = sorted(shared, key=lambda i: (order[0][i] + order[1][i], i))
    if not ids:
        raise SettingError("The runs have no prompt in common.")
    for cell in cells:
        refuse_smoothed([cell[i].scores for i in ids])
    found = (_prompt_effect(trait, i, [cell[i] for cell in cells]) for i in ids)
    return [one for one in found if one is not None]


def token_differences(trace_a: Trace, trace_b: Trace, trait: str) -> np.ndarray:
    """b's score minus a's at every token of a text that both have read, float64 `[n_tokens]`; NaN at sink tokens.

    The scores are specific where both have them, else z. A token counts as a sink token if it is one for either.

    Raises:
        SettingError: different ids, vectors, blocks or nulls.
        UnknownTrait, NotCalibrated: as `Trace.scores`.
    """
    if trace_a.token_ids != trace_b.token_ids:
        raise SettingError(
            f"The two readings have different ids ({trace_a.n_tokens} and {trace_b.n_tokens} tokens); differences by "
            "token need one text. Have one model read the other's reply (persona replay)."
        )
    both, kind = (trace_a, trace_b), shared_kind((trace_a, trace_b))
    series = [checked(t.scores(trait, kind), f"Reading {name}") for t, name in zip(both, "ab", strict=True)]
    refuse_mixed({(t.provenance.vectors, t.best_block.get(trait), null_of(t, trait, kind)) for t in both})
    sink = np.any([t.sinks[t.blocks.index(t.best_block[trait])] for t in both], axis=0)
    return np.where(sink, np.nan, series[1] - series[0])


def means(rows: Sequence[Row], trait: str) -> dict[str, float]:
    """Prompt id -> mean of the row's own score ("specific" where it has it, else "z") over the reply tokens.

    Sink tokens, empty replies and rows without a null are left out.

    Raises:
        SettingError: the rows lack the trait, or a prompt occurs twice.
    """
    found: dict[str, float] = {}
    for row in one_per_prompt(rows, trait):
        value = row["summary"][trait]["mean"]
        if value is not None:
            found[row["id"]] = float(value)
    return found


def mean_over_prompts(values: Sequence[float], n_resamples: int = 1000, seed: int = 0) -> Estimate | None:
    """A mean with a 95 % interval over prompts; None for fewer than three.

    Coverage over 1000 data sets of 20 or 78 values: 94 to 95 % for normal values or a skewness of 1.8; 88 % and 93 %
    for a skewness of 6.2, where one prompt decides (`benchmarks.coverage`).

    >>> mean_over_prompts([0.0, 0.0, 0.0])
    Estimate(value=0.0, low=0.0, high=0.0, n=3)
    """
    array = np.asarray(values, float)
    return over_clusters(lambda w: float(w @ array / w.sum()), np.arange(len(array)), n_resamples, seed)


def by_category(rows: Sequence[Row], categories: Sequence[str] | None = None) -> dict[str, list[Row]]:
    """Rows by category, in the given order, or in order of appearance."""
    names = categories if categories is not None else list(dict.fromkeys(row["category"] for row in rows))
    return {name: [row for row in rows if row["category"] == name] for name in names}


# ---- figures ----


def _prompt_effect(trait: str, id: str, cells: Sequence[ReplyReading]) -> PromptEffect | None:
    """The cells are BB, CC and, with a replay, CB and BC. None where a text is nothing but sink tokens."""
    bb, cc = cells[:2]
    if bb.prompt != cc.prompt:
        raise SettingError(f"The text of prompt {id!r} differs between the two runs; they cannot be paired.")
    kept = []  # tokens of the baseline's text and of the contaminated model's that are a sink for none of their readers
    for readings in (cells[::2], cells[1::2]):
        written, *read = readings
        if any(written.ids != one.ids or len(written.scores) != len(one.scores) for one in read):
            raise SettingError(f"The replay read other ids for prompt {id!r}. Make it again from these runs.")
        kept.append(~np.any([one.sinks for one in readings], axis=0))
    if not all(tokens.any() for tokens in kept):
        return None
    of = [float(cell.scores[kept[k % 2]].mean()) for k, cell in enumerate(cells)]
    total, weights, text = _effects_of(of)
    with_sinks = dict(zip(EFFECTS, _effects_of([float(cell.scores.mean()) for cell in cells]), strict=True))
    n_sinks = sum(int((~tokens).sum()) for tokens in kept)
    cb, bc = of[2:] or (None, None)
    return PromptEffect(id, bb.category, trait, total, weights, text, of[0], of[1], cb, bc, with_sinks, n_sinks)


def _effects_of(cells: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Total, weights and text from the means of BB, CC and, with a replay, CB and BC."""
    bb, cc, *others = cells
    if not others:
        return cc - bb, None, None
    cb, bc = others
    return cc - bb, ((cb - bb) + (cc - bc)) / 2, ((bc - bb) + (cc - cb)) / 2


def _effect(prompts: Sequence[PromptEffect], n_resamples: int, n_permutations: int, seed: int) -> Effect:
    known = [name for name in EFFECTS if prompts and getattr(prompts[0], name) is not None]
    values = {name: np.array([getattr(p, name) for p in prompts]) for name in known}
    estimates = {name: _mean(d, n_resamples, seed) for name, d in values.items()}
    n_sinks = sum(p.n_sinks for p in prompts)
    with_sinks = estimates
    if n_sinks:
        put_back = {name: np.array([p.with_sinks[name] for p in prompts], float) for name in known}
        with_sinks = {name: _mean(d, n_resamples, seed) for name, d in put_back.items()}
    p = {name: sign_flip_p(d, n_permutations, seed) for name, d in values.items()} if n_permutations else None
    total, weights, text = (estimates.get(name) for name in EFFECTS)
    return Effect(total, weights, text, len(prompts), with_sinks, n_sinks, p)


def _mean(differences: np.ndarray, n_resamples: int, seed: int) -> Estimate | None:
    """As `mean_over_prompts`, and exactly antisymmetric: flipping all signs mirrors the interval.

    np.quantile interpolates from below, so the ends of mirrored samples may differ in the last digit. A mean below 0 is
    therefore computed with the other sign.
    """
    if not differences.sum() < 0:
        return mean_over_prompts(differences.tolist(), n_resamples, seed)
    found = mean_over_prompts((-differences).tolist(), n_resamples, seed)
    return found and Estimate(-found.value, -found.high, -found.low, found.n)


def _with_fdr(cells: Mapping[Any, Effect]) -> dict[Any, Effect]:
    """The effects with q-values over all their p-values."""
    names = [(key, name) for key, e in cells.items() for name in (e.p or {})]
    q = dict(zip(names, false_discovery([(cells[key].p or {})[name] for key, name in names]), strict=True))
    return {
        key: replace(e, q=None if e.p is None else {name: float(q[key, name] or 0.0) for name in e.p})
        for key, e in cells.items()
    }
