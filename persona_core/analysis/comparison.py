"""A model and a changed copy of it: what differs by the text, and what by the weights.

Two models write a reply to each prompt and each reads both replies: four cells, reader by writer, named by two letters,
the reader first (B the baseline, C the contaminated model).

- total: CC - BB, the difference of running both models
- weights: the readers differ on the same text, the mean of CB - BB and CC - BC
- text: the texts differ under the same reader, the mean of BC - BB and CC - CB

The total is the sum of the other two, prompt by prompt. Everything is paired by prompt, and the weights effect by token
as well: two readers of the same ids are compared at each token. Intervals resample prompts, never tokens: the tokens of
one reply are not independent. The p-value of an effect comes from flipping the signs of whole prompts at random (Fisher
1935). Swapping the two models flips every sign and changes nothing else, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from persona_core.analysis.paired_rows import (
    ReplyReading,
    Row,
    by_prompt,
    null_of,
    one_per_prompt,
    reader_of,
    refuse_mixed,
    refuse_mixed_rows,
)
from persona_core.analysis.series import checked, refuse_smoothed
from persona_core.analysis.statistics import Estimate, false_discovery, over_clusters, sign_flip_p
from persona_core.errors import SettingError
from persona_core.traces.trace import Trace

EFFECTS = ("total", "weights", "text")


@dataclass(frozen=True)
class Effect:
    """How far one trait differs, in mean z over the reply tokens.

    Attributes:
        total, weights, text: see the module; weights and text are None without a replay. An estimate is None where
            there are fewer than two prompts.
        n: prompts.
        p: effect -> two-sided p-value of the sign-flip permutation over prompts; None where not computed.
        q: effect -> the same after Benjamini-Hochberg over all traits and effects of one table.
    """

    total: Estimate | None
    weights: Estimate | None
    text: Estimate | None
    n: int
    p: Mapping[str, float] | None = None
    q: Mapping[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """`{"n", "total", "weights", "text"}`; each effect is None or `{"value", "low", "high", "n", "p", "q"}`."""
        found: dict[str, Any] = {"n": self.n}
        for name in EFFECTS:
            estimate: Estimate | None = getattr(self, name)
            found[name] = estimate and {
                **estimate.to_dict(),
                "p": (self.p or {}).get(name),
                "q": (self.q or {}).get(name),
            }
        return found


@dataclass(frozen=True)
class PromptEffect:
    """One trait on one prompt.

    Attributes:
        id, category: of the prompt.
        trait: which.
        total, weights, text: see the module; None without a replay.
        bb, cc, cb, bc: mean z over the reply tokens in the four cells, the reader first; the last two None without a
            replay.
    """

    id: str
    category: str
    trait: str
    total: float
    weights: float | None
    text: float | None
    bb: float
    cc: float
    cb: float | None
    bc: float | None

    def to_dict(self) -> dict[str, Any]:
        return {k: round(v, 5) if isinstance(v, float) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class Comparison:
    """Two models compared.

    Attributes:
        baseline, contaminated: the two readers.
        overall: trait -> effect over all prompts.
        categories: trait -> category -> effect, with q-values over this table alone.
        prompts: a record for each trait and prompt.
        left_out: prompts that are missing from a cell, or whose reply is empty.
    """

    baseline: str | None
    contaminated: str | None
    overall: Mapping[str, Effect]
    categories: Mapping[str, Mapping[str, Effect]]
    prompts: tuple[PromptEffect, ...]
    left_out: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "baseline": self.baseline,
            "contaminated": self.contaminated,
            "overall": {trait: e.to_dict() for trait, e in self.overall.items()},
            "categories": {
                trait: {name: e.to_dict() for name, e in table.items()} for trait, table in self.categories.items()
            },
            "prompts": [p.to_dict() for p in self.prompts],
            "left_out": list(self.left_out),
        }


def compare_runs(
    baseline: Sequence[Row],
    contaminated: Sequence[Row],
    replay: Sequence[Row] = (),
    traits: Sequence[str] | None = None,
    n_resamples: int = 1000,
    n_permutations: int = 9999,
    seed: int = 0,
) -> Comparison:
    """The whole comparison: overall, by category, and prompt by prompt.

    Args:
        baseline, contaminated: rows of the two runs on the same prompts.
        replay: rows in which each model reads the other's replies; without them only the total is known.
        traits: which; None: all.
        n_resamples: of the bootstrap over prompts.
        n_permutations: of the signs; for up to 13 prompts all are tried.
        seed: of both.

    Raises:
        SettingError: no prompt in common, or rows that do not belong together.
    """
    if not baseline or not contaminated:
        raise SettingError("The runs have no prompt in common: one of them is empty.")
    names = tuple(baseline[0]["traits"] if traits is None else traits)
    records = {trait: prompt_effects(trait, baseline, contaminated, replay) for trait in names}
    overall = {t: _effect(own, n_resamples, n_permutations, seed) for t, own in records.items()}
    groups = list(dict.fromkeys(p.category for own in records.values() for p in own))
    cells = {
        (t, c): _effect([p for p in own if p.category == c], n_resamples, n_permutations, seed)
        for t, own in records.items()
        for c in groups
    }
    cells = _with_fdr(cells)
    used = {p.id for own in records.values() for p in own}
    ids = dict.fromkeys(row["id"] for row in (*baseline, *contaminated))
    return Comparison(
        baseline=reader_of(baseline)[0],
        contaminated=reader_of(contaminated)[0],
        overall=_with_fdr(overall),
        categories={t: {c: cells[t, c] for c in groups} for t in names},
        prompts=tuple(p for own in records.values() for p in own),
        left_out=tuple(i for i in ids if i not in used),
    )


def effect(
    trait: str,
    baseline: Sequence[Row],
    contaminated: Sequence[Row],
    replay: Sequence[Row] = (),
    n_resamples: int = 1000,
    seed: int = 0,
) -> Effect:
    """How far the contaminated model differs from the baseline in one trait; `compare_runs` without the tests.

    Args:
        trait: which.
        baseline, contaminated: rows of the two runs on the same prompts.
        replay: rows in which each model reads the other's replies; without them only the total is known.

    Raises:
        SettingError: no prompt in common, or rows that do not belong together.
    """
    return _effect(prompt_effects(trait, baseline, contaminated, replay), n_resamples, 0, seed)


def prompt_effects(
    trait: str, baseline: Sequence[Row], contaminated: Sequence[Row], replay: Sequence[Row] = ()
) -> list[PromptEffect]:
    """The effects on each prompt that all cells have.

    Raises:
        SettingError: no prompt in common; rows of different vectors, blocks or nulls; a replay that read other ids.
    """
    refuse_mixed_rows((*baseline, *contaminated, *replay), trait)
    bb, cc = by_prompt(baseline, trait), by_prompt(contaminated, trait)
    cells = [bb, cc]
    if replay:
        of_b, of_c = reader_of(baseline), reader_of(contaminated)
        if of_b == of_c:
            raise SettingError(
                f"Both runs were read by {of_b[0]!r}, so a replay does not tell whose replies it read. Leave it out."
            )
        for reader, writer in ((of_c, of_b), (of_b, of_c)):
            own = [r for r in replay if reader_of([r]) == reader and r["writer"] == writer[0]]
            cells.append(by_prompt(own, trait))
    # Ordered by both runs, so that swapping them changes no draw of the bootstrap.
    order = [{i: k for k, i in enumerate(cell)} for cell in (bb, cc)]
    shared = [i for i in bb if all(i in cell for cell in cells)]
    ids = sorted(shared, key=lambda i: (order[0][i] + order[1][i], i))
    if not ids:
        raise SettingError("The runs have no prompt in common.")
    for cell in cells:
        refuse_smoothed([cell[i].z for i in ids])
    return [_prompt_effect(trait, i, [cell[i] for cell in cells]) for i in ids]


def token_differences(trace_a: Trace, trace_b: Trace, trait: str) -> np.ndarray:
    """z of b's reader minus z of a's, at every token of a text that both have read, float64 `[n_tokens]`.

    Raises:
        SettingError: different ids, vectors, blocks or nulls.
        UnknownTrait, NotCalibrated: as `Trace.scores`.
    """
    if trace_a.token_ids != trace_b.token_ids:
        raise SettingError(
            f"The two readings have different ids ({trace_a.n_tokens} and {trace_b.n_tokens} tokens); differences by "
            "token need one text. Have one model read the other's reply (persona replay)."
        )
    series = [checked(t.scores(trait), f"Reading {name}") for t, name in ((trace_a, "a"), (trace_b, "b"))]
    kinds = [(t.provenance.vectors, t.best_block.get(trait), null_of(t, trait)) for t in (trace_a, trace_b)]
    refuse_mixed(set(kinds))
    return series[1] - series[0]


def means(rows: Sequence[Row], trait: str) -> dict[str, float]:
    """Prompt id -> mean z of the reply tokens; empty replies and rows without a null are left out.

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


def _prompt_effect(trait: str, id: str, cells: Sequence[ReplyReading]) -> PromptEffect:
    bb, cc = cells[:2]
    if bb.prompt != cc.prompt:
        raise SettingError(f"The text of prompt {id!r} differs between the two runs; they cannot be paired.")
    of = [float(cell.z.mean()) for cell in cells]
    if len(cells) == 2:
        return PromptEffect(id, bb.category, trait, of[1] - of[0], None, None, of[0], of[1], None, None)
    cb, bc = cells[2:]
    for written, read in ((bb, cb), (cc, bc)):
        if written.ids != read.ids or len(written.z) != len(read.z):
            raise SettingError(f"The replay read other ids for prompt {id!r}. Make it again from these runs.")
    of_bb, of_cc, of_cb, of_bc = of
    weights = (float((cb.z - bb.z).mean()) + float((cc.z - bc.z).mean())) / 2
    text = ((of_bc - of_bb) + (of_cc - of_cb)) / 2
    return PromptEffect(id, bb.category, trait, of_cc - of_bb, weights, text, of_bb, of_cc, of_cb, of_bc)


def _effect(prompts: Sequence[PromptEffect], n_resamples: int, n_permutations: int, seed: int) -> Effect:
    known = [name for name in EFFECTS if prompts and getattr(prompts[0], name) is not None]
    values = {name: np.array([getattr(p, name) for p in prompts]) for name in known}
    estimates = {name: _mean(d, n_resamples, seed) for name, d in values.items()}
    p = {name: sign_flip_p(d, n_permutations, seed) for name, d in values.items()} if n_permutations else None
    return Effect(estimates.get("total"), estimates.get("weights"), estimates.get("text"), len(prompts), p)


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
