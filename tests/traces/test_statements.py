"""What is said of a reply that is not neutral while no trait is raised in particular."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from persona_core.traces.specific import LogOdds
from persona_core.traces.statements import with_not_neutral
from persona_core.traces.trace import Trace
from persona_core.traces.view.payload import trace_payload
from tests.support.standins import FIRST, TRAITS, make_trace, words

NONE = {"answer": "none", "onset": None, "low": None, "high": None, "says": "no reliable onset", "kind": "specific"}
RISES = {"answer": "onset", "onset": 2, "low": 1, "high": 3, "says": "rises at token 2 [1, 3]", "kind": "specific"}


def read(z: float, **changes: Any) -> Trace:
    """A reply whose z is the same at every token for all traits, which have the same log odds."""
    one = np.ones((3, 1), np.float32)
    scores = {trait: dict.fromkeys(range(FIRST, FIRST + 6), z) for trait in TRAITS}
    return make_trace(words(6), scores=scores, **{"log_odds": LogOdds(one, -one, 0 * one, one), **changes})


def test_a_reply_like_every_trait_is_not_neutral_and_names_none() -> None:
    found = with_not_neutral(read(3.0), dict.fromkeys(TRAITS, NONE))
    for trait in TRAITS:
        assert found[trait]["says"] == f"not neutral, no trait in particular (mean z of {trait} +3.0)"
        assert found[trait]["named"] is False and found[trait]["answer"] == "none"
    assert with_not_neutral(read(1.5), {"malice": NONE}) == {"malice": NONE}, "within the usual range"


def test_where_another_trait_rises_the_statement_is_about_that_one() -> None:
    found = with_not_neutral(read(3.0), {"malice": NONE, "deception": RISES})
    assert found["malice"]["says"].startswith("not neutral, but not malice in particular")
    assert found["deception"] == RISES


@pytest.mark.parametrize("kind", ["z", "specific"])
def test_what_was_found_on_plain_z_stays(kind: str) -> None:
    old = {k: v for k, v in NONE.items() if k != "kind"} if kind == "specific" else NONE | {"kind": "z"}
    trace = read(3.0, log_odds=None) if kind == "specific" else read(3.0)
    assert with_not_neutral(trace, {"malice": old}) == {"malice": old}


def test_sink_tokens_make_no_reply_not_neutral() -> None:
    norms = np.full((1, FIRST + 6), 2.0, np.float32)
    norms[0, FIRST] = 50.0
    trace = read(0.0, norms=norms, max_norm=np.array([6.0], np.float32))
    raw = trace.raw.copy()
    raw[..., FIRST] = 900.0
    assert with_not_neutral(trace.replace(raw=raw), {"malice": NONE}) == {"malice": NONE}


def test_the_view_gets_the_statement() -> None:
    (side,) = trace_payload(read(3.0), onsets={"malice": NONE})["sides"]
    assert side["onsets"]["malice"]["named"] is False
