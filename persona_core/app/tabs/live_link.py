"""What opens in the Live tab from elsewhere: a published reply, or what a link holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from persona_core.app.components import as_json
from persona_core.app.conversation import Chat, request_from_link
from persona_core.app.reply_form import ReplyForm
from persona_core.app.requests import fits_fields
from persona_core.app.run_controls import Press, RunControls

if TYPE_CHECKING:
    from persona_core.app.tabs.live_form import LiveForm
    from persona_core.traces.trace import Trace
    from persona_core.traces.view.payload import Payload


@dataclass(frozen=True)
class LiveLink:
    """The components that such a reply fills, and their values.

    Attributes:
        form, controls: of the tab.
        view: of the reply.
        chat: the state with a `Chat`.
        sent: the line with what was sent.
    """

    form: LiveForm
    controls: RunControls
    view: gr.HTML
    chat: gr.State
    sent: gr.HTML

    @property
    def shown(self) -> list[Any]:
        """The components that `show_reply` returns values for."""
        return [*self.form.values, self.view, self.chat, self.form.notice]

    def show_reply(
        self, config: str, trace: Trace, messages: Sequence[Mapping[str, str]], view: Payload
    ) -> tuple[Any, ...]:
        """Values of `shown`: a published reply, and in the form what made it, to be changed or branched from."""
        form = ReplyForm.of_reply(config, trace, messages, self.form.settings, self.form.models)
        return *form.fields, as_json(view), Chat.of_saved_reply(config, trace), ""

    @property
    def restored(self) -> list[Any]:
        """The components that `restore` returns values for."""
        fields = [self.form.side, self.form.prompt, self.form.system, *self.form.change]
        return [*fields, self.chat, *self.controls.outputs, self.controls.from_link, self.sent]

    def restore(self, query: Mapping[str, Any], press: Press | None) -> tuple[Any, ...]:
        """Values of `restored` for the query of a link, with a press for its request."""
        found = request_from_link(query)
        if found is None or found[1].side not in ("", *self.form.sides):
            return tuple(gr.skip() for _ in self.restored)
        before, request = found
        skip = gr.skip()
        branch = request if request.at else request.then
        # A value that a field cannot hold is an error message of the run, not one of the field.
        fits = branch is not None and fits_fields(*branch.values) and branch.values[0] in self.form.traits
        change = branch.values if branch is not None and fits else (skip, skip, skip)
        fields = (skip, skip, skip) if request.at else (request.side, "", request.values[1])
        sent, chat = ("", skip) if request.at else (request.values[0], before)
        accepted = self.controls.accept(press, request)
        return *fields, *change, chat, *accepted, 1, sent
