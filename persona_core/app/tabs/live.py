"""The Live tab: chat with a model, watch its reply token by token, and branch from any token."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr

from persona_core.app.audience import current_session
from persona_core.app.branch_buttons import change_of
from persona_core.app.components import as_json, sent_component, token_view_component
from persona_core.app.conversation import Chat, ReplyRequest, plan_reply
from persona_core.app.error_messages import public_message, unexpected_message
from persona_core.app.model_pool import ModelPool
from persona_core.app.pooled_model import PooledModel
from persona_core.app.requests import text_of
from persona_core.app.run_controls import BUSY, UNQUEUED, WAITING, Deadline, Press, RunControls
from persona_core.app.saved_replies import SavedReplies
from persona_core.app.settings import AppSettings
from persona_core.app.streaming import stream_replies
from persona_core.app.tabs.live_form import ANOTHER, LiveForm, branch_traits
from persona_core.app.tabs.live_link import LiveLink
from persona_core.app.token_alternatives import NO_TOKEN, offer_alternatives
from persona_core.app.visitor_model import VisitorModel
from persona_core.errors import PersonaError, PromptError
from persona_core.report.home import Home
from persona_core.report.results_folder import BASELINE
from persona_core.traces.view.payload import Payload
from persona_core.utils.checks import is_integer

if TYPE_CHECKING:
    from persona_core.report.saved_runs import SavedRuns
    from persona_core.traces.trace import Trace

logger = logging.getLogger(__name__)

TAB = "live"
STORED = (
    "Keeps this conversation, with its scores, on the app's server: whoever has the link can read it, and it cannot be "
    "taken back. When there are too many, the oldest are removed."
)
NOT_SAVED = "only a whole reply that was written here can be saved; the link of a published one needs no saving."
_EMPTY = "No reply yet.\nType a message and press Send."


class LiveTab:
    """Components and events, added to the tab that is being built.

    Args:
        settings: limits.
        models: side -> its model.
        pool: loads models that visitors name, if the owner allows it.
        home: examples and the first view.
        runs: the published results, if there are any.
        saved: keeps replies for links, if the owner allows it.

    Attributes:
        form: the components beside the view.
        link: opens a reply here from another tab, or from a link.
    """

    def __init__(
        self,
        settings: AppSettings,
        models: Mapping[str, PooledModel],
        pool: ModelPool,
        home: Home,
        runs: SavedRuns | None = None,
        saved: SavedReplies | None = None,
    ) -> None:
        self.settings, self.models, self.pool, self.saved = settings, models, pool, saved
        chat, first = Chat(), home.first_reply
        if first is not None:
            chat = Chat.of_published(first.config, first.id, first.trace, first.messages, first.config)
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=300, elem_id="controls"):
                self.form = LiveForm(settings, models, home, chat.label)
            with gr.Column(scale=3, min_width=340, elem_classes="live-reply"):
                self.sent = sent_component(elem_id="sent")
                self.view = token_view_component(
                    home.first_view,
                    tab=TAB,
                    elem_id="view",
                    empty_text=_EMPTY,
                    branch=True,
                    alternatives=True,
                    save=None if saved is None else STORED,
                )
        self.chat = gr.State(chat)
        self.controls = RunControls([self.form.send], self.form.stop, self.form.notice, "press")
        self.link = LiveLink(self.form, self.controls, self.view, self.chat, self.sent, runs, saved)
        self._events()

    # ---- events ----

    def _events(self) -> None:
        form = self.form
        # In the browser only: a notice is about the previous message and disappears with the next edit.
        for box in (form.prompt, form.system):
            box.input(None, None, form.notice, js="() => ''", **UNQUEUED)
        # The press is taken outside the queue: an active run keeps its own, whatever is pressed meanwhile.
        pressed = partial(gr.on, [form.send.click, form.prompt.submit])
        sent = self.controls.on_press(pressed, self._request_reply, form.request, [form.prompt, self.sent])
        branched = self.controls.on_press(self.view.branch, self._request_branch, form.change)
        # In the browser only: the view knows where the cursor is, and sends it.
        form.branch.click(None, None, None, js=f"() => personaLink.branch({TAB!r})", **UNQUEUED)
        offer_alternatives(self.view, TAB, self.chat, form.notice, self._reply_at)
        if self.saved is not None:
            answer = gr.JSON(visible="hidden", elem_id="saved")
            asked = self.view.save(self.save, [self.controls.press, self.chat], answer, **UNQUEUED)
            asked.then(None, answer, None, js=f"(answer) => personaLink.saved({TAB!r}, answer)", **UNQUEUED)
        outputs = [self.view, form.notice, self.chat, form.prompt, form.trait, self.sent]
        self.controls.run_after(
            [sent.then, branched.then],
            self.run,
            [self.chat],
            outputs,
            undo=lambda press: (_prompt_back(press.request, None), ""),
            undo_outputs=[form.prompt, self.sent],
            load=self.load if self.settings.open_models else None,
        )
        chat = [self.chat, form.prompt, form.notice]
        held = [self.controls.press, self.chat]
        form.edit.click(self._edit, held, chat, **UNQUEUED)
        form.new.click(self._new, held, [*chat, self.view, form.system], **UNQUEUED)
        if form.examples is not None:  # an example starts a new chat
            form.examples.load_input_event.then(self._example, held, chat, **UNQUEUED)

    def _request_reply(self, press: Press | None, side: Any, *fields: Any) -> tuple[Any, ...]:
        named, values = fields[:3], fields[3:]
        try:
            for name, value in zip(("prompt", "system prompt"), values, strict=False):
                text_of(name, value, self.settings.max_prompt_chars)  # before any of it is kept
        except PromptError as error:
            return *self.controls.refuse(press, public_message(error)), gr.skip(), gr.skip()
        request = ReplyRequest(side if side in self.models else BASELINE, values)
        if side == ANOTHER:
            request = ReplyRequest(ANOTHER, values, named=tuple(str(name or "").strip()[:400] for name in named))  # type: ignore[arg-type]
        accepted = self.controls.accept(press, request)
        # The message leaves its field for the line above the view at once; a failed run puts it back.
        return *accepted, *((gr.skip(), gr.skip()) if accepted[0] is press else ("", values[0]))

    def _request_branch(
        self, press: Press | None, trait: Any, action: Any, amount: Any, event: gr.EventData
    ) -> tuple[Any, ...]:
        where = event._data if isinstance(event._data, dict) else {}
        at = where.get("side"), where.get("at")
        if not all(is_integer(n, minimum=0) and n < 2**31 for n in at):
            return self.controls.refuse(press, NO_TOKEN)
        return self.controls.accept(press, ReplyRequest("", change_of(where, trait, action, amount), at))  # type: ignore[arg-type]

    def _reply_at(self, chat: Chat, side: int) -> tuple[PooledModel, Trace] | None:
        """The reply on a side of the view, and the model that wrote it."""
        if side >= len(chat.traces):
            return None
        return self._pooled(ReplyRequest("", (), (side, 0)), chat), chat.traces[side]

    def save(self, press: Press | None, chat: Chat, event: gr.EventData) -> dict[str, str]:
        """Keep what the view shows: {"saved": id}, or {"error": message}.

        The browser names it by its link. What is kept is this session's own, as it was written.
        """
        shown, where = chat.shown, event._data if isinstance(event._data, Mapping) else {}
        if press is not None and press.running:
            return {"error": BUSY}
        if self.saved is None or shown is None or where.get("link") != dict(shown.link):
            return {"error": NOT_SAVED}
        try:
            return {"saved": self.saved.save(shown)}
        except Exception as error:
            logger.exception("A reply could not be saved")
            return {"error": unexpected_message("Saving", error)}

    @staticmethod
    def _edit(press: Press | None, chat: Chat) -> tuple[Any, ...]:
        if press is not None and not press.done:
            return gr.skip(), gr.skip(), BUSY
        before, message = chat.without_last()
        if not message:
            return gr.skip(), gr.skip(), "There is no message to edit yet."
        return before, gr.Textbox(message, label=before.label), ""

    @staticmethod
    def _new(press: Press | None, _: Chat) -> tuple[Any, ...]:
        if press is not None and not press.done:
            return gr.skip(), gr.skip(), BUSY, gr.skip(), gr.skip()
        return Chat(), gr.Textbox("", label=Chat().label), "", None, ""

    @staticmethod
    def _example(press: Press | None, _: Chat) -> tuple[Any, ...]:
        if press is not None and not press.done:
            return gr.skip(), gr.skip(), BUSY
        return Chat(), gr.Textbox(label=Chat().label), ""

    def load(self, number: float, press: Press | None, chat: Chat) -> Iterator[Any]:
        """Load the model of a press if its visitor has named it: values of the notice. The run tells what failed."""
        yield gr.skip()
        if press is None or not press.valid(number):
            return
        with contextlib.suppress(PersonaError):
            pooled = self._pooled(press.request, chat)
            if isinstance(pooled, VisitorModel):
                press.pooled = pooled
                yield pooled.loading
                # Twice the time: the process's own limit comes first, and says what it is.
                pooled.load(Deadline(2 * self.settings.open_model_seconds, press.stop))
                yield WAITING

    def run(self, number: float, press: Press | None, chat: Chat) -> Iterator[tuple[Any, ...]]:
        """Stream the requested reply: values of view, notice, chat, prompt, trait, what was sent, and the buttons."""
        skip, unchanged = gr.skip(), self.controls.unchanged()
        if press is None or not press.valid(number):
            # Stopped while it waited, replaced by a newer press, or pressed again while it ran.
            yield skip, skip, skip, skip, skip, skip, *unchanged
            return
        payload: Payload | None = None
        press.started = True
        request: ReplyRequest | None = press.request
        try:
            yield skip, press.note, skip, skip, skip, skip, *self.controls.button_states(press)
            deadline: Deadline | None = None
            while request is not None and not press.stop.is_set():
                pooled = press.pooled or self._pooled(request, chat)
                pooled.check()
                if not pooled.ready:
                    yield skip, pooled.loading, skip, skip, skip, skip, *unchanged
                plan = plan_reply(pooled, request, chat, self.settings)
                deadline = deadline or Deadline(self.settings.max_seconds, press.stop)  # loading does not count
                for progress in stream_replies([plan.job], deadline, plan.first_side):
                    # Only the first clears the notice: one that appears later ("Press Stop first.") would vanish
                    # within a token. The view now shows what was sent.
                    cleared, notice = (skip, skip) if payload else ("", press.note)
                    payload = progress.payload | {"link": dict(plan.link), "focus": request.at and request.at[1]}
                    if progress.ended:
                        chat = plan.after(progress.traces[0], payload)
                        box, traits = gr.Textbox(label=chat.label), gr.Dropdown(branch_traits(payload["traits"]))
                        notice = " ".join(filter(None, (deadline.notice or pooled.note, press.note)))
                        yield as_json(payload), notice, chat, box, traits, cleared, *unchanged
                    else:
                        yield as_json(payload), notice, skip, skip, skip, cleared, *unchanged
                request = None if deadline.is_set() else request.then
            if payload is None:  # stopped before the first token
                yield skip, skip, skip, _prompt_back(press.request, None), skip, "", *unchanged
        except PersonaError as error:
            prompt = _prompt_back(press.request, payload)
            yield _broken_off(payload), public_message(error), skip, prompt, skip, "", *unchanged
        except Exception as error:
            logger.exception("A reply failed")
            prompt = _prompt_back(press.request, payload)
            yield _broken_off(payload), unexpected_message("The reply", error), skip, prompt, skip, "", *unchanged
        finally:
            press.done = True

    def _pooled(self, request: ReplyRequest, chat: Chat) -> PooledModel:
        """The model to run; a branch is written by the model of its reply."""
        side, named = (chat.side, chat.named) if request.at else (request.side, request.named)
        if side == ANOTHER and named:
            model, adapter, vectors = named
            return self.pool.named(model, adapter or None, vectors, current_session())
        return self.models.get(side, self.models[BASELINE])


def _prompt_back(request: ReplyRequest, payload: Payload | None) -> Any:
    """The message, back in its field, if no reply has started."""
    return gr.skip() if payload is not None or request.at else request.values[0]


def _broken_off(payload: Payload | None) -> Any:
    """The part of a reply that broke off, no longer shown as being written."""
    if payload is None:
        return gr.skip()
    sides = [side | {"done": True, "finish": side["finish"] or "stopped"} for side in payload["sides"]]
    return as_json(payload | {"sides": sides})
