"""Replies written by an OpenAI-compatible server (vLLM, SGLang, TGI), read by the local model.

A server writes many replies at once but returns no states. Where it returns the ids that it wrote (vLLM does), those
are read; otherwise each text is tokenised once, where the chat template puts a reply. From then on the ids count: the
local model reads them and its states are pooled. Replies are stored as they arrive (`served.jsonl`), so a run that was
killed requests none of them twice.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict

import numpy as np
from tqdm import tqdm

from persona_core.elicitation.elicit import ElicitationPlan, batches_of, plan_record
from persona_core.elicitation.growing import begin, served_lines
from persona_core.elicitation.served_reply import Asker, ServedReply, is_cut_in_thought, reply_ids_of
from persona_core.elicitation.shown import shown_positions
from persona_core.elicitation.store import SERVED_FILE, ElicitationRequest, Reply, ReplyStore
from persona_core.elicitation.writing import BatchResult, RequestBatch, sink_limits, states_of
from persona_core.errors import PersonaError
from persona_core.inference.pooling import parse_positions
from persona_core.inference.prefill import read_pooled
from persona_core.inference.sections import answer_positions
from persona_core.models.detokenize import text_of
from persona_core.models.language_model import LanguageModel
from persona_core.utils.files import append_lines
from persona_core.utils.openai_client import WRITER_KEY, address, ask_all, explain, open_client

logger = logging.getLogger(__name__)


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
    stages = begin(
        store, plan.traits, plan.requests(), {**plan_record(plan, lm), "served": {"base_url": base_url, "model": model}}
    )
    path = store.folder / SERVED_FILE
    texts = {line["index"]: ServedReply.from_line(line) for line in served_lines(store)}
    wanted = {r.index: r for stage in stages for r in stage}
    texts = {i: reply for i, reply in texts.items() if i in wanted and not is_cut_in_thought(reply, wanted[i], lm)}
    missing = [r for r in wanted.values() if not store.has(r.index) and r.index not in texts]
    failed: list[tuple[ElicitationRequest, str]] = []
    if missing:
        client = open_client(
            base_url=base_url, api_key=api_key, timeout=timeout, max_retries=max_retries, key=WRITER_KEY
        )
        asker = Asker(client, plan, model, lm)
        results = ask_all(
            client,
            missing,
            asker.ask,
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
                append_lines(path, [{"index": request.index, **asdict(answer)}])
                texts[request.index] = answer
    unread: list[tuple[ElicitationRequest, str]] = []
    batches, max_norm = batches_of(stages, plan.batch_size), None
    total = sum(len(b.requests) for b in batches)
    with tqdm(total=total, desc="reading", unit="reply", disable=not progress) as bar:
        for batch in batches:
            todo = [r for r in batch.requests if not store.has(r.index) and r.index in texts]
            if todo:
                name = store.free_name(batch.name)
                max_norm = sink_limits(lm, plan) if max_norm is None else max_norm
                written = read_batch(lm, plan, RequestBatch(name, tuple(todo)), texts, model, max_norm)
                store.add(name, written.replies, written.states)
                unread += written.failed
            bar.update(len(batch.requests))
    return [*failed, *unread]


def read_batch(
    lm: LanguageModel,
    plan: ElicitationPlan,
    batch: RequestBatch,
    texts: dict[int, ServedReply],
    writer: str,
    max_norm: np.ndarray,
    shows: Mapping[int, Sequence[str]] | None = None,
) -> BatchResult:
    """Pool the states of served texts. Only those that exceed the context fail.

    Args:
        shows: index of a request -> the parts of its reply that are pooled; of others the whole answer is.
    """
    rows, n_prompts, pooled, kept, failed = [], [], [], [], []
    for request in batch.requests:
        served = texts[request.index]
        try:
            prompt = lm.chat.render(request.messages).token_ids
            reply_ids = reply_ids_of(lm, request, served, prompt)
            answered = answer_positions(lm, prompt, reply_ids)
            parts = (shows or {}).get(request.index)
            counted = shown_positions(lm, reply_ids, answered, served.text, parts) if parts else answered
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
        pooled.append(counted)
        kept.append((request, reply_ids, answered))
    if not rows:
        return BatchResult((), {}, tuple(failed))
    positions = parse_positions(plan.positions)
    means, samples = read_pooled(
        lm, rows, n_prompts, positions, max_norm=max_norm, n_sampled=plan.tokens_per_reply, answers=pooled
    )
    # The answer is the tokens between the first that is pooled and the last: one that was held back is in it.
    pooled_at = [[t for t, at in enumerate(answered) if at >= 0] for _, _, answered in kept]
    replies = [
        Reply(
            request=request,
            text=_answer(lm, texts[request.index].text, reply_ids, answered),
            token_ids=reply_ids,
            n_tokens=at[-1] + 1 - at[0] if at else 0,
            finish=texts[request.index].finish,
            seed=plan.seed + request.index,
            writer=writer,
            answer_start=at[0] if at else 0,
        )
        for (request, reply_ids, answered), at in zip(kept, pooled_at, strict=True)
    ]
    return BatchResult(tuple(replies), states_of(plan, means, samples), tuple(failed))


def _answer(lm: LanguageModel, text: str, reply_ids: Sequence[int], answered: Sequence[int]) -> str:
    """The text that is judged: of one with a thought's marks or a stop string, what is pooled."""
    marks = lm.chat.thought_marks
    if marks is None or not (marks.begins(text) or marks.closing in text):
        return lm.chat.before_stop(text)
    return text_of(lm.tokenizer, [i for i, at in zip(reply_ids, answered, strict=True) if at >= 0])
