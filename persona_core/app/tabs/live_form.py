"""The Live tab's components beside the view: the message and its settings, the buttons, the form of a branch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import gradio as gr

from persona_core.app.components import notice_component
from persona_core.app.pooled_model import PooledModel
from persona_core.app.reply_form import ReplyForm
from persona_core.app.requests import ACTIONS, MAX_AMOUNT, MAX_TEMPERATURE
from persona_core.app.settings import AppSettings
from persona_core.report.home import Home

ANOTHER = "another"
SELECTED = ""  # in place of a trait: the one that the view is coloured by
_BRANCHING = (
    "Put the cursor on a token of the reply. The model continues from there with one trait changed, and the branch is "
    "shown beside the original. The buttons beside the text change the trait that is shown, by an amount that leaves "
    "neutral text alone; here you choose."
)


class LiveForm:
    """The components, added to the column that is being built. Their values are those of a `ReplyForm`.

    Args:
        settings: limits.
        models: side -> its model.
        home: examples and the first view.
        label: of the message.
    """

    def __init__(self, settings: AppSettings, models: Mapping[str, PooledModel], home: Home, label: str) -> None:
        self.settings, self.models, self.traits = settings, models, home.traits
        self.sides = (*models, *([ANOTHER] if settings.open_models else []))
        max_chars = settings.max_prompt_chars
        form = ReplyForm.first(home, settings, models)
        self.prompt = gr.Textbox(
            form.prompt,
            label=label,
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
        self.side = gr.Radio(
            list(self.sides),
            value=form.side,
            label="Model",
            info="The contaminated model is the baseline fine-tuned to show the traits",
            visible=len(self.sides) > 1,
            elem_id="side",
        )
        with gr.Accordion("Another model", open=False, visible=settings.open_models, elem_id="another"):
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
            most = settings.max_new_tokens
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
            self.trait = gr.Dropdown(branch_traits(home.traits), value=SELECTED, label="Trait", elem_id="branch-trait")
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

    @property
    def request(self) -> list[Any]:
        """What a message is sent with: the model, how a visitor names another one, and `ReplyForm`'s other fields."""
        return [self.side, *self.named, self.prompt, self.system, self.length, self.temperature, self.seed]

    @property
    def values(self) -> list[Any]:
        """The components of `ReplyForm.fields`."""
        return [self.side, self.prompt, self.system, self.length, self.temperature, self.seed]

    @property
    def change(self) -> list[Any]:
        """What a branch changes."""
        return [self.trait, self.action, self.amount]


def branch_traits(traits: Iterable[str]) -> list[tuple[str, str]]:
    """The choices of a branch's trait."""
    return [("the selected trait", SELECTED), *((trait, trait) for trait in traits)]
