"""Replies as chat completions: whole, or as chunks of a stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from persona_core.app.server.persona_record import Record, head, of_token, tail
from persona_core.app.server.writer import Reply, Token
from persona_core.models.detokenize import REPLACEMENT, text_of, well_formed
from persona_core.utils.version import __version__

FINGERPRINT = f"persona-trace-{__version__}"
FINISH = {"eos": "stop", "length": "length", "context": "length", "thought": "length", None: "length"}


@dataclass(frozen=True)
class ChatCompletion:
    """One reply in the words of the protocol.

    Args:
        reply: on its way.
        model: the name that it bears.
    """

    reply: Reply
    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def _head(self, kind: str) -> Record:
        named = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**named, "system_fingerprint": FINGERPRINT}

    async def chunks(self) -> AsyncIterator[Record]:
        """A chunk for each token, between one with the role and one with the reason why the reply ended."""
        yield self._chunk({"role": "assistant", "content": ""}, head(self.reply))
        n = 0
        async for token in self.reply:
            n += 1
            live = token.live
            delta = {"content": well_formed(live.says)} if live.says else {}
            if live.role == "thinking":
                delta["reasoning_content"] = well_formed(live.step.text)
            yield self._chunk(delta, of_token(self.reply, token), self._logprobs([token]))
        trace, found = await self.reply.end()
        yield self._chunk({}, tail(self.reply, trace, found), finish=FINISH[self.reply.finish])
        if self.reply.request.include_usage:
            yield {**self._head("chat.completion.chunk"), "choices": [], "usage": usage(self.reply, n)}

    def _chunk(self, delta: Record, persona: Record, logprobs: Any = None, finish: str | None = None) -> Record:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        more = {"usage": None} if self.reply.request.include_usage else {}
        return {**self._head("chat.completion.chunk"), "choices": [choice], "persona": persona, **more}

    async def whole(self) -> Record:
        """The completion, once it is written."""
        tokens = [token async for token in self.reply]
        trace, found = await self.reply.end()
        message: Record = {
            "role": "assistant",
            "content": well_formed("".join(token.live.says for token in tokens)),
            "refusal": None,
        }
        if thought := "".join(token.live.step.text for token in tokens if token.live.role == "thinking"):
            message["reasoning_content"] = well_formed(thought)
        persona = head(self.reply) | {"tokens": [of_token(self.reply, token) for token in tokens]}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": self._logprobs(tokens),
            "finish_reason": FINISH[self.reply.finish],
        }
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": usage(self.reply, len(tokens)),
            "persona": persona | tail(self.reply, trace, found),
        }

    def _logprobs(self, tokens: list[Token]) -> Record | None:
        if self.reply.request.n_top is None:
            return None
        return {"content": [logprob(self.reply, token) for token in tokens], "refusal": None}


def logprob(reply: Reply, token: Token) -> Record:
    """A token's log probability, and the likeliest tokens'."""
    known = token.live.log_prob
    if known is None:
        raise RuntimeError("The log probability was requested.")
    top = [_of_id(reply, token_id, log_prob) for token_id, log_prob in known.top]
    return {**_of_id(reply, token.live.step.token_id, known.log_prob), "top_logprobs": top}


def _of_id(reply: Reply, token_id: int, log_prob: float) -> Record:
    text = text_of(reply.writer.monitor.lm.tokenizer, [token_id])
    part_of_character = REPLACEMENT in text  # its bytes are not those of the text
    text = well_formed(text)
    # JSON has no infinity; OpenAI writes -9999 for a token that cannot be.
    sent = max(log_prob, -9999.0)
    return {"token": text, "logprob": sent, "bytes": None if part_of_character else list(text.encode())}


def usage(reply: Reply, n_reply: int) -> Record:
    """Tokens of prompt and reply; a thought and the end of the turn count."""
    n_prompt = reply.live.n_prompt
    return {"prompt_tokens": n_prompt, "completion_tokens": n_reply, "total_tokens": n_prompt + n_reply}
