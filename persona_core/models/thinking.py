"""Where a model thinks before it answers: the marks that its chat template sets around a thought.

| model | thought |
|---|---|
| Qwen 3, DeepSeek R1 and its distills, SmolLM 3, GLM, Nemotron | `<think>` … `</think>` |
| Magistral | `[THINK]` … `[/THINK]` |
| gpt-oss | `<|channel|>analysis<|message|>` … the header of the final channel |
| Seed-OSS, Command R, Apertus, Gemma 4 | their own |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from persona_core.errors import PromptError
from persona_core.models.detokenize import common_length

Role = str
_MARK = "\U00040000"  # a code point without a character
# What stands in a template's source, and the opening and closing mark that it gives away.
_SOURCES = (
    (r"</?([\w:]*think\w*)>", r"<\1>", r"</\1>"),
    (r"\[/?(\w*THINK\w*)\]", r"[\1]", r"[/\1]"),
    (r"<\|END_THINKING\|>", "<|START_THINKING|>", "<|END_THINKING|>"),
    (r"<\|inner_suffix\|>", "<|inner_prefix|>", "<|inner_suffix|>"),
    (r"<channel\|>", "<|channel>thought", "<channel|>"),
)


@dataclass(frozen=True)
class ThoughtMarks:
    """What stands before a thought and after it, without the white space around."""

    opening: str
    closing: str

    def is_open(self, tail: str) -> bool:
        """Whether a generation prompt ends inside a thought.

        >>> ThoughtMarks("<think>", "</think>").is_open("<|im_start|>assistant\\n<think>\\n")
        True
        """
        return tail.rstrip().endswith(self.opening)

    def begins(self, text: str) -> bool:
        """Whether a text begins with a thought."""
        return bool(self.opening) and text.lstrip().startswith(self.opening)

    def is_cut(self, text: str) -> bool:
        """Whether a text begins with a thought and ends inside it, so that there is no answer.

        >>> ThoughtMarks("<think>", "</think>").is_cut("<think>\\nThe user asks</thi")
        True
        """
        return self.begins(text) and self.closing not in text


def find_thought_marks(render: Callable[[Sequence[Mapping[str, Any]], bool], str], source: str) -> ThoughtMarks | None:
    """The marks of a template; None for a model that does not think.

    Found from how the template renders a thought; where it renders none (R1 drops them), from its source.

    Args:
        render: renders messages, with or without a generation prompt.
        source: of the template.
    """
    rendered = _of_rendering(render)
    if rendered is not None:
        return rendered
    for pattern, opening, closing in _SOURCES:
        found = re.search(pattern, source)
        if found:
            return ThoughtMarks(found.expand(opening), found.expand(closing))
    return None


def _of_rendering(render: Callable[[Sequence[Mapping[str, Any]], bool], str]) -> ThoughtMarks | None:
    user, thought, answer = (chr(ord(_MARK) + i) for i in range(3))
    asked = {"role": "user", "content": user}
    said = {"role": "assistant", "content": answer, "reasoning_content": thought, "thinking": thought}
    try:
        whole, prompt = render([asked, said], False), render([asked], True)
    except PromptError:
        return None
    found = re.search(f"{user}([^{_MARK}-{answer}]*){thought}([^{_MARK}-{answer}]*){answer}", whole)
    if not found or not found[2].strip():
        return None
    tail = prompt.rpartition(user)[2]
    opening = found[1][common_length(tail, found[1]) :].strip()
    if not opening:  # the generation prompt opens the thought itself
        opening = found[1].rstrip().rpartition("\n")[2]
    return ThoughtMarks(opening, found[2].strip())


def reply_sections(
    text: str, marks: ThoughtMarks | None, *, in_thought: bool = False, header: str = ""
) -> list[tuple[Role, int, int]]:
    """Thought, answer and marks of a reply as the model writes it: `(role, start, end)`, in order, without gaps.

    Args:
        text: what follows the generation prompt.
        marks: of the template.
        in_thought: whether the generation prompt ended inside a thought.
        header: what the template writes before an answer without a thought.

    >>> reply_sections("<think>Hm.</think> Yes.", ThoughtMarks("<think>", "</think>"))
    [('template', 0, 7), ('thinking', 7, 10), ('template', 10, 19), ('assistant', 19, 23)]
    """
    sections: list[tuple[Role, int, int]] = []
    at = 0
    if marks is not None:
        opened = re.match(rf"\s*{re.escape(marks.opening)}\s*", text)
        in_thought = in_thought or opened is not None
        at = opened.end() if opened else 0
    if marks is not None and in_thought:
        closed = re.compile(rf"{re.escape(marks.closing)}\s*").search(text, at)
        end, answer = closed.span() if closed else (len(text), len(text))
        thought = "thinking" if text[at:end].strip() else "template"
        sections = [("template", 0, at), (thought, at, end), ("template", end, answer)]
        at = answer
    elif header.strip() and text.startswith(header):
        sections, at = [("template", 0, len(header))], len(header)
    sections.append(("assistant", at, len(text)))
    return [section for section in sections if section[1] < section[2]]
