"""Arguments for the chat template, as a person types them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from persona_core.errors import SettingError

VARIABLE = "PERSONA_TEMPLATE_KWARGS"


def parse_template_kwargs(texts: Sequence[str], name: str = "--template-kwargs") -> dict[str, Any]:
    """NAME=VALUE pairs, or JSON objects; a value that is no JSON is text.

    Raises:
        SettingError: neither of the two, or a name twice.

    >>> parse_template_kwargs(["enable_thinking=false", "reasoning_effort=low"])
    {'enable_thinking': False, 'reasoning_effort': 'low'}
    >>> parse_template_kwargs(['{"thinking_budget": 512}'])
    {'thinking_budget': 512}
    """
    found: dict[str, Any] = {}
    for text in texts:
        pairs = _object(text, name) if text.lstrip().startswith("{") else [_pair(text, name)]
        for key, value in pairs:
            if key in found:
                raise SettingError(f"{name}: {key!r} is given twice.")
            found[key] = value
    return found


def template_kwargs_from(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Those of PERSONA_TEMPLATE_KWARGS, separated by spaces, or one JSON object.

    >>> template_kwargs_from({"PERSONA_TEMPLATE_KWARGS": "enable_thinking=false date=2025-01-31"})
    {'enable_thinking': False, 'date': '2025-01-31'}
    """
    text = environment.get(VARIABLE, "").strip()
    return parse_template_kwargs([text] if text.startswith("{") else text.split(), VARIABLE)


def _object(text: str, name: str) -> list[tuple[str, Any]]:
    try:
        found = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise SettingError(f"{name}={text[:80]!r} is no JSON object: {error}") from error
    if not isinstance(found, dict):
        raise SettingError(f"{name}={text[:80]!r}; expected NAME=VALUE or a JSON object.")
    return list(found.items())


def _pair(text: str, name: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise SettingError(f"{name} {text[:80]!r}; expected NAME=VALUE, such as enable_thinking=false.")
    try:
        # True and False as Python writes them would be texts, and any text is true
        return key, json.loads(value.lower() if value in ("True", "False") else value)
    except (json.JSONDecodeError, RecursionError):
        return key, value
