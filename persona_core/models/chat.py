"""Render a conversation to token ids and roles, the same way everywhere.

The chat template is applied once and its text is tokenised once, without adding the tokenizer's special tokens: the
template writes them all, so there is exactly one BOS. Extraction, calibration and monitoring all render here. A reply
is never part of the rendering: its ids are appended to the rendered prompt's ids unchanged.

Control tokens typed into a message are read as control tokens, as transformers does by default; their role is still
that of the message.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jinja2

from persona_core.errors import PromptError
from persona_core.models.detokenize import is_well_formed, split_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, str]]
MARKER, MARKER_PATTERN = "\ue000{}\ue001", re.compile("\ue000(\\d+)\ue001")
ROLES = ("system", "user", "assistant")

# Templates of Llama 3.1 and later write today's date. A fixed date, the one these templates fall back to, keeps a
# prompt the same from day to day. `template_kwargs={"date_string": ...}` sets another.
PROMPT_DATE = datetime.date(2024, 7, 26)

# For a tokenizer without a template (a base model). `bos` is the BOS text if the tokenizer itself would add one.
PLAIN_TEMPLATE = """{{ bos }}{% for message in messages %}\
{{ message['role'] | capitalize }}: {{ message['content'] }}

{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"""


@dataclass(frozen=True)
class Rendered:
    """A prompt as the model reads it: `token_ids` and `roles`, both `[n_tokens]`."""

    token_ids: tuple[int, ...]
    roles: tuple[str, ...]


def as_messages(prompt: str | Messages) -> list[dict[str, str]]:
    """A string becomes one user message; a list of messages is checked and copied.

    >>> as_messages("Hello")
    [{'role': 'user', 'content': 'Hello'}]
    """
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        raise PromptError(
            f"A conversation is a string or a list of {{'role', 'content'}} messages, not {type(prompt).__name__}."
        )
    if not prompt:
        raise PromptError("The conversation is empty; pass a string or a list of {'role', 'content'} messages.")
    messages = []
    for index, message in enumerate(prompt):
        if not isinstance(message, Mapping):
            raise PromptError(f"Message {index} is {message!r}; expected a mapping with 'role' and 'content'.")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise PromptError(f"Message {index} has the role {role!r}; expected one of {', '.join(ROLES)}.")
        if not isinstance(content, str):
            raise PromptError(f"Message {index} has content of type {type(content).__name__}; expected a string.")
        if not is_well_formed(content):
            raise PromptError(f"Message {index} contains an unpaired surrogate, which is not a character; remove it.")
        if role == "user" and not content.strip():
            raise PromptError(f"Message {index} (user) is empty; write something to reply to.")
        messages.append({"role": str(role), "content": content})
    return messages


def conversation(user: str, system: str | None = None) -> list[dict[str, str]]:
    """A user message as a conversation, with a system prompt if there is one.

    >>> conversation("Hi")
    [{'role': 'user', 'content': 'Hi'}]
    """
    message = {"role": "user", "content": user}
    return [{"role": "system", "content": system}, message] if system else [message]


class ChatFormat:
    """One tokenizer's chat template, applied to ids.

    Args:
        tokenizer: a transformers tokenizer. Without a chat template, `PLAIN_TEMPLATE` is used:
            `User: ...`, blank line, `Assistant:`.
        template_kwargs: passed to the template, e.g. `{"enable_thinking": False}`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any] | None = None) -> None:
        self.tokenizer = tokenizer
        self.template_kwargs = dict(template_kwargs or {})
        self.is_plain = not tokenizer.chat_template
        template = tokenizer.get_chat_template() if not self.is_plain else PLAIN_TEMPLATE
        self._template: str = template
        if self.is_plain:
            ids = tokenizer("a").input_ids
            has_bos = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
            self.template_kwargs["bos"] = tokenizer.bos_token if has_bos else ""
        self.folds_system = self._drops_system()

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change when the rendering changes: the template's source, its arguments, the folding."""
        source = json.dumps([self._template, self.template_kwargs, self.folds_system], sort_keys=True, default=str)
        return hashlib.sha256(source.encode()).hexdigest()[:16]

    def render(self, messages: str | Messages, add_generation_prompt: bool = True) -> Rendered:
        """Render a conversation to ids and one role per token.

        A template without a system role gets the system text at the start of the first user turn, two newlines before
        the user's text. Text that the template adds, a default system prompt included, has the role "template".

        Raises:
            PromptError: an empty or malformed conversation, or one that the template rejects.
        """
        turns = as_messages(messages)
        parts = self._parts(turns)
        text = self._apply(_joined(parts), add_generation_prompt)
        encoded = self._encode(text)
        if not encoded:
            raise PromptError("The conversation renders to no tokens.")
        ids = [token_id for token_id, _ in encoded]
        spans = self._content_spans(parts, text, add_generation_prompt)
        return Rendered(tuple(ids), tuple(_role_at(spans, start, end) for _, (start, end) in encoded))

    def encode_reply(self, text: str) -> tuple[int, ...]:
        """Ids of a reply's text, to append to a rendered prompt. No special token is added."""
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)

    # A turn is a role and its parts: one part, or system text and user text where the system turn was folded in.

    def _parts(self, turns: list[dict[str, str]]) -> list[_Turn]:
        """One `_Turn` per message; system text that the template would drop goes to the start of the next user turn."""
        parts, waiting = [], []
        for turn in turns:
            part = (turn["role"], turn["content"])
            if self.folds_system and turn["role"] == "system":
                waiting += [part] if turn["content"].strip() else []
                continue
            if waiting and turn["role"] != "user":
                break
            parts.append(_Turn(turn["role"], (*waiting, part)))
            waiting = []
        if waiting:
            raise PromptError("This chat template has no system role: a system message needs a user message next.")
        return parts

    def _apply(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    chat_template=self._template,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    **{"strftime_now": PROMPT_DATE.strftime, **self.template_kwargs},
                )
            )
        except (jinja2.TemplateError, ArithmeticError, TypeError, LookupError, AttributeError) as error:
            roles = ", ".join(m["role"] for m in messages)
            raise PromptError(f"The chat template rejects a conversation with the roles {roles}: {error}") from error

    def _drops_system(self) -> bool:
        """Whether the template raises on a system message or drops its text."""
        marker = MARKER.format(0)
        try:
            text = self._apply([{"role": "system", "content": marker}, {"role": "user", "content": "x"}], True)
        except PromptError:
            return True
        return marker not in text

    def _encode(self, text: str) -> list[tuple[int, tuple[int, int]]]:
        """Ids, each with the span of `text` that it covers."""
        if self.tokenizer.is_fast:
            out = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            return list(zip(out["input_ids"], map(tuple, out["offset_mapping"]), strict=True))
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        spans, at = [], 0
        for piece in split_text(self.tokenizer, ids):
            spans.append((at, at + len(piece)))
            at += len(piece)
        return list(zip(ids, spans, strict=True))

    def _content_spans(self, parts: list[_Turn], text: str, add_generation_prompt: bool) -> list[_Span]:
        """The span of each message's text in the rendered text.

        The conversation is rendered a second time with a marker in place of each text; everything between the markers
        is the template's, which distinguishes a message "user" from the role name "user". Markers are taken in the
        order of the output: some templates (Mistral) move the system text behind earlier turns.

        Raises:
            PromptError: the template drops a message.
        """
        contents = [part for turn in parts for part in turn.parts]
        numbers = itertools.count()
        marked = [
            _Turn(turn.role, tuple((role, MARKER.format(next(numbers))) for role, _ in turn.parts)) for turn in parts
        ]
        skeleton = self._apply(_joined(marked), add_generation_prompt)
        spans, at, behind = [], 0, 0
        seen: set[int] = set()
        for match in MARKER_PATTERN.finditer(skeleton):
            index, start = int(match[1]), at + match.start() - behind
            role, content = contents[index]
            before = skeleton[behind : match.start()]
            # Templates trim messages; some (Qwen 3) also rewrite earlier replies: search for the text then.
            fits = [c for c in (content, content.strip()) if text.startswith(before + c, at)]
            candidate = fits[0] if fits else content.strip()
            start = start if fits else text.find(candidate, at)
            seen.add(index)
            if start >= 0:
                spans.append(_Span(role, start, start + len(candidate)))
                at = start + len(candidate)
            behind = match.end()
        for index, (role, content) in enumerate(contents):
            if index not in seen and content.strip() not in text:
                raise PromptError(f"The chat template drops the text of a {role!r} message: {content[:60]!r}.")
        return spans


@dataclass(frozen=True)
class _Turn:
    role: str
    parts: tuple[tuple[str, str], ...]  # (role, text); two where system text was folded into the user turn


@dataclass(frozen=True)
class _Span:
    role: str
    start: int
    end: int


def _joined(turns: list[_Turn]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": "\n\n".join(text for _, text in turn.parts)} for turn in turns]


def _role_at(spans: list[_Span], start: int, end: int) -> str:
    """The role whose text has most of the token's characters; "template" if none has any."""
    best, most = "template", 0
    for span in spans:
        overlap = min(end, span.end) - max(start, span.start)
        if overlap > most:
            best, most = span.role, overlap
    return best
