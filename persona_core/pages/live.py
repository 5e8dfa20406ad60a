"""The live page: type or pick a prompt, and read the model's reply token by token while it is written."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import closing
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

SECONDS_BETWEEN_PAYLOADS = 0.1
_EMPTY = "No trace yet.\nType a prompt, or pick an example, and press Generate."


def build_live(settings: AppSettings, desk: ModelDesk, welcome: Welcome) -> None:
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
    for field in (prompt, system):
        field.change(None, None, notice, js="() => ''", queue=False, show_progress="hidden", api_visibility="private")
    stopped = gr.State(None)  # the threading.Event of this visitor's newest run

    # Buttons first, then the run, then the buttons again: the last step also follows a run that failed.
    busy = gr.on(
        [run.click, prompt.submit],
        lambda: (threading.Event(), gr.Button(interactive=False), gr.Button(interactive=True)),
        outputs=[stopped, run, stop],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    busy.then(
        _generator(settings, desk),
        [prompt, system, length, temperature, seed, stopped],
        [view, notice],
        concurrency_limit=1,
        concurrency_id=MODEL_QUEUE,
        show_progress="hidden",
        api_visibility="private",
    ).then(
        lambda: (gr.Button(interactive=True), gr.Button(interactive=False)),
        outputs=[run, stop],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    # Not `cancels=`: the run itself ends at its next token and hands over its last, complete trace.
    stop.click(
        lambda event: event.set() if event else None,
        stopped,
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )


def _generator(settings: AppSettings, desk: ModelDesk) -> Any:
    """The event handler that streams a reply: yields (payload or no change, notice)."""

    def generate(
        prompt: str,
        system: str,
        length: float,
        temperature: float,
        seed: float | None,
        stopped: threading.Event,
    ) -> Iterator[tuple[Any, str]]:
        if stopped.is_set():  # while it waited in the queue
            yield gr.skip(), ""
            return
        payload: Payload | None = None
        try:
            messages = _messages(prompt, system, settings.max_prompt_chars)
            if not desk.ready:
                yield gr.skip(), "The model is loading. This happens once, after a start."
            for payload in stream_payloads(
                desk.monitor(),
                messages,
                stopped,
                max_new_tokens=min(int(length), settings.max_new_tokens),
                temperature=float(temperature),
                seed=_seed(seed),
            ):
                yield payload, ""
        except PersonaError as error:
            yield _ended(payload), str(error)
        except Exception as error:  # the visitor sees that it failed, and the log says why
            logger.exception("A run failed")
            yield _ended(payload), f"The run failed ({type(error).__name__}). The app's log has the details."

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
        if len(text) > longest:
            raise PromptError(f"The {name} has {len(text)} characters; this app takes at most {longest}. Shorten it.")
    if not prompt.strip():
        raise PromptError("The prompt is empty. Type something, or pick an example.")
    messages = [{"role": "user", "content": prompt}]
    return [{"role": "system", "content": system}, *messages] if system.strip() else messages


def _seed(seed: float | None) -> int:
    if seed is None or seed != int(seed) or not 0 <= seed < 2**63:
        raise SettingError(f"seed={seed!r}; expected a whole number from 0.")
    return int(seed)
