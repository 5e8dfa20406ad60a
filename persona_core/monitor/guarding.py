"""Replies written under a guard: round by round, since a reply that goes back is written again from there.

All replies of a round are one `GenerationRun`. A reply that the guard takes back leaves its round, and goes on in the
next one from the tokens that are kept, as a `Branch` does.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from persona_core.analysis.detectors import Detectors
from persona_core.inference.batch import DecodeStep
from persona_core.inference.generation import GenerationRun
from persona_core.inference.prefix import ReplyPrefix
from persona_core.inference.steering import NEVER, Intervention
from persona_core.monitor.alarms import LATENCY, Alarm, AlarmWatch
from persona_core.monitor.guard import Action, Guard, GuardEvent, held_after
from persona_core.monitor.step import Step
from persona_core.traces.trace import Trace

STOPPED, TAKEN_BACK = "guard", "rewind"
"""Why a reply leaves its round."""
Watch = Callable[[int, Callable[[Alarm], None]], AlarmWatch]
"""The detectors' alarms in so many replies."""


@dataclass
class GuardedReply:
    """One reply, over all rounds.

    Attributes:
        prefix: that its present round continues.
        n_kept: tokens of the reply that a branch keeps: no rewind discards them.
        rounds: the events of each of its rounds.
        rewinds: so far.
        ends_next: the guard stopped it before its first new token.
        last: its last run, the number of its row in it, and the number of that round.
    """

    prefix: ReplyPrefix
    n_kept: int
    rounds: list[list[GuardEvent]] = field(default_factory=list)
    rewinds: int = 0
    ends_next: bool = False
    last: tuple[GenerationRun, int, int] | None = None

    def events(self, number: int | None = None, n: int | None = None) -> list[GuardEvent]:
        """All events up to a round and the n-th token of the reply in that round; None: to the last."""
        rounds = self.rounds if number is None else self.rounds[: number + 1]
        return [e for k, of in enumerate(rounds) for e in of if n is None or k + 1 < len(rounds) or e.token < n]


class GuardedRun:
    """Replies of one call under a guard.

    Args:
        guard: what to do at an alarm.
        detectors: with the guard's traits and thresholds.
        caps: trait -> the intervention that holds it.
        prefixes, seeds, origins: of each reply, as for `GenerationRun`.
        changes: the caller's interventions.
        start: makes the run of a round.
        watch: makes the alarms of a round.
        trace_of: a run's trace of a row after so many tokens.
    """

    def __init__(
        self,
        guard: Guard,
        detectors: Detectors,
        caps: Mapping[str, Intervention],
        prefixes: Sequence[ReplyPrefix],
        seeds: Sequence[int],
        changes: Sequence[Intervention],
        origins: Sequence[Mapping[str, Any] | None],
        *,
        start: Callable[..., GenerationRun],
        watch: Watch,
        trace_of: Callable[..., Trace],
    ) -> None:
        self._guard, self._detectors, self._caps = guard, detectors, caps
        self._seeds, self._changes, self._origins = seeds, tuple(changes), origins
        self._start, self._watch, self._trace_of = start, watch, trace_of
        self._replies = [GuardedReply(prefix, len(prefix.kept_ids)) for prefix in prefixes]

    def finish(self, on_finished: Callable[[int], object] = lambda _: None) -> list[Trace]:
        """Write all replies to their ends.

        Args:
            on_finished: called after each step with the number of replies that finished in it.
        """
        for _, step in self._steps():
            on_finished(sum(reason not in (None, TAKEN_BACK) for reason in step.finished))
        traces = []
        for row, reply in enumerate(self._replies):
            assert reply.last is not None
            run, index, number = reply.last
            traces.append(self._trace(row, number, run, index))
        return traces

    def stream(self) -> Generator[Step, None, None]:
        """The steps of a single reply. After a rewind their index goes back."""
        (reply,) = self._replies
        for run, step in self._steps():
            if step.token_ids is None:
                continue
            index, number = len(run.replies[0]) - 1, len(reply.rounds) - 1
            now = tuple(e for e in reply.rounds[-1] if e.token == index or (index == run.n_kept[0] and e.token < index))
            finish = None if step.finished[0] == TAKEN_BACK else step.finished[0]
            of_run = partial(self._trace, 0, number)
            yield Step(index, run.replies[0][-1], run.newest_piece(0), finish, run, of_run, now)

    def _steps(self) -> Iterator[tuple[GenerationRun, DecodeStep]]:
        waiting: Sequence[int] = range(len(self._replies))
        while waiting:
            watcher = self._round(waiting)
            run = watcher.run
            for index, row in enumerate(waiting):
                reply = self._replies[row]
                reply.rounds.append([])
                reply.last = run, index, len(reply.rounds) - 1
            for step in run.steps():
                if step.token_ids is None:
                    watcher.show_kept(step.rows)
                yield run, step
            waiting = [row for index, row in enumerate(waiting) if run.finished[index] == TAKEN_BACK]

    def _round(self, rows: Sequence[int]) -> _Round:
        """The next run of some replies: those that go back start where they go back to."""
        replies = [self._replies[row] for row in rows]
        held = [held_after(reply.events()) for reply in replies]
        caps = {
            trait: replace(cap, starts=torch.tensor([own.get(trait, NEVER) for own in held]))
            for trait, cap in self._caps.items()
        }
        start = partial(
            self._start,
            [reply.prefix for reply in replies],
            [self._seeds[row] for row in rows],
            [*self._changes, *caps.values()],
            [self._origins[row] for row in rows],
        )
        return _Round(self._guard, replies, caps, self._watch, start)

    def _trace(self, row: int, number: int, run: GenerationRun, index: int, n: int | None = None) -> Trace:
        """The trace of a reply after n tokens in one of its rounds, with what the guard had done by then."""
        trace = self._trace_of(run, index, n)
        events = self._replies[row].events(number, n)
        unheld = replace(trace.provenance, steering=tuple(c.steer.to_dict() for c in self._changes))
        card, alarm = self._detectors.card, next((e.token for e in events), None)
        reasons = () if card is None else card.outside(trace.replace(provenance=unheld), alarm)
        caps = (replace(self._caps[trait].steer, start=start) for trait, start in held_after(events).items())
        record = self._guard.to_dict() | {
            "n_prompts": None if self._detectors.peaks is None else self._detectors.peaks.n_prompts,
            "no_rate": [reason.what for reason in reasons],
            "amounts": {trait: cap.steer.amount for trait, cap in self._caps.items()},
            "events": [event.to_dict() for event in events],
        }
        return trace.replace(
            finish="stopped" if trace.finish == TAKEN_BACK else trace.finish,
            provenance=replace(unheld, steering=(*unheld.steering, *(cap.to_dict() for cap in caps)), guard=record),
        )


class _Round:
    """Shows each new token to the detectors, and does what the guard decides."""

    def __init__(
        self,
        guard: Guard,
        replies: Sequence[GuardedReply],
        caps: Mapping[str, Intervention],
        watch: Watch,
        start: Callable[..., GenerationRun],
    ) -> None:
        self._guard, self._replies, self._caps = guard, replies, caps
        self._alarms: list[Alarm] = []
        self._watch = watch(len(replies), self._alarms.append)
        self.run = start(self)

    def push(self, row: int, token: int, raw: np.ndarray, norms: np.ndarray, in_thought: bool = False) -> str | None:
        """Why the reply leaves the round with this token; None: it goes on."""
        if self._replies[row].ends_next:
            return STOPPED
        return self._answer(row, self._told(row, token, raw, norms, in_thought))

    def show_kept(self, rows: Sequence[int]) -> None:
        """Show the detectors the tokens that the replies continue from. Those before a rewind were answered before."""
        for row in rows:
            reply, n_prompt = self._replies[row], len(self.run.prompts[row].token_ids)
            raw, norms = self.run.readings(row, len(reply.prefix.kept_ids)) if reply.prefix.kept_ids else (None, None)
            for token, role in enumerate(reply.prefix.kept_roles):
                if raw is None or norms is None or role not in ("assistant", "thinking"):
                    continue
                at = n_prompt + token
                alarms = self._told(row, token, raw[..., at].T, norms[:, at], role == "thinking")
                if not reply.rewinds:
                    self._answer(row, alarms)

    def _told(self, row: int, token: int, raw: np.ndarray, norms: np.ndarray, in_thought: bool) -> list[Alarm]:
        self._alarms.clear()
        self._watch.push(row, token, raw, norms, in_thought)
        return list(self._alarms)

    def _answer(self, row: int, alarms: Sequence[Alarm]) -> str | None:
        """Do what the guard decides at the alarms of one token."""
        decided = [(alarm, self._guard.decide(alarm)) for alarm in alarms]
        if any(action == "stop" for _, action in decided):
            for alarm, action in decided:
                self._note(row, alarm, "stop" if action == "stop" else None)
            self._replies[row].ends_next = True
            return STOPPED
        if any(action == "rewind" for _, action in decided) and self._go_back(row, decided):
            return TAKEN_BACK
        for alarm, action in decided:
            self._hold(row, alarm) if action else self._note(row, alarm, None)
        return None

    def _go_back(self, row: int, decided: Sequence[tuple[Alarm, Action | None]]) -> bool:
        """Discard the newest tokens; False where that would change nothing."""
        reply, token = self._replies[row], decided[0][0].token
        held, newest = held_after(reply.events()), len(self.run.replies[row]) - 1
        back = [min(token + 1, held.get(alarm.trait, NEVER)) for alarm, action in decided if action == "rewind"]
        at = max(min(back) - self._guard.back, reply.n_kept)
        if token != newest or token < reply.n_kept or reply.rewinds >= self._guard.max_rewinds:
            return False  # used up, or an alarm within the tokens that a branch keeps
        if all(held.get(alarm.trait, NEVER) <= at for alarm, action in decided if action == "rewind"):
            return False
        run, n_prompt = self.run, len(self.run.prompts[row].token_ids)
        ids, pieces = tuple(run.replies[row][at:]), run.pieces(row)[n_prompt + at :]
        for alarm, action in decided:
            self._note(row, alarm, action and "rewind", at if action else None, ids, pieces)
            ids, pieces = (), ()  # kept once
        reply.prefix = ReplyPrefix(reply.prefix.prompt, tuple(run.replies[row][:at]), run.roles(row, at)[n_prompt:])
        reply.rewinds += 1
        return True

    def _hold(self, row: int, alarm: Alarm) -> None:
        """Cap the trait from the next choice on that can change."""
        reply = self._replies[row]
        if alarm.trait in held_after(reply.events()):
            self._note(row, alarm, None)
            return
        # The states of kept tokens were read together, before their alarm was known.
        start = max(alarm.token + LATENCY, self.run.n_kept[row] + 1)
        starts = self._caps[alarm.trait].starts
        assert starts is not None
        starts[row] = start
        self._note(row, alarm, "cap", start)

    def _note(
        self,
        row: int,
        alarm: Alarm,
        action: Action | None,
        start: int | None = None,
        ids: tuple[int, ...] = (),
        pieces: Sequence[str] = (),
    ) -> None:
        event = GuardEvent(alarm.trait, alarm.token, action or "none", alarm.in_thought, start, tuple(pieces), ids)
        self._replies[row].rounds[-1].append(event)
