"""A judge behind an OpenAI-compatible chat endpoint: OpenAI itself, vLLM, SGLang, TGI."""

from __future__ import annotations

import itertools
import logging
import math
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from persona_core.errors import ServerError
from persona_core.judging.answers import after_thought, expectation, is_refusal, read_number, thought_end
from persona_core.judging.cache import CachedAnswer, JudgeCache
from persona_core.judging.judge import Cost, Question, Score, price_of
from persona_core.utils.checks import is_number
from persona_core.utils.openai_client import (
    REASONING_TOKENS,
    address,
    ask_all,
    explain,
    open_client,
    without_rejected_parameter,
)

if TYPE_CHECKING:
    from openai import OpenAI

logger = logging.getLogger(__name__)

MAX_ANSWER_TOKENS = 8
EMPTY, CUT_OFF = "empty", "cut off"
"""Not answers, whatever the status: asked again, and never kept as "no score"."""
_REASONS = re.compile(r"(?:.*/)?(?:o\d|gpt-5)(?!.*chat)")  # OpenAI's models that bill hidden reasoning as an answer
ROUNDING = 0.01
"""By how much probabilities may exceed 1: bfloat16 rounds each by up to 0.4 %."""
CHARACTERS_PER_TOKEN = 4  # of English prose, for the estimate; the bill is counted from what the server reports


class OpenAIJudge:
    """Asks a chat model for a number; reads the probabilities of the numbers, or else the number in the text.

    Args:
        model: the model's name on the server.
        base_url: the server; None takes `OPENAI_BASE_URL`, else OpenAI.
        api_key: None takes `OPENAI_API_KEY`; local servers rarely need one.
        concurrency: requests in flight at once.
        timeout: seconds per request.
        max_retries: after 429, 5xx, a time-out or a lost connection, with growing pauses.
        prices: money per million prompt tokens and per million completion tokens.
        cache: where answers are kept; None keeps them in memory.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        concurrency: int = 16,
        timeout: float = 60.0,
        max_retries: int = 5,
        prices: tuple[float, float] | None = None,
        cache: JudgeCache | None = None,
    ) -> None:
        self._base_url = address(base_url)
        self._settings: dict[str, Any] = {
            "base_url": self._base_url,
            "api_key": api_key,
            "timeout": timeout,
            "max_retries": max_retries,
        }
        self._model, self._concurrency, self._prices = model, concurrency, prices
        self._cache = cache if cache is not None else JudgeCache(None)
        self._parameters: dict[str, Any] = {
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": 20,
            "max_tokens": MAX_ANSWER_TOKENS,
        }
        self._requests = self._prompt_tokens = self._completion_tokens = self._cached = 0
        self._counting = threading.Lock()
        self.failed: dict[str, str] = {}
        """Questions without an answer because the request failed: key -> reason."""

    @property
    def name(self) -> str:
        where = self._base_url
        return f"openai:{self._model}" + (f"@{where}" if where else "")

    @property
    def bill(self) -> Cost:
        """What this object has spent so far."""
        money = price_of(self._prices, self._prompt_tokens, self._completion_tokens)
        return Cost(self._requests, self._cached, self._prompt_tokens, self._completion_tokens, money)

    def estimate(self, questions: Sequence[Question]) -> Cost:
        """An upper bound on what these questions will cost, before any is asked."""
        prompts = {JudgeCache.key(self.name, q.prompt): q.prompt for q in questions}
        new = [p for key, p in prompts.items() if self._cache.get(key) is None]
        prompt_tokens = sum(math.ceil(len(p) / CHARACTERS_PER_TOKEN) + 8 for p in new)
        completion_tokens = (REASONING_TOKENS if _REASONS.match(self._model) else MAX_ANSWER_TOKENS) * len(new)
        money = price_of(self._prices, prompt_tokens, completion_tokens)
        return Cost(len(new), len(prompts) - len(new), prompt_tokens, completion_tokens, money)

    def score(self, questions: Sequence[Question], progress: bool = True) -> Iterator[tuple[Question, Score]]:
        """Answers as they arrive. Questions with the same content are asked once.

        Raises:
            ServerError: no further request can succeed (no key, no server, no such model). Answers that arrived are
                kept.
        """
        by_key: dict[str, list[Question]] = {}
        for question in questions:
            by_key.setdefault(JudgeCache.key(self.name, question.prompt), []).append(question)
        with tqdm(total=len(questions), desc="judging", unit="answer", disable=not progress) as bar:
            for key in list(by_key):
                answer = self._cache.get(key)
                if answer is not None:
                    self._cached += 1
                    for question in by_key.pop(key):
                        bar.update()
                        yield question, Score(answer.value, answer.how)
            yield from self._ask(by_key, bar)

    # ---- asking ----

    def _ask(self, by_key: dict[str, list[Question]], bar: tqdm[Any]) -> Iterator[tuple[Question, Score]]:
        """Ask one question for each content; all questions with that content share the answer."""
        if not by_key:
            return
        client = open_client(**self._settings)
        results = ask_all(
            client,
            list(by_key.items()),
            lambda item: self._ask_one(client, item[0], item[1][0].prompt),
            lambda error: explain(error, self._base_url, self._model),
            self._concurrency,
            answered_before=len(self._cache) > 0,
        )
        with closing(results):
            for (_, group), answer, reason in results:
                for question in group:
                    if answer is None:
                        self.failed[question.key] = reason
                        logger.warning("No answer to %s: %s", question.key, reason)
                        continue
                    self.failed.pop(question.key, None)
                    bar.update()
                    yield question, Score(answer.value, answer.how)

    def _ask_one(self, client: OpenAI, key: str, prompt: str) -> CachedAnswer:
        empty = 0
        while True:
            completion, sent = self._request(client, prompt)
            used = _used(completion, "prompt_tokens"), _used(completion, "completion_tokens")
            with self._counting:
                self._requests += 1
                self._prompt_tokens += used[0]
                self._completion_tokens += used[1]
            score = read_completion(completion)
            if score.how == CUT_OFF:
                longer = _with_room(sent)
                if longer is None:
                    raise ServerError(
                        f"{self._model} spends {REASONING_TOKENS:,} tokens on its reasoning and returns no answer. Use "
                        "a model that does not reason, or reasons less."
                    )
                if self._parameters == sent:
                    logger.info("%s reasons before it answers; allowing for %d tokens.", self._model, REASONING_TOKENS)
                    self._parameters = longer
            elif score.how == EMPTY:
                empty += 1
                if empty > min(1, self._settings["max_retries"]):
                    raise ServerError(f"{self._model} returned an empty answer. Run it again to ask again.")
            else:
                answer = CachedAnswer(key, score.value, score.how, *used)
                self._cache.put(answer)  # here, in the thread that asked: the caller may be busy
                return answer

    def _request(self, client: OpenAI, prompt: str) -> tuple[Any, dict[str, Any]]:
        """A completion, and the parameters that it was requested with."""
        messages: Any = [{"role": "user", "content": prompt}]
        sent = dict(self._parameters)
        while True:
            try:
                return client.chat.completions.create(model=self._model, messages=messages, **sent), sent
            except Exception as error:
                # A server or model that rejects a parameter always rejects it: leave it out from now on.
                fewer = without_rejected_parameter(error, sent)
                if fewer is None:
                    raise
                if self._parameters == sent:
                    logger.info(
                        "%s does not accept %s; leaving it out.", self._model, ", ".join(sorted(set(sent) - set(fewer)))
                    )
                    self._parameters = fewer
                sent = fewer


def _with_room(sent: dict[str, Any]) -> dict[str, Any] | None:
    """The parameters with room for a thought before the answer; None if they have it."""
    limits = {name for name, value in sent.items() if name.startswith("max_") and value < REASONING_TOKENS}
    return {**sent, **dict.fromkeys(limits, REASONING_TOKENS)} if limits else None


def read_completion(completion: Any) -> Score:
    """The score in a chat completion; with `how` EMPTY or CUT_OFF where it is not an answer.

    A thought that the answer shows is skipped. The expectation over the probabilities of the first token is valid only
    where one token is the whole number. A tokenizer that splits 85 into "8", "5" would make it 8: there the number in
    the text counts.
    """
    choices = getattr(completion, "choices", None) or []
    message = getattr(choices[0], "message", None) if choices else None
    if message is None:
        return Score(None, EMPTY)
    finish = getattr(choices[0], "finish_reason", None)
    if getattr(message, "refusal", None) or finish == "content_filter":
        return Score(None, "refusal")
    whole = getattr(message, "content", None) or ""
    text, in_text = after_thought(whole), None
    if text is None:
        return Score(None, CUT_OFF)
    in_text = read_number(text)
    if finish == "length" and (in_text is None or _may_go_on(whole)):
        return Score(None, CUT_OFF)
    if not text or finish == "error":
        return Score(None, EMPTY)
    if is_refusal(text):
        return Score(None, "refusal")
    tokens = _answer_tokens(choices[0])
    if tokens and in_text is not None and tokens[0].token.strip() == text.split()[0].rstrip(".%/"):
        value = expectation(_probabilities(tokens[0]))
        if value is not None:
            return Score(value, "logprobs")
    return Score(None, "unreadable") if in_text is None else Score(in_text, "text")


def _may_go_on(text: str) -> bool:
    """Whether a text that ran into its limit may have lost digits: "Score: 8" may be the start of 85."""
    return text[-1:].isdigit() and not text.strip().isdigit()


def _used(completion: Any, name: str) -> int:
    """A count of tokens that the server reports; 0 where it reports no number."""
    value = getattr(getattr(completion, "usage", None), name, None)
    return int(value) if is_number(value) and value > 0 else 0


def _answer_tokens(choice: Any) -> list[Any]:
    """The tokens with log probabilities that come after a thought, without white space; none if any is unreadable."""
    tokens = getattr(getattr(choice, "logprobs", None), "content", None)
    if not isinstance(tokens, list) or not all(isinstance(getattr(t, "token", None), str) for t in tokens):
        return []
    end = thought_end("".join(t.token for t in tokens)) or 0
    starts = itertools.accumulate((len(t.token) for t in tokens), initial=0)
    return [t for t, start in zip(tokens, starts, strict=False) if start >= end and t.token.strip()]


def _probabilities(token: Any) -> dict[str, float]:
    """Of the tokens that the server lists in place of this one; none if they are not probabilities."""
    listed = getattr(token, "top_logprobs", None)
    found: dict[str, float] = {}
    for one in listed if isinstance(listed, list) else []:
        text, logprob = getattr(one, "token", None), getattr(one, "logprob", None)
        if not isinstance(text, str) or not (logprob == -math.inf or (is_number(logprob) and logprob < ROUNDING)):
            return {}
        found[text] = math.exp(logprob)
    return found if math.fsum(found.values()) <= 1 + ROUNDING else {}
