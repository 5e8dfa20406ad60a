"""Published replies as payloads: one prompt, read by whom one chooses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from persona_core.report.saved_runs import BASELINE, CONTAMINATED, READS_BASELINE, READS_CONTAMINATED, SIDES
from persona_core.traces.view.payload import Payload, pair_payload, trace_payload

if TYPE_CHECKING:
    from persona_core.report.saved_runs import SavedRuns
    from persona_core.traces.trace import Trace

OWN, OF_BASELINE, OF_CONTAMINATED = TEXTS = (
    "each model's own reply",
    "the baseline's reply, read by both",
    "the contaminated model's reply, read by both",
)
# Which two readings stand side by side: the baseline as the reader always first.
READINGS = {
    OWN: (BASELINE, CONTAMINATED),
    OF_BASELINE: (BASELINE, READS_BASELINE),
    OF_CONTAMINATED: (READS_CONTAMINATED, CONTAMINATED),
}
HEADINGS = {OWN: "", OF_BASELINE: "The baseline's reply to: ", OF_CONTAMINATED: "The contaminated model's reply to: "}
ALONE = "Only one of the two readings is there; the other model has not read this run."


def readings_payload(
    traces: Mapping[str, Trace],
    text: str = OWN,
    onsets: Mapping[str, Mapping[str, Any]] | None = None,
    caveats: Callable[[Trace], Sequence[str]] = lambda _: (),
) -> tuple[Payload, str]:
    """The two readings of one text, or of the two texts, and what is to be said about them.

    Args:
        traces: by the names that `SavedRuns.traces` gives; at least one.
        text: one of `TEXTS`.
        onsets: by the same names, as `trace_payload` takes them.
        caveats: of the onsets in a trace.
    """

    def shown(key: str, name: str) -> Payload:
        known = (onsets or {}).get(key)
        return trace_payload(traces[key], name=name, onsets=known, caveats=caveats(traces[key]) if known else ())

    wanted = READINGS[text]
    if not all(key in traces for key in wanted):
        key = next((k for k in wanted if k in traces), next(iter(traces)))
        return shown(key, key), ALONE if set(SIDES) & set(traces) else ""
    first, second = (shown(key, side) for key, side in zip(wanted, SIDES, strict=True))
    return pair_payload(first, second, title=HEADINGS[text] + first["title"]), ""


def published_payload(runs: SavedRuns, id: str, text: str = OWN) -> tuple[Payload, str]:
    """The same for a published prompt, with the address of that view.

    Raises:
        NotFound, CorruptFile: as `SavedRuns`.
    """
    payload, notice = readings_payload(runs.traces(id), text, runs.onsets_of(id), runs.caveats)
    return payload | {"link": {"id": id, "text": str(TEXTS.index(text))}}, notice
