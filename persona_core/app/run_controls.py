"""The controls of a tab that runs a model: its buttons, its notice, and the events behind a press.

A Gradio event joins the queue with the values that the components have at that moment, but looks up a `gr.State` when
it starts. The number of the press joins the queue with the event and the press itself is in the state, so a run that
has waited can tell whether it was stopped or replaced by a newer press.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from persona_core.app.audience import Audience

MODEL_QUEUE = "model"
"""The concurrency id of every event that runs a model: one run at a time."""
UNQUEUED: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""Arguments of an event that waits for no model: it finishes at once, shows no spinner, and is not an endpoint."""

BUSY = "A reply is being written. Press Stop first."
WAITING = "Waiting for the model …"
WRITTEN_AGAIN = "Written again from the link's settings; the text may differ from what the sender saw."
FULL = "Too many people are waiting for the model. Try again in a minute."


class Deadline:
    """Whether a run must end at its next token: its visitor pressed Stop, its time is up, or nobody fetches it.

    Args:
        seconds: from now.
        stop: set by the visitor.
    """

    def __init__(self, seconds: float, stop: threading.Event | None = None) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds
        self._stop = stop or threading.Event()
        self._late = self._unfetched = False
        self._audience = Audience()

    def is_set(self) -> bool:
        """Checked at every token."""
        self._late = self._late or time.monotonic() > self._end
        self._unfetched = self._unfetched or self._audience.gone()
        return self._late or self._unfetched or self._stop.is_set()

    @property
    def notice(self) -> str:
        """The message for a run that used up its time, or that nobody fetched; otherwise empty."""
        if self._unfetched:
            return "Stopped, because nobody fetched the results."
        return f"Stopped after {self._seconds:g} seconds, the time limit of a run here." if self._late else ""


@dataclass
class Press:
    """One press on a button that runs a model: waiting, then started, then done.

    Attributes:
        number: counts the visitor's presses from 1.
        request: what to run.
        pooled: the model to run it with, if a visitor has named it.
        note: what is said beside the result, such as `WRITTEN_AGAIN`.
        stop: set to end the run at its next token.
    """

    number: int = 1
    request: Any = None
    pooled: Any = None
    note: str = ""
    stop: threading.Event = field(default_factory=threading.Event)
    started: bool = False
    done: bool = False

    @property
    def running(self) -> bool:
        return self.started and not self.done

    def valid(self, number: float) -> bool:
        """Whether the run of this press may start now."""
        return self.number == number and not self.started and not self.stop.is_set()


class RunControls:
    """The components of one tab that belong to its presses, and the events that they share.

    Args:
        run: buttons that start a run.
        stop: the button that ends it.
        notice: the line for waiting messages and errors.
        elem_id: of the hidden component with the number of the press.
    """

    def __init__(self, run: list[gr.Button], stop: gr.Button, notice: gr.HTML, elem_id: str) -> None:
        self.press = gr.State(None)
        self.number = gr.Number(0, visible="hidden", elem_id=elem_id)
        self.from_link = gr.Number(0, visible="hidden")  # changes when a link has pressed the button
        self.buttons = [*run, stop]
        self._n_run = len(run)
        self.outputs = [self.press, self.number, notice, *self.buttons]
        self._notice, self._stop = notice, stop

    def accept(self, press: Press | None, request: Any = None, note: str = "") -> tuple[Any, ...]:
        """Values of `outputs`: a new press, with the note, or the current one while its run is active."""
        if press is not None and press.running:
            return press, gr.skip(), BUSY, *self.button_states(press)
        new = Press(1 if press is None else press.number + 1, request, note=note)
        return new, new.number, WAITING, *self.button_states(new)

    def refuse(self, press: Press | None, reason: str) -> tuple[Any, ...]:
        """Values of `outputs` for a request that is invalid."""
        return press, gr.skip(), reason, *self.button_states(press)

    def button_states(self, press: Press | None) -> tuple[Any, ...]:
        """Run buttons are disabled during a run; Stop is enabled from the press until the end."""
        running = press is not None and press.running
        run = [gr.Button(interactive=not running) for _ in range(self._n_run)]
        return (*run, gr.Button(interactive=press is not None and not press.done))

    def unchanged(self) -> tuple[Any, ...]:
        """The buttons as they are."""
        return tuple(gr.skip() for _ in self.buttons)

    def on_press(
        self, listen: Callable[..., Any], request: Callable[..., Any], inputs: list[Any], outputs: Sequence[Any] = ()
    ) -> Any:
        """The first event of a press, outside the queue: an active run keeps its own press.

        Args:
            listen: takes a function, inputs and outputs, as `button.click` does.
            request: returns values of `self.outputs` and of `outputs` for the current press and the inputs.
            inputs, outputs: further components.
        """
        return listen(request, [self.press, *inputs], [*self.outputs, *outputs], **UNQUEUED)

    def run_after(
        self,
        listens: Sequence[Callable[..., Any]],
        run: Callable[..., Any],
        inputs: Any,
        outputs: Any,
        undo: Callable[[Press], Any] = lambda _: (),
        undo_outputs: Sequence[Any] = (),
        load: Callable[..., Any] | None = None,
    ) -> None:
        """Run each press once the model is free, then reset the buttons, also after a failure.

        Args:
            listens: each takes a function, inputs and outputs, as `event.then` does.
            run: takes the number of the press, the press and the inputs; streams values of the outputs and buttons.
            inputs, outputs: components.
            load: what comes before the run, outside its queue: whoever needs no load does not wait for those of others.
                Takes the same, and streams values of the notice.
            undo: values of `undo_outputs` for a press that never ran: rejected by a full queue, or stopped while it
                waited.
        """
        reset = [self._notice, *undo_outputs, *self.buttons]

        def rejected(press: Press | None) -> tuple[Any, ...]:
            if press is None or press.started or press.done:  # the run itself failed and has already said so
                return gr.skip(), *(gr.skip() for _ in undo_outputs), *self.unchanged()
            press.done = True
            return FULL, *undo(press), *self.button_states(press)

        def stopped(press: Press | None) -> tuple[Any, ...]:
            kept = tuple(gr.skip() for _ in undo_outputs)
            if press is None:
                return gr.skip(), *kept, *self.button_states(None)
            press.stop.set()
            if press.running:
                return gr.skip(), *kept, *self.unchanged()  # the run delivers its last trace and then the buttons
            if press.done:
                return gr.skip(), *kept, *self.button_states(press)
            press.done = True
            return "Stopped before it started.", *undo(press), *self.button_states(press)

        # Not `cancels=`: the run ends at its next token and delivers its last, complete trace.
        self._stop.click(stopped, self.press, reset, **UNQUEUED)
        given = [self.number, self.press, *inputs]
        queued: dict[str, Any] = {
            "trigger_mode": "multiple",  # a press after a Stop must not be dropped in favour of the waiting one
            "show_progress": "hidden",
            "api_visibility": "private",
        }
        for listen in (*listens, self.from_link.change):
            if load is not None:
                listen = listen(load, given, self._notice, concurrency_limit=None, **queued).then
            one_at_a_time = {"concurrency_limit": 1, "concurrency_id": MODEL_QUEUE}
            running = listen(run, given, [*outputs, *self.buttons], **one_at_a_time, **queued)
            running.then(self.button_states, self.press, self.buttons, **UNQUEUED)
            running.failure(rejected, self.press, reset, **UNQUEUED)
