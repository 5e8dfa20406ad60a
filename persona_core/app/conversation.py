"""A visitor's conversation with a model, and the next reply in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from persona_core.app.branch_buttons import CHOOSE, suggested_amount
from persona_core.app.pooled_model import PooledModel
from persona_core.app.requests import chat_messages, length_of, seed_or_random, steer_name, steer_of
from persona_core.app.saved_replies import ShownReply
from persona_core.app.settings import AppSettings
from persona_core.app.streaming import ReplyJob, payload_of, with_token
from persona_core.errors import PromptError
from persona_core.models.detokenize import is_well_formed
from persona_core.report.results_folder import BASELINE, CONTAMINATED
from persona_core.traces.provenance import short_name

if TYPE_CHECKING:
    from persona_core.traces.trace import Trace
    from persona_core.traces.view.payload import Payload

ORIGINAL = "original"


@dataclass(frozen=True)
class Chat:
    """A conversation, and the replies that are shown of it.

    Attributes:
        messages: the conversation, including the last reply.
        traces: of the sides shown: the last reply, or a reply and its branch.
        side: which model speaks.
        link: restores the last reply, as strings; branches add their own.
        named: model, adapter and vectors named by the visitor, if `side` is not one of the app's own.
        lines: for each trace the branches that led to it, each `(trait, action, amount, at)`.
        asked: the conversation that the first trace answers.
        shown: what the view shows, where this app wrote it.
    """

    messages: tuple[Mapping[str, str], ...] = ()
    traces: tuple[Trace, ...] = ()
    side: str = BASELINE
    link: Mapping[str, str] | None = None
    named: tuple[str, str, str] | None = None
    lines: tuple[tuple[tuple[Any, ...], ...], ...] = ((), ())
    asked: tuple[Mapping[str, str], ...] = ()
    shown: ShownReply | None = None

    @classmethod
    def of_published(
        cls, config: str, id: str, trace: Trace, messages: Sequence[Mapping[str, str]], model: str
    ) -> Chat:
        """A published reply: one to branch from. The next message takes the place of the one that it answers.

        Args:
            config, id: of its row.
            trace: of the row.
            messages: the conversation before it.
            model: the run whose model wrote it.
        """
        side = CONTAMINATED if model == CONTAMINATED else BASELINE
        return cls(earlier_turns(messages), (trace,), side, {"config": config, "id": id}, asked=tuple(messages))

    @classmethod
    def of_saved(cls, shown: ShownReply) -> Chat:
        """A saved reply, in the same way.

        Raises:
            ValueError: its link is malformed.
        """
        line = tuple(tuple(step) for step in json.loads(shown.link.get("branch", "[]")))
        return cls(
            earlier_turns(shown.messages),
            shown.traces,
            shown.side,
            shown.link,
            _named(shown.link),
            (line[:-1], line),
            shown.messages,
            shown,
        )

    @property
    def label(self) -> str:
        """The label of the message field."""
        turn = sum(m["role"] == "user" for m in self.messages) + 1
        return "Message" if turn == 1 else f"Next message (turn {turn} of this chat)"

    def without_last(self) -> tuple[Chat, str]:
        """The conversation before the user's last message, and that message; "" if there is none."""
        turns = [i for i, m in enumerate(self.messages) if m["role"] == "user"]
        if not turns:
            return self, ""
        return Chat(self.messages[: turns[-1]], side=self.side), self.messages[turns[-1]]["content"]


@dataclass(frozen=True)
class ReplyRequest:
    """What a press of a button requests: a reply to a message, or a branch.

    Attributes:
        side: which model.
        values: of the fields, unchecked.
        at: for a branch: the side to branch from, and the token of its reply.
        then: the next request, as in a link of a branch.
        named: as in `Chat`.
    """

    side: str
    values: tuple[Any, ...]
    at: tuple[int, int] | None = None
    then: ReplyRequest | None = None
    named: tuple[str, str, str] | None = None


def request_from_link(query: Mapping[str, Any]) -> tuple[Chat, ReplyRequest] | None:
    """The conversation and the request in a link; None if it holds neither.

    A malformed link is not an error: the page opens as it does without one.
    """
    try:
        branches = _branches(json.loads(query["branch"])) if "branch" in query else None
        if "said" not in query:
            return None if branches is None else (Chat(), branches)
        said = [{"role": str(role), "content": str(text)} for role, text in json.loads(query["said"])]
        sampling = [json.loads(query[key]) for key in ("max_new_tokens", "temperature", "seed")]
        side, named = str(query["side"]), _named(query)
        if not all(map(is_well_formed, (side, *(m["content"] for m in said), *(named or ())))):
            return None
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError):
        return None
    system = said[0]["content"] if said and said[0]["role"] == "system" else ""
    if not _waits_for_reply(said):
        return None
    request = ReplyRequest(side, (said[-1]["content"], system, *sampling), then=branches, named=named)
    return Chat(earlier_turns(said), side=side), request


def earlier_turns(messages: Sequence[Mapping[str, str]]) -> tuple[Mapping[str, str], ...]:
    """The turns before the last message of a conversation, without a system prompt; none of one that has other turns.

    >>> earlier_turns([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}])
    ()
    """
    return tuple(m for m in messages[:-1] if m["role"] != "system") if _waits_for_reply(messages) else ()


def _waits_for_reply(messages: Sequence[Mapping[str, str]]) -> bool:
    """Whether it is a chat that the user has the last word in, with a system prompt at its head if at all."""
    turns = [m["role"] for m in messages]
    turns = turns[1:] if turns[:1] == ["system"] else turns
    return turns == ["user", "assistant"] * (len(turns) // 2) + ["user"]


def _named(query: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Model, adapter and vectors of a link, if a visitor has named them."""
    if "named" not in query:
        return None
    model, adapter, vectors = map(str, json.loads(query["named"]))
    return model, adapter, vectors


def _branches(specs: Any) -> ReplyRequest | None:
    """Branches in a link, each `[trait, action, amount, at]`: the first is of a reply, each other of the one before."""
    request: ReplyRequest | None = None
    for index, (trait, action, amount, at) in reversed(list(enumerate(specs))):
        if not 0 <= int(at) < 2**31:
            raise ValueError(at)
        request = ReplyRequest("", (trait, action, amount), (min(index, 1), int(at)), request)
    return request


@dataclass(frozen=True)
class PlannedReply:
    """A checked request, ready to run.

    Attributes:
        job: the reply to generate.
        chat: the conversation before it.
        link: restores the view.
        first_side: shown beside the reply while it is written.
        original: the trace that is branched from.
        lines: as in `Chat`, after the reply.
    """

    job: ReplyJob
    chat: Chat
    link: Mapping[str, str]
    first_side: Payload | None = None
    original: Trace | None = None
    lines: tuple[tuple[tuple[Any, ...], ...], ...] = ((), ())

    def after(self, trace: Trace, payload: Payload) -> Chat:
        """The conversation after the reply, as the payload shows it. A branch replaces its original."""
        before, answer = self.chat.messages, {"role": "assistant", "content": trace.reply_text}
        if self.original is None:
            chat = replace(self.chat, messages=(*before, answer), traces=(trace,), link=self.link, asked=before)
        else:
            # The next message follows the branch, but in a reply that was opened: there it replaces the last one.
            written_here = before and before[:-1] == self.chat.asked
            said = (*before[:-1], answer) if written_here else before
            chat = replace(self.chat, messages=said, traces=(self.original, trace), lines=self.lines)
        return replace(chat, shown=ShownReply.of(payload, chat.side, chat.asked, chat.traces, self.link))


def plan_reply(pooled: PooledModel, request: ReplyRequest, chat: Chat, settings: AppSettings) -> PlannedReply:
    """Check a request.

    Raises:
        PromptError, SettingError: the request is invalid.
    """
    return _branch(pooled, request, chat, settings) if request.at else _reply(pooled, request, chat, settings)


def _reply(pooled: PooledModel, request: ReplyRequest, chat: Chat, settings: AppSettings) -> PlannedReply:
    """The reply to a message; values: prompt, system prompt, maximum length, temperature, seed."""
    prompt, system, length, temperature, seed = request.values
    messages = chat_messages(chat.messages, prompt, system, settings.max_prompt_chars)
    sampling = {
        "max_new_tokens": length_of(length, settings.max_new_tokens),
        "temperature": temperature,
        "seed": seed_or_random(seed),
    }
    link = {"side": request.side, "said": json.dumps([[m["role"], m["content"]] for m in messages], ensure_ascii=False)}
    link |= {k: json.dumps(v) for k, v in sampling.items()}
    if request.named:
        link["named"] = json.dumps(request.named)
    return PlannedReply(
        ReplyJob(pooled, messages, request.side, sampling),
        Chat(tuple(messages), side=request.side, link=chat.link, named=request.named),
        link,
    )


def _branch(pooled: PooledModel, request: ReplyRequest, chat: Chat, settings: AppSettings) -> PlannedReply:
    """The branch of a reply; values: trait, action, and amount or None. With `CHOOSE` the amount is a token's id."""
    from persona_core.monitor.branching import Branch

    side, at = request.at or (0, 0)
    if side >= len(chat.traces):
        raise PromptError("There is no reply to branch from yet. Send a message first.")
    trace = chat.traces[side]
    n_tokens = max((*trace.thinking_positions, *trace.reply_positions), default=trace.n_prompt - 1) + 1 - trace.n_prompt
    if at >= n_tokens:
        raise PromptError(f"The reply has {n_tokens} tokens; put the cursor on one of them.")
    check_writer(pooled, trace)
    trait, action, amount = request.values
    if action == CHOOSE:
        branch = Branch(with_token(pooled, trace, at, amount), at + 1)
        name, steer = f"“{branch.trace.tokens[-1].strip()}” instead", None
    else:
        if amount is None:
            amount = pooled.run(suggested_amount, pooled, trait, action)
        steer = steer_of(trait, action, amount, at, pooled.monitor().vectors.best_block)
        branch, name = Branch(trace, at), steer_name(steer)
    sampling = dict(trace.provenance.sampling or {})
    sampling["seed"] = trace.provenance.seed
    # A published reply may be longer than visitors' replies may be here.
    most = settings.max_new_tokens
    if branch.at >= most:
        raise PromptError(f"Replies have at most {most} tokens here; put the cursor before that token of the reply.")
    sampling["max_new_tokens"] = min(sampling.get("max_new_tokens", most), most)
    first_side = payload_of(pooled, trace, ORIGINAL)
    line = (*chat.lines[side], (trait, action, amount, at))
    link = {**(chat.link or {}), "branch": json.dumps(line)}
    job = ReplyJob(pooled, branch, name, {**sampling, "steer": steer})
    return PlannedReply(job, chat, link, first_side, trace, (chat.lines[side], line))


def check_writer(pooled: PooledModel, trace: Trace) -> None:
    """Refuse a trace that another model wrote.

    Raises:
        PromptError.
    """
    if not any(same_model(trace.provenance.writer, name) for name in pooled.monitor().lm.writer_names):
        raise PromptError(
            f"This reply was written by {trace.provenance.writer}, which this app does not have. Send a message in the "
            "Live tab instead."
        )


def same_model(writer: str | None, name: str) -> bool:
    """Whether a trace was written by the model of that name; owners and folders are ignored, adapters count."""
    return writer is not None and short_name(writer) == short_name(name)
