"""A visitor's conversation with a model, and what is to be written next in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_core.app.model_pool import ModelDesk
from persona_core.app.requests import conversation, drawn, length_of, steer_name, steer_of
from persona_core.app.settings import AppSettings
from persona_core.app.streaming import Writing, finished
from persona_core.errors import PromptError
from persona_core.models.detokenize import is_well_formed
from persona_core.report.saved_runs import BASELINE, CONTAMINATED

if TYPE_CHECKING:
    from persona_core.app.home import Opening
    from persona_core.traces.trace import Trace
    from persona_core.traces.view.payload import Payload

ORIGINAL = "as it was"


@dataclass(frozen=True)
class Chat:
    """What was said, and what is shown of it.

    Attributes:
        messages: the conversation, the last reply included.
        traces: of the sides that are shown: the last reply, or a reply and its branch.
        side: which model speaks.
        link: what brings the last reply back, as texts; its branches add their own.
        named: model, adapter and vectors that the visitor has named, where `side` is none of the app's own.
        lines: for each trace the branches that led to it, each `(trait, action, amount, at)`.
    """

    messages: tuple[Mapping[str, str], ...] = ()
    traces: tuple[Trace, ...] = ()
    side: str = BASELINE
    link: Mapping[str, str] | None = None
    named: tuple[str, str, str] | None = None
    lines: tuple[tuple[tuple[Any, ...], ...], ...] = ((), ())

    @classmethod
    def of_opening(cls, opening: Opening | None) -> Chat:
        """The chat that the page opens on: a reply to branch from, but nothing that the next message follows."""
        if opening is None:
            return cls()
        side = CONTAMINATED if opening.config == CONTAMINATED else BASELINE
        return cls(traces=(opening.trace,), side=side)

    @property
    def label(self) -> str:
        """What the field for the next message is called."""
        turn = sum(m["role"] == "user" for m in self.messages) + 1
        return "Message" if turn == 1 else f"Next message (turn {turn} of this chat)"

    def without_last(self) -> tuple[Chat, str]:
        """The conversation before the last message of the user, and that message; "" where there is none."""
        places = [i for i, m in enumerate(self.messages) if m["role"] == "user"]
        if not places:
            return self, ""
        return Chat(self.messages[: places[-1]], side=self.side), self.messages[places[-1]]["content"]


@dataclass(frozen=True)
class Asked:
    """What a press asks for: a reply to a message, or a branch.

    Attributes:
        side: which model.
        values: of the fields, unchecked.
        at: for a branch: which side it leaves, and at which token of the reply.
        then: what is written after it, as a link of a branch asks for.
        named: as in `Chat`.
    """

    side: str
    values: tuple[Any, ...]
    at: tuple[int, int] | None = None
    then: Asked | None = None
    named: tuple[str, str, str] | None = None


def linked(query: Mapping[str, Any]) -> tuple[Chat, Asked] | None:
    """What a link asks for: a conversation, and what is to be written in it; None where it asks for nothing.

    A link that holds something else is no error: its visitor sees the page as it is without one.
    """
    try:
        branches = _branches(json.loads(query["branch"])) if "branch" in query else None
        if "said" not in query:
            return None if branches is None else (Chat(), branches)
        said = [{"role": str(role), "content": str(text)} for role, text in json.loads(query["said"])]
        sampling = [json.loads(query[key]) for key in ("max_new_tokens", "temperature", "seed")]
        side = str(query["side"])
        named = None
        if "named" in query:
            model, adapter, vectors = map(str, json.loads(query["named"]))
            named = model, adapter, vectors
        if not all(map(is_well_formed, (side, *(m["content"] for m in said), *(named or ())))):
            return None
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError):
        return None
    system = said.pop(0)["content"] if said and said[0]["role"] == "system" else ""
    if [m["role"] for m in said] != ["user", "assistant"] * (len(said) // 2) + ["user"]:
        return None
    prompt = said.pop()["content"]
    return Chat(tuple(said), side=side), Asked(side, (prompt, system, *sampling), then=branches, named=named)


def _branches(specs: Any) -> Asked | None:
    """Branches of a link, each `[trait, action, amount, at]`: the first of a reply, each other of the one before it."""
    asked: Asked | None = None
    for place, (trait, action, amount, at) in reversed(list(enumerate(specs))):
        if not 0 <= int(at) < 2**31:
            raise ValueError(at)
        asked = Asked("", (trait, action, amount), (min(place, 1), int(at)), asked)
    return asked


@dataclass(frozen=True)
class Plan:
    """What is to be written.

    Attributes:
        writing: the reply.
        chat: the conversation before it.
        beside: what is shown as the first side meanwhile.
        link: what brings the view back.
        original: the trace that a branch leaves.
        lines: as in `Chat`, once it is written.
    """

    writing: Writing
    chat: Chat
    link: Mapping[str, str]
    beside: Payload | None = None
    original: Trace | None = None
    lines: tuple[tuple[tuple[Any, ...], ...], ...] = ((), ())

    def after(self, trace: Trace) -> Chat:
        """The conversation once the reply is there. A branch takes the place of the reply that it leaves."""
        before = self.chat.messages
        if self.original is not None:
            said = (*before[:-1], {"role": "assistant", "content": trace.reply_text}) if before else ()
            return replace(self.chat, messages=said, traces=(self.original, trace), lines=self.lines)
        said = (*before, {"role": "assistant", "content": trace.reply_text})
        return replace(self.chat, messages=said, traces=(trace,), link=self.link)


def plan_of(desk: ModelDesk, asked: Asked, chat: Chat, settings: AppSettings) -> Plan:
    """What is to be written for a press.

    Raises:
        PromptError, SettingError: it asks for what cannot be.
    """
    return _branch(desk, asked, chat, settings) if asked.at else _reply(desk, asked, chat, settings)


def _reply(desk: ModelDesk, asked: Asked, chat: Chat, settings: AppSettings) -> Plan:
    """The reply to a message; values: prompt, system prompt, longest reply, temperature, seed."""
    prompt, system, length, temperature, seed = asked.values
    messages = conversation(chat.messages, prompt, system, settings.max_prompt_chars)
    sampling = {
        "max_new_tokens": length_of(length, settings.max_new_tokens),
        "temperature": temperature,
        "seed": drawn(seed),
    }
    link = {"side": asked.side, "said": json.dumps([[m["role"], m["content"]] for m in messages], ensure_ascii=False)}
    link |= {k: json.dumps(v) for k, v in sampling.items()}
    if asked.named:
        link["named"] = json.dumps(asked.named)
    return Plan(
        Writing(desk, messages, asked.side, sampling),
        Chat(tuple(messages), side=asked.side, link=chat.link, named=asked.named),
        link,
    )


def _branch(desk: ModelDesk, asked: Asked, chat: Chat, settings: AppSettings) -> Plan:
    """The branch of a reply; values: trait, action, amount."""
    from persona_core.monitor.branching import Branch

    side, at = asked.at or (0, 0)
    if side >= len(chat.traces):
        raise PromptError("There is no reply to branch from yet. Write one first.")
    trace = chat.traces[side]
    if at >= len(trace.reply_positions):
        raise PromptError(f"The reply has {len(trace.reply_positions)} tokens; put the cursor on one of them.")
    writer = desk.monitor().writer_name
    if not same_model(trace.provenance.writer, writer):
        raise PromptError(f"This reply is by {trace.provenance.writer}, which this app does not hold. Write one first.")
    trait, action, amount = asked.values
    steer = steer_of(trait, action, amount, at, desk.monitor().vectors.best_block)
    sampling = dict(trace.provenance.sampling or {})
    sampling["seed"] = trace.provenance.seed
    # A published reply may be longer than the owner lets visitors write.
    most = settings.max_new_tokens
    if at >= most:
        raise PromptError(f"Replies are at most {most} tokens here; put the cursor before that token of the reply.")
    sampling["max_new_tokens"] = min(sampling.get("max_new_tokens", most), most)
    beside = finished(desk.monitor(), trace, ORIGINAL)
    line = (*chat.lines[side], (*asked.values, at))
    link = {**(chat.link or {}), "branch": json.dumps(line)}
    writing = Writing(desk, Branch(trace, at), steer_name(steer), {**sampling, "steer": steer})
    return Plan(writing, chat, link, beside, trace, (chat.lines[side], line))


def same_model(writer: str | None, name: str) -> bool:
    """Whether a trace is by the model of that name: folders count by their last name, adapters are part of it."""
    return writer is not None and [Path(p).name for p in writer.split(" + ")] == [
        Path(p).name for p in name.split(" + ")
    ]
