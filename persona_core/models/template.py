"""A chat template: Jinja source from a model's repository, rendered as transformers renders it.

The environment is transformers' own, with its functions (`raise_exception`, `strftime_now`, …). Only the clock is
fixed, so that a prompt is the same from day to day, and loops and texts have limits.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import meta, nodes

from persona_core.errors import PromptError, SettingError
from persona_core.models.guarded_jinja import GuardedTemplate

# Llama 3.1 and later, gpt-oss, Granite and others write today's date. This one is the date that Llama's templates fall
# back to. `template_kwargs={"date": "2025-01-31"}` sets another.
PROMPT_DATE = datetime.date(2024, 7, 26)
CONVERSATION_NAMES = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
"""What every rendering passes; not arguments that somebody sets."""


class ChatTemplate:
    """One template with its arguments.

    Args:
        source: the template.
        special_tokens: names such as "bos_token" -> text.
        arguments: passed to the template, e.g. `{"enable_thinking": False}`. "date" (YYYY-MM-DD) is also the date that
            `strftime_now` writes.

    Raises:
        SettingError: a date in another form.
        PromptError: the source is no template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
        from transformers.utils.chat_template_utils import (
            _compile_jinja_template,
        )  # the public functions hide the clock

        self.source = source
        self._given = frozenset(special_tokens)
        date = _date(arguments.get("date"))
        self._arguments = {**special_tokens, "strftime_now": lambda form: date.strftime(form), **arguments}
        try:
            self._guarded = GuardedTemplate(_compile_jinja_template("").environment, source)
            self._environment: jinja2.Environment = self._guarded.environment
            self._read = meta.find_undeclared_variables(self._environment.parse(source))
        except Exception as error:  # the source is anybody's: not only syntax errors come out of the compiler
            raise PromptError(f"The chat template cannot be compiled: {str(error)[:1000]}") from error

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
        """The text of a conversation.

        Raises:
            PromptError: the template rejects it.
        """
        try:
            return self._guarded.render(
                messages=[dict(m) for m in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._arguments,
            )
        except Exception as error:  # a template can raise anything that Python can
            roles = ", ".join(str(m["role"]) for m in messages)
            reason = str(error) if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {error}"
            raise PromptError(
                f"The chat template rejects a conversation with the roles {roles[:300]}: {reason[:1000]}"
            ) from error

    def reads(self, name: str) -> bool:
        """Whether the template looks at an argument of this name."""
        return name in self._read or (name == "date" and "strftime_now" in self.source)

    def arguments(self) -> tuple[str, ...]:
        """Names of the arguments that the template takes, such as "enable_thinking", sorted.

        A name that the template sets itself is an argument only if it asks whether the name is defined.
        """
        tree = self._environment.parse(self.source)
        own = {node.name for node in tree.find_all(nodes.Name) if node.ctx != "load"}
        asked = {
            test.node.name
            for test in tree.find_all(nodes.Test)
            if test.name == "defined" and isinstance(test.node, nodes.Name)
        }
        taken = self._read - self._given - CONVERSATION_NAMES - (own - asked)
        return tuple(sorted(taken | ({"date"} if self.reads("date") else set())))

    def literals(self) -> tuple[str, ...]:
        """The strings in the template's code, which it may look for in a message; longest first."""
        tree = self._environment.parse(self.source)
        found = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
        return tuple(sorted((text for text in found if text.strip()), key=lambda text: (-len(text), text)))


def _date(given: Any) -> datetime.date:
    if given is None:
        return PROMPT_DATE
    try:
        return datetime.date.fromisoformat(given)
    except (TypeError, ValueError):
        raise SettingError(
            f"date={given!r} for the chat template; expected YYYY-MM-DD, such as '2025-01-31'."
        ) from None
