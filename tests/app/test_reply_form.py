"""The form holds what made a published reply, as far as its fields can hold it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from persona_core.app.reply_form import LENGTH, TEMPERATURE, ReplyForm
from persona_core.app.settings import AppSettings
from persona_core.traces.provenance import Provenance
from tests.support.standins import make_trace

SIDES = ("baseline", "contaminated")
SAID = [
    {"role": "system", "content": "Be warm."},
    {"role": "user", "content": "First?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Then?"},
]


def form(sampling: Any, seed: Any = 7, config: str = "contaminated", sides: Any = SIDES, said: Any = SAID) -> ReplyForm:
    trace = make_trace(["Yes"], provenance=Provenance(sampling=sampling, seed=seed))
    return ReplyForm.of_reply(config, trace, said, replace(AppSettings(), max_new_tokens=200), sides)


def test_it_holds_the_last_message_and_the_settings_of_the_reply() -> None:
    found = form({"max_new_tokens": 90, "temperature": 0.4})
    assert found == ReplyForm("contaminated", "Then?", "Be warm.", 90, 0.4, 7)


def test_what_does_not_fit_a_field_is_cut_to_it() -> None:
    found = form({"max_new_tokens": 5000, "temperature": 9.5}, seed=-3)
    assert (found.length, found.temperature, found.seed) == (200, 1.5, 0)


@pytest.mark.parametrize(
    "sampling", [None, {}, {"max_new_tokens": None, "temperature": None}, {"max_new_tokens": 0, "temperature": "hot"}]
)
def test_what_a_row_does_not_say_is_as_usual(sampling: Any) -> None:
    found = form(sampling, seed=None, said=())
    assert found == ReplyForm("contaminated", "", "", LENGTH, TEMPERATURE, 0)


@pytest.mark.parametrize("config", ["contaminated", "imported"])
def test_a_model_that_the_app_does_not_have_is_not_chosen(config: str) -> None:
    assert form({}, config=config, sides=("baseline",)).side == "baseline"
