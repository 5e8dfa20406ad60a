"""The request of `POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, ValidationError

from persona_core.app.server.api_errors import ApiError, of_validation
from persona_core.app.server.reply_request import (
    OPEN,
    Message,
    PersonaFields,
    ReplyRequest,
    check_others,
    checked_messages,
)
from persona_core.app.server.settings import ServeSettings

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "stop": ([], ""),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "modalities": (["text"],),
    "audio": (),
    "moderation": (),
    "reasoning_effort": (),
    "verbosity": ("medium",),
    "web_search_options": (),
    # Of vLLM and others.
    "min_p": (0,),
    "min_tokens": (0,),
    "best_of": (1,),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "structured_outputs": (),
}
"""Fields that would change the reply, with the values that ask for what happens anyway."""
IGNORED = frozenset(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "parallel_tool_calls", "prediction",
     "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention")
)  # fmt: skip


class StreamOptions(BaseModel):
    model_config = OPEN
    include_usage: bool | None = None


class ChatRequest(BaseModel):
    """The fields that this server acts on. Others are refused where they would change the reply."""

    model_config = OPEN
    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**53)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    top_k: int | None = Field(default=None, ge=-1, lt=2**31, description="As in vLLM; 0 and -1 keep all tokens.")
    repetition_penalty: float | None = Field(default=None, ge=1e-3, le=1e3, description="As in vLLM.")
    persona: PersonaFields | None = None


def read_chat_request(body: bytes, settings: ServeSettings) -> tuple[str, ReplyRequest]:
    """The name of the model, and what is requested.

    Raises:
        ApiError: not JSON, fields that are wrong, or that would change the reply in a way that this server cannot.
        PromptError: a conversation that is too long, or not well-formed.
    """
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise of_validation(error) from error
    check_others(request.model_extra or {}, NEUTRAL, IGNORED)
    if request.top_logprobs and not request.logprobs:
        raise ApiError("top_logprobs needs logprobs=true.", param="top_logprobs")
    options = request.stream_options
    return request.model, ReplyRequest(
        checked_messages(request.messages, settings.max_prompt_chars),
        bool(request.stream),
        sampling_of(request, request.max_completion_tokens or request.max_tokens, settings),
        request.seed,
        (request.top_logprobs or 0) if request.logprobs else None,
        request.persona or PersonaFields(),
        bool(options and options.include_usage),
    )


def sampling_of(request: Any, max_tokens: int | None, settings: ServeSettings) -> dict[str, Any]:
    """The arguments of `Sampling` that a request names.

    Raises:
        ApiError: a longer reply than this server writes.
    """
    if max_tokens is not None and max_tokens > settings.max_new_tokens:
        raise ApiError(
            f"{max_tokens} tokens were requested; this server writes at most {settings.max_new_tokens}.",
            param="max_tokens",
        )
    found = {name: getattr(request, name, None) for name in ("temperature", "top_p", "top_k", "repetition_penalty")}
    if found["top_k"] == -1:
        found["top_k"] = 0
    if found["temperature"] is not None and 0 < found["temperature"] < 1e-6:
        found["temperature"] = 0.0  # as good as greedy, and what float32 can divide by
    named = {name: value for name, value in found.items() if value is not None}
    return {**named, "max_new_tokens": max_tokens or settings.max_new_tokens}
