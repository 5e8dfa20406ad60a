"""What opens in the Live tab from elsewhere: a published reply, or what a link holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from persona_core.app.components import as_json
from persona_core.app.conversation import Chat, ReplyRequest, request_from_link
from persona_core.app.error_messages import public_message
from persona_core.app.reply_form import ReplyForm
from persona_core.app.requests import fits_fields
from persona_core.app.run_controls import WRITTEN_AGAIN, Press, RunControls
from persona_core.app.saved_replies import GONE, SavedReplies
from persona_core.errors import NotFound, PersonaError
from persona_core.report.home import CONFIGS
from persona_core.report.pairs import reply_payload
from persona_core.report.results_folder import BRANCHES
from persona_core.traces.trace import Trace

if TYPE_CHECKING:
    from persona_core.app.tabs.live_form import LiveForm
    from persona_core.report.saved_runs import SavedRuns
    from persona_core.traces.view.payload import Payload


@dataclass(frozen=True)
class LiveLink:
    """The components that such a reply fills, and their values.

    Attributes:
        form, controls: of the tab.
        view: of the reply.
        chat: the state with a `Chat`.
        sent: the line with what was sent.
        runs: the published results, if there are any.
        saved: the replies that are kept, if any are.
    """

    form: LiveForm
    controls: RunControls
    view: gr.HTML
    chat: gr.State
    sent: gr.HTML
    runs: SavedRuns | None = None
    saved: SavedReplies | None = None

    @property
    def shown(self) -> list[Any]:
        """The components that `show_reply` returns values for."""
        return [*self.form.values, self.view, self.chat, self.form.notice]

    def show_reply(self, config: str, id: str, **view: Any) -> tuple[Any, ...]:
        """Values of `shown`: a published reply, and in the form what made it, to be changed or branched from.

        Args:
            config, id: of its row.
            **view: choices of the view, in place of the usual ones.

        Raises:
            NotFound: there is none of that name.
        """
        return *self._published(config, id, **view), ""

    def _opened(self, chat: Chat, view: Payload) -> tuple[Any, ...]:
        """Values of the form, of `view` and of `chat` for a reply that is shown at once.

        Args:
            chat: with the reply.
            view: its payload, to which the link is added.
        """
        form = ReplyForm.of_reply(chat.side, chat.traces[0], chat.asked, self.form.settings, self.form.sides)
        side, prompt, *fields = form.fields
        view = {"link": dict(chat.link or {}), **view}
        return side, gr.Textbox(prompt, label=chat.label), *fields, as_json(view), chat

    # ---- a link ----

    @property
    def restored(self) -> list[Any]:
        """The components that `restore` returns values for."""
        shown = [*self.form.values, self.view, self.chat, *self.form.named, *self.form.change]
        return [*shown, *self.controls.outputs, self.controls.from_link, self.sent]

    def restore(self, query: Mapping[str, Any], press: Press | None) -> tuple[Any, ...]:
        """Values of `restored` for the query of a link: what it names, else a press that has it written again."""
        found = request_from_link(query)
        if found is not None and not found[1].at and found[1].side not in self.form.sides:
            found = None
        gone = ""
        if "saved" in query:
            try:
                return self._saved(query["saved"], press)
            except NotFound as error:
                gone = str(error)
        try:
            opened = self._published(query.get("config"), query["id"]) if "id" in query else None
        except PersonaError as error:
            return self._values(None, found, self.controls.refuse(press, gone or public_message(error)))
        if gone and found is not None and not found[1].at:
            opened = self._filled(*found, view=None)  # empty: what the page opens on is another reply
        if gone or found is None:
            controls = self.controls.refuse(press, gone) if gone or opened else None
            return self._values(opened, found, controls)
        before, request = found
        accepted = self.controls.accept(press, request, WRITTEN_AGAIN)
        if request.at:
            return self._values(opened, found, accepted, 1)
        side, _, *fields = self._filled(before, request, gr.skip())  # the message is above the view, where it was sent
        return self._values((side, gr.Textbox("", label=before.label), *fields), found, accepted, 1, request.values[0])

    def _saved(self, id: Any, press: Press | None) -> tuple[Any, ...]:
        """A reply that was saved, as it was.

        Raises:
            NotFound: it is gone.
        """
        if self.saved is None:
            raise NotFound(GONE)
        try:
            reply = self.saved.open(id)
            chat, view = Chat.of_saved(reply), reply.payload()
        except (KeyError, TypeError, ValueError, PersonaError) as error:  # or a file that another program has changed
            raise NotFound(GONE) from error
        view["link"] |= {"saved": id}
        return self._values(self._opened(chat, view), request_from_link(reply.link), self.controls.refuse(press, ""))

    def _published(self, config: Any, id: Any, **view: Any) -> tuple[Any, ...]:
        """A published reply: values of `_opened`. Config and id are unchecked."""
        if self.runs is None or config not in (*CONFIGS, BRANCHES):
            raise NotFound("There is no such published reply here.")
        row = self.runs.row(config, str(id)[:200])
        trace = Trace.from_row(row)
        payload = reply_payload(self.runs, config, row["id"], trace)
        chat = Chat.of_published(config, row["id"], trace, row["messages"] or (), self.runs.model(config, row["id"]))
        return self._opened(chat, payload | {"view": payload["view"] | view})

    def _filled(self, before: Chat, request: ReplyRequest, view: Any) -> tuple[Any, ...]:
        """Values of `_opened` without a reply: the form as a request has it, and the conversation before it."""
        side, prompt, *fields = ReplyForm.fitting(request.side, request.values, self.form.settings).fields
        return side, gr.Textbox(prompt, label=before.label), *fields, view, before

    def _values(
        self,
        opened: tuple[Any, ...] | None,
        found: tuple[Chat, ReplyRequest] | None,
        controls: tuple[Any, ...] | None,
        from_link: Any = None,
        sent: str | None = None,
    ) -> tuple[Any, ...]:
        """Values of `restored`; what is None stays as it is, but the models and the branch that the link names."""
        skip = gr.skip()
        named: tuple[Any, ...] | None = None
        change: tuple[Any, ...] | None = None
        if found is not None:
            request = found[1]
            named, branch = request.named, request if request.at else request.then
            # A value that a field cannot hold is an error message of the run, not one of the field.
            if branch and fits_fields(*branch.values) and branch.values[0] in self.form.traits:
                change = branch.values
        parts = (opened, 8), (named, 3), (change, 3), (controls, len(self.controls.outputs))
        values = [one for part, n in parts for one in (part or (skip,) * n)]
        return *values, skip if from_link is None else from_link, skip if sent is None else sent
