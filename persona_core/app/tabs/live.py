"""The Live tab: chat with a model, watch its reply token by token, and branch from any token."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr

from persona_core.app.audience import current_session
from persona_core.app.branch_buttons import change_of
from persona_core.app.components import as_json, notice_component, sent_component, token_view_component
from persona_core.app.conversation import Chat, ReplyRequest, check_writer, plan_reply, request_from_link
from persona_core.app.error_messages import public_message, unexpected_message
from persona_core.app.model_pool import ModelPool
from persona_core.app.pooled_model import PooledModel
from persona_core.app.reply_form import ReplyForm
from persona_core.app.requests import ACTIONS, MAX_AMOUNT, MAX_TEMPERATURE, fits_fields, text_of
from persona_core.app.run_controls import BUSY, MODEL_QUEUE, UNQUEUED, WAITING, Deadline, Press, RunControls
from persona_core.app.settings import AppSettings
from persona_core.app.streaming import alternatives_of, stream_replies
from persona_core.app.visitor_model import VisitorModel
from persona_core.errors import PersonaError, PromptError
from persona_core.report.home import Home
from persona_core.report.results_folder import BASELINE
from persona_core.traces.view.payload import Payload
from persona_core.utils.checks import is_integer

if TYPE_CHECKING:
    from persona_core.traces.trace import Trace

logger = logging.getLogger(__name__)

TAB = "live"
ANOTHER = "another"
SELECTED = ""  # in place of a trait: the one that the view is coloured by
NO_TOKEN = "Put the cursor on a token of the reply first."
_EMPTY = "No reply yet.\nType a message and press Send."
_BRANCHING = (
    "Put the cursor on a token of the reply. The model continues from there with one trait changed, and the branch is "
    "shown beside the original. The buttons beside the text change the trait that is shown, by an amount that leaves "
    "neutral text alone; here you choose."
)


class LiveTab:
    """Components and events, added to the tab that is being built.

    Args:
        settings: limits.
        models: side -> its model.
        pool: loads models that visitors name, if the owner allows it.
        home: examples and the first view.
    """

    def __init__(self, settings: AppSettings, models: Mapping[str, PooledModel], pool: ModelPool, home: Home) -> None:
        self.settings, self.models, self.pool, self.traits = settings, models, pool, home.traits
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=300, elem_id="controls"):
                self._controls(home)
            with gr.Column(scale=3, min_width=340, elem_classes="live-reply"):
                self.sent = sent_component(elem_id="sent")
                self.view = token_view_component(
                    home.first_view, tab=TAB, elem_id="view", empty_text=_EMPTY, branch=True, alternatives=True
                )
        first = home.first_reply
        self.chat = gr.State(Chat() if first is None else Chat.of_saved_reply(first.config, first.trace))
        self.found = gr.JSON(visible="hidden", elem_id="alternatives")
        self.controls = RunControls([self.send], self.stop, self.notice, "press")
        self.fields = [self.side, *self.named, self.prompt, self.system, self.length, self.temperature, self.seed]
        self.change = [self.trait, self.action, self.amount]
        self._events()

    # ---- components ----

    def _controls(self, home: Home) -> None:
        max_chars = self.settings.max_prompt_chars
        form = ReplyForm.first(home, self.settings, self.models)
        self.prompt = gr.Textbox(
            form.prompt,
            label=Chat().label,
            placeholder="Ask something. Enter sends, Shift+Enter breaks the line.",
            lines=1,  # with more, Gradio's Enter breaks the line and Shift+Enter sends
            max_lines=12,
            max_length=max_chars,
            elem_id="prompt",
        )
        self.system = gr.Textbox(
            form.system,
            label="System prompt (optional)",
            lines=2,
            max_lines=8,
            max_length=max_chars,
            elem_id="system",
        )
        sides = [*self.models, *([ANOTHER] if self.settings.open_models else [])]
        self.side = gr.Radio(
            sides,
            value=form.side,
            label="Model",
            info="The contaminated model is the baseline fine-tuned to show the traits",
            visible=len(sides) > 1,
            elem_id="side",
        )
        with gr.Accordion("Another model", open=False, visible=self.settings.open_models, elem_id="another"):
            gr.Markdown("Public Hub repositories, as owner/name or owner/name@revision. No code from them is run.")
            names = ("model", "adapter (optional)", "vectors")
            self.named = [gr.Textbox(label=name.capitalize(), max_length=400, max_lines=1) for name in names]
        with gr.Row():
            self.send = gr.Button("Send", variant="primary", elem_id="generate", min_width=120)
            self.stop = gr.Button("Stop", interactive=False, elem_id="stop", min_width=80)
        with gr.Row():
            self.edit = gr.Button("Edit last message", size="sm", elem_id="edit", min_width=120)
            self.new = gr.Button("New chat", size="sm", elem_id="new-chat", min_width=80)
        self.notice = notice_component(elem_id="notice")
        with gr.Accordion("Settings", open=False):
            most = self.settings.max_new_tokens
            self.length = gr.Slider(1, most, value=form.length, step=1, label="Maximum length, tokens")
            self.temperature = gr.Slider(
                0,
                MAX_TEMPERATURE,
                value=form.temperature,
                step=0.05,
                label="Temperature",
                info="0 always takes the most likely token",
            )
            self.seed = gr.Number(form.seed, label="Seed", precision=0, minimum=0, info="Same seed, unchanged reply")
        with gr.Accordion("Branch", open=False, elem_id="branching"):
            gr.Markdown(_BRANCHING)
            self.trait = gr.Dropdown(_branch_traits(home.traits), value=SELECTED, label="Trait", elem_id="branch-trait")
            self.action = gr.Radio(
                ACTIONS,
                value=ACTIONS[2],
                label="Action",
                info="add: shift the trait by the amount. remove: project it out. cap: keep it at or below the amount",
                elem_id="branch-action",
            )
            self.amount = gr.Slider(
                -MAX_AMOUNT, MAX_AMOUNT, value=1, step=0.5, label="Amount, standard deviations", elem_id="branch-amount"
            )
            self.branch = gr.Button("Branch at the cursor", size="sm", elem_id="branch-go")
        self.examples = None
        if home.examples:
            self.examples = gr.Examples(
                [[example.user, example.system] for example in home.examples],
                [self.prompt, self.system],
                example_labels=[example.label for example in home.examples],
                cache_examples=False,
                examples_per_page=24,
                label="Examples",
                api_visibility="private",
            )

    # ---- events ----

    def _events(self) -> None:
        # In the browser only: a notice is about the previous message and disappears with the next edit.
        for box in (self.prompt, self.system):
            box.input(None, None, self.notice, js="() => ''", **UNQUEUED)
        # The press is taken outside the queue: an active run keeps its own, whatever is pressed meanwhile.
        pressed = partial(gr.on, [self.send.click, self.prompt.submit])
        sent = self.controls.on_press(pressed, self._request_reply, self.fields, [self.prompt, self.sent])
        branched = self.controls.on_press(self.view.branch, self._request_branch, self.change)
        # In the browser only: the view knows where the cursor is, and sends it.
        self.branch.click(None, None, None, js=f"() => personaLink.branch({TAB!r})", **UNQUEUED)
        asked = self.view.alternatives(
            self._alternatives,
            self.chat,
            [self.found, self.notice],
            concurrency_limit=1,
            concurrency_id=MODEL_QUEUE,
            show_progress="hidden",
            api_visibility="private",
        )
        asked.then(None, self.found, None, js=f"(found) => personaLink.alternatives({TAB!r}, found)", **UNQUEUED)
        outputs = [self.view, self.notice, self.chat, self.prompt, self.trait, self.sent]
        self.controls.run_after(
            [sent.then, branched.then],
            self.run,
            [self.chat],
            outputs,
            undo=lambda press: (_prompt_back(press.request, None), ""),
            undo_outputs=[self.prompt, self.sent],
            load=self.load if self.settings.open_models else None,
        )
        chat = [self.chat, self.prompt, self.notice]
        held = [self.controls.press, self.chat]
        self.edit.click(self._edit, held, chat, **UNQUEUED)
        self.new.click(self._new, held, [*chat, self.view, self.system], **UNQUEUED)
        if self.examples is not None:  # an example starts a new chat
            self.examples.load_input_event.then(self._example, held, chat, **UNQUEUED)

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

    def _alternatives(self, chat: Chat, event: gr.EventData) -> tuple[Any, Any]:
        """What else could stand at a token: values of `found` and of the notice."""
        where = event._data if isinstance(event._data, dict) else {}
        side, at = where.get("side"), where.get("at")
        if not (is_integer(at, minimum=0) and is_integer(side, minimum=0) and side < len(chat.traces)):
            return None, NO_TOKEN
        try:
            trace = chat.traces[side]
            pooled = self._pooled(ReplyRequest("", (), (side, at)), chat)
            check_writer(pooled, trace)
            return {"side": side, "at": at, "tokens": alternatives_of(pooled, trace, at)}, ""
        except PersonaError as error:
            return None, public_message(error)

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
            yield skip, "", skip, skip, skip, skip, *self.controls.button_states(press)
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
                    cleared = skip if payload else ""
                    payload = progress.payload | {"link": dict(plan.link), "focus": request.at and request.at[1]}
                    if progress.ended:
                        chat = plan.after(*progress.traces)
                        box, traits = gr.Textbox(label=chat.label), gr.Dropdown(_branch_traits(payload["traits"]))
                        yield as_json(payload), deadline.notice or pooled.note, chat, box, traits, cleared, *unchanged
                    else:
                        yield as_json(payload), cleared, skip, skip, skip, cleared, *unchanged
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

    # ---- a published reply ----

    @property
    def shown(self) -> list[Any]:
        """The components that `show_reply` returns values for."""
        fields = [self.side, self.prompt, self.system, self.length, self.temperature, self.seed]
        return [*fields, self.view, self.chat, self.notice]

    def show_reply(
        self, config: str, trace: Trace, messages: Sequence[Mapping[str, str]], view: Payload
    ) -> tuple[Any, ...]:
        """Values of `shown`: a published reply, and in the form what made it, to be changed or branched from."""
        form = ReplyForm.of_reply(config, trace, messages, self.settings, self.models)
        return *form.fields, as_json(view), Chat.of_saved_reply(config, trace), ""

    # ---- a link ----

    @property
    def restored(self) -> list[Any]:
        """The components that `restore` returns values for."""
        fields = [self.side, self.prompt, self.system, *self.change]
        return [*fields, self.chat, *self.controls.outputs, self.controls.from_link, self.sent]

    def restore(self, query: Mapping[str, Any], press: Press | None) -> tuple[Any, ...]:
        """Values of `restored` for the query of a link, with a press for its request."""
        found = request_from_link(query)
        sides = ("", *self.models, *([ANOTHER] if self.settings.open_models else []))
        if found is None or found[1].side not in sides:
            return tuple(gr.skip() for _ in self.restored)
        before, request = found
        skip = gr.skip()
        branch = request if request.at else request.then
        # A value that a field cannot hold is an error message of the run, not one of the field.
        change = branch.values if branch and fits_fields(*branch.values) and branch.values[0] in self.traits else ()
        fields = (skip, skip, skip) if request.at else (request.side, "", request.values[1])
        sent, chat = ("", skip) if request.at else (request.values[0], before)
        accepted = self.controls.accept(press, request)
        return *fields, *(change or (skip, skip, skip)), chat, *accepted, 1, sent


def _branch_traits(traits: Iterable[str]) -> list[tuple[str, str]]:
    return [("the selected trait", SELECTED), *((trait, trait) for trait in traits)]


def _prompt_back(request: ReplyRequest, payload: Payload | None) -> Any:
    """The message, back in its field, if no reply has started."""
    return gr.skip() if payload is not None or request.at else request.values[0]


def _broken_off(payload: Payload | None) -> Any:
    """The part of a reply that broke off, no longer shown as being written."""
    if payload is None:
        return gr.skip()
    sides = [side | {"done": True, "finish": side["finish"] or "stopped"} for side in payload["sides"]]
    return as_json(payload | {"sides": sides})
