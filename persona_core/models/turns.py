"""A conversation as its chat template renders it: turns, and which character has which role."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from persona_core.errors import PromptError
from persona_core.models.spans import TextSpan
from persona_core.models.thinking import ThoughtMarks


@dataclass(frozen=True)
class Turn:
    """A message with its parts.

    Attributes:
        role: of the message.
        parts: `(role, text)`; two where system text was put before the user's.
        thought: what an assistant thought before, where that is given by itself.
    """

    role: str
    parts: tuple[tuple[str, str], ...]
    thought: str | None = None

    @property
    def all_parts(self) -> tuple[tuple[str, str], ...]:
        return self.parts if self.thought is None else (("thinking", self.thought), *self.parts)


def as_turns(messages: list[dict[str, str]], folds_system: bool) -> list[Turn]:
    """One turn per message; system text that the template would drop goes to the start of the next user turn."""
    turns: list[Turn] = []
    waiting: list[tuple[str, str]] = []
    for message in messages:
        part = (message["role"], message["content"])
        if folds_system and message["role"] == "system":
            waiting += [part] if message["content"].strip() else []
            continue
        if waiting and message["role"] != "user":
            break
        turns.append(Turn(message["role"], (*waiting, part), message.get("reasoning_content")))
        waiting = []
    if waiting:
        raise PromptError("This chat template has no system role: a system message needs a user message next.")
    return turns


def with_texts(turns: Sequence[Turn], texts: Sequence[str]) -> list[dict[str, str]]:
    """Messages with these texts, one for each part of the turns, in order."""
    given, messages = iter(texts), []
    for turn in turns:
        message = {"role": turn.role}
        if turn.thought is not None:  # gpt-oss reads "thinking", the others "reasoning_content"
            message["reasoning_content"] = message["thinking"] = next(given)
        message["content"] = "\n\n".join(next(given) for _ in turn.parts)
        messages.append(message)
    return messages


@dataclass(frozen=True)
class ConversationText:
    """A rendered conversation.

    Attributes:
        text: as the template wrote it.
        parts: `(role, text)` of what the messages hold.
        spans: where the parts stand in the text.
        marks: of the template's thoughts.
    """

    text: str
    parts: tuple[tuple[str, str], ...]
    spans: tuple[TextSpan, ...]
    marks: ThoughtMarks | None

    def end_of(self, part: int, before: int | None = None) -> int:
        """Where a part's text ends, at its last place in front of `before`."""
        ends = [s.end for s in self.spans if s.part == part and (before is None or s.end <= before)]
        if not ends:
            raise PromptError(f"The chat template drops the text of a message: {self.parts[part][1][:60]!r}.")
        return max(ends)

    @property
    def dropped(self) -> tuple[str, str] | None:
        """Role and text of a message that the template drops, if any; it may drop a thought."""
        shown = {span.part for span in self.spans}
        for number, (role, content) in enumerate(self.parts):
            if role == "assistant" and self.marks is not None:
                content = content.rpartition(self.marks.closing)[2]
            if number not in shown and role != "thinking" and content.strip():
                return role, content
        return None

    def check_kept(self) -> None:
        if self.dropped:
            role, content = self.dropped
            raise PromptError(f"The chat template drops the text of a {role!r} message: {content[:60]!r}.")

    def roles(self) -> list[str]:
        """The role of each character."""
        roles = ["template"] * len(self.text)
        before = 0
        for span in self.spans:
            role = self.parts[span.part][0]
            roles[span.start : span.end] = [role] * (span.end - span.start)
            if role == "assistant" and self.marks is not None:
                self._mark_thought(self.marks, roles, before, span)
            if role != "thinking":
                before = span.end
        return roles

    def _mark_thought(self, marks: ThoughtMarks, roles: list[str], before: int, span: TextSpan) -> None:
        """Tell an earlier reply's thought from its answer, where both came in one text."""
        opened = self.text.rfind(marks.opening, before, span.start + len(marks.opening))
        start = opened + len(marks.opening)
        closed = self.text.find(marks.closing, start)
        between = self.text[start : span.start]  # of a thought that starts with this span, white space
        if opened < 0 or between.strip() or closed < span.start:
            return
        for at in range(opened, closed + len(marks.closing)):
            if roles[at] == "assistant":
                roles[at] = "thinking" if start <= at < closed else "template"


def role_of_most(roles: Sequence[str]) -> str:
    """The role of most of a token's characters, the first of several; "template" where a message has none of them."""
    found = [role for role in roles if role != "template"]
    return max(found, key=found.count) if found else "template"
