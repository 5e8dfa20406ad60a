"""Replies written by an OpenAI-compatible server (vLLM, SGLang, TGI), read by the local model.

A server writes many replies at once but returns no states. Each text is tokenised once, after the rendered prompt, and
from then on its ids count: the local model reads them and its states are pooled. Texts are stored as they arrive
(`served.jsonl`), so a run that was killed requests none of them twice.
"""

from __future__ import annotations

import logging
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from persona_core.elicitation.elicit import (
    BatchResult,
    ElicitationPlan,
    RequestBatch,
    plan_record,
    sink_limits,
    states_of,
)
from persona_core.elicitation.store import ElicitationRequest, Reply, ReplyStore
from persona_core.errors import PersonaError, ServerError
from persona_core.inference.pooling import parse_positions
from persona_core.inference.prefill import read_pooled
from persona_core.models.language_model import LanguageModel
from persona_core.utils.files import append_lines, read_lines
from persona_core.utils.openai_client import WRITER_KEY, address, ask_all, explain, open_client

if TYPE_CHECKING:
    from openai import OpenAI

logger = logging.getLogger(__name__)

SERVED_FILE = "served.jsonl"


def elicit_served(
    lm: LanguageModel,
    plan: ElicitationPlan,
    store: ReplyStore,
    model: str,
    base_url: str,
    *,
    api_key: str | None = None,
    concurrency: int = 16,
    timeout: float = 60.0,
    max_retries: int = 5,
    progress: bool = True,
) -> list[tuple[ElicitationRequest, str]]:
    """Have a server write every reply of the plan that the store does not hold yet, and read them with `lm`.

    Args:
        lm: the model that the server runs, loaded here to read the replies.
        plan, store: as in `elicit`.
        model: its name on the server.
        base_url: the server, such as "http://localhost:8000/v1".
        api_key: None takes `SERVED_API_KEY`; the judge's `OPENAI_API_KEY` is never sent here.
        concurrency: requests in flight at once.
        timeout: seconds per request.
        max_retries: after 429, 5xx, a time-out or a lost connection.
        progress: whether to show progress bars.

    Returns:
        Requests that could not be answered, with the reason. A second run tries them again.

    Raises:
        ServerError: no further request can succeed. Texts that arrived are kept.
        SettingError: the store was started with another plan, model or server.
    """
    base_url = address(base_url) or base_url
    store.check_plan({**plan_record(plan, lm), "served": {"base_url": base_url, "model": model}})
    path = store.folder / SERVED_FILE
    texts = {int(record["index"]): (record["text"], record["finish"]) for _, record in read_lines(path)}
    missing = [r for r in plan.requests() if not store.has(r.index) and r.index not in texts]
    failed: list[tuple[ElicitationRequest, str]] = []
    if missing:
        client = open_client(
            base_url=base_url, api_key=api_key, timeout=timeout, max_retries=max_retries, key=WRITER_KEY
        )
        results = ask_all(
            client,
            missing,
            lambda request: _ask(client, plan, request, model),
            lambda error: explain(error, base_url, model, WRITER_KEY),
            concurrency,
            answered_before=bool(texts) or bool(store.replies()),
        )
        with closing(results), tqdm(total=len(missing), desc="asking the server", disable=not progress) as bar:
            for request, answer, reason in results:
                bar.update()
                if answer is None:
                    failed.append((request, reason))
                    logger.warning("Request %d failed: %s", request.index, reason)
                    continue
                append_lines(path, [{"index": request.index, "text": answer[0], "finish": answer[1]}])
                texts[request.index] = answer
    unread: list[tuple[ElicitationRequest, str]] = []
    batches, max_norm = plan.batches(), None
    total = sum(len(b.requests) for b in batches)
    with tqdm(total=total, desc="reading", unit="reply", disable=not progress) as bar:
        for batch in batches:
            todo = [r for r in batch.requests if not store.has(r.index) and r.index in texts]
            if todo:
                name = store.free_name(batch.name)
                max_norm = sink_limits(lm, plan) if max_norm is None else max_norm
                written = _read(lm, plan, RequestBatch(name, tuple(todo)), texts, model, max_norm)
                store.add(name, written.replies, written.states)
                unread += written.failed
            bar.update(len(batch.requests))
    return [*failed, *unread]


def _ask(client: OpenAI, plan: ElicitationPlan, request: ElicitationRequest, model: str) -> tuple[str, str]:
    sampling = plan.sampling
    completion = client.chat.completions.create(
        model=model,
        messages=request.messages,  # type: ignore[arg-type]
        max_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=plan.seed + request.index,
    )
    choices = getattr(completion, "choices", None) or []
    content = choices[0].message.content if choices and choices[0].message else None
    if not isinstance(content, str):
        raise ServerError("The server's answer has no text.")
    reason = choices[0].finish_reason
    return content, "eos" if reason == "stop" else reason or "unknown"


def _read(
    lm: LanguageModel,
    plan: ElicitationPlan,
    batch: RequestBatch,
    texts: dict[int, tuple[str, str]],
    writer: str,
    max_norm: np.ndarray,
) -> BatchResult:
    """Pool the states of served texts. Only those that exceed the context fail."""
    rows, n_prompts, kept, failed = [], [], [], []
    for request in batch.requests:
        try:
            prompt = lm.chat.render(request.messages).token_ids
            reply_ids = lm.chat.encode_reply(texts[request.index][0]) if texts[request.index][0] else ()
        except PersonaError as error:
            failed.append((request, str(error)))
            continue
        if lm.context_length is not None and len(prompt) + len(reply_ids) > lm.context_length:
            failed.append(
                (request, f"{len(prompt) + len(reply_ids)} tokens exceed the context of {lm.context_length}.")
            )
            continue
        rows.append((*prompt, *reply_ids))
        n_prompts.append(len(prompt))
        kept.append((request, reply_ids))
    if not rows:
        return BatchResult((), {}, tuple(failed))
    positions = parse_positions(plan.positions)
    means, samples = read_pooled(lm, rows, n_prompts, positions, max_norm=max_norm, n_sampled=plan.tokens_per_reply)
    replies = [
        Reply(
            request=request,
            text=texts[request.index][0],
            token_ids=tuple(reply_ids),
            n_tokens=sum(i not in lm.eos_ids for i in reply_ids),
            finish=texts[request.index][1],
            seed=plan.seed + request.index,
            writer=writer,
        )
        for request, reply_ids in kept
    ]
    return BatchResult(tuple(replies), states_of(plan, means, samples), tuple(failed))
