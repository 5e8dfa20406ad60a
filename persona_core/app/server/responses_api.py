"""`POST /v1/responses`, the newer of OpenAI's two protocols, for text: requests, events and responses."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from persona_core.app.server.api_errors import ApiError, of_validation
from persona_core.app.server.chat_completions import logprob, usage
from persona_core.app.server.chat_request import sampling_of
from persona_core.app.server.persona_record import Record, head, of_token, tail
from persona_core.app.server.reply_request import (
    OPEN,
    Message,
    PersonaFields,
    ReplyRequest,
    check_others,
    checked_messages,
)
from persona_core.app.server.settings import ServeSettings
from persona_core.app.server.writer import Reply, Token
from persona_core.models.detokenize import well_formed

LOGPROBS = "message.output_text.logprobs"
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "text": ({"format": {"type": "text"}}, {}),
    "previous_response_id": (),
    "conversation": (),
    "prompt": (),
    "background": (False,),
    "reasoning": ({},),
    "truncation": ("disabled",),
    "max_tool_calls": (),
    "moderation": (),
    "context_management": (),
}
IGNORED = frozenset(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "parallel_tool_calls", "stream_options",
     "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention")
)  # fmt: skip


class ResponsesRequest(BaseModel):
    """The fields that this server acts on. Others are refused where they would change the reply."""

    model_config = OPEN
    model: str
    input: str | list[Message]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**53)
    include: list[str] | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    persona: PersonaFields | None = None


def read_responses_request(body: bytes, settings: ServeSettings) -> tuple[str, ReplyRequest]:
    """The name of the model, and what is requested.

    Raises:
        ApiError: not JSON, fields that are wrong, or that would change the reply in a way that this server cannot.
        PromptError: a conversation that is too long, or not well-formed.
    """
    try:
        request = ResponsesRequest.model_validate_json(body)
    except ValidationError as error:
        raise of_validation(error) from error
    check_others(request.model_extra or {}, NEUTRAL, IGNORED)
    if unknown := [one for one in request.include or () if one != LOGPROBS]:
        raise ApiError(f"include: {unknown[0][:80]!r} is not supported by this server.", param="include")
    messages = [Message(role="user", content=request.input)] if isinstance(request.input, str) else request.input
    for index, message in enumerate(messages):
        if (message.model_extra or {}).get("type", "message") != "message":
            raise ApiError(f"input[{index}]: expected a message; this server has no tools.", param=f"input.{index}")
    if request.instructions:
        messages = [Message(role="system", content=request.instructions), *messages]
    n_top = request.top_logprobs
    return request.model, ReplyRequest(
        checked_messages(messages, settings.max_prompt_chars),
        bool(request.stream),
        sampling_of(request, request.max_output_tokens, settings),
        request.seed,
        (n_top or 0) if n_top or LOGPROBS in (request.include or ()) else None,
        request.persona or PersonaFields(),
    )


@dataclass
class ResponseObject:
    """One reply in the words of the protocol.

    Args:
        reply: on its way.
        model: the name that it bears.
    """

    reply: Reply
    model: str
    id: str = field(default_factory=lambda: f"resp_{secrets.token_hex(16)}")
    item_id: str = field(default_factory=lambda: f"msg_{secrets.token_hex(16)}")
    created: int = field(default_factory=lambda: int(time.time()))
    _tokens: list[Token] = field(default_factory=list)
    _sent: int = 0

    async def chunks(self) -> AsyncIterator[Record]:
        """The events of a stream, a delta for each token among them."""
        at: Record = {"item_id": self.item_id, "output_index": 0, "content_index": 0}
        begun = self._response("in_progress", [], head(self.reply))
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        yield self._event("response.output_item.added", output_index=0, item=self._item("in_progress", []))
        yield self._event("response.content_part.added", **at, part=self._part([]))
        async for token in self.reply:
            self._tokens.append(token)
            more = {"logprobs": self._logprobs([token]), "persona": of_token(self.reply, token)}
            yield self._event("response.output_text.delta", **at, delta=well_formed(token.live.says), **more)
        trace, found = await self.reply.end()
        part = self._part(self._tokens)
        yield self._event("response.output_text.done", **at, text=part["text"], logprobs=part["logprobs"])
        yield self._event("response.content_part.done", **at, part=part)
        yield self._event("response.output_item.done", output_index=0, item=self._item(self._status, [part]))
        ended = self._response(self._status, [part], tail(self.reply, trace, found))
        yield self._event(f"response.{self._status}", response=ended)

    async def whole(self) -> Record:
        """The response, once it is written."""
        self._tokens = [token async for token in self.reply]
        trace, found = await self.reply.end()
        persona = head(self.reply) | {"tokens": [of_token(self.reply, token) for token in self._tokens]}
        return self._response(self._status, [self._part(self._tokens)], persona | tail(self.reply, trace, found))

    @property
    def _status(self) -> str:
        return "completed" if self.reply.finish == "eos" else "incomplete"

    def _event(self, kind: str, **fields: Any) -> Record:
        self._sent += 1
        return {"type": kind, "sequence_number": self._sent - 1, **fields}

    def _response(self, status: str, parts: list[Record], persona: Record) -> Record:
        sampling = self.reply.live.run.sampling
        incomplete = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": incomplete,
            "instructions": None,
            "metadata": {},
            "model": self.model,
            "output": [] if status == "in_progress" else [self._item(status, parts)],
            "parallel_tool_calls": False,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_output_tokens": sampling.max_new_tokens,
            "tool_choice": "none",
            "tools": [],
            "usage": None if status == "in_progress" else self._usage(),
            "persona": persona,
        }

    def _item(self, status: str, parts: list[Record]) -> Record:
        return {"id": self.item_id, "type": "message", "status": status, "role": "assistant", "content": parts}

    def _part(self, tokens: list[Token]) -> Record:
        text = well_formed("".join(token.live.says for token in tokens))
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self._logprobs(tokens)}

    def _logprobs(self, tokens: list[Token]) -> list[Record]:
        return [] if self.reply.request.n_top is None else [logprob(self.reply, token) for token in tokens]

    def _usage(self) -> Record:
        known = usage(self.reply, len(self._tokens))
        n_thought = sum(token.live.role == "thinking" for token in self._tokens)
        return {
            "input_tokens": known["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": known["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": n_thought},
            "total_tokens": known["total_tokens"],
        }
