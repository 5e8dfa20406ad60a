"""Two readings of the same replies, compared: against figures worked out by hand."""

from __future__ import annotations

import pytest

from persona_core.analysis.detectors import Detectors
from persona_core.experiments.weights_difference import compare_readings
from persona_core.traces.dataset import load_results
from persona_core.traces.trace import Trace

VECTORS, RESULTS = "artifacts/persona-vectors-persona-tiny", "artifacts/persona-monitoring-persona-tiny"


@pytest.fixture(scope="module")
def stored() -> list[Trace]:
    return [Trace.from_row(row) for row in load_results(RESULTS, "contaminated")[:16]]


def moved(trace: Trace, trait: str, by: float) -> Trace:
    """The trace with a trait's z higher by a number at every token of the reply, at its best block."""
    i, column = trace.traits.index(trait), trace.blocks.index(trace.best_block[trait])
    raw = trace.raw.copy()
    raw[i, column, trace.reply_positions] += by * trace.null_std[i, column]
    return trace.replace(raw=raw)


def test_a_reading_differs_from_itself_in_nothing(stored: list[Trace]) -> None:
    found = compare_readings(stored, stored, Detectors.from_pretrained(VECTORS))
    assert found["n_replies"] == 16 and found["n_tokens"] == sum(len(t.reply_positions) for t in stored)
    assert found["sinks"] == 0
    assert all(value == 0 for spread in found["scores"].values() for value in spread.values())
    alarms = found["alarms"]
    assert alarms["n"] == alarms["agree"] == alarms["same"] == 16 * 8 and alarms["raised"] > 3


def test_differences_are_in_standard_deviations_over_tokens_and_traits(stored: list[Trace]) -> None:
    again = [moved(stored[0], "evil", 0.5), *stored[1:]]
    found = compare_readings(stored, again)
    share = len(stored[0].reply_positions) / found["n_tokens"] / 8
    assert 0.01 > share > 0, "so it is beyond the 99th percentile"
    z = found["scores"]["z"]
    assert z["largest"] == pytest.approx(0.5, rel=0.01) and z["median"] == 0 == z["p99"] and found["alarms"] is None
    lower = compare_readings(stored, [moved(t, "evil", -0.25) for t in stored])["scores"]["z"]
    assert lower["largest"] == lower["p99"] == pytest.approx(0.25, rel=0.01), "an eighth of all; signs do not count"
    assert found["scores"]["specific"]["largest"] > 0


def test_sink_tokens_of_either_reading_are_left_out_and_counted_where_they_differ(stored: list[Trace]) -> None:
    first = stored[0]
    at = first.reply_positions[3]
    again = moved(first, "evil", 0.5)
    raw, norms = again.raw.copy(), again.norms.copy()
    raw[:, :, at] += 1e4
    norms[:, at] = 1e6
    again = again.replace(raw=raw, norms=norms)
    for pair in ((first, again), (again, first)):
        found = compare_readings([pair[0]], [pair[1]])
        assert found["sinks"] == 1 and found["scores"]["z"]["largest"] == pytest.approx(0.5, rel=0.01)


def test_alarms_that_one_reading_lacks_are_counted(stored: list[Trace]) -> None:
    detectors = Detectors.from_pretrained(VECTORS)
    flattering = [i for i, trace in enumerate(stored) if detectors.find(trace, "sycophancy").alarm is not None]
    calm = moved(stored[flattering[0]], "sycophancy", -50.0)
    again = [calm if i == flattering[0] else trace for i, trace in enumerate(stored)]
    whole = compare_readings(stored, stored, detectors)["alarms"]
    found = compare_readings(stored, again, detectors)["alarms"]
    gone = sum(
        (detectors.find(stored[flattering[0]], t).alarm is None) != (detectors.find(calm, t).alarm is None)
        for t in stored[0].traits
    )
    assert gone >= 1 and found["agree"] == whole["agree"] - gone
    assert found["raised"] >= whole["raised"] and found["same"] <= found["agree"]
