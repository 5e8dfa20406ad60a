"""A pasted conversation as messages: a line that begins with a speaker's name begins a turn."""

from __future__ import annotations

import re

from persona_core.errors import PromptError

# Speakers' names in copied chats. "You said:" and "ChatGPT said:" are in the text of a web page.
_PLAIN = {
    "system": "system",
    "user": "user",
    "human": "user",
    "you said": "user",
    "assistant": "assistant",
    "chatgpt said": "assistant",
}
# Words that also begin lines of ordinary text ("Model: X200"). They are names only if no plain name has their role.
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
        text: turns that begin with "User:", "Assistant:", "System:" or another known name at the beginning of a line;
            or a text without names, which is then a reply.
        question: the prompt of a text without names, or of one that begins with a reply.

    Returns:
        Messages that `PersonaMonitor.read` takes. Consecutive turns of one speaker are merged.

    Raises:
        PromptError: no text, or a reply without a prompt.

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
            f"No speaker found for “{before[:40]}”, before the first name. Put a name before it, or delete it."
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
        raise PromptError("The text has speakers' names but no turns.")
    if turns and turns[0]["role"] == "assistant":
        if not question.strip():
            raise PromptError("The text begins with a reply. Fill in its prompt below, or begin with “User:”.")
        turns.insert(0, {"role": "user", "content": question.strip()})
    if any(turn["role"] == "system" for turn in turns):
        raise PromptError("There is a system turn in the middle of the text. Move it to the beginning, or delete it.")
    return system + turns


def _names(text: str) -> list[re.Match[str]]:
    """The lines that begin a turn."""
    found = list(_NAME.finditer(text))
    plain = {_PLAIN[name[1].lower()] for name in found if name[1].lower() in _PLAIN}
    names = [name for name in found if name[1].lower() in _PLAIN or _LOOSE[name[1].lower()] not in plain]
    # No name at the beginning and no plain name anywhere: a reply that contains such words.
    return [] if names and not plain and text[: names[0].start()].strip() else names
