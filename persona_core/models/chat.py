"""Render a conversation to token ids and roles, the same way everywhere.

The chat template is applied once and its text is tokenised once, without adding the tokenizer's special tokens: the
template writes them all, so there is exactly one BOS. Extraction, calibration and monitoring all render here. A reply
that is generated follows the rendered prompt by its ids; one that is given as text stands where the template puts it.

Control tokens typed into a message are read as control tokens, as transformers does by default; their role is still
that of the message.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from persona_core.errors import PersonaWarning, PromptError
from persona_core.models.detokenize import split_text
from persona_core.models.messages import ROLES, Messages, as_messages, conversation
from persona_core.models.placing import common_start, place_reply
from persona_core.models.spans import locate
from persona_core.models.template import ChatTemplate
from persona_core.models.thinking import ThoughtMarks, find_thought_marks, reply_sections
from persona_core.models.turns import ConversationText, as_turns, role_of_most, with_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ROLES", "ChatFormat", "Messages", "Placed", "Rendered", "as_messages", "conversation"]

# For a tokenizer without a template (a base model). `bos` is the BOS text if the tokenizer itself would add one. The
# space before a reply is the first character that the model writes.
PLAIN_TEMPLATE = """{{ bos }}{% for message in messages %}\
{{ message['role'] | capitalize }}: \
{{ message['content'] | trim if message['role'] == 'assistant' else message['content'] }}

{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"""
PLAIN_STOPS = ("\nUser:", "\nSystem:", "\nAssistant:")
PROBE = "\U0004ffff"  # no character, so no template looks for it


@dataclass(frozen=True)
class Rendered:
    """A prompt as the model reads it: `token_ids` and `roles`, both `[n_tokens]`."""

    token_ids: tuple[int, ...]
    roles: tuple[str, ...]


@dataclass(frozen=True)
class Placed:
    """A prompt with a given reply: ids and roles `[n_tokens]`, the first `n_prompt` of them before the reply."""

    token_ids: tuple[int, ...]
    roles: tuple[str, ...]
    n_prompt: int


class ChatFormat:
    """One tokenizer's chat template, applied to ids.

    Args:
        tokenizer: a transformers tokenizer. Without a chat template (a base model), `PLAIN_TEMPLATE` is used:
            `User: ...`, blank line, `Assistant:`. A generated reply then ends where the model writes the next name.
        template_kwargs: passed to the template, e.g. `{"enable_thinking": False}`; `{"date": "2025-01-31"}` sets the
            date of templates that write today's, which is 26 July 2024 otherwise.

    Raises:
        PromptError: a template that cannot render a user message.
        SettingError: a date in another form.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any] | None = None) -> None:
        self.tokenizer = tokenizer
        self.given_kwargs = dict(template_kwargs or {})
        self.template_kwargs = dict(self.given_kwargs)
        self.is_plain = not tokenizer.chat_template
        source = PLAIN_TEMPLATE
        if self.is_plain:
            ids = _encoded(tokenizer, "a").input_ids
            has_bos = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
            self.template_kwargs["bos"] = tokenizer.bos_token if has_bos else ""
        else:
            try:
                source = tokenizer.get_chat_template()
            except ValueError as error:  # several templates, none of them the default
                raise PromptError(f"The tokenizer's chat template cannot be used: {error}") from error
        self._template = ChatTemplate(source, tokenizer.special_tokens_map, self.template_kwargs)
        self._warn_of_unread_arguments()
        self._template.render([{"role": "user", "content": PROBE}], True)
        self.folds_system = self._drops_system()

    def _warn_of_unread_arguments(self) -> None:
        """A misspelt name would change nothing, and nobody would know."""
        unread = [name for name in self.given_kwargs if self.is_plain or not self._template.reads(name)]
        if unread:
            known = () if self.is_plain else self._template.arguments()
            takes = f"takes {', '.join(known)}" if known else "takes no arguments"
            warnings.warn(
                f"The chat template does not read {', '.join(map(repr, unread))}, so it changes nothing; it {takes}.",
                PersonaWarning,
                stacklevel=3,
            )

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change when the rendering changes: the template's source, its arguments, the folding."""
        source = json.dumps(
            [self._template.source, self.template_kwargs, self.folds_system], sort_keys=True, default=str
        )
        return hashlib.sha256(source.encode()).hexdigest()[:16]

    @cached_property
    def thought_marks(self) -> ThoughtMarks | None:
        """What the template sets around a thought; None for a model that does not think."""
        return None if self.is_plain else find_thought_marks(self._template.render, self._template.source)

    @cached_property
    def answer_header(self) -> str:
        """What the template writes before an answer and does not prompt for, such as `<|channel|>final<|message|>`."""
        asked = [{"role": "user", "content": PROBE}]
        try:
            whole = self._template.render([*asked, {"role": "assistant", "content": PROBE + PROBE}], False)
        except PromptError:
            return ""
        before = whole.partition(PROBE)[2].partition(PROBE + PROBE)[0]
        prompted = self._template.render(asked, True).partition(PROBE)[2]
        return before[common_start(before, prompted) :]

    def render(self, messages: str | Messages, add_generation_prompt: bool = True) -> Rendered:
        """Render a conversation to ids and one role per token.

        A template without a system role gets the system text at the start of the first user turn, two newlines before
        the user's text. Text that the template adds, a default system prompt included, has the role "template"; an
        earlier reply's thought, where the template keeps it, has the role "thinking".

        Raises:
            PromptError: an empty or malformed conversation, or one that the template rejects.
        """
        rendered = self._text(as_messages(messages), add_generation_prompt)
        rendered.check_kept()
        encoded, roles = self._tokens(rendered.text), rendered.roles()
        return Rendered(
            tuple(i for i, _ in encoded), tuple(role_of_most(roles[start:end]) for _, (start, end) in encoded)
        )

    def place(self, messages: Messages) -> Placed:
        """Render a conversation with its reply, which is the last message, where the template puts a reply.

        The tokens are those of the template's own text up to the reply's end; nothing follows the reply. What
        follows a stop string in the reply has the role "template", as the model would have stopped there. A reply with
        its thought, which most templates drop, stands behind the generation prompt, where the model wrote it; so does
        one that is cut off inside its thought, which has no answer.

        Raises:
            PromptError: the last message is no reply, there is nothing before it, or the template does not show it.
        """
        turns = as_messages(messages)
        if turns[-1]["role"] != "assistant":
            raise PromptError(f"The last message is of the role {turns[-1]['role']!r}; expected the assistant's reply.")
        if len(turns) == 1:
            raise PromptError("The conversation holds a reply but no prompt; put a user message before it.")
        prompt = self._text(turns[:-1], True)
        prompt.check_kept()
        placed = place_reply(turns[-1], prompt, lambda: self._text(turns, False), self.answer_header)
        encoded, at = self._tokens(placed.text), placed.start
        roles = placed.roles[:at] + self._until_stop(placed.text[at:], placed.roles[at:])
        return Placed(
            tuple(i for i, _ in encoded),
            tuple(role_of_most(roles[start:end]) for _, (start, end) in encoded),
            sum(end <= placed.start for _, (_, end) in encoded),
        )

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Texts that end a generated reply: in the plain format, the name of whoever speaks next."""
        return PLAIN_STOPS if self.is_plain else ()

    @cached_property
    def reply_is_plain(self) -> bool:
        """Whether every token of a generated reply is the answer's, but for the end of the turn."""
        return self.thought_marks is None and not self.answer_header.strip() and not self.stop_strings

    def reply_roles(self, pieces: Sequence[str], in_thought: bool) -> list[str]:
        """Roles of a generated reply's tokens, "assistant", "thinking" or "template", from their display pieces.

        Args:
            pieces: `[n_tokens]`.
            in_thought: whether the prompt ended inside a thought; see `opens_thought`.
        """
        if self.reply_is_plain or not pieces:
            return ["assistant"] * len(pieces)
        text = "".join(pieces)
        sections = reply_sections(text, self.thought_marks, in_thought=in_thought, header=self.answer_header)
        roles = [role for role, start, end in sections for _ in range(start, end)]
        roles = self._until_stop(text, roles)
        if not text:
            return ["assistant"] * len(pieces)
        found, at = [], 0
        for piece in pieces:  # a piece without text is part of the character that a later one completes
            found.append(role_of_most(roles[at : max(at + len(piece), at + 1)]) if at < len(text) else roles[-1])
            at += len(piece)
        return found

    def before_stop(self, text: str) -> str:
        """A reply's text up to its first stop string and the white space before it."""
        found = [text.index(stop) for stop in self.stop_strings if stop in text]
        return text[: min(found)].rstrip() if found else text

    def _until_stop(self, text: str, roles: list[str]) -> list[str]:
        """The role of each character of a reply, where what begins with a stop string is no part of it."""
        end = len(self.before_stop(text))
        return roles[:end] + ["template"] * (len(roles) - end)

    def opens_thought(self, prompt_text: str) -> bool:
        """Whether a rendered prompt ends inside a thought."""
        return self.thought_marks is not None and self.thought_marks.is_open(prompt_text)

    def _text(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> ConversationText:
        turns = as_turns(messages, self.folds_system)
        parts = tuple(part for turn in turns for part in turn.all_parts)

        def render(texts: Sequence[str]) -> str:
            return self._template.render(with_texts(turns, texts), add_generation_prompt)

        texts = [text for _, text in parts]
        text = render(texts)
        if not text:
            raise PromptError("The conversation renders to no tokens.")
        spans = locate(texts, text, render, self._template.literals)
        return ConversationText(text, parts, tuple(spans), self.thought_marks)

    def _drops_system(self) -> bool:
        """Whether the template raises on a system message or drops its text."""
        messages = [{"role": "system", "content": PROBE}, {"role": "user", "content": "x"}]
        try:
            return PROBE not in self._template.render(messages, True)
        except PromptError:
            return True

    def _tokens(self, text: str) -> list[tuple[int, tuple[int, int]]]:
        """Ids, each with the span of `text` that it covers."""
        if self.tokenizer.is_fast:
            out = _encoded(self.tokenizer, text, add_special_tokens=False, return_offsets_mapping=True)
            return list(zip(out["input_ids"], map(tuple, out["offset_mapping"]), strict=True))
        ids = _encoded(self.tokenizer, text, add_special_tokens=False).input_ids
        spans, at = [], 0
        for piece in split_text(self.tokenizer, ids):
            spans.append((at, at + len(piece)))
            at += len(piece)
        return list(zip(ids, spans, strict=True))


def _encoded(tokenizer: PreTrainedTokenizerBase, text: str, **options: Any) -> Any:
    try:
        return tokenizer(text, **options)
    except BaseException as error:  # what Rust code raises when it panics is no Exception
        if type(error).__name__ != "PanicException":
            raise
        raise PromptError(
            f"The tokenizer {tokenizer.name_or_path!r} cannot read a text of {len(text):,} characters: {error}. "
            "Shorten the text; if it is plain, the regular expression in tokenizer.json is at fault."
        ) from error
