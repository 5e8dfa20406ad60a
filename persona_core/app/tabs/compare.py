"""The Compare tab: both models side by side, published or written now, each text read by either."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr

from persona_core.app.components import as_json, notice_component, token_view_component
from persona_core.app.conversation import request_from_link
from persona_core.app.error_messages import public_message, unexpected_message
from persona_core.app.pooled_model import PooledModel
from persona_core.app.requests import MAX_TEMPERATURE, chat_messages, length_of, seed_or_random, text_of
from persona_core.app.run_controls import BUSY, UNQUEUED, WRITTEN_AGAIN, Deadline, Press, RunControls
from persona_core.app.settings import AppSettings
from persona_core.app.streaming import ReplyJob, onsets_of, read_text, stream_replies
from persona_core.errors import PersonaError, PromptError
from persona_core.report.pairs import OWN_REPLIES, TEXTS, published_payload, readings_payload
from persona_core.report.results_folder import BASELINE, CONTAMINATED, SIDES
from persona_core.report.saved_runs import READS_BASELINE, READS_CONTAMINATED

if TYPE_CHECKING:
    from persona_core.report.home import FirstReply
    from persona_core.report.saved_runs import SavedRuns
    from persona_core.traces.trace import Trace

logger = logging.getLogger(__name__)

TAB = "compare"
_EMPTY = "Nothing to compare yet.\nPick a published prompt, or write a new pair."


class CompareTab:
    """Components and events, added to the tab that is being built.

    Args:
        settings: limits.
        models: side -> its model.
        runs: the published results, if there are any.
        tab: the tab; its first view is read when it is first selected.
        first_reply: the reply that the app opens on; this tab opens on the same prompt.
    """

    def __init__(
        self,
        settings: AppSettings,
        models: Mapping[str, PooledModel],
        runs: SavedRuns | None,
        tab: gr.Tab,
        first_reply: FirstReply | None,
    ) -> None:
        self.settings, self.models, self.runs = settings, models, runs
        self._first_id = None if first_reply is None else first_reply.id
        with gr.Row(elem_id="compare-controls"):
            with gr.Column(scale=3, min_width=300):
                self.saved = gr.Dropdown(
                    [], label="Published prompt", elem_id="compare-saved", visible=runs is not None, filterable=True
                )
            with gr.Column(scale=3, min_width=300):
                self.text = gr.Radio(TEXTS, value=OWN_REPLIES, label="Text", elem_id="compare-text")
        with gr.Accordion("Write a new pair", open=False, visible=len(models) > 1, elem_id="compare-new") as self.new:
            with gr.Row():
                with gr.Column(scale=3, min_width=300):
                    most = settings.max_prompt_chars
                    self.prompt = gr.Textbox(
                        label="Prompt", lines=1, max_lines=8, max_length=most, elem_id="compare-prompt"
                    )
                    self.system = gr.Textbox(
                        label="System prompt (optional)", lines=1, max_lines=4, max_length=most,
                        elem_id="compare-system",
                    )  # fmt: skip
                with gr.Column(scale=2, min_width=260):
                    most = settings.max_new_tokens
                    self.length = gr.Slider(1, most, value=min(160, most), step=1, label="Maximum length, tokens")
                    self.temperature = gr.Slider(0, MAX_TEMPERATURE, value=0.7, step=0.05, label="Temperature")
                    self.seed = gr.Number(0, label="Seed, the same for both", precision=0, minimum=0)
            with gr.Row():
                self.write = gr.Button("Write both", variant="primary", elem_id="compare-write", min_width=120)
                self.stop = gr.Button("Stop", interactive=False, elem_id="compare-stop", min_width=80)
        self.notice = notice_component(elem_id="compare-notice")
        self.view = token_view_component(None, tab=TAB, elem_id="compare-view", empty_text=_EMPTY)
        self.written = gr.State(None)  # (traces, onsets, link) of a new pair; None: a published one
        self.opened = gr.State(False)
        self.controls = RunControls([self.write], self.stop, self.notice, "compare-press")
        self._events(tab)

    def _events(self, tab: gr.Tab) -> None:
        outputs = [self.view, self.notice]
        tab.select(self._open, self.opened, [self.saved, *outputs, self.opened], **UNQUEUED)
        chosen = [self.controls.press, self.saved, self.text]
        self.saved.input(self._choose_prompt, chosen, [*outputs, self.written], **UNQUEUED)
        self.text.input(self._choose_text, [*chosen, self.written], outputs, **UNQUEUED)
        fields = [self.prompt, self.system, self.length, self.temperature, self.seed]
        pressed = partial(gr.on, [self.write.click, self.prompt.submit])
        accepted = self.controls.on_press(pressed, self._request_pair, fields)
        self.controls.run_after([accepted.then], self.run, [], [*outputs, self.written, self.text, self.saved])

    def _request_pair(self, press: Press | None, *values: Any) -> tuple[Any, ...]:
        try:
            for name, value in zip(("prompt", "system prompt"), values, strict=False):
                text_of(name, value, self.settings.max_prompt_chars)  # before any of it is kept
        except PromptError as error:
            return self.controls.refuse(press, public_message(error))
        return self.controls.accept(press, values)

    # ---- published ----

    def choices(self) -> list[tuple[str, str]]:
        """Prompts of the published runs for the dropdown: (text, id)."""
        try:
            titles = {} if self.runs is None else self.runs.titles
        except PersonaError as error:  # shown where the runs are needed
            logger.warning("No published runs: %s", error)
            titles = {}
        return [(f"{id}: {' '.join(title.split())}"[:100], id) for id, title in titles.items()]

    def _open(self, opened: bool) -> tuple[Any, ...]:
        """The tab's first view, once per visit; a link or a click in another tab may have come first."""
        if opened or self.runs is None:
            return gr.skip(), gr.skip(), gr.skip(), True
        try:
            ids = self.runs.ids
            chosen = self._first_id if self._first_id in ids else next(iter(ids), None)
            payload, notice = self.show(chosen, OWN_REPLIES) if chosen else (None, "")
        except PersonaError as error:
            return gr.skip(), gr.skip(), public_message(error), False
        return gr.Dropdown(self.choices(), value=chosen), payload, notice, True

    def show(self, id: Any, text: Any) -> tuple[Any, str]:
        """Payload and notice of a published prompt."""
        if self.runs is None or id not in self.runs.titles or text not in TEXTS:
            return gr.skip(), "Unknown prompt. Pick one from the list."
        payload, notice = published_payload(self.runs, id, text)
        return as_json(payload), notice

    def _published(self, id: Any, text: Any) -> tuple[Any, ...]:
        try:
            return *self.show(id, text), None
        except PersonaError as error:
            return gr.skip(), public_message(error), None

    def _choose_prompt(self, press: Press | None, id: Any, text: Any) -> tuple[Any, ...]:
        if press is not None and press.running:  # the pair being written would replace it at once
            return gr.skip(), BUSY, gr.skip()
        return self._published(id, text)

    def _choose_text(self, press: Press | None, id: Any, text: Any, written: Any) -> tuple[Any, str]:
        if press is not None and press.running:
            return gr.skip(), BUSY
        if written is None:
            return self._published(id, text)[:2]
        traces, onsets, link = written
        payload, notice = readings_payload(traces, text, onsets, self._caveats)
        return as_json(payload | {"link": {**link, "text": str(TEXTS.index(text))}}), notice

    # ---- written now ----

    def run(self, number: float, press: Press | None) -> Iterator[tuple[Any, ...]]:
        """Write a new pair: values of view, notice, written, text, the published prompt and the buttons."""
        skip, unchanged = gr.skip(), self.controls.unchanged()
        if press is None or not press.valid(number):
            yield skip, skip, skip, skip, skip, *unchanged
            return
        press.started = True
        try:
            yield skip, "", skip, skip, skip, *self.controls.button_states(press)
            prompt, system, length, temperature, seed = press.request
            messages = chat_messages((), prompt, system, self.settings.max_prompt_chars)
            sampling = {
                "max_new_tokens": length_of(length, self.settings.max_new_tokens),
                "temperature": temperature,
                "seed": seed_or_random(seed),
            }
            if waiting := [self.models[side] for side in SIDES if not self.models[side].ready]:
                yield skip, waiting[0].loading, skip, skip, skip, *unchanged
            monitors = {side: self.models[side].monitor() for side in SIDES}
            deadline = Deadline(self.settings.max_seconds, press.stop)
            notice: Any = press.note
            link = {
                "said": json.dumps([[m["role"], m["content"]] for m in messages], ensure_ascii=False),
                **{k: json.dumps(v) for k, v in sampling.items()},
            }
            jobs = [ReplyJob(self.models[side], messages, side, sampling) for side in SIDES]
            for progress in stream_replies(jobs, deadline):
                if not progress.ended:
                    # Only the first clears the notice: one that appears later would vanish within a token.
                    yield as_json(progress.payload), notice, skip, skip, skip, *unchanged
                    notice = skip
                    continue
                traces = dict(zip(SIDES, progress.traces, strict=False))
                if len(traces) == 2:
                    traces |= self._replayed(traces)
                onsets = {key: onsets_of(monitors[_reader(key)], trace) for key, trace in traces.items()}
                final, missing = readings_payload(traces, OWN_REPLIES, onsets, self._caveats)
                written = traces, onsets, link
                notes = deadline.notice or missing or self.models[BASELINE].note, press.note
                notice = " ".join(filter(None, notes))
                yield as_json(final | {"link": link}), notice, written, OWN_REPLIES, None, *unchanged
        except PersonaError as error:
            yield skip, public_message(error), skip, skip, skip, *unchanged
        except Exception as error:
            logger.exception("A pair failed")
            yield skip, unexpected_message("The pair", error), skip, skip, skip, *unchanged
        finally:
            press.done = True

    def _caveats(self, trace: Trace) -> tuple[str, ...]:
        detectors = self.models[BASELINE].monitor().detectors
        return () if detectors is None else detectors.caveats(trace)

    def _replayed(self, traces: Mapping[str, Trace]) -> dict[str, Trace]:
        """Each reply as read by the other model, by its ids."""
        return {
            READS_CONTAMINATED: read_text(self.models[BASELINE], traces[CONTAMINATED]),
            READS_BASELINE: read_text(self.models[CONTAMINATED], traces[BASELINE]),
        }

    # ---- a link ----

    @property
    def restored(self) -> list[Any]:
        """The components that `restore` returns values for."""
        fields = [self.new, self.prompt, self.system]
        return [self.saved, self.view, self.text, self.opened, *fields, *self.controls.outputs, self.controls.from_link]

    def restore(self, query: Mapping[str, Any], press: Press | None) -> tuple[Any, ...]:
        """Values of `restored` for the query of a link; a malformed one changes nothing."""
        skip = gr.skip()
        text = TEXTS[int(query["text"])] if str(query.get("text")) in ("0", "1", "2") else OWN_REPLIES
        if "id" in query:
            payload, notice = self._published(query["id"], text)[:2]
            choices = self.choices()
            known = query["id"] if query["id"] in [id for _, id in choices] else None
            view = gr.Dropdown(choices, value=known), payload, text, True
            return *view, skip, skip, skip, skip, skip, notice, *self.controls.unchanged(), skip
        found = request_from_link({**query, "side": BASELINE})
        if found is None or found[0].messages or found[1].at or not set(SIDES) <= set(self.models):
            return tuple(skip for _ in self.restored)
        prompt, system, *values = found[1].values
        view = gr.Dropdown(self.choices()), skip, OWN_REPLIES, True
        accepted = self.controls.accept(press, (prompt, system, *values), WRITTEN_AGAIN)
        return *view, gr.Accordion(open=True), prompt, system, *accepted, 1


def _reader(key: str) -> str:
    """The model whose states a reading of `READINGS` holds."""
    return CONTAMINATED if key.startswith(CONTAMINATED) else BASELINE
