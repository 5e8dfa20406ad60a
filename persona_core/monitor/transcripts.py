"""Texts to read: messages or a trace become ids, display pieces and roles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from persona_core.errors import ContextOverflow, PromptError, VectorsMismatch
from persona_core.inference.sections import opens_thought
from persona_core.models.chat import Messages, as_messages
from persona_core.models.detokenize import split_text
from persona_core.models.language_model import LanguageModel
from persona_core.traces.trace import Trace


@dataclass(frozen=True)
class Transcript:
    """A text as the model reads it.

    Attributes:
        ids, pieces, roles: equal lengths, `[n_tokens]`.
        n_prompt: tokens before the reply.
        writer: the model that wrote the reply, if known.
        written: how it was written, if known.
    """

    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    roles: tuple[str, ...]
    n_prompt: int
    writer: str | None = None
    written: Mapping[str, Any] | None = None


def as_transcript(
    lm: LanguageModel, conversation: str | Messages | Trace | Transcript, writer: str | None
) -> Transcript:
    """Prepare a conversation for one reader.

    Args:
        lm: the reader.
        conversation: messages; if the last is the assistant's, it is the reply. Or a trace or transcript, by its ids.
        writer: the model that wrote the reply, for the record.

    Raises:
        PromptError: nothing to read, a reply without a prompt, or a token without an embedding.
        ContextOverflow: longer than the reader's context.
        VectorsMismatch: a trace whose ids decode to another text with the reader's tokenizer.
    """
    if isinstance(conversation, Transcript):
        text = conversation
    elif isinstance(conversation, Trace):
        text = transcript_of(lm, conversation, writer)
    else:
        text = _of_messages(lm, conversation, writer)
    lm.check_ids(text.ids)
    if lm.context_length is not None and len(text.ids) > lm.context_length:
        raise ContextOverflow(
            f"The text has {len(text.ids)} tokens; the model's context holds {lm.context_length}. Shorten it."
        )
    return text


def written_by(lm: LanguageModel, messages: Messages, reply: Sequence[int], writer: str | None = None) -> Transcript:
    """A prompt and the ids of the reply that `lm`'s tokenizer wrote to it."""
    prompt = lm.chat.render(messages)
    ids, n = (*prompt.token_ids, *reply), len(prompt.token_ids)
    pieces = tuple(split_text(lm.tokenizer, ids))
    said = lm.chat.reply_roles(pieces[n:], opens_thought(lm, prompt.token_ids))
    roles = (*prompt.roles, *("template" if i in lm.eos_ids else role for i, role in zip(reply, said, strict=True)))
    return Transcript(ids, pieces, roles, n, writer)


def _of_messages(lm: LanguageModel, conversation: str | Messages, writer: str | None) -> Transcript:
    turns = as_messages(conversation)
    if turns[-1]["role"] == "assistant":
        placed = lm.chat.place(turns)
        ids, roles, n_prompt = placed.token_ids, placed.roles, placed.n_prompt
    else:
        prompt = lm.chat.render(turns)
        ids, roles, n_prompt = prompt.token_ids, prompt.roles, len(prompt.token_ids)
    return Transcript(ids, tuple(split_text(lm.tokenizer, ids)), roles, n_prompt, writer)


def transcript_of(lm: LanguageModel, trace: Trace, writer: str | None = None) -> Transcript:
    """A trace by its ids, of any length.

    Raises:
        PromptError: no token.
        VectorsMismatch: ids that decode to another text with the reader's tokenizer.
    """
    ids, known = trace.token_ids, trace.provenance
    if not ids:
        raise PromptError("The trace has no tokens.")
    pieces = tuple(split_text(lm.tokenizer, ids)) if min(ids) >= 0 and max(ids) < lm.vocabulary_size else ()
    if "".join(pieces) != trace.text:
        raise VectorsMismatch(
            f"The trace was written with another tokenizer than {lm.name!r}'s; here its ids decode to another text. "
            "Read it as messages instead."
        )
    written = known.written or {
        "revision": known.reader_revision,
        "adapter_revision": known.reader_adapter_revision,
        "sampling": known.sampling,
        "seed": known.seed,
        "steering": [dict(s) for s in known.steering],
    }
    return Transcript(ids, pieces, trace.roles, trace.n_prompt, writer or known.writer, written)
