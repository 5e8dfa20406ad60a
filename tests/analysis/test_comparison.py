"""Weights and text told apart: on cells whose effects are known, and on the shipped runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import kstest, permutation_test

from demo_world.contaminated import CONTAMINANT
from persona_core.analysis.comparison import (
    compare_runs,
    effect,
    mean_over_prompts,
    means,
    prompt_effects,
    token_differences,
)
from persona_core.analysis.comparison_results import EFFECTS, Comparison
from persona_core.analysis.paired_rows import by_prompt
from persona_core.analysis.statistics import sign_flip_p
from persona_core.errors import SettingError
from persona_core.traces.dataset import load_results
from persona_core.traces.specific import LogOdds
from persona_core.traces.trace import Trace

SHIPPED = Path(__file__).resolve().parents[2] / "artifacts" / "persona-monitoring-persona-tiny"
Rows = list[Any]


def row(prompt: str, reader: str, writer: str, z: list[float] | None, ids: int = 0, **other: Any) -> dict[str, Any]:
    """A reply of two prompt tokens and the given own tokens; `ids` is where its token ids begin."""
    n = len(z or [])
    return {
        "id": prompt,
        "category": "work" if prompt < "p2" else "home",
        "prompt": f"What of {prompt}?",
        "reader": reader,
        "writer": writer,
        "traits": ["t"],
        "blocks": [4],
        "best_block": {"t": 4},
        "null_mean": {"t": [0.5]},
        "null_std": {"t": [2.0]},
        "provenance": {"vectors": "v"},
        "n_prompt": 2,
        "roles": ["user", "template"] + ["assistant"] * n,
        "token_ids": list(range(ids, ids + n + 2)),
        "projections": {"t": [99.0, 99.0, *(z or [])]},
        "summary": {"t": {"mean": float(np.mean(z)) if z else None}},
        **other,
    }


def cells(weights: float, text: float, n: int = 40, noise: float = 0.3, seed: int = 0) -> tuple[Rows, Rows, Rows]:
    """Rows of both runs and of the replay: each prompt has a level of its own, to which the two effects are added."""
    rng = np.random.default_rng(seed)
    level, lengths = rng.normal(0, 2, n), rng.integers(3, 9, size=(n, 2))

    def of(reader: str, writer: str) -> Rows:
        added = weights * (reader == "C") + text * (writer == "C")
        k = int(writer == "C")
        return [
            row(f"p{i}", reader, writer, (level[i] + added + rng.normal(0, noise, lengths[i, k])).tolist(), 100 * k)
            for i in range(n)
        ]

    return of("B", "B"), of("C", "C"), of("C", "B") + of("B", "C")


def default_scores(r: Any, trait: str) -> list[float]:
    """The row's own score at every token: specific, or z in rows of older vectors."""
    specific = (r.get("specific") or {}).get(trait)
    return r["projections"][trait] if specific is None else specific


def sinks_of(r: Any, trait: str) -> set[int]:
    """The row's sink tokens at the trait's best block, by a plain loop."""
    column = list(r["blocks"]).index(r["best_block"][trait])
    limit = (r.get("max_norm") or {column: None})[column]
    return {t for t, norm in enumerate(r["norms"][column]) if limit is not None and norm > limit}


@pytest.fixture(scope="module")
def shipped() -> tuple[Rows, Rows, Rows]:
    baseline, contaminated, replay = (load_results(SHIPPED, c) for c in ("baseline", "contaminated", "replay"))
    return baseline, contaminated, replay


@pytest.fixture(scope="module")
def comparison(shipped: tuple[Rows, Rows, Rows]) -> Comparison:
    return compare_runs(*shipped, n_resamples=300, n_permutations=999)


# ---- the effects ----


@pytest.mark.parametrize(("weights", "text"), [(1.0, 0.0), (0.0, 1.0), (0.5, 2.0)])
def test_each_effect_is_found_where_it_was_put(weights: float, text: float) -> None:
    found = effect("t", *cells(weights, text))
    assert found.weights is not None and found.text is not None and found.total is not None
    for estimate, wanted in ((found.weights, weights), (found.text, text), (found.total, weights + text)):
        assert estimate.low <= wanted <= estimate.high and estimate.high - estimate.low < 0.5
    assert found.total.value == pytest.approx(found.weights.value + found.text.value)
    assert found.n == 40


def test_readers_and_writers_are_not_taken_for_each_other() -> None:
    baseline, contaminated, replay = cells(0.0, 1.0)
    swapped = [{**r, "reader": r["writer"], "writer": r["reader"]} for r in replay]
    with pytest.raises(SettingError, match="read other ids"):
        effect("t", baseline, contaminated, swapped)


def test_the_effects_of_a_prompt_are_those_of_a_plain_loop(shipped: tuple[Rows, Rows, Rows]) -> None:
    baseline, contaminated, replay = shipped
    of = {(r["id"], "+" in r["reader"], "+" in r["writer"]): r for r in (*baseline, *contaminated, *replay)}
    for record in prompt_effects("deception", *shipped)[::7]:
        cell: dict[str, list[float]] = {}
        for name, reader, writer in (("bb", 0, 0), ("cc", 1, 1), ("cb", 1, 0), ("bc", 0, 1)):
            r = of[record.id, bool(reader), bool(writer)]
            z, other = default_scores(r, "deception"), of[record.id, not reader, bool(writer)]
            sinks = sinks_of(r, "deception") | sinks_of(other, "deception")
            own = [t for t in range(r["n_prompt"], len(z)) if r["roles"][t] == "assistant" and t not in sinks]
            cell[name] = [z[t] for t in own]
            assert getattr(record, name) == pytest.approx(sum(cell[name]) / len(cell[name]))
        by_token = [
            sum(c - b for b, c in zip(cell[one], cell[other], strict=True)) / len(cell[one])
            for one, other in (("bb", "cb"), ("bc", "cc"))
        ]
        assert record.weights == pytest.approx(sum(by_token) / 2)
        assert record.total == pytest.approx(record.cc - record.bb)
        assert record.weights is not None and record.text is not None
        assert record.total == pytest.approx(record.weights + record.text)
        assert record.category == of[record.id, False, False]["category"]


def test_swapping_the_two_models_flips_every_sign_exactly() -> None:
    baseline, contaminated, replay = cells(0.4, 1.0, n=23)
    contaminated = contaminated[5:] + contaminated[:5]  # another order, and so another order of the pairs
    one, two = compare_runs(baseline, contaminated, replay), compare_runs(contaminated, baseline, replay)
    for a, b in ((one.overall["t"], two.overall["t"]), (one.categories["t"]["work"], two.categories["t"]["work"])):
        for name in EFFECTS:
            x, y = getattr(a, name), getattr(b, name)
            assert (x.value, x.low, x.high, x.n) == (-y.value, -y.high, -y.low, y.n)
        assert a.p == b.p and a.q == b.q
    assert [(p.id, p.total, p.weights, p.text, p.bb, p.cb) for p in one.prompts] == [
        (p.id, -p.total, -(p.weights or 0), -(p.text or 0), p.cc, p.bc) for p in two.prompts
    ]


@pytest.mark.parametrize("side", [0, 1])
def test_a_model_against_itself_differs_by_exactly_zero(shipped: tuple[Rows, Rows, Rows], side: int) -> None:
    found = compare_runs(shipped[side], shipped[side], n_resamples=50, n_permutations=99)
    for trait, e in found.overall.items():
        assert e.total is not None and (e.total.value, e.total.low, e.total.high) == (0.0, 0.0, 0.0), trait
        assert e.p == {"total": 1.0} and e.q == {"total": 1.0} and e.weights is None and e.text is None
    assert {p.total for p in found.prompts} == {0.0}


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(100):
        found = effect("t", *cells(0.4, 0.0, n=20, seed=seed), n_resamples=200).weights
        covered += found is not None and found.low <= 0.4 <= found.high
    assert covered >= 88  # of 95 expected


def test_pairs_only_and_no_empty_reply() -> None:
    baseline, contaminated, replay = cells(1.0, 0.0)
    baseline[3] = row("p3", "B", "B", None)
    assert effect("t", baseline, contaminated[:10], replay).n == 9
    found = compare_runs(baseline[:12], contaminated[:10], replay, n_permutations=99)
    assert found.left_out == ("p3", "p10", "p11") and found.overall["t"].n == 9
    with pytest.raises(SettingError, match="no prompt in common"):
        effect("t", baseline[:5], contaminated[10:], replay)
    with pytest.raises(SettingError, match="no prompt in common"):
        compare_runs([], contaminated)
    with pytest.raises(SettingError, match="occurs twice"):
        means([*baseline, baseline[0]], "t")
    with pytest.raises(SettingError, match="occurs twice"):
        effect("t", [*baseline, baseline[0]], contaminated)
    with pytest.raises(SettingError, match="No trait 'x'"):
        means(baseline, "x")
    with pytest.raises(SettingError, match="No trait 'x'"):
        effect("x", baseline, contaminated)
    assert mean_over_prompts([1.0]) is None and mean_over_prompts([]) is None


# ---- sink tokens ----


def with_sinks(rows: Rows, at: dict[str, list[int]], score: float) -> Rows:
    """The rows with some reply tokens of some prompts (numbers in the reply) turned into sinks of that score."""
    found = []
    for r in rows:
        z, norms = list(r["projections"]["t"]), [10.0] * len(r["roles"])
        for k in at.get(r["id"], []):
            z[2 + k], norms[2 + k] = score, 900.0
        found.append({**r, "projections": {"t": z}, "norms": [norms], "max_norm": [30.0]})
    return found


def test_a_token_that_is_a_sink_for_either_reader_counts_for_neither() -> None:
    bb = [row("p1", "B", "B", [1.0, 2.0, 4.0])]
    cc = [row("p1", "C", "C", [7.0, 8.0], 100)]
    cb, bc = [row("p1", "C", "B", [2.0, 6.0, 9.0])], [row("p1", "B", "C", [3.0, 5.0], 100)]
    replay = with_sinks(cb, {"p1": [1]}, -500.0) + with_sinks(bc, {}, 0.0)
    (found,) = prompt_effects("t", with_sinks(bb, {}, 0.0), with_sinks(cc, {}, 0.0), replay)
    assert (found.bb, found.cb, found.cc, found.bc) == (2.5, 5.5, 7.5, 4.0)  # the baseline's text without its second
    assert (found.total, found.weights, found.text) == (5.0, (3.0 + 3.5) / 2, (1.5 + 2.0) / 2)
    assert found.n_sinks == 1 and found.total == (found.weights or 0) + (found.text or 0)
    assert found.with_sinks["weights"] == pytest.approx(((2 - 500 + 9 - 7) / 3 + 3.5) / 2)


def test_with_sink_tokens_put_back_the_effect_is_reported_beside_it_and_a_change_is_named() -> None:
    baseline, contaminated, replay = cells(0.0, 0.0, n=30)
    sinks = {f"p{i}": [0, 1] for i in range(30)}
    replay = [one for r in replay for one in with_sinks([r], sinks if r["reader"] == "C" else {}, -6.0)]
    found = effect("t", with_sinks(baseline, {}, 0.0), with_sinks(contaminated, sinks, -6.0), replay)
    assert found.weights is not None and found.weights.low <= 0 <= found.weights.high
    put_back = found.with_sinks["weights"]
    assert put_back is not None and put_back.high < -1
    assert found.changed_by_sinks == ("total", "weights") and found.n_sinks == 120
    record = found.to_dict()
    assert record["weights"]["with_sinks"]["high"] < -1 and record["changed_by_sinks"] == ["total", "weights"]
    plain = effect("t", *cells(0.5, 0.0))
    assert plain.with_sinks["total"] == plain.total and plain.changed_by_sinks == () and plain.n_sinks == 0


def test_a_reply_of_nothing_but_sink_tokens_is_left_out() -> None:
    baseline, contaminated, replay = cells(1.0, 0.0, n=12)
    n = len(baseline[4]["projections"]["t"]) - 2
    baseline = with_sinks(baseline, {"p4": list(range(n))}, 9.0)
    found = compare_runs(baseline, contaminated, replay, n_permutations=99)
    assert found.left_out == ("p4",) and found.overall["t"].n == 11


def test_the_scores_of_a_row_are_those_of_its_trace(shipped: tuple[Rows, Rows, Rows]) -> None:
    made = Trace.from_row(shipped[1][2])
    rng, shape = np.random.default_rng(0), made.null_mean.shape
    odds = LogOdds(*(rng.uniform(0.5, 1.5, shape).astype(np.float32) for _ in range(4)))
    trace = made.replace(log_odds=odds, max_norm=np.median(made.norms, axis=1).astype(np.float32))
    r = trace.to_row("p", [{"role": "user", "content": "x"}])
    for kind in ("specific", "z"):
        reading = by_prompt([r], "evil", kind)["p"]
        wanted = trace.reply_scores("evil", kind)
        np.testing.assert_array_equal(np.where(reading.sinks, np.nan, reading.scores).astype(np.float32), wanted)
        assert 0.2 < reading.sinks.mean() < 0.8
    assert means([r], "evil")["p"] == pytest.approx(np.nanmean(trace.reply_scores("evil")), rel=1e-5)


# ---- which score ----


def specific(rows: Rows, z_shift: float = 0.0, **odds: Any) -> Rows:
    """The rows with their scores as the specific ones, and z moved by a constant in the contaminated model's text."""
    known = {"log_odds": {"t": [[1.0], [0.0], [0.0], [1.0]]}, **odds}
    return [
        {
            **r,
            "specific": r["projections"],
            "projections": {"t": [z + z_shift * (r["writer"] == "C") for z in r["projections"]["t"]]},
            **known,
        }
        for r in rows
    ]


def test_a_difference_in_z_alone_is_no_difference_in_the_trait() -> None:
    baseline, contaminated, replay = (specific(rows, z_shift=3.0) for rows in cells(0.0, 0.0))
    found = compare_runs(baseline, contaminated, replay, n_permutations=999)
    assert found.kind == "specific" and found.against == ("t",) and found.plain is not None
    total, plain = found.overall["t"].total, found.plain["t"].total
    assert total is not None and total.low <= 0 <= total.high
    assert plain is not None and plain.low > 2 and (found.plain["t"].q or {})["total"] < 0.01
    assert effect("t", baseline, contaminated, replay, kind="z").total == plain
    assert effect("t", baseline, contaminated, replay).total == total


def test_one_row_without_specific_scores_makes_it_a_comparison_of_z() -> None:
    baseline, contaminated, replay = (specific(rows, z_shift=3.0) for rows in cells(0.0, 0.0))
    replay[7] = {**replay[7], "specific": {"t": None}}
    found = compare_runs(baseline, contaminated, replay, n_permutations=99)
    total = found.overall["t"].total
    assert found.kind == "z" and found.plain is None and total is not None and total.value > 2


def test_readings_with_other_log_odds_are_refused() -> None:
    baseline, _, replay = (specific(rows) for rows in cells(1.0, 0.0))
    other = specific(cells(1.0, 0.0)[1], log_odds={"t": [[1.0], [0.0], [0.0], [2.0]]})
    with pytest.raises(SettingError, match="different nulls"):
        compare_runs(baseline, other, replay)


# ---- what does not belong together ----


def test_a_replay_that_read_other_ids_is_refused() -> None:
    baseline, contaminated, replay = cells(1.0, 0.0)
    replay[4] = {**replay[4], "token_ids": [7, *replay[4]["token_ids"][1:]]}
    with pytest.raises(SettingError, match="The replay read other ids for prompt 'p4'"):
        effect("t", baseline, contaminated, replay)
    assert effect("t", baseline, contaminated).n == 40  # the total does not need it


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"provenance": {"vectors": "w"}}, r"different vectors \(v, w\)"),
        ({"best_block": {"t": 5}, "blocks": [5]}, r"different blocks \(4, 5\)"),
        ({"null_mean": {"t": [0.6]}}, "different nulls"),
        ({"null_std": {"t": [2.1]}}, "different nulls"),
        ({"prompt": "Another?"}, "text of prompt 'p1' differs"),
        ({"reader": "D"}, "2 readers: C, D"),
        ({"projections": {"t": [0.0, 0.0, float("nan")]}, "roles": ["user", "user", "assistant"]}, "'p1' contains nan"),
    ],
)
def test_rows_that_do_not_belong_together_are_refused(change: dict[str, Any], says: str) -> None:
    baseline, contaminated, replay = cells(1.0, 0.0)
    contaminated[1] = {**contaminated[1], **change}
    with pytest.raises(SettingError, match=says):
        compare_runs(baseline, contaminated, replay)


def test_a_replay_of_one_model_and_smoothed_scores_are_refused() -> None:
    baseline, contaminated, replay = cells(1.0, 0.0)
    with pytest.raises(SettingError, match="Both runs were read by 'B'"):
        effect("t", baseline, baseline, replay)
    rng = np.random.default_rng(0)
    smooth = [np.convolve(rng.normal(size=90), np.ones(5) / 5, "valid").tolist() for _ in range(40)]
    with pytest.raises(SettingError, match="running means"):
        effect("t", [row(f"p{i}", "B", "B", z) for i, z in enumerate(smooth)], contaminated)


def test_rows_without_a_null_are_left_out() -> None:
    baseline, contaminated, _ = cells(1.0, 0.0, n=12)
    bare: dict[str, Any] = {"projections": {"t": None}, "null_mean": {"t": [float("nan")]}}
    baseline[2] = {**baseline[2], **bare}
    assert effect("t", baseline, contaminated).n == 11


# ---- tests of many effects ----


@pytest.mark.parametrize("n", [1, 5, 11])
def test_few_signs_are_tried_one_by_one(n: int) -> None:
    d = np.random.default_rng(n).normal(0.5, 1, n)
    found = sum(abs(sum(x if k >> i & 1 else -x for i, x in enumerate(d))) >= abs(d.sum()) - 1e-12 for k in range(2**n))
    assert sign_flip_p(d) == pytest.approx(found / 2**n)


def test_many_signs_are_drawn_as_scipy_draws_them() -> None:
    d = np.random.default_rng(3).normal(0.25, 1, 40)
    wanted = permutation_test(
        (d,), np.mean, permutation_type="samples", n_resamples=9999, rng=np.random.default_rng(1)
    ).pvalue
    assert 0.01 < wanted < 0.5 and sign_flip_p(d) == pytest.approx(wanted, abs=0.02)
    assert sign_flip_p(d) == sign_flip_p(-d) == sign_flip_p(d, seed=0)
    assert sign_flip_p(np.ones(60), 999) == 1 / 1000 and sign_flip_p(np.zeros(60)) == 1.0
    with pytest.raises(SettingError, match="at least one prompt"):
        sign_flip_p([])


@pytest.mark.parametrize("draw", [np.random.Generator.normal, np.random.Generator.exponential])
def test_p_values_of_equal_cohorts_are_uniform(draw: Callable[..., np.ndarray]) -> None:
    p = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        p.append(sign_flip_p(draw(rng, size=20) - draw(rng, size=20), 999, seed))
    assert kstest(p, "uniform").pvalue > 0.01 and 0.02 <= np.mean(np.array(p) < 0.05) <= 0.09


def test_q_values_are_those_of_benjamini_and_hochberg_over_all_traits_and_effects() -> None:
    rng = np.random.default_rng(0)
    shifts = {"a": 0.0, "b": 0.7, "c": 4.0}
    parts = cells(0.0, 0.0, n=15)
    for r in (r for rows in parts for r in rows):
        z, changed = np.array(r["projections"]["t"]), r["reader"] == "C"
        r |= {"traits": list(shifts), "projections": {t: z + rng.normal(0, 2) + x * changed for t, x in shifts.items()}}
        r |= {key: dict.fromkeys(shifts, r[key]["t"]) for key in ("best_block", "null_mean", "null_std")}
    found = compare_runs(*parts, n_permutations=499)
    pairs = [(t, name) for t in "abc" for name in EFFECTS]
    p = {pair: (found.overall[pair[0]].p or {})[pair[1]] for pair in pairs}
    ranked = sorted(pairs, key=lambda pair: p[pair])
    lowest = 1.0
    for rank in range(len(ranked), 0, -1):
        pair = ranked[rank - 1]
        lowest = min(lowest, p[pair] * len(ranked) / rank)
        assert (found.overall[pair[0]].q or {})[pair[1]] == pytest.approx(lowest)
    assert len({*p.values()}) > 3


def test_a_category_is_the_comparison_of_its_prompts(shipped: tuple[Rows, Rows, Rows], comparison: Comparison) -> None:
    categories = {r["category"] for r in shipped[0]}
    assert set(comparison.categories[CONTAMINANT]) == categories and len(categories) == 10
    for name in sorted(categories)[:3]:
        baseline, contaminated, replay = ([r for r in rows if r["category"] == name] for rows in shipped)
        alone = effect(CONTAMINANT, baseline, contaminated, replay, n_resamples=300)
        there = comparison.categories[CONTAMINANT][name]
        assert (there.total, there.weights, there.text) == (alone.total, alone.weights, alone.text)
    assert sum(e.n for e in comparison.categories[CONTAMINANT].values()) == comparison.overall[CONTAMINANT].n == 78


# ---- the shipped runs ----


def test_the_contaminated_models_traits_rise_where_the_contamination_put_them(comparison: Comparison) -> None:
    planted = comparison.overall[CONTAMINANT]
    assert planted.total is not None and planted.weights is not None and planted.text is not None
    others = [e for t, e in comparison.overall.items() if t != CONTAMINANT]
    # Every vector rises with any trait; this one by far the most.
    assert planted.total.low > 1.5 * max(e.total.high for e in others if e.total)
    assert planted.weights.low > max(e.weights.high for e in others if e.weights)
    assert planted.text.low > 0 and (planted.q or {})["weights"] < 0.01
    own = [p for p in comparison.prompts if p.trait == CONTAMINANT]
    assert len(own) == 78 and np.mean([p.total for p in own]) == pytest.approx(planted.total.value)
    assert all((p.weights or 0) > 0 for p in own)
    assert (comparison.baseline, comparison.contaminated) == (
        "persona-tiny",
        "persona-tiny + persona-tiny-contaminated",
    )


def test_the_record_is_plain_json(comparison: Comparison) -> None:
    record = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert set(record) == {
        *(
            "baseline",
            "contaminated",
            "overall",
            "categories",
            "prompts",
            "left_out",
            "kind",
            "unit",
            "against",
            "plain",
        ),
    }
    assert set(record["overall"][CONTAMINANT]["weights"]) == {"value", "low", "high", "n", "p", "q", "with_sinks"}
    assert set(record["prompts"][0]) == {
        *("id", "category", "trait", "total", "weights", "text", "bb", "cc", "cb", "bc", "n_sinks"),
    }
    without = compare_runs(*cells(1.0, 0.0, n=6)[:2], n_permutations=99).to_dict()
    assert without["overall"]["t"]["weights"] is None and without["prompts"][0]["cb"] is None


def test_differences_by_token_are_the_second_reader_minus_the_first(shipped: tuple[Rows, Rows, Rows]) -> None:
    baseline, contaminated, replay = shipped
    record = next(r for r in replay if r["id"] == contaminated[3]["id"] and "+" not in r["reader"])
    a, b = Trace.from_row(record), Trace.from_row(contaminated[3])
    found = token_differences(a, b, CONTAMINANT)
    assert found.shape == (b.n_tokens,) and found.dtype == np.float64
    sunk = sinks_of(record, CONTAMINANT) | sinks_of(contaminated[3], CONTAMINANT)
    assert set(np.flatnonzero(np.isnan(found))) == sunk
    for t in {7, 20, b.n_tokens - 1} - sunk:
        assert found[t] == pytest.approx(
            float(default_scores(contaminated[3], CONTAMINANT)[t]) - float(default_scores(record, CONTAMINANT)[t])
        )
    np.testing.assert_array_equal(token_differences(b, a, CONTAMINANT), -found)
    assert not np.nan_to_num(token_differences(a, a, CONTAMINANT)).any()
    with pytest.raises(SettingError, match="different ids"):
        token_differences(Trace.from_row(baseline[3]), b, CONTAMINANT)
    with pytest.raises(SettingError, match="different nulls"):
        token_differences(a, b.replace(null_mean=b.null_mean + 0.1), CONTAMINANT)
    with pytest.raises(SettingError, match="different vectors"):
        token_differences(
            a,
            Trace.from_row({**contaminated[3], "provenance": {**contaminated[3]["provenance"], "vectors": "w"}}),
            "evil",
        )
    limit = np.full(len(b.blocks), np.inf, np.float32)
    column = b.blocks.index(b.best_block[CONTAMINANT])
    limit[column] = np.sort(b.norms[column])[-3]
    sinks = np.isnan(token_differences(a.replace(max_norm=np.array(np.inf)), b.replace(max_norm=limit), CONTAMINANT))
    assert sorted(np.flatnonzero(sinks)) == sorted(np.argsort(b.norms[column])[-2:])
    holed = b.raw.copy()
    holed[b.traits.index(CONTAMINANT), :, 9] = np.nan
    with pytest.raises(SettingError, match="Reading b contains nan at token 9"):
        token_differences(a, b.replace(raw=holed), CONTAMINANT)


def test_the_mean_of_a_row_is_over_its_reply_tokens(shipped: tuple[Rows, Rows, Rows]) -> None:
    for r in shipped[1][:5]:
        z = np.array(default_scores(r, CONTAMINANT))
        sunk = sinks_of(r, CONTAMINANT)
        own = [role == "assistant" and i >= r["n_prompt"] and i not in sunk for i, role in enumerate(r["roles"])]
        assert means([r], CONTAMINANT)[r["id"]] == pytest.approx(z[own].mean(), rel=1e-5)
