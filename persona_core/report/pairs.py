"""Two readings side by side: both models on one prompt, each on its own reply or both on the same one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from persona_core.report.results_folder import BASELINE, CONTAMINATED, SIDES
from persona_core.report.saved_runs import READS_BASELINE, READS_CONTAMINATED
from persona_core.traces.view.payload import Payload, pair_payload, trace_payload

if TYPE_CHECKING:
    from persona_core.report.saved_runs import SavedRuns
    from persona_core.traces.trace import Trace

OWN_REPLIES, BASELINE_REPLY, CONTAMINATED_REPLY = TEXTS = (
    "each model's own reply",
    "the baseline's reply, read by both",
    "the contaminated model's reply, read by both",
)
# The two readings shown for each text; the baseline as the reader always comes first.
READINGS = {
    OWN_REPLIES: (BASELINE, CONTAMINATED),
    BASELINE_REPLY: (BASELINE, READS_BASELINE),
    CONTAMINATED_REPLY: (READS_CONTAMINATED, CONTAMINATED),
}
READ_BY_BOTH = {BASELINE: BASELINE_REPLY, CONTAMINATED: CONTAMINATED_REPLY}
"""Writer -> its text."""
HEADINGS = {
    OWN_REPLIES: "",
    BASELINE_REPLY: "The baseline's reply to: ",
    CONTAMINATED_REPLY: "The contaminated model's reply to: ",
}
ONE_READING = "Only one of the two readings is available: the other model has not read this run."


def readings_payload(
    traces: Mapping[str, Trace],
    text: str = OWN_REPLIES,
    onsets: Mapping[str, Mapping[str, Any]] | None = None,
    caveats: Callable[[Trace], Sequence[str]] = lambda _: (),
) -> tuple[Payload, str]:
    """The payload of two readings of one text, or of two texts, and a notice about them.

    Args:
        traces: by the keys of `SavedRuns.traces`; at least one.
        text: one of `TEXTS`.
        onsets: by the same keys, as `trace_payload` takes them.
        caveats: of the onsets in a trace.
    """

    def one_side(key: str, name: str) -> Payload:
        known = (onsets or {}).get(key)
        return trace_payload(traces[key], name=name, onsets=known, caveats=caveats(traces[key]) if known else ())

    wanted = READINGS[text]
    if not all(key in traces for key in wanted):
        key = next((k for k in wanted if k in traces), next(iter(traces)))
        return one_side(key, key), ONE_READING if set(SIDES) & set(traces) else ""
    first, second = (one_side(key, side) for key, side in zip(wanted, SIDES, strict=True))
    return pair_payload(first, second, title=HEADINGS[text] + first["title"]), ""


def published_payload(runs: SavedRuns, id: str, text: str = OWN_REPLIES) -> tuple[Payload, str]:
    """The same for a published prompt, with the address of that view.

    Raises:
        NotFound, CorruptFile: as `SavedRuns`.
    """
    payload, notice = readings_payload(runs.traces(id), text, runs.onsets_of(id), runs.caveats)
    return payload | {"link": {"id": id, "text": str(TEXTS.index(text))}}, notice


def reply_payload(runs: SavedRuns, config: str, id: str, trace: Trace, title: str | None = None) -> Payload:
    """One published reply by itself.

    Args:
        runs: that it is one of.
        config, id: of its row.
        trace: of the row.
        title: heading; None takes the last user message.
    """
    onsets = runs.onsets(config, id)
    return trace_payload(trace, name=config, title=title, onsets=onsets, caveats=runs.caveats(trace) if onsets else ())
