"""Where a given reply stands: where the template puts a reply, and with its thought where the model wrote it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from persona_core.errors import PromptError
from persona_core.models.detokenize import common_length
from persona_core.models.thinking import reply_sections
from persona_core.models.turns import ConversationText


@dataclass(frozen=True)
class PlacedText:
    """A conversation up to the end of its reply.

    Attributes:
        text: of prompt and reply.
        roles: one for each character.
        start: where the reply starts, with what the template writes before its text.
    """

    text: str
    roles: list[str]
    start: int

    @property
    def answer(self) -> str:
        """What of the reply is its answer."""
        found = zip(self.text[self.start :], self.roles[self.start :], strict=True)
        return "".join(character for character, role in found if role == "assistant")


def place_reply(
    reply: Mapping[str, str], prompt: ConversationText, whole: Callable[[], ConversationText], header: str
) -> PlacedText:
    """The reply where the template puts it, or with its thought, or a part of one, where the model wrote it.

    Args:
        reply: the assistant's message.
        prompt: the conversation before it, with the generation prompt.
        whole: renders the conversation with it.
        header: what the template writes before an answer; see `ChatFormat.answer_header`.

    Raises:
        PromptError: the template does not show the reply as the model would have written it.
    """
    marks, placed = prompt.marks, None
    if not _is_cut(reply, prompt) and (reply["content"].strip() or "reasoning_content" in reply):
        placed = by_template(reply, prompt, whole(), header)
    if placed is None or (marks is not None and marks.begins(placed.answer)):  # Command R7B puts all into its response
        placed = as_generated(reply, prompt, header)
    if marks is not None and marks.begins(placed.answer):
        raise PromptError(
            f"The reply's text holds a second thought: {placed.answer[:60]!r}. Give one thought and then the answer."
        )
    return placed


def by_template(
    reply: Mapping[str, str], prompt: ConversationText, whole: ConversationText, header: str
) -> PlacedText | None:
    """The reply where the template puts it in the whole conversation; None if its thought is missing there.

    Args:
        reply: the assistant's message.
        prompt: the conversation before it, with the generation prompt.
        whole: the conversation with it.
        header: what the template writes before an answer; see `ChatFormat.answer_header`.

    Raises:
        PromptError: the template does not show the reply as it is, or puts it inside a thought.
    """
    last = len(prompt.parts) - 1
    own = [span for span in whole.spans if span.part > last]
    shown = "".join(whole.text[s.start : s.end] for s in own)
    if not own or _bare(shown, prompt) != _bare(reply.get("reasoning_content", "") + reply["content"], prompt):
        if _has_thought(reply, prompt):
            return None
        raise PromptError(
            f"The chat template does not show the reply {reply['content'][:60]!r} as it is, so it cannot be read "
            "where the model would have written it."
        )
    asked, start, end = prompt.end_of(last), whole.end_of(last, own[0].start), own[-1].end
    common = common_start(prompt.text[asked:], whole.text[start:end])
    generated = asked + common == len(prompt.text)  # the reply stands behind the whole generation prompt
    region = start + common if generated else min(start + common, own[0].start)
    if prompt.marks is not None and not generated:  # a thought begins with its mark, which both may have
        opened = whole.text.find(prompt.marks.opening, start, region)
        region = opened if opened >= 0 else region
    text, roles = whole.text[:end], whole.roles()
    if whole.dropped:  # Mistral's template drops system text where a reply follows the question
        text, roles = prompt.text[:asked] + whole.text[start:end], prompt.roles()[:asked]
        region += asked - start
    shift = len(text) - end
    owned = {at + shift for span in own for at in range(span.start, span.end)}
    placed = _placed(prompt, text, roles, region, owned, in_thought=generated and _opens_thought(prompt), header=header)
    if "assistant" not in placed.roles[region:] and not _has_thought(reply, prompt):
        raise PromptError(
            "The chat template puts this reply inside a thought. Give its thought too, or turn thinking off: "
            "template_kwargs={'enable_thinking': False}, or the model's own switch in a message."
        )
    return placed


def common_start(whole: str, prompt: str) -> int:
    """How far a conversation with a reply and its generation prompt are the same: not to the middle of a mark.

    >>> common_start("<|START_RESPONSE|>", "<|START_THINKING|>")
    0
    """
    common = common_length(whole, prompt)
    cut = re.search(r"[<\[][^<>\[\]]*$", whole[:common])
    return cut.start() if cut and common < min(len(prompt), len(whole)) else common


def as_generated(reply: Mapping[str, str], prompt: ConversationText, header: str) -> PlacedText:
    """The reply, a thought included, behind the generation prompt.

    Raises:
        PromptError: a thought, and the model does not think, or thinking is turned off.
    """
    marks, content = prompt.marks, reply["content"]
    in_thought = _opens_thought(prompt)
    if marks is not None and _is_cut(reply, prompt) and prompt.text.rstrip().endswith(marks.closing):
        raise PromptError("The reply cannot be read: the thought is cut off; there is no answer.")
    if _has_thought(reply, prompt):
        if marks is None or prompt.text.rstrip().endswith(marks.closing):
            why = "has no place for it" if marks is None else "turns thinking off"
            raise PromptError(f"The reply comes with a thought, and the chat template {why}; give the answer alone.")
        if "reasoning_content" in reply:
            content = f"{marks.opening}\n{reply['reasoning_content']}\n{marks.closing}\n\n{content}"
    if in_thought and marks is not None and marks.begins(content):  # the prompt holds the mark and what follows it
        content = content.lstrip().removeprefix(marks.opening)
        content = content.removeprefix(prompt.text.rpartition(marks.opening)[2])
    text, start = prompt.text + content, len(prompt.text)
    owned = set(range(start, len(text)))
    return _placed(prompt, text, prompt.roles(), start, owned, in_thought=in_thought, header=header)


def _placed(
    prompt: ConversationText,
    text: str,
    roles: list[str],
    region: int,
    owned: set[int],
    *,
    in_thought: bool,
    header: str,
) -> PlacedText:
    """Roles before the reply as given, from `region` on by thought and answer; what is not the reply's is template."""
    roles = roles[:region]
    roles += ["template"] * (len(text) - len(roles))
    for role, start, end in reply_sections(text[region:], prompt.marks, in_thought=in_thought, header=header):
        for at in range(region + start, region + end):
            roles[at] = role if at in owned else "template"
    return PlacedText(text, roles, region)


def _opens_thought(prompt: ConversationText) -> bool:
    return prompt.marks is not None and prompt.marks.is_open(prompt.text)


def _has_thought(reply: Mapping[str, str], prompt: ConversationText) -> bool:
    return "reasoning_content" in reply or (prompt.marks is not None and prompt.marks.closing in reply["content"])


def _is_cut(reply: Mapping[str, str], prompt: ConversationText) -> bool:
    return "reasoning_content" not in reply and prompt.marks is not None and prompt.marks.is_cut(reply["content"])


def _bare(text: str, prompt: ConversationText) -> str:
    """A reply's text without white space and marks, which templates rewrite."""
    if prompt.marks is not None and prompt.marks.closing in text:
        text = text.replace(prompt.marks.opening, "", 1).replace(prompt.marks.closing, "", 1)
    return "".join(text.split())
