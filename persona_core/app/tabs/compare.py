"""The page that holds the two models against each other: published or written now, each text read by either."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr

from persona_core.app.components import notice_component, token_view_component
from persona_core.app.conversation import linked
from persona_core.app.json_html import sent
from persona_core.app.model_pool import ModelDesk
from persona_core.app.published import OWN, TEXTS, published_payload, readings_payload
from persona_core.app.queue import QUIET, Deadline
from persona_core.app.requests import conversation, drawn, length_of, text_of
from persona_core.app.run_controls import BUSY, LOADING, Counter, Ticket
from persona_core.app.settings import AppSettings
from persona_core.app.streaming import Writing, onsets_of, read_text, write
from persona_core.app.words import failed, in_words
from persona_core.errors import PersonaError, PromptError
from persona_core.report.saved_runs import BASELINE, CONTAMINATED, READS_BASELINE, READS_CONTAMINATED, SIDES

if TYPE_CHECKING:
    from persona_core.app.home import Opening
    from persona_core.report.saved_runs import SavedRuns
    from persona_core.traces.trace import Trace

logger = logging.getLogger(__name__)

TAB = "compare"
_EMPTY = "Nothing to compare yet.\nPick a published prompt, or write a new pair."


class ComparePage:
    """The page's components and events, added to the tab that is being built.

    Args:
        settings: limits.
        desks: side -> where its model is handed out.
        runs: the published results, if there are any.
        tab: the tab; what it opens on is read when it is first selected.
        first: the reply that the app opens on; this page opens on its prompt.
    """

    def __init__(
        self,
        settings: AppSettings,
        desks: Mapping[str, ModelDesk],
        runs: SavedRuns | None,
        tab: gr.Tab,
        first: Opening | None,
    ) -> None:
        self.settings, self.desks, self.runs = settings, desks, runs
        with gr.Row(elem_id="compare-controls"):
            with gr.Column(scale=3, min_width=300):
                self.saved = gr.Dropdown(
                    [], label="Published prompt", elem_id="compare-saved", visible=runs is not None, filterable=True
                )
            with gr.Column(scale=3, min_width=300):
                self.text = gr.Radio(TEXTS, value=OWN, label="Text", elem_id="compare-text")
        with gr.Accordion("Write a new pair", open=False, visible=len(desks) > 1, elem_id="compare-new") as self.new:
            with gr.Row():
                with gr.Column(scale=3, min_width=300):
                    longest = settings.max_prompt_chars
                    self.prompt = gr.Textbox(
                        label="Prompt", lines=2, max_lines=8, max_length=longest, elem_id="compare-prompt"
                    )
                    self.system = gr.Textbox(
                        label="System prompt (optional)", lines=1, max_lines=4, max_length=longest,
                        elem_id="compare-system",
                    )  # fmt: skip
                with gr.Column(scale=2, min_width=260):
                    most = settings.max_new_tokens
                    self.length = gr.Slider(1, most, value=min(160, most), step=1, label="Longest reply, tokens")
                    self.temperature = gr.Slider(0, 1.5, value=0.7, step=0.05, label="Temperature")
                    self.seed = gr.Number(0, label="Seed, the same for both", precision=0, minimum=0)
            with gr.Row():
                self.write = gr.Button("Write both", variant="primary", elem_id="compare-write", min_width=120)
                self.stop = gr.Button("Stop", interactive=False, elem_id="compare-stop", min_width=80)
        self.notice = notice_component(elem_id="compare-notice")
        self.view = token_view_component(None, tab=TAB, elem_id="compare-view", empty_text=_EMPTY)
        self.written = gr.State(None)  # traces by name and the link of a new pair; None: published
        self.opened = gr.State(False)
        self.counter = Counter([self.write], self.stop, self.notice, "compare-press")
        self._events(tab, None if first is None else first.id)

    def _events(self, tab: gr.Tab, first: str | None) -> None:
        shown = [self.view, self.notice]
        tab.select(lambda opened: self._open(opened, first), self.opened, [self.saved, *shown, self.opened], **QUIET)
        chosen = [self.counter.ticket, self.saved, self.text]
        self.saved.input(self._chosen, chosen, [*shown, self.written], **QUIET)
        self.text.input(self._other_text, [*chosen, self.written], shown, **QUIET)
        fields = [self.prompt, self.system, self.length, self.temperature, self.seed]
        asked = self.counter.press_event(
            partial(gr.on, [self.write.click, self.prompt.submit]),
            self._ask,
            fields,
        )
        self.counter.runs([asked.then], self.run, [], [*shown, self.written, self.text, self.saved])

    def _ask(self, ticket: Ticket | None, *values: Any) -> tuple[Any, ...]:
        try:
            for name, value in zip(("prompt", "system prompt"), values, strict=False):
                text_of(name, value, self.settings.max_prompt_chars)  # before anything of it is kept
        except PromptError as error:
            return self.counter.refuse(ticket, in_words(error))
        return self.counter.take(ticket, values)

    # ---- published ----

    def choices(self) -> list[tuple[str, str]]:
        """Prompts of the published runs, as the dropdown takes them: (text, id)."""
        try:
            titles = {} if self.runs is None else self.runs.titles
        except PersonaError as error:  # said where the runs are asked for
            logger.warning("No published runs: %s", error)
            titles = {}
        return [(f"{id}: {' '.join(title.split())}"[:100], id) for id, title in titles.items()]

    def _open(self, opened: bool, first: str | None) -> tuple[Any, ...]:
        """What the tab opens on, once a visit; a link or a click in another tab may have been there before."""
        if opened or self.runs is None:
            return gr.skip(), gr.skip(), gr.skip(), True
        try:
            ids = self.runs.ids
            chosen = first if first in ids else next(iter(ids), None)
            payload, notice = self.show(chosen, OWN) if chosen else (None, "")
        except PersonaError as error:
            return gr.skip(), gr.skip(), in_words(error), False
        return gr.Dropdown(self.choices(), value=chosen), payload, notice, True

    def show(self, id: Any, text: Any) -> tuple[Any, str]:
        """Payload and notice of a published prompt."""
        if self.runs is None or id not in self.runs.titles or text not in TEXTS:
            return gr.skip(), "There is no such published prompt."
        payload, notice = published_payload(self.runs, id, text)
        return sent(payload), notice

    def _published(self, id: Any, text: Any) -> tuple[Any, ...]:
        try:
            return *self.show(id, text), None
        except PersonaError as error:
            return gr.skip(), in_words(error), None

    def _chosen(self, ticket: Ticket | None, id: Any, text: Any) -> tuple[Any, ...]:
        if ticket is not None and ticket.under_way:  # the pair that is being written would take the view back
            return gr.skip(), BUSY, gr.skip()
        return self._published(id, text)

    def _other_text(self, ticket: Ticket | None, id: Any, text: Any, written: Any) -> tuple[Any, str]:
        if ticket is not None and ticket.under_way:
            return gr.skip(), BUSY
        if written is None:
            return self._published(id, text)[:2]
        traces, onsets, link = written
        payload, notice = readings_payload(traces, text, onsets, self._caveats)
        return sent(payload | {"link": {**link, "text": str(TEXTS.index(text))}}), notice

    # ---- written now ----

    def run(self, press: float, ticket: Ticket | None) -> Iterator[tuple[Any, ...]]:
        """Write a new pair: values of view, notice, written, text, the published prompt and the buttons."""
        skip, same = gr.skip(), self.counter.same()
        if ticket is None or not ticket.valid(press):
            yield skip, skip, skip, skip, skip, *same
            return
        ticket.begun = True
        try:
            yield skip, "", skip, skip, skip, *self.counter.states(ticket)
            prompt, system, length, temperature, seed = ticket.what
            messages = conversation((), prompt, system, self.settings.max_prompt_chars)
            sampling = {
                "max_new_tokens": length_of(length, self.settings.max_new_tokens),
                "temperature": temperature,
                "seed": drawn(seed),
            }
            if not all(self.desks[side].ready for side in SIDES):
                yield skip, LOADING, skip, skip, skip, *same
            monitors = {side: self.desks[side].monitor() for side in SIDES}
            deadline = Deadline(self.settings.max_seconds, ticket.stop)
            notice: Any = ""
            link = {
                "said": json.dumps([[m["role"], m["content"]] for m in messages], ensure_ascii=False),
                **{k: json.dumps(v) for k, v in sampling.items()},
            }
            for progress in write([Writing(self.desks[side], messages, side, sampling) for side in SIDES], deadline):
                if not progress.ended:
                    # Only the first takes a notice away: one that comes in between would be gone within a token.
                    yield sent(progress.payload), notice, skip, skip, skip, *same
                    notice = skip
                    continue
                traces = dict(zip(SIDES, progress.traces, strict=False))
                if len(traces) == 2:
                    traces |= self._replayed(traces)
                onsets = {key: onsets_of(monitors[_reader(key)], trace) for key, trace in traces.items()}
                final, said = readings_payload(traces, OWN, onsets, self._caveats)
                yield sent(final | {"link": link}), deadline.notice or said, (traces, onsets, link), OWN, None, *same
        except PersonaError as error:
            yield skip, in_words(error), skip, skip, skip, *same
        except Exception as error:
            logger.exception("A pair failed")
            yield skip, failed("The pair", error), skip, skip, skip, *same
        finally:
            ticket.done = True

    def _caveats(self, trace: Trace) -> tuple[str, ...]:
        detectors = self.desks[BASELINE].monitor().detectors
        return () if detectors is None else detectors.caveats(trace)

    def _replayed(self, traces: Mapping[str, Trace]) -> dict[str, Trace]:
        """Each reply as the other model reads it, by its ids."""
        return {
            READS_CONTAMINATED: read_text(self.desks[BASELINE], traces[CONTAMINATED]),
            READS_BASELINE: read_text(self.desks[CONTAMINATED], traces[BASELINE]),
        }

    # ---- a link ----

    @property
    def restored(self) -> list[Any]:
        """The components that `restore` gives values for."""
        written = [self.new, self.prompt, self.system]
        return [self.saved, self.view, self.text, self.opened, *written, *self.counter.asked, self.counter.linked]

    def restore(self, query: Mapping[str, Any], ticket: Ticket | None) -> tuple[Any, ...]:
        """Values of `restored` for the query of a link; a link that holds something else is no error."""
        skip = gr.skip()
        text = TEXTS[int(query["text"])] if str(query.get("text")) in ("0", "1", "2") else OWN
        if "id" in query:
            payload, notice = self._published(query["id"], text)[:2]
            choices = self.choices()
            known = query["id"] if query["id"] in [id for _, id in choices] else None
            first = gr.Dropdown(choices, value=known), payload, text, True
            return *first, skip, skip, skip, skip, skip, notice, *self.counter.same(), skip
        found = linked({**query, "side": BASELINE})
        if found is None or found[0].messages or found[1].at or not set(SIDES) <= set(self.desks):
            return tuple(skip for _ in self.restored)
        prompt, system, *values = found[1].values
        first = gr.Dropdown(self.choices()), skip, OWN, True
        taken = self.counter.take(ticket, (prompt, system, *values))
        return *first, gr.Accordion(open=True), prompt, system, *taken, 1


def _reader(key: str) -> str:
    """Which model's states a reading of `READINGS` is of."""
    return CONTAMINATED if key.startswith(CONTAMINATED) else BASELINE
