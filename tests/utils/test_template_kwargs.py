"""Arguments for the chat template, as they are typed, and where they go."""

from __future__ import annotations

import argparse

import pytest

from persona_core.cli.options import add_model, add_reply_sampling, command_parser, loading
from persona_core.errors import SettingError
from persona_core.utils.template_kwargs import VARIABLE, parse_template_kwargs, template_kwargs_from


def options(*typed: str) -> argparse.Namespace:
    parser = command_parser("monitor", None)
    add_model(parser)
    add_reply_sampling(parser)
    return parser.parse_args(["--model", "m", *typed])


def test_values_are_json_where_they_can_be() -> None:
    found = parse_template_kwargs(["a=false", "b=False", "c=3", "d=low", "e=", "f=x=y", 'g={"h": [1]}'])
    assert found == {"a": False, "b": False, "c": 3, "d": "low", "e": "", "f": "x=y", "g": {"h": [1]}}
    assert parse_template_kwargs(['{"a": {"b": null}}']) == {"a": {"b": None}}


@pytest.mark.parametrize("typed", [["low"], ["=3"], ["a b=3"], ["{"], ["[1]"], ["a=1", "a=2"], ['{"a": 1}', "a=2"]])
def test_what_is_neither_is_refused(typed: list[str]) -> None:
    with pytest.raises(SettingError, match=r"--template-kwargs"):
        parse_template_kwargs(typed)


def test_the_option_wins_over_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert loading(options())["template_kwargs"] == {}
    monkeypatch.setenv(VARIABLE, "enable_thinking=false date=2025-01-31")
    assert loading(options())["template_kwargs"] == {"enable_thinking": False, "date": "2025-01-31"}
    assert loading(options("--template-kwargs", "reasoning_effort=low"))["template_kwargs"] == {
        "reasoning_effort": "low"
    }
    monkeypatch.setenv(VARIABLE, '{"x": ')
    with pytest.raises(SettingError, match=VARIABLE):
        template_kwargs_from()


def test_the_thought_has_a_limit_of_its_own() -> None:
    assert options("--max-thinking-tokens", "64").max_thinking_tokens == 64
    assert options().max_thinking_tokens is None
