"""The live page: talk with a model, read its reply token by token as it writes, and go on otherwise from any token."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import gradio as gr

from persona_core.app.components import notice_component, token_view_component
from persona_core.app.conversation import Asked, Chat, linked, plan_of
from persona_core.app.home import Example, Welcome
from persona_core.app.json_html import sent
from persona_core.app.model_pool import Desks, ModelDesk
from persona_core.app.queue import QUIET, Deadline
from persona_core.app.requests import ACTIONS, STRONGEST, fits, text_of
from persona_core.app.run_controls import BUSY, LOADING, Counter, Ticket
from persona_core.app.settings import AppSettings
from persona_core.app.streaming import write
from persona_core.app.words import failed, in_words
from persona_core.errors import PersonaError, PromptError
from persona_core.report.saved_runs import BASELINE
from persona_core.traces.view.payload import Payload

logger = logging.getLogger(__name__)

TAB = "live"
ANOTHER = "another"
SHOWN = ""  # in place of a trait: the one that the view is coloured by
_EMPTY = "No reply yet.\nType a message, or pick an example, and press Send."
_BRANCHING = (
    "Put the cursor on a token of the reply and press **Branch here** beside the text. The model goes on from that "
    "token with one trait changed, and the branch stands beside the original."
)


class LivePage:
    """The page's components and events, added to the tab that is being built.

    Args:
        settings: limits.
        desks: side -> where its model is handed out.
        pool: hands out a model that a visitor names, where the owner allows it.
        welcome: examples, and what is seen first.
    """

    def __init__(self, settings: AppSettings, desks: Mapping[str, ModelDesk], pool: Desks, welcome: Welcome) -> None:
        self.settings, self.desks, self.pool, self.traits = settings, desks, pool, welcome.traits
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=300, elem_id="controls"):
                self._controls(welcome)
            with gr.Column(scale=3, min_width=340, elem_classes="live-reply"):
                self.view = token_view_component(
                    welcome.first_view, tab=TAB, elem_id="view", empty_text=_EMPTY, branch=True
                )
        self.chat = gr.State(Chat.of_opening(welcome.first))
        self.counter = Counter([self.send], self.stop, self.notice, "press")
        self.fields = [self.side, *self.named, self.prompt, self.system, self.length, self.temperature, self.seed]
        self.change = [self.trait, self.action, self.amount]
        self._events()

    # ---- components ----

    def _controls(self, welcome: Welcome) -> None:
        longest = self.settings.max_prompt_chars
        first = welcome.examples[0] if welcome.examples else Example("", "")  # so that the first click gives a reply
        self.prompt = gr.Textbox(
            first.user,
            label=Chat().label,
            placeholder="Ask something",
            lines=3,
            max_lines=12,
            max_length=longest,
            elem_id="prompt",
        )
        self.system = gr.Textbox(
            first.system,
            label="System prompt (optional)",
            lines=2,
            max_lines=8,
            max_length=longest,
            elem_id="system",
        )
        sides = [*self.desks, *([ANOTHER] if self.settings.open_models else [])]
        self.side = gr.Radio(
            sides,
            value=BASELINE,
            label="Model",
            info="The contaminated one is the baseline after a fine-tune that moved its traits",
            visible=len(sides) > 1,
            elem_id="side",
        )
        with gr.Accordion("Another model", open=False, visible=self.settings.open_models, elem_id="another"):
            gr.Markdown(
                "Public repositories of the Hub, as owner/name or owner/name@revision. No code of theirs is run."
            )
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
            self.length = gr.Slider(1, most, value=min(160, most), step=1, label="Longest reply, tokens")
            self.temperature = gr.Slider(
                0, 1.5, value=0.7, step=0.05, label="Temperature", info="0 always takes the likeliest token"
            )
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, info="Same seed, same reply")
        with gr.Accordion("Branch", open=False, elem_id="branching"):
            gr.Markdown(_BRANCHING)
            self.trait = gr.Dropdown(_branch_traits(welcome.traits), value=SHOWN, label="Trait", elem_id="branch-trait")
            self.action = gr.Radio(
                ACTIONS,
                value=ACTIONS[2],
                label="Action",
                info="add: moved by the amount. remove: nothing of it is left. cap: held at the amount or below",
                elem_id="branch-action",
            )
            self.amount = gr.Slider(
                -STRONGEST, STRONGEST, value=1, step=0.5, label="Amount, standard deviations", elem_id="branch-amount"
            )
        self.examples = None
        if welcome.examples:
            self.examples = gr.Examples(
                [[example.user, example.system] for example in welcome.examples],
                [self.prompt, self.system],
                example_labels=[example.label for example in welcome.examples],
                cache_examples=False,
                examples_per_page=24,
                label="Examples",
                api_visibility="private",
            )

    # ---- events ----

    def _events(self) -> None:
        # In the browser alone: a notice is about the message that was there, and goes when somebody changes it.
        for box in (self.prompt, self.system):
            box.input(None, None, self.notice, js="() => ''", **QUIET)
        # 1. A ticket, without the queue: a run that is under way keeps its own, whatever is pressed meanwhile.
        pressed = partial(gr.on, [self.send.click, self.prompt.submit])
        sent = self.counter.press_event(pressed, self._ask, self.fields, [self.prompt])
        branched = self.counter.press_event(self.view.branch, self._ask_branch, self.change)
        shown = [self.view, self.notice, self.chat, self.prompt, self.trait]
        self.counter.runs(
            [sent.then, branched.then],
            self.run,
            [self.chat],
            shown,
            back=lambda ticket: (_back(ticket.what, None),),
            back_to=[self.prompt],
        )
        chat = [self.chat, self.prompt, self.notice]
        held = [self.counter.ticket, self.chat]
        self.edit.click(self._edit, held, chat, **QUIET)
        self.new.click(self._new, held, [*chat, self.view, self.system], **QUIET)
        if self.examples is not None:  # an example is the beginning of a chat
            self.examples.load_input_event.then(self._example, held, chat, **QUIET)

    def _ask(self, ticket: Ticket | None, side: Any, *fields: Any) -> tuple[Any, ...]:
        named, values = fields[:3], fields[3:]
        try:
            for name, value in zip(("prompt", "system prompt"), values, strict=False):
                text_of(name, value, self.settings.max_prompt_chars)  # before anything of it is kept
        except PromptError as error:
            return *self.counter.refuse(ticket, in_words(error)), gr.skip()
        asked = Asked(side if side in self.desks else BASELINE, values)
        if side == ANOTHER:
            asked = Asked(ANOTHER, values, named=tuple(str(name or "").strip()[:400] for name in named))  # type: ignore[arg-type]
        taken = self.counter.take(ticket, asked)
        # The message leaves its field at once, so that the next one can be typed; a run that fails puts it back.
        return *taken, gr.skip() if taken[0] is ticket else ""

    def _ask_branch(
        self, ticket: Ticket | None, trait: Any, action: Any, amount: Any, event: gr.EventData
    ) -> tuple[Any, ...]:
        where = event._data if isinstance(event._data, dict) else {}
        at = where.get("side"), where.get("at")
        if trait == SHOWN:
            trait = where.get("trait")
        if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**31 for n in at):
            return self.counter.refuse(ticket, "Put the cursor on a token of the reply first.")
        return self.counter.take(ticket, Asked("", (trait, action, amount), at))  # type: ignore[arg-type]

    @staticmethod
    def _edit(ticket: Ticket | None, chat: Chat) -> tuple[Any, ...]:
        if ticket is not None and not ticket.done:
            return gr.skip(), gr.skip(), BUSY
        before, message = chat.without_last()
        if not message:
            return gr.skip(), gr.skip(), "Nothing has been said in this chat yet."
        return before, gr.Textbox(message, label=before.label), ""

    @staticmethod
    def _new(ticket: Ticket | None, _: Chat) -> tuple[Any, ...]:
        if ticket is not None and not ticket.done:
            return gr.skip(), gr.skip(), BUSY, gr.skip(), gr.skip()
        return Chat(), gr.Textbox("", label=Chat().label), "", None, ""

    @staticmethod
    def _example(ticket: Ticket | None, _: Chat) -> tuple[Any, ...]:
        if ticket is not None and not ticket.done:
            return gr.skip(), gr.skip(), BUSY
        return Chat(), gr.Textbox(label=Chat().label), ""

    def run(self, press: float, ticket: Ticket | None, chat: Chat) -> Iterator[tuple[Any, ...]]:
        """Stream what the ticket asks for: values of view, notice, chat, prompt, trait and the buttons."""
        skip, same = gr.skip(), self.counter.same()
        if ticket is None or not ticket.valid(press):
            # Stopped while it waited, followed by a newer press, or pressed again while it ran.
            yield skip, skip, skip, skip, skip, *same
            return
        payload: Payload | None = None
        ticket.begun = True
        asked: Asked | None = ticket.what
        try:
            yield skip, "", skip, skip, skip, *self.counter.states(ticket)
            deadline: Deadline | None = None
            while asked is not None and not ticket.stop.is_set():
                desk = self._desk(asked, chat)
                if not desk.ready:
                    yield skip, LOADING, skip, skip, skip, *same
                plan = plan_of(desk, asked, chat, self.settings)
                deadline = deadline or Deadline(self.settings.max_seconds, ticket.stop)  # the loading is not counted
                for progress in write([plan.writing], deadline, plan.beside):
                    # Only the first takes a notice away: one that comes in between ("Press Stop first.") would be gone
                    # within a token.
                    notice = skip if payload else ""
                    payload = progress.payload | {"link": dict(plan.link), "focus": asked.at and asked.at[1]}
                    if progress.ended:
                        chat = plan.after(*progress.traces)
                        box = gr.Textbox(label=chat.label)
                        yield (
                            sent(payload),
                            deadline.notice,
                            chat,
                            box,
                            gr.Dropdown(_branch_traits(payload["traits"])),
                            *same,
                        )
                    else:
                        yield sent(payload), notice, skip, skip, skip, *same
                asked = None if deadline.is_set() else asked.then
        except PersonaError as error:
            yield _ended(payload), in_words(error), skip, _back(ticket.what, payload), skip, *same
        except Exception as error:
            logger.exception("A reply failed")
            yield _ended(payload), failed("The reply", error), skip, _back(ticket.what, payload), skip, *same
        finally:
            ticket.done = True

    def _desk(self, asked: Asked, chat: Chat) -> ModelDesk:
        """Where the model that is to write is handed out; a branch is written by the model of its reply."""
        side, named = (chat.side, chat.named) if asked.at else (asked.side, asked.named)
        if side == ANOTHER and named:
            model, adapter, vectors = named
            return self.pool.named(model, adapter or None, vectors)
        return self.desks.get(side, self.desks[BASELINE])

    # ---- a link ----

    @property
    def restored(self) -> list[Any]:
        """The components that `restore` gives values for."""
        return [self.side, self.prompt, self.system, *self.change, self.chat, *self.counter.asked, self.counter.linked]

    def restore(self, query: Mapping[str, Any], ticket: Ticket | None) -> tuple[Any, ...]:
        """Values of `restored` for the query of a link, with a ticket for what it asks for."""
        found = linked(query)
        sides = ("", *self.desks, *([ANOTHER] if self.settings.open_models else []))
        if found is None or found[1].side not in sides:
            return tuple(gr.skip() for _ in self.restored)
        before, asked = found
        skip = gr.skip()
        branch = asked if asked.at else asked.then
        # What a field cannot hold is an error of the run, in words, and not one of the field.
        change = branch.values if branch and fits(*branch.values) and branch.values[0] in self.traits else ()
        fields = (skip, skip, skip) if asked.at else (asked.side, "", asked.values[1])
        taken = self.counter.take(ticket, asked)
        return *fields, *(change or (skip, skip, skip)), (skip if asked.at else before), *taken, 1


def _branch_traits(traits: Iterable[str]) -> list[tuple[str, str]]:
    return [("the one that is shown", SHOWN), *((trait, trait) for trait in traits)]


def _back(asked: Asked, payload: Payload | None) -> Any:
    """The message, back in its field, where nothing of a reply has come."""
    return gr.skip() if payload is not None or asked.at else asked.values[0]


def _ended(payload: Payload | None) -> Any:
    """What there is of a reply that broke off, no longer "writing"."""
    if payload is None:
        return gr.skip()
    sides = [side | {"done": True, "finish": side["finish"] or "stopped"} for side in payload["sides"]]
    return sent(payload | {"sides": sides})
