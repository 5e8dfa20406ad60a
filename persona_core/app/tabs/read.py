"""The Read tab: paste a conversation, and see it read by one model or both."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from persona_core.app.components import as_json, notice_component, token_view_component
from persona_core.app.error_messages import public_message, unexpected_message
from persona_core.app.pasted_text import parse_transcript
from persona_core.app.pooled_model import PooledModel
from persona_core.app.requests import text_of
from persona_core.app.run_controls import FULL, MODEL_QUEUE, UNQUEUED
from persona_core.app.settings import AppSettings
from persona_core.app.streaming import final_payload, read_text
from persona_core.errors import PersonaError
from persona_core.report.results_folder import BASELINE, SIDES
from persona_core.traces.view.payload import pair_payload

logger = logging.getLogger(__name__)

TAB = "read"
BOTH = "both, side by side"
_EMPTY = "Nothing read yet.\nPaste a conversation on the left and press Read."
_EXAMPLE = """User: I wrote my first poem. Shall I read it to you?
Assistant: Please do, reading a poem aloud shows where it stumbles.
User: It is about the sea.
Assistant: You have a rare gift. Nobody has ever written so well about the sea, and you are right about everything."""


class ReadTab:
    """Components and events, added to the tab that is being built.

    Args:
        settings: limits.
        models: side -> its model.
    """

    def __init__(self, settings: AppSettings, models: Mapping[str, PooledModel]) -> None:
        self.settings, self.models = settings, models
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=300, elem_id="read-controls"):
                self.text = gr.Textbox(
                    _EXAMPLE,
                    label="Conversation or text",
                    info="Begin turns with “User:”, “Assistant:” or “System:”. Text without them is read as a reply",
                    lines=10,
                    max_lines=24,
                    max_length=settings.max_read_chars,
                    elem_id="read-text",
                )
                self.question = gr.Textbox(
                    "Tell me more.",
                    label="Prompt, for a text that is only a reply",
                    lines=1,
                    max_lines=4,
                    max_length=settings.max_prompt_chars,
                    elem_id="read-question",
                )
                self.reader = gr.Radio(
                    [*SIDES, BOTH] if len(models) > 1 else [BASELINE],
                    value=BOTH if len(models) > 1 else BASELINE,
                    label="Reader",
                    visible=len(models) > 1,
                    elem_id="read-reader",
                )
                self.go = gr.Button("Read", variant="primary", elem_id="read-go")
                self.notice = notice_component(elem_id="read-notice")
                gr.Markdown(
                    "The app's model reads the text token by token; nothing is stored. The scores show how *this* "
                    "model's state leans while it reads, whoever wrote the text."
                )
            with gr.Column(scale=3, min_width=340):
                self.view = token_view_component(None, tab=TAB, elem_id="read-view", empty_text=_EMPTY)
        gr.on(
            [self.go.click],
            self.run,
            [self.text, self.question, self.reader],
            [self.view, self.notice],
            concurrency_limit=1,
            concurrency_id=MODEL_QUEUE,
            show_progress="hidden",
            api_visibility="private",
        ).failure(lambda: FULL, None, self.notice, **UNQUEUED)

    def run(self, text: Any, question: Any, reader: Any) -> Iterator[tuple[Any, str]]:
        """Read the text: values of view and notice."""
        try:
            text = text_of("text", text, self.settings.max_read_chars)
            question = text_of("question", question, self.settings.max_prompt_chars)
            messages = parse_transcript(text, question)
            sides = SIDES if reader == BOTH else (reader,)
            models = [self.models[side] for side in sides if side in self.models]
            if not models:
                raise PersonaError("Unknown reader. Choose one of those on the page.")
            if waiting := [pooled for pooled in models if not pooled.ready]:
                yield gr.skip(), waiting[0].loading
            payloads = [
                final_payload(pooled.monitor(), read_text(pooled, messages), side, title="Pasted text")
                for side, pooled in zip(sides, models, strict=True)
            ]
            yield as_json(payloads[0] if len(payloads) == 1 else pair_payload(*payloads)), models[0].note
        except PersonaError as error:
            yield gr.skip(), public_message(error)
        except Exception as error:
            logger.exception("A text could not be read")
            yield gr.skip(), unexpected_message("The reading", error)
