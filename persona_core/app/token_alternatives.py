"""What else a model could have said at a token: the event of a token view that asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import gradio as gr

from persona_core.app.conversation import check_writer
from persona_core.app.error_messages import public_message
from persona_core.app.run_controls import MODEL_QUEUE, UNQUEUED
from persona_core.app.streaming import alternatives_of
from persona_core.errors import PersonaError
from persona_core.utils.checks import is_integer

if TYPE_CHECKING:
    from persona_core.app.pooled_model import PooledModel
    from persona_core.traces.trace import Trace

NO_TOKEN = "Put the cursor on a token of the reply first."

ReplyAt = Callable[[Any, int], "tuple[PooledModel, Trace] | None"]
"""The reply on a side of the view and the model that wrote it, from the value of a component; None: there is none."""


def offer_alternatives(view: gr.HTML, tab: str, shown: gr.State, notice: gr.HTML, reply_at: ReplyAt) -> None:
    """Let a token view list what else the model could have said at a token.

    Args:
        view: made with `alternatives=True`.
        tab: id of its tab.
        shown: what the view shows.
        notice: the line for errors.
        reply_at: takes the value of `shown` and a side. Its errors are shown.
    """
    found = gr.JSON(visible="hidden", elem_id=f"{tab}-alternatives")

    def ask(value: Any, event: gr.EventData) -> Iterator[tuple[Any, Any]]:
        yield from alternatives_at(event._data, lambda side: reply_at(value, side))

    asked = view.alternatives(
        ask,
        shown,
        [found, notice],
        concurrency_limit=1,
        concurrency_id=MODEL_QUEUE,
        show_progress="hidden",
        api_visibility="private",
    )
    asked.then(None, found, None, js=f"(found) => personaLink.alternatives({tab!r}, found)", **UNQUEUED)


def alternatives_at(
    where: Any, reply_at: Callable[[int], tuple[PooledModel, Trace] | None]
) -> Iterator[tuple[Any, str]]:
    """What could stand at a token, as the view takes it (None if that cannot be told), and a notice.

    Args:
        where: the data of the view's event, unchecked.
        reply_at: takes a side.
    """
    side, at = (where.get("side"), where.get("at")) if isinstance(where, Mapping) else (None, None)
    if not (is_integer(at, minimum=0) and is_integer(side, minimum=0)):
        yield None, NO_TOKEN
        return
    try:
        reply = reply_at(side)
        if reply is None:
            yield None, NO_TOKEN
            return
        pooled, trace = reply
        if not pooled.ready:
            yield gr.skip(), pooled.loading
        check_writer(pooled, trace)
        yield {"side": side, "at": at, "tokens": alternatives_of(pooled, trace, at)}, ""
    except PersonaError as error:
        yield None, public_message(error)
