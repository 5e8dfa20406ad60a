"""Words that the template and a message share are the message's only where they change with it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from persona_core.errors import PromptError
from persona_core.models.spans import TextSpan, locate


def upper(texts: Sequence[str]) -> str:
    return "".join(f"<user>{text.upper()}" for text in texts) + "<assistant>"


def found(texts: Sequence[str]) -> list[TextSpan]:
    return locate(texts, upper(texts), upper, lambda: [])


def test_the_templates_own_word_is_not_taken_for_the_message_that_it_rewrites() -> None:
    with pytest.raises(PromptError, match="the template may have written it"):
        found(["assistant"])


def test_nor_where_the_message_changes_the_template_too() -> None:
    def changes(texts: Sequence[str]) -> str:
        return upper(texts) + ("<think></think>" if texts[0] == "assistant" else "")

    with pytest.raises(PromptError, match="the template may have written it"):
        locate(["assistant"], changes(["assistant"]), changes, lambda: [])


def test_a_word_that_changes_with_its_message_is_the_messages() -> None:
    def careful(texts: Sequence[str]) -> str:
        """Marks change what it writes: it looks at the whole message."""
        return f"<user>{texts[0]}<assistant>" + ("" if texts[0].isascii() else "?")

    assert locate(["Why?"], careful(["Why?"]), careful, lambda: []) == [TextSpan(0, 6, 10)]
    assert found(["HELLO"]) == [TextSpan(0, 6, 11)]


def test_a_message_that_is_dropped_owns_nothing() -> None:
    def drops(texts: Sequence[str]) -> str:
        return "<user>" + ("" if texts[0].isascii() else "!") + "<assistant>"

    assert locate(["user"], drops(["user"]), drops, lambda: []) == []
