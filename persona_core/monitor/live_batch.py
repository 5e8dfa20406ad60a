"""Replies written and read together that begin and end at times of their own: what a server needs of a monitor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from persona_core.inference.batch import TokenLogProb
from persona_core.inference.generation import GenerationRun
from persona_core.inference.open_batch import OpenBatch
from persona_core.inference.turn_batch import TurnBatch
from persona_core.monitor.alarms import Alarm
from persona_core.monitor.step import Step
from persona_core.traces.trace import Trace

ScoresOf = Callable[[np.ndarray, np.ndarray], Mapping[str, np.ndarray]]


@dataclass(eq=False)
class LiveReply:
    """A reply that is to be written, checked and rendered.

    Attributes:
        run: that keeps it.
        n_top: how many of the likeliest tokens to list beside each token's log probability; None: neither.
        row: in the batch, once it has begun.
    """

    run: GenerationRun
    n_top: int | None = None
    row: int | None = None
    _alarms: list[Alarm] = field(default_factory=list)
    _answer: str = ""
    _held_back: bool = False

    @property
    def n_prompt(self) -> int:
        return len(self.run.prompts[0].token_ids)

    @property
    def seed(self) -> int:
        return self.run.seeds[0]

    def take_alarms(self) -> tuple[Alarm, ...]:
        """The alarms since the last call."""
        found = tuple(self._alarms)
        self._alarms.clear()
        return found

    def says(self, step: Step, role: str) -> str:
        """What the newest token adds to the answer. What may yet become a mark is held back until it is known."""
        new = step.text if role == "assistant" else ""
        chat = self.run.lm.chat
        if chat.reply_is_plain:
            return new
        if role == "template" or self._held_back or chat.stop_strings:
            self._held_back = role == "template" and step.finish is None and not chat.stop_strings
            whole = "" if self._held_back else self.run.reply_text(0)
            if step.finish is None:
                whole = whole[: len(whole) - _begun(whole, chat.stop_strings)]
            new = whole[len(self._answer) :] if whole.startswith(self._answer) else ""
        self._answer += new
        return new


def _begun(text: str, stops: Sequence[str]) -> int:
    """Characters at a text's end that begin a stop string.

    >>> _begun("Yes.\\nUs", ["\\nUser:"])
    3
    """
    return max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)


@dataclass(frozen=True)
class LiveToken:
    """A new token of one of the replies.

    Attributes:
        reply: which.
        step: the token, as `PersonaMonitor.stream` yields it.
        role: "assistant", "thinking" or "template".
        says: what it adds to the answer's text.
        scores: trait -> its score of the default kind at its best block; NaN at a sink token.
        log_prob: how likely it was, if that was requested.
        alarms: detectors that fire at it.
    """

    reply: LiveReply
    step: Step
    role: str
    says: str
    scores: Mapping[str, float]
    log_prob: TokenLogProb | None
    alarms: tuple[Alarm, ...]


class LiveBatch:
    """Replies of one monitor that join and leave a batch at any time. See `PersonaMonitor.live_batch`.

    `start`, `end` and `step` belong to one thread.

    Args:
        batch: of the monitor's model and directions.
        scores_of: the scores of tokens, from raw projections and norms.
        trace_of: the trace of a run.
    """

    def __init__(
        self, batch: OpenBatch | TurnBatch, scores_of: ScoresOf, trace_of: Callable[[GenerationRun, int, int], Trace]
    ) -> None:
        self._batch, self._scores_of, self._trace_of = batch, scores_of, trace_of
        self._replies: dict[int, LiveReply] = {}

    def __enter__(self) -> LiveBatch:
        self._batch.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._batch.__exit__(*error)

    @property
    def is_idle(self) -> bool:
        return self._batch.is_idle

    @property
    def n_waiting(self) -> int:
        """Replies for which there is no room yet."""
        return self._batch.n_waiting

    def start(self, reply: LiveReply) -> None:
        """Have a reply written, as soon as there is room."""
        reply.row = self._batch.add(reply.run, reply.n_top)
        self._replies[reply.row] = reply

    def end(self, reply: LiveReply) -> None:
        """End a reply before its time; nothing if it has ended."""
        if reply.row is not None and self._replies.pop(reply.row, None) is not None:
            self._batch.end(reply.row)

    def of(self, row: int) -> LiveReply:
        """The reply of a row that has not ended, or that `BrokenReply` names; it is then forgotten."""
        return self._replies.pop(row)

    def step(self) -> list[LiveToken]:
        """One more token of each reply for which there is room; nothing if there are no replies.

        Raises:
            BrokenReply: the scores of that reply (`of(error.row)`) are not finite. It has ended; the others go on.
        """
        step = self._batch.step()
        if step is None or step.token_ids is None or step.reading is None:
            return []
        raw = step.reading.raw[:, -1].permute(2, 1, 0).numpy()  # [n_traits, n_blocks, rows]
        scores = self._scores_of(raw, step.reading.norms[:, -1].T.numpy())
        found = []
        for i, (row, token_id, finish, log_prob) in enumerate(
            zip(step.rows, step.token_ids, step.finished, step.log_probs, strict=True)
        ):
            reply = self._replies[row] if finish is None else self._replies.pop(row)
            run = reply.run
            one = Step(len(run.replies[0]) - 1, token_id, run.newest_piece(0), finish, run, self._trace_of)
            role = run.newest_role(0)
            of_token = {trait: float(values[i]) for trait, values in scores.items()}
            says, alarms = reply.says(one, role), reply.take_alarms()
            found.append(LiveToken(reply, one, role, says, of_token, log_prob, alarms))
        return found
