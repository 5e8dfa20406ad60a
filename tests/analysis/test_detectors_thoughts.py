"""Onsets in replies with a thought: thought and answer apart, each saying which it is."""

from __future__ import annotations

import pytest

from persona_core.analysis.detectors import Detectors
from persona_core.traces.dataset import read_results
from persona_core.traces.trace import Trace
from persona_core.traces.view.payload import trace_payload
from tests.traces.test_dataset import SHIPPED

TRAIT = "deception"


@pytest.fixture(scope="module")
def detectors() -> Detectors:
    return Detectors.from_pretrained(SHIPPED.parent / "persona-vectors-persona-tiny")


@pytest.fixture(scope="module")
def plain() -> Trace:
    """A published reply whose score rises in its middle."""
    detectors = Detectors.from_pretrained(SHIPPED.parent / "persona-vectors-persona-tiny")
    for row in read_results(SHIPPED / "data" / "contaminated.parquet"):
        trace = Trace.from_row(row)
        onset = detectors.find(trace, TRAIT).onset
        if onset is not None and 15 < onset < len(trace.reply_positions) - 15:
            return trace
    raise AssertionError("no reply with a late onset")


def with_thought(trace: Trace, n: int) -> Trace:
    """The same trace, its first tokens of the reply a thought."""
    roles = list(trace.roles)
    roles[trace.n_prompt : trace.n_prompt + n] = ["thinking"] * n
    return trace.replace(roles=tuple(roles))


def test_a_reply_without_a_thought_says_nothing_of_sections(detectors: Detectors, plain: Trace) -> None:
    found = detectors.find(plain, TRAIT)
    assert found.section == "" and not str(found).startswith("in the")


def test_thought_and_answer_are_searched_apart(detectors: Detectors, plain: Trace) -> None:
    n = detectors.find(plain, TRAIT).onset
    assert n is not None
    n += 12  # the rise falls into the thought
    trace, scores = with_thought(plain, n), plain.reply_scores(TRAIT, detectors.of(TRAIT).kind).astype(float)
    thought, answer = detectors.find(trace, TRAIT, in_thought=True), detectors.find(trace, TRAIT)
    assert thought.section == "thought" and str(thought).startswith("in the thought, rises")
    assert thought.alarm == detectors.of(TRAIT).find(scores[:n]).alarm
    assert thought.no_rate == ("thoughts",)
    assert answer.section == "answer" and str(answer).startswith("in the answer, ")
    assert answer.alarm == detectors.of(TRAIT).find(scores[n:]).alarm


def test_the_view_gets_tokens_of_the_whole_reply(detectors: Detectors, plain: Trace) -> None:
    trace = with_thought(plain, 5)
    found = detectors.find(trace, TRAIT)
    assert found.onset is not None
    (side,) = trace_payload(trace, onsets={TRAIT: found.to_dict()})["sides"]
    assert side["onsets"][TRAIT]["onset"] == found.onset + 5
    assert side["roles"][trace.n_prompt] == "thinking"


def test_a_reply_that_is_all_thought_has_no_onset_in_its_answer(detectors: Detectors, plain: Trace) -> None:
    trace = with_thought(plain, plain.n_tokens - plain.n_prompt)
    assert detectors.find(trace, TRAIT).answer == "none"
