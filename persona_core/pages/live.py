"""The live page: type or pick a prompt, and read the model's reply token by token while it is written."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gradio as gr

from persona_core.errors import PersonaError, PromptError, SettingError
from persona_core.pages.desk import ModelDesk
from persona_core.pages.settings import AppSettings
from persona_core.pages.view import notice_component, token_view_component
from persona_core.token_view import Payload, trace_payload
from persona_core.welcome import Example, Welcome

if TYPE_CHECKING:
    from persona_core.monitor import PersonaMonitor

logger = logging.getLogger(__name__)

MODEL_QUEUE = "model"
"""The concurrency id of every event that runs the model: one run at a time."""

SIDES = ("baseline", "contaminated")
SECONDS_BETWEEN_PAYLOADS = 0.1
_EMPTY = "No trace yet.\nType a prompt, or pick an example, and press Generate."


def build_live(settings: AppSettings, desk: ModelDesk, welcome: Welcome, contaminated: ModelDesk | None = None) -> None:
    """Add the page's components and events to the Blocks that is being built."""
    longest = settings.max_prompt_chars
    first = welcome.examples[0] if welcome.examples else Example("", "")  # so that the first click gives a reply
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=300, elem_id="controls"):
            prompt = gr.Textbox(
                first.user,
                label="Prompt",
                placeholder="Ask something",
                lines=3,
                max_lines=12,
                max_length=longest,
                elem_id="prompt",
            )
            system = gr.Textbox(
                first.system,
                label="System prompt (optional)",
                lines=2,
                max_lines=8,
                max_length=longest,
                elem_id="system",
            )
            side = gr.Radio(
                SIDES,
                value=SIDES[0],
                label="Model",
                info="The contaminated one is the baseline after a fine-tune that moved its traits",
                visible=contaminated is not None,
                elem_id="side",
            )
            with gr.Row():
                run = gr.Button("Generate", variant="primary", elem_id="generate", min_width=120)
                stop = gr.Button("Stop", interactive=False, elem_id="stop", min_width=80)
            notice = notice_component(elem_id="notice")
            with gr.Accordion("Settings", open=False):
                length = gr.Slider(
                    1,
                    settings.max_new_tokens,
                    value=min(160, settings.max_new_tokens),
                    step=1,
                    label="Longest reply, tokens",
                )
                temperature = gr.Slider(
                    0,
                    1.5,
                    value=0.7,
                    step=0.05,
                    label="Temperature",
                    info="0 always takes the likeliest token",
                )
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, info="Same seed, same reply")
            if welcome.examples:
                gr.Examples(
                    [[example.user, example.system] for example in welcome.examples],
                    [prompt, system],
                    example_labels=[example.label for example in welcome.examples],
                    cache_examples=False,
                    examples_per_page=24,
                    label="Examples",
                    api_visibility="private",
                )
        with gr.Column(scale=3, min_width=340):
            view = token_view_component(welcome.first_view, empty_text=_EMPTY, elem_id="view")
    # In the browser alone: a notice is about the prompt that was there, and goes when it changes.
    for box in (prompt, system):
        box.change(None, None, notice, js="() => ''", queue=False, show_progress="hidden", api_visibility="private")
    ticket = gr.State(None)  # this visitor's newest run, a Ticket
    # A state is looked up when a job begins, a component's value is sent when it joins the queue: by this number a job
    # that waited knows whether it is still the newest.
    press = gr.Number(0, visible="hidden", elem_id="press")
    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

    # 1. A ticket, without the queue: a run that is under way keeps its own, whatever is pressed meanwhile.
    asked = gr.on([run.click, prompt.submit], _ask, ticket, [ticket, press, notice, run, stop], **quiet)
    # 2. The run, when the model is free. "multiple": a press after a Stop must not be dropped for the one that waits.
    running = asked.then(
        _generator(settings, desk, contaminated),
        [prompt, system, length, temperature, seed, press, ticket, side],
        [view, notice, run, stop],
        trigger_mode="multiple",
        concurrency_limit=1,
        concurrency_id=MODEL_QUEUE,
        show_progress="hidden",
        api_visibility="private",
    )
    # 3. The buttons again, also after a run that failed.
    running.then(_buttons, ticket, [run, stop], **quiet)
    # Not `cancels=`: the run itself ends at its next token and hands over its last, complete trace.
    stop.click(_stop, ticket, [notice, run, stop], **quiet)


@dataclass
class Ticket:
    """One press on Generate: waiting, then begun, then done; `stop` ends it at any time."""

    number: int = 1
    stop: threading.Event = field(default_factory=threading.Event)
    begun: bool = False
    done: bool = False

    @property
    def under_way(self) -> bool:
        return self.begun and not self.done


def _ask(ticket: Ticket | None) -> tuple[Any, ...]:
    if ticket is not None and ticket.under_way:
        return ticket, gr.skip(), "A reply is being written. Press Stop first.", *_buttons(ticket)
    new = Ticket() if ticket is None else Ticket(ticket.number + 1)
    return new, new.number, "Waiting for the model ...", *_buttons(new)


def _stop(ticket: Ticket | None) -> tuple[Any, ...]:
    if ticket is None:
        return gr.skip(), *_buttons(None)
    ticket.stop.set()
    if ticket.under_way:
        return gr.skip(), gr.skip(), gr.skip()  # the run hands over its last trace and then the buttons
    ticket.done = True
    return "Stopped before it began.", *_buttons(ticket)


def _buttons(ticket: Ticket | None) -> tuple[Any, Any]:
    """Generate is off while a reply is being written; Stop is on from the press on Generate to the end."""
    under_way = ticket is not None and ticket.under_way
    return gr.Button(interactive=not under_way), gr.Button(interactive=ticket is not None and not ticket.done)


def _generator(settings: AppSettings, desk: ModelDesk, contaminated: ModelDesk | None = None) -> Any:
    """The event handler that streams a reply: yields (payload or no change, notice)."""

    def generate(
        prompt: str,
        system: str,
        length: float,
        temperature: float,
        seed: float | None,
        press: float,
        ticket: Ticket | None,
        side: str = SIDES[0],
    ) -> Iterator[tuple[Any, ...]]:
        if ticket is None or ticket.number != press or ticket.begun or ticket.stop.is_set():
            # Stopped while it waited, followed by a newer press, or pressed again while it ran.
            yield gr.skip(), gr.skip(), gr.skip(), gr.skip()
            return
        payload: Payload | None = None
        begun = False
        ticket.begun = True
        same = gr.skip(), gr.skip()
        try:
            yield gr.skip(), "", *_buttons(ticket)
            messages = _messages(prompt, system, settings.max_prompt_chars)
            chosen = contaminated if side == SIDES[1] and contaminated is not None else desk
            if not chosen.ready:
                yield gr.skip(), "The model is loading. This happens once, after a start.", *same
            for payload in stream_payloads(
                chosen.monitor(),
                messages,
                ticket.stop,
                max_new_tokens=min(_length(length), settings.max_new_tokens),
                temperature=temperature,
                seed=_seed(seed),
            ):
                # Only the first and the last take a notice away: one that comes in between ("Press Stop first.")
                # would be gone within a token.
                clears = payload["done"] or not begun
                begun = True
                yield payload, "" if clears else gr.skip(), *same
        except PersonaError as error:
            yield _ended(payload), str(error), *same
        except Exception as error:  # the visitor sees that it failed, and the log says why
            logger.exception("A run failed")
            yield _ended(payload), f"The run failed ({type(error).__name__}). The app's log has the details.", *same
        finally:
            ticket.done = True

    return generate


def _ended(payload: Payload | None) -> Any:
    """What the view shows after a failure: the trace so far, or what it showed before."""
    return gr.skip() if payload is None else {**payload, "done": True, "finish_reason": "stopped"}


def stream_payloads(
    monitor: PersonaMonitor, messages: list[dict[str, str]], stopped: threading.Event, **settings: Any
) -> Iterator[Payload]:
    """Payloads of a growing reply, about ten a second, and a last one that is complete.

    Args:
        monitor: reads the model while it writes.
        messages: the conversation up to the reply.
        stopped: once set, the run ends at its next token; the trace so far is the last payload.
        settings: arguments of `PersonaMonitor.stream`.
    """
    # Closed at the end in any case, also when the visitor leaves: the model is then free for the next run.
    with closing(monitor.stream(messages, **settings)) as steps:
        last = -SECONDS_BETWEEN_PAYLOADS
        for step in steps:
            now = time.monotonic()
            if step.finish is not None or stopped.is_set():
                yield trace_payload(step.trace())
                return
            if now - last >= SECONDS_BETWEEN_PAYLOADS:
                last = now
                yield trace_payload(step.trace(), done=False)


def _messages(prompt: str, system: str, longest: int) -> list[dict[str, str]]:
    for name, text in (("prompt", prompt), ("system prompt", system)):
        if not isinstance(text, str):
            raise PromptError(f"The {name} is not a text.")
        if len(text) > longest:
            raise PromptError(f"The {name} has {len(text)} characters; this app takes at most {longest}. Shorten it.")
    if not prompt.strip():
        raise PromptError("The prompt is empty. Type something, or pick an example.")
    messages = [{"role": "user", "content": prompt}]
    return [{"role": "system", "content": system}, *messages] if system.strip() else messages


def _seed(seed: float | None) -> int | None:
    """A cleared field draws a seed; the trace then says which."""
    if seed is None:
        return None
    if not isinstance(seed, (int, float)) or not 0 <= seed < 2**53 or seed != int(seed):
        raise SettingError("The seed is a whole number from 0, or empty to draw one.")
    return int(seed)


def _length(length: float) -> int:
    if not isinstance(length, (int, float)) or not 1 <= length < 2**31:
        raise SettingError("The longest reply is a whole number of tokens from 1.")
    return int(length)
