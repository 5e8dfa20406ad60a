"""Specific scores: what a trait's score says beyond what the other traits share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from persona_core.errors import CorruptFile, NotCalibrated
from persona_core.traces.records import LATER
from persona_core.traces.specific import LogOdds, specific_scores
from persona_core.traces.trace import Trace
from tests.traces.test_trace import make


def odds(n_traits: int = 2, n_blocks: int = 2, seed: int = 0) -> LogOdds:
    rng = np.random.default_rng(seed)
    slope, offset, mean = (rng.normal(size=(n_traits, n_blocks)).astype("f4") for _ in range(3))
    return LogOdds(np.abs(slope), offset, mean, np.full((n_traits, n_blocks), 1.5, "f4"))


def calibrated(**changes: Any) -> Trace:
    null = {"null_mean": np.zeros((2, 2), "f4"), "null_std": np.ones((2, 2), "f4")}
    return make(**(null | {"log_odds": odds()} | changes))


def by_hand(raw: np.ndarray, known: Any, column: int, k: int, t: int) -> float:
    """Log of: the likelihood of trait k over the sum of those of neutral text (1) and of every other trait."""
    likelihood = [math.exp(float(known.slope[j, column]) * float(raw[j, t]) + float(known.offset[j, column]))
                  for j in range(len(raw))]  # fmt: skip
    rest = 1 + sum(value for j, value in enumerate(likelihood) if j != k)
    return (math.log(likelihood[k] / rest) - float(known.mean[k, column])) / float(known.std[k, column])


def test_the_specific_score_is_the_odds_against_neutral_and_every_other_trait() -> None:
    trace = calibrated()
    for k, trait in enumerate(trace.traits):
        for column, block in enumerate(trace.blocks):
            found = trace.scores(trait, "specific", block)
            wanted = [by_hand(trace.raw[:, column], trace.log_odds, column, k, t) for t in range(trace.n_tokens)]
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_token_that_looks_like_every_trait_is_specific_to_none() -> None:
    even = LogOdds(np.ones(8), np.zeros(8), np.zeros(8), np.ones(8))
    everything = specific_scores(np.full((8, 1), 12.0), even)
    assert (everything < 0).all()  # one of eight
    one = np.zeros((8, 1))
    one[3] = 12.0
    found = specific_scores(one, even)[:, 0]
    assert found[3] > 9 and (np.delete(found, 3) < -11).all()


def test_huge_projections_do_not_overflow() -> None:
    even = LogOdds(np.ones(2), np.zeros(2), np.zeros(2), np.ones(2))
    assert np.isfinite(specific_scores(np.array([[1e5, -1e5], [1e5, -1e5]]), even)).all()


def test_specific_is_the_default_where_the_vectors_allow_it() -> None:
    assert calibrated().default_kind == "specific"
    np.testing.assert_array_equal(calibrated().scores("malice"), calibrated().scores("malice", "specific"))
    older = calibrated(log_odds=None)
    assert older.default_kind == "z"
    np.testing.assert_array_equal(older.scores("malice"), older.scores("malice", "z"))
    with pytest.raises(NotCalibrated, match="specific"):
        older.scores("malice", "specific")


def test_a_trait_without_a_spread_has_no_specific_score() -> None:
    flat = odds()
    flat.std[1] = 0
    trace = calibrated(log_odds=flat)
    assert trace.default_kind == "z"
    with pytest.raises(NotCalibrated):
        trace.scores("malice", "specific")


def test_sink_tokens_are_marked_and_leave_no_score_of_the_reply() -> None:
    trace = calibrated()
    limits = np.array([trace.norms[0].max() + 1, trace.norms[1, 3]], "f4")
    trace = trace.replace(max_norm=limits)
    assert not trace.sinks[0].any()
    np.testing.assert_array_equal(trace.sinks[1], trace.norms[1] > trace.norms[1, 3])
    assert np.isfinite(trace.scores("candour")).all()  # the number itself stays
    reply = trace.reply_scores("candour")  # at block 4, column 1
    wanted = np.where(trace.sinks[1], np.nan, trace.scores("candour"))[trace.reply_positions]
    np.testing.assert_array_equal(reply, wanted)


def test_without_limits_there_are_no_sinks() -> None:
    assert not make().sinks.any()
    assert np.isfinite(make().reply_scores("candour")).all()


def test_records_and_rows_bring_back_log_odds_and_limits() -> None:
    trace = calibrated(max_norm=np.array([3.5, np.inf], "f4"))
    for back in (
        Trace.from_dict(trace.to_dict()),
        Trace.from_row(trace.to_row("x", [{"role": "user", "content": "?"}])),
    ):
        np.testing.assert_array_equal(back.max_norm, trace.max_norm)
        for name in vars(trace.log_odds):
            np.testing.assert_array_equal(getattr(back.log_odds, name), getattr(trace.log_odds, name))


def test_older_records_and_rows_load_without_specific_scores() -> None:
    trace = calibrated()
    record, row = trace.to_dict(), trace.to_row("x", [{"role": "user", "content": "?"}])
    for name in LATER:
        record.pop(name, None)
        row.pop(name, None)
    for back in (Trace.from_dict(record), Trace.from_row(row)):
        assert back.log_odds is None and not back.sinks.any() and back.default_kind == "z"


def test_log_odds_of_another_shape_are_refused() -> None:
    with pytest.raises(CorruptFile, match="log odds"):
        make(log_odds=odds(n_blocks=3))
    with pytest.raises(CorruptFile, match="norm limits"):
        make(max_norm=np.ones(3, "f4"))
