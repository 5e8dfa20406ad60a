"""One reply of an OpenAI-compatible server: how it is requested, and the tokens that it consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from persona_core.elicitation.elicit import ElicitationPlan
from persona_core.elicitation.store import ElicitationRequest
from persona_core.errors import PromptError, ServerError
from persona_core.inference.sections import opens_thought
from persona_core.models.detokenize import text_of
from persona_core.models.language_model import LanguageModel
from persona_core.utils.checks import is_integer

if TYPE_CHECKING:
    from openai import OpenAI

LONGER = 4
"""A reply that is cut off in its thought gets room for this many times the usual limit of a thought (1,024 tokens)
more, unless the limit was set."""
IDS = "return_token_ids"
"""What vLLM calls it: the answer then holds the ids of prompt and reply."""


@dataclass(frozen=True)
class ServedReply:
    """A server's answer.

    Attributes:
        text: what it said.
        finish: why it ended.
        thought: what it thought before, where the server gives that by itself.
        token_ids: that it wrote, where the server gives them.
    """

    text: str
    finish: str
    thought: str | None = None
    token_ids: tuple[int, ...] | None = None

    @classmethod
    def from_line(cls, line: Mapping[str, Any]) -> ServedReply:
        """A line of `served.jsonl`."""
        ids = line.get("token_ids")
        return cls(line["text"], line["finish"], line.get("thought"), None if ids is None else tuple(ids))


class Asker:
    """Requests replies; safe to use from several threads.

    Args:
        client: of the server.
        plan: sampling and seeds.
        model: its name on the server.
        lm: the same model, loaded here.
    """

    def __init__(self, client: OpenAI, plan: ElicitationPlan, model: str, lm: LanguageModel) -> None:
        self._client, self._plan, self._model, self._lm = client, plan, model, lm
        self._asks_ids = True

    def ask(self, request: ElicitationRequest) -> ServedReply:
        """The reply. One that is cut off in its thought is requested once more, with room for a longer thought.

        Raises:
            ServerError: it is cut off again, or the answer has no text.
            PromptError: the server wrote it after another prompt than this model's template makes.
            openai.OpenAIError: the request failed.
        """
        sampling, lm = self._plan.sampling, self._lm
        limit = sampling.longest_reply(lm.chat.thought_marks is not None)
        more = [] if sampling.max_thinking_tokens is not None else [limit + LONGER * sampling.thought_limit]
        for n_tokens in (limit, *more):
            completion = self._create(request, n_tokens)
            self._check_prompt(completion, request)
            reply = _reply_of(completion)
            if not is_cut_in_thought(reply, request, lm):
                return reply
        raise ServerError(
            f"The server's reply was cut off in its thought, after {n_tokens} tokens. Allow a longer thought "
            "(--max-thinking-tokens) or turn thinking off (--template-kwargs enable_thinking=false). If the server "
            "hides thoughts, have it return them."
        )

    def _check_prompt(self, completion: Any, request: ElicitationRequest) -> None:
        theirs, ours = _as_ids(getattr(completion, "prompt_token_ids", None)), self._lm.chat.render(request.messages)
        if theirs is None or theirs == tuple(ours.token_ids):
            return
        pairs = enumerate(zip(theirs, ours.token_ids, strict=False))
        at = next((t for t, (a, b) in pairs if a != b), min(len(theirs), len(ours.token_ids)))
        raise PromptError(
            f"The server's prompt has {len(theirs)} tokens, this model's template writes {len(ours.token_ids)}; they "
            f"differ from token {at} on: the server runs another template, or other --template-kwargs."
        )

    def _create(self, request: ElicitationRequest, limit: int) -> Any:
        import openai

        sampling, kwargs = self._plan.sampling, self._lm.chat.given_kwargs
        extra: dict[str, Any] = {"chat_template_kwargs": kwargs} if kwargs else {}
        asks_ids = self._asks_ids
        try:
            return self._client.chat.completions.create(
                model=self._model,
                messages=request.messages,  # type: ignore[arg-type]
                max_tokens=limit,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=self._plan.seed + request.index,
                extra_body={**extra, IDS: True} if asks_ids else extra or None,
            )
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            if not asks_ids or IDS not in str(error):
                raise
        self._asks_ids = False  # a server that knows no such parameter: its texts are tokenised here
        return self._create(request, limit)


def _reply_of(completion: Any) -> ServedReply:
    choices = getattr(completion, "choices", None) or []
    message = choices[0].message if choices else None
    content = getattr(message, "content", None)
    # vLLM and SGLang call it reasoning_content, OpenRouter and newer vLLM reasoning
    thoughts = (getattr(message, name, None) for name in ("reasoning_content", "reasoning"))
    thought = next((text for text in thoughts if isinstance(text, str) and text.strip()), None)
    reason = choices[0].finish_reason if choices else None
    if content is None and reason == "length":
        content = ""
    if not isinstance(content, str):
        raise ServerError("The server's answer has no text.")
    finish = "eos" if reason == "stop" else reason or "unknown"
    return ServedReply(content, finish, thought, _as_ids(getattr(choices[0], "token_ids", None)))


def _as_ids(value: Any) -> tuple[int, ...] | None:
    return tuple(value) if isinstance(value, list) and value and all(is_integer(i, minimum=0) for i in value) else None


def is_cut_in_thought(reply: ServedReply, request: ElicitationRequest, lm: LanguageModel) -> bool:
    """Whether a reply ended before its answer began: its limit left no text, or a thought in the text is open.

    Not every server says "length" of a reply that was cut off.
    """
    marks, text = lm.chat.thought_marks, reply.text.strip()
    if not text:
        return reply.finish == "length"
    if reply.thought or marks is None or marks.closing in text:
        return False
    return marks.begins(text) or opens_thought(lm, lm.chat.render(request.messages).token_ids)


def reply_ids_of(
    lm: LanguageModel, request: ElicitationRequest, served: ServedReply, prompt: tuple[int, ...]
) -> tuple[int, ...]:
    """A served reply's ids behind the prompt that it was written to: those that the server wrote, if it gives them.

    None for an empty reply.

    Raises:
        PromptError: the server's prompt or tokens are not those of this model and its template.
    """
    if served.token_ids is not None:
        lm.check_ids(served.token_ids)
        without_special = lm.tokenizer.decode(list(served.token_ids), skip_special_tokens=True)
        if not any(served.text.strip() in text for text in (text_of(lm.tokenizer, served.token_ids), without_special)):
            raise PromptError("The server's tokens are another text here: it runs another tokenizer.")
        return served.token_ids
    if not served.text and not served.thought:
        return ()
    reply = {"role": "assistant", "content": served.text}
    if served.thought:
        reply["reasoning_content"] = served.thought
    ids = lm.chat.place([*request.messages, reply]).token_ids
    if ids[: len(prompt)] != prompt:
        raise PromptError(
            "The reply does not continue the prompt that this model's template writes: the server leaves the thought "
            "out, or runs another template."
        )
    return ids[len(prompt) :]
