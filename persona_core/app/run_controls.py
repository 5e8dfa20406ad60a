"""A visitor's press on a button that runs a model: waiting, then begun, then done.

A Gradio event takes its place in the queue with the values that the components have then, but looks up a `gr.State`
when it begins. The number of the press joins the queue with it, the ticket is in the state: a run that waited finds out
whether it was stopped or followed by a newer press meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from persona_core.app.queue import MODEL_QUEUE, QUIET

BUSY = "A reply is being written. Press Stop first."
LOADING = "The model is loading. This happens once, after a start."
WAITING = "Waiting for the model ..."
FULL = "Too many others are waiting for the model. Try again in a minute."


@dataclass
class Ticket:
    """One press.

    Attributes:
        number: of the visitor's presses, from 1.
        what: what the press asks for.
        stop: set to end the run at its next token.
    """

    number: int = 1
    what: Any = None
    stop: threading.Event = field(default_factory=threading.Event)
    begun: bool = False
    done: bool = False

    @property
    def under_way(self) -> bool:
        return self.begun and not self.done

    def valid(self, press: float) -> bool:
        """Whether the run of this press may begin now."""
        return self.number == press and not self.begun and not self.stop.is_set()


class Counter:
    """The components of one tab that go with its tickets, and the events that they share.

    Args:
        run: buttons that start a run.
        stop: the button that ends it.
        notice: the line that says what is being waited for.
        elem_id: of the hidden component with the number of the press.
    """

    def __init__(self, run: list[gr.Button], stop: gr.Button, notice: gr.HTML, elem_id: str) -> None:
        self.ticket = gr.State(None)
        self.press = gr.Number(0, visible="hidden", elem_id=elem_id)
        self.linked = gr.Number(0, visible="hidden")  # changes when a link has taken a ticket
        self.buttons = [*run, stop]
        self._n_run = len(run)
        self.asked = [self.ticket, self.press, notice, *self.buttons]
        self._notice, self._stop = notice, stop

    def take(self, ticket: Ticket | None, what: Any = None) -> tuple[Any, ...]:
        """Values of `asked` after a press: a new ticket, or the old one while its run is under way."""
        if ticket is not None and ticket.under_way:
            return ticket, gr.skip(), BUSY, *self.states(ticket)
        new = Ticket(1 if ticket is None else ticket.number + 1, what)
        return new, new.number, WAITING, *self.states(new)

    def refuse(self, ticket: Ticket | None, reason: str) -> tuple[Any, ...]:
        """Values of `asked` after a press that asks for nothing that can be done."""
        return ticket, gr.skip(), reason, *self.states(ticket)

    def states(self, ticket: Ticket | None) -> tuple[Any, ...]:
        """The buttons: those that run are off while a run is under way, Stop is on from the press to the end."""
        under_way = ticket is not None and ticket.under_way
        run = [gr.Button(interactive=not under_way) for _ in range(self._n_run)]
        return (*run, gr.Button(interactive=ticket is not None and not ticket.done))

    def same(self) -> tuple[Any, ...]:
        """The buttons as they are."""
        return tuple(gr.skip() for _ in self.buttons)

    def runs(
        self,
        listens: Sequence[Callable[..., Any]],
        run: Callable[..., Any],
        inputs: Any,
        outputs: Any,
        back: Callable[[Ticket], Any] = lambda _: (),
        back_to: Sequence[Any] = (),
    ) -> None:
        """The run of each press, once the model is free, and the buttons after it; also where the run fails.

        Args:
            listens: each takes a function, inputs and outputs, as `event.then` does.
            run: takes the number of the press, the ticket and the inputs; streams values of the outputs and buttons.
            inputs, outputs: components.
            back: values of `back_to` for a press that came to nothing: turned away by a full queue, or stopped while
                it waited.
        """
        given_back = [self._notice, *back_to, *self.buttons]

        def told(ticket: Ticket | None) -> tuple[Any, ...]:
            if ticket is None or ticket.begun or ticket.done:  # the run itself failed, and has said so
                return gr.skip(), *(gr.skip() for _ in back_to), *self.same()
            ticket.done = True
            return FULL, *back(ticket), *self.states(ticket)

        def stopped(ticket: Ticket | None) -> tuple[Any, ...]:
            kept = tuple(gr.skip() for _ in back_to)
            if ticket is None:
                return gr.skip(), *kept, *self.states(None)
            ticket.stop.set()
            if ticket.under_way:
                return gr.skip(), *kept, *self.same()  # the run hands over its last trace and then the buttons
            if ticket.done:
                return gr.skip(), *kept, *self.states(ticket)
            ticket.done = True
            return "Stopped before it began.", *back(ticket), *self.states(ticket)

        # Not `cancels=`: the run itself ends at its next token and hands over its last, complete trace.
        self._stop.click(stopped, self.ticket, given_back, **QUIET)
        for listen in (*listens, self.linked.change):
            running = listen(
                run,
                [self.press, self.ticket, *inputs],
                [*outputs, *self.buttons],
                trigger_mode="multiple",  # a press after a Stop must not be dropped for the one that waits
                concurrency_limit=1,
                concurrency_id=MODEL_QUEUE,
                show_progress="hidden",
                api_visibility="private",
            )
            running.then(self.states, self.ticket, self.buttons, **QUIET)
            running.failure(told, self.ticket, given_back, **QUIET)

    def press_event(
        self, listen: Callable[..., Any], ask: Callable[..., Any], inputs: list[Any], outputs: Sequence[Any] = ()
    ) -> Any:
        """What a press does first, without the queue: a run that is under way keeps its own ticket.

        Args:
            listen: takes a function, inputs and outputs, as `button.click` does.
            ask: gives the values of `asked`, and of `outputs`, for the ticket and the inputs.
            inputs, outputs: further components.
        """
        return listen(ask, [self.ticket, *inputs], [*self.asked, *outputs], **QUIET)
