"""The tab that the page opens on: a published pair, what is seen there in one sentence, and the way to the next one."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gradio as gr

from persona_core.app.branch_buttons import change_of
from persona_core.app.components import as_json, findings_component, notice_component, token_view_component
from persona_core.app.conversation import ReplyRequest
from persona_core.app.error_messages import public_message
from persona_core.app.run_controls import UNQUEUED, Press
from persona_core.app.tabs.live import TAB as LIVE
from persona_core.app.token_alternatives import NO_TOKEN, offer_alternatives
from persona_core.errors import PersonaError, PromptError
from persona_core.report.branches import branch_payload
from persona_core.report.pairs import BASELINE_REPLY, CONTAMINATED_REPLY, published_payload
from persona_core.report.results_folder import BASELINE, BRANCHES, CONTAMINATED, SIDES
from persona_core.traces.trace import Trace
from persona_core.traces.view.payload import Payload
from persona_core.utils.checks import is_integer

if TYPE_CHECKING:
    from persona_core.app.pooled_model import PooledModel
    from persona_core.app.tabs.live import LiveTab
    from persona_core.report.gallery import Finding
    from persona_core.report.saved_runs import SavedRuns

TAB = "findings"
WRITERS = {BASELINE_REPLY: (BASELINE, BASELINE), CONTAMINATED_REPLY: (CONTAMINATED, CONTAMINATED)}
"""Text -> which model wrote each of the two sides, where it is not each its own."""


class FindingsTab:
    """Components, added to the tab that is being built.

    Args:
        runs: the published results.
        findings: at least one; the first is shown.
    """

    def __init__(self, runs: SavedRuns, findings: tuple[Finding, ...]) -> None:
        self.runs, self.findings = runs, {one.name: one for one in findings}
        first = findings[0]
        self.panel = findings_component(
            {
                "findings": [{"name": f.name, "label": f.label, "says": f.says} for f in findings],
                "shown": first.name,
            },
            tab=TAB,
            elem_id="findings",
        )
        self.notice = notice_component(elem_id="findings-notice")
        self.view = token_view_component(
            self.payload(first), tab=TAB, elem_id="findings-view", branch=True, alternatives=True
        )
        self.shown = gr.State(first.name)

    def connect(self, live: LiveTab, bar: gr.Tabs) -> None:
        """The events; some of them open a reply in the Live tab."""
        self.panel.pick(self._pick, None, [self.view, self.notice, self.shown], **UNQUEUED)
        opened = [*live.link.shown, bar]

        def ask(name: Any) -> tuple[Any, ...]:
            finding = self.findings.get(name)
            return self._open(live, finding, 1)

        def branch(
            press: Press | None, name: Any, trait: Any, action: Any, amount: Any, event: gr.EventData
        ) -> tuple[Any, ...]:
            finding, where = self.findings.get(name), event._data if isinstance(event._data, Mapping) else {}
            side, at = where.get("side"), where.get("at")
            if finding is None or side not in (0, 1) or not is_integer(at, minimum=0) or at >= 2**31:
                return *(gr.skip() for _ in opened), *live.controls.refuse(press, NO_TOKEN), gr.skip()
            request = ReplyRequest("", change_of(where, trait, action, amount), (0, at))
            shown = self._open(live, finding, side)
            return *shown, *live.controls.accept(press, request), secrets.randbelow(2**31)

        self.panel.ask(ask, self.shown, opened, **UNQUEUED)
        self.view.branch(
            branch,
            [live.controls.press, self.shown, *live.form.change],
            [*opened, *live.controls.outputs, live.controls.from_link],
            **UNQUEUED,
        )
        offer_alternatives(
            self.view, TAB, self.shown, self.notice, lambda name, side: self.reply_at(live.models, name, side)
        )

    def reply_at(self, models: Mapping[str, PooledModel], name: Any, side: int) -> tuple[PooledModel, Trace] | None:
        """The reply on a side of a finding, and the model that wrote it; None: there is no such reply.

        Raises:
            PromptError: the app does not have that model.
        """
        finding = self.findings.get(name)
        if finding is None or side > 1:
            return None
        config, id = self.rows(finding)[side]
        model = self.runs.model(config, id)
        if model not in models:
            raise PromptError(f"The {model} model wrote this reply, and this app does not have it.")
        return models[model], Trace.from_row(self.runs.row(config, id))

    def rows(self, finding: Finding) -> tuple[tuple[str, str], tuple[str, str]]:
        """Config and id of the text on each of the two sides."""
        branch = self.runs.branches.get(finding.text)
        if branch is not None:
            return (branch.config, branch.id), (BRANCHES, branch.name)
        first, second = WRITERS.get(finding.text, SIDES)
        return (first, finding.id), (second, finding.id)

    def payload(self, finding: Finding) -> Payload:
        """The pair of a finding, coloured by its trait, with the cursor where it happens."""
        branch = self.runs.branches.get(finding.text)
        if branch is None:
            payload, _ = published_payload(self.runs, finding.id, finding.text)
        else:
            payload = branch_payload(self.runs, branch)
        view = payload["view"] | {"trait": finding.trait, "special": False}
        return payload | {"view": view, "focus": finding.at, "link": {"finding": finding.name}}

    def show(self, name: Any) -> tuple[Any, ...]:
        """Values of view, notice and shown for the name of a finding."""
        if not isinstance(name, str) or name not in self.findings:
            return gr.skip(), "Unknown finding. Choose one from the list.", gr.skip()
        try:
            return as_json(self.payload(self.findings[name])), "", name
        except PersonaError as error:
            return gr.skip(), public_message(error), gr.skip()

    # ---- a link ----

    @property
    def restored(self) -> list[Any]:
        """The components that `restore` returns values for."""
        return [self.view, self.notice, self.shown]

    def restore(self, query: Mapping[str, Any]) -> tuple[Any, ...]:
        """Values of `restored` for the query of a link."""
        return self.show(query["finding"]) if "finding" in query else tuple(gr.skip() for _ in self.restored)

    def _pick(self, event: gr.EventData) -> tuple[Any, ...]:
        return self.show(event._data.get("name") if isinstance(event._data, Mapping) else None)

    def _open(self, live: LiveTab, finding: Finding | None, side: int) -> tuple[Any, ...]:
        """One of a finding's replies in the Live tab: values of its `shown`, and the tab that is selected."""
        if finding is None:
            return *(gr.skip() for _ in live.link.shown), gr.skip()
        return *live.link.show_reply(*self.rows(finding)[side], trait=finding.trait), gr.Tabs(selected=LIVE)
