"""A pasted conversation as messages: lines that begin with a speaker's name begin a turn."""

from __future__ import annotations

import re

from persona_core.errors import PromptError

# Names that chats go by when people copy them. "You said:" and "ChatGPT said:" are what a web page's text holds.
_PLAIN = {
    "system": "system",
    "user": "user",
    "human": "user",
    "you said": "user",
    "assistant": "assistant",
    "chatgpt said": "assistant",
}
# Words that begin lines of ordinary text too ("Model: X200"). They are names only where no plain one has their role.
_LOOSE = {
    "you": "user",
    "ai": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "claude": "assistant",
    "gemini": "assistant",
}
_SPEAKERS = _PLAIN | _LOOSE
_NAME = re.compile(
    rf"^[ \t]*(?:\*\*|#+[ \t]*)?({'|'.join(sorted(_SPEAKERS, key=len, reverse=True))})(?:\*\*)?[ \t]*:(?:\*\*)?[ \t]*",
    re.IGNORECASE | re.MULTILINE,
)


def parse_transcript(text: str, question: str = "") -> list[dict[str, str]]:
    """Split a pasted text into turns.

    Args:
        text: turns that begin with "User:", "Assistant:", "System:" or what else chats call them, at the beginning of a
            line; or text without any name, which is then a reply.
        question: what a text without names, or one that begins with a reply, answers.

    Returns:
        Messages that `PersonaMonitor.read` takes. Turns of the same speaker in a row are one.

    Raises:
        PromptError: nothing to read, or a reply without a question.

    >>> parse_transcript("User: Am I right?\\nAssistant: Always.\\nAs ever.")
    [{'role': 'user', 'content': 'Am I right?'}, {'role': 'assistant', 'content': 'Always.\\nAs ever.'}]
    >>> parse_transcript("You are so wise.", question="Hello")
    [{'role': 'user', 'content': 'Hello'}, {'role': 'assistant', 'content': 'You are so wise.'}]
    """
    if not text.strip():
        raise PromptError("There is no text to read. Paste a conversation, or a reply.")
    names = _names(text)
    turns: list[dict[str, str]] = []
    if not names:
        turns.append({"role": "assistant", "content": text.strip()})
    elif before := text[: names[0].start()].strip():
        raise PromptError(
            f"Nobody says “{before[:40]}”: it stands before the first name. Begin it with a name, or take it away."
        )
    ends = [name.start() for name in names[1:]] + [len(text)] if names else []
    for name, end in zip(names, ends, strict=True):
        content = text[name.end() : end].strip()
        role = _SPEAKERS[name[1].lower()]
        if not content:
            continue
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += "\n\n" + content
        else:
            turns.append({"role": role, "content": content})
    system = [turns.pop(0)] if turns and turns[0]["role"] == "system" else []
    if not turns:
        raise PromptError("The text names speakers but nobody says anything.")
    if turns and turns[0]["role"] == "assistant":
        if not question.strip():
            raise PromptError(
                "The text begins with a reply. Say what it answers in the field for that, or begin with “User:”."
            )
        turns.insert(0, {"role": "user", "content": question.strip()})
    if any(turn["role"] == "system" for turn in turns):
        raise PromptError("A system turn stands in the middle of the conversation; it comes first, or not at all.")
    return system + turns


def _names(text: str) -> list[re.Match[str]]:
    """The lines that begin a turn."""
    found = list(_NAME.finditer(text))
    plain = {_PLAIN[name[1].lower()] for name in found if name[1].lower() in _PLAIN}
    names = [name for name in found if name[1].lower() in _PLAIN or _LOOSE[name[1].lower()] not in plain]
    # Nobody is named at the beginning, and plainly nowhere: a reply that holds such words.
    return [] if names and not plain and text[: names[0].start()].strip() else names
