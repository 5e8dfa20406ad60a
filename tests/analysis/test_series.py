"""A score that is not finite is no "nothing happened": it is refused, except at sink tokens, which have no score."""

from __future__ import annotations

import numpy as np
import pytest

from persona_core.analysis.detectors import Detectors, calibrate_detectors
from persona_core.analysis.held_out_alarms import held_out_alarms
from persona_core.analysis.series import checked_replies, finite_scores
from persona_core.errors import SettingError
from persona_core.traces.specific import LogOdds
from persona_core.traces.trace import Trace
from tests.analysis.test_null_card import read

ODDS = LogOdds(*(np.full((2, 2), v, np.float32) for v in (1.0, 0.0, 0.0, 1.0)))
PROMPT = 8


def spoilt(trace: Trace, value: float, at: int = 9, trait: int = 0, sink: bool = False) -> Trace:
    """`value` instead of the projection at a token of the reply, at every block."""
    raw, norms = trace.raw.copy(), trace.norms.copy()
    raw[trait, :, PROMPT + at] = value
    norms[:, PROMPT + at] = 1000.0 if sink else norms[:, PROMPT + at]
    return trace.replace(raw=raw, norms=norms, max_norm=np.full(2, 100.0, np.float32))


@pytest.fixture(scope="module")
def neutral() -> list[Trace]:
    rng = np.random.default_rng(0)
    return [read(rng, i, 40) for i in range(80)]


@pytest.fixture(scope="module")
def detectors(neutral: list[Trace]) -> Detectors:
    return calibrate_detectors(neutral)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_reply_with_a_score_that_is_not_finite_has_no_onset_and_no_none_either(
    neutral: list[Trace], detectors: Detectors, value: float
) -> None:
    assert str(detectors.find(neutral[0], "evil")) == "no reliable onset"
    with pytest.raises(SettingError, match=rf"evil in the reply contains {value} at token 9"):
        detectors.find(spoilt(neutral[0], value), "evil")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_so_has_a_thought(neutral: list[Trace], detectors: Detectors, value: float) -> None:
    roles = (*["user"] * PROMPT, *["thinking"] * 20, *["assistant"] * 20)
    trace = spoilt(neutral[0], value).replace(roles=roles)
    with pytest.raises(SettingError, match=rf"evil in the thought contains {value} at token 9"):
        detectors.find(trace, "evil", in_thought=True)
    assert detectors.find(trace, "evil").section == "answer"


def test_a_state_that_is_infinite_for_every_trait_has_no_specific_score(neutral: list[Trace]) -> None:
    trace = spoilt(spoilt(neutral[0].replace(log_odds=ODDS), np.inf), np.inf, trait=1)
    with np.errstate(invalid="ignore"), pytest.raises(SettingError, match="evil in the reply contains nan at token 9"):
        finite_scores(trace, "evil", "specific")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_null_is_made_of_such_replies(neutral: list[Trace], value: float) -> None:
    replies = [*neutral[:6], spoilt(neutral[6], value), *neutral[7:]]
    with pytest.raises(SettingError, match=rf"evil in reply 6 contains {value} at token 9"):
        calibrate_detectors(replies)
    with pytest.raises(SettingError, match="evil in reply 6"):
        held_out_alarms(replies, range(80), range(80))


def test_a_sink_token_has_no_score_whatever_its_state_is(neutral: list[Trace], detectors: Detectors) -> None:
    trace = spoilt(neutral[0], np.nan, sink=True)
    assert np.flatnonzero(np.isnan(finite_scores(trace, "evil"))).tolist() == [9]
    assert detectors.find(trace, "evil").alarm == detectors.find(spoilt(neutral[0], 0.0, sink=True), "evil").alarm
    assert np.isnan(checked_replies([trace], "evil", "z", ["a"])[0][9])
    with pytest.raises(SettingError, match="'a' contains nan at token 9"):
        checked_replies([spoilt(neutral[0], np.nan)], "evil", "z", ["a"])
