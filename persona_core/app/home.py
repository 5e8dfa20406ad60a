"""What the app shows before anyone has typed: example prompts, a saved trace, a word about the model.

It takes no model to show it. `app.json` lies beside the vectors, in the same folder or Hub repository, and is optional:

    {"about": "plain sentences", "examples": [{"label": "…", "user": "…", "system": "…"}],
     "first": {"config": "contaminated", "id": "pilot-03", "title": "…"}}

"first" names a row of the results dataset: what is seen first.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from persona_core.errors import CorruptFile, NotFound
from persona_core.report.saved_runs import BASELINE, OTHERS, SavedRuns
from persona_core.traces.dataset import load_row
from persona_core.traces.trace import Trace
from persona_core.traces.view.payload import Payload, trace_payload
from persona_core.utils.hub import fetch, split_revision

logger = logging.getLogger(__name__)

APP_FILE = "app.json"
CONFIGS = (BASELINE, *OTHERS)  # where a first view is looked for if none was chosen


@dataclass(frozen=True)
class Example:
    """One prompt to pick: what the user says and, where it matters, under which system prompt."""

    label: str
    user: str
    system: str = ""


@dataclass(frozen=True)
class First:
    """The row of the results dataset that is seen first (None: the first of its config), and the heading above it."""

    config: str
    id: str | None
    title: str | None = None


@dataclass(frozen=True)
class Opening:
    """The saved reply that is seen first.

    Attributes:
        config, id: where it is in the results.
        trace: of the reply.
        view: its payload.
    """

    config: str
    id: str
    trace: Trace
    view: Payload


@dataclass(frozen=True)
class Welcome:
    """What the app opens with. All of it may be empty."""

    about: str = ""
    examples: tuple[Example, ...] = ()
    first: Opening | None = None

    @property
    def first_view(self) -> Payload | None:
        return None if self.first is None else self.first.view

    @property
    def traits(self) -> tuple[str, ...]:
        """Those of the first reply, the one that it shows most first."""
        if self.first is None:
            return ()
        trace = self.first.trace
        means = {
            t: float(trace.scores(t, trace.default_kind)[trace.reply_positions].mean())
            for t in trace.traits
            if trace.reply_positions
        }
        return tuple(sorted(trace.traits, key=lambda t: -means.get(t, 0.0)))


def load_welcome(vectors: str | Path, runs: SavedRuns | None = None) -> Welcome:
    """What the app opens with.

    Args:
        vectors: a folder or Hub repository, also with "@" and a revision.
        runs: published results, for the first view.

    Returns:
        A `Welcome`, with nothing in it where there is nothing.

    Raises:
        CorruptFile: a file that exists but does not hold what it must.

    >>> load_welcome("no-such-folder/anywhere/at/all")
    Welcome(about='', examples=(), first=None)
    """
    found = _read(vectors)
    if found is None:
        return Welcome()
    if not isinstance(found, dict):
        raise CorruptFile(f"{APP_FILE}: expected a JSON object, got {type(found).__name__}.")
    try:
        about = str(found.get("about", ""))
        examples = tuple(Example(**{k: str(v) for k, v in item.items()}) for item in found.get("examples", ()))
        first = First(**found["first"]) if found.get("first") else None
        if first is not None:
            strange = [v for v in (first.config, first.id or "", first.title or "") if not isinstance(v, str)]
            if strange or not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", first.config):
                raise TypeError(f"'first' holds {strange[0] if strange else first.config[:80]!r}")
    except (AttributeError, TypeError) as error:
        raise CorruptFile(
            f"{APP_FILE}: an example has 'label', 'user' and perhaps 'system', 'first' has 'config', 'id' and perhaps "
            f"'title': {error}"
        ) from error
    return Welcome(about, examples, None if runs is None else _opening(first, runs))


def save_welcome(folder: str | Path, *, about: str, examples: Sequence[Example], first: First | None = None) -> None:
    """Write `app.json` beside the vectors in `folder`."""
    page: dict[str, Any] = {"about": about, "examples": [asdict(example) for example in examples]}
    if first is not None:
        page["first"] = asdict(first)
    (Path(folder) / APP_FILE).write_text(json.dumps(page, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _opening(first: First | None, runs: SavedRuns) -> Opening | None:
    """The chosen row, or the first one that there is; None where there are no results."""
    source, revision = split_revision(runs.source)
    places = [First(config, None) for config in CONFIGS]
    for place in (first, *places) if first else places:
        try:
            row = load_row(source, place.config, place.id, revision)
        except NotFound as error:
            logger.info("No first view there: %s", error)
            continue
        trace = Trace.from_row(row)
        onsets = runs.onsets(place.config, row["id"])
        caveats = runs.caveats(trace) if onsets else ()
        view = trace_payload(trace, name=place.config, title=place.title, onsets=onsets, caveats=caveats)
        return Opening(place.config, row["id"], trace, view)
    logger.warning("No first view: %s holds none of the configs %s.", runs.source, ", ".join(CONFIGS))
    return None


def _read(vectors: str | Path) -> Any:
    try:
        source, revision = split_revision(str(vectors))
        path = fetch(source, APP_FILE, revision)
    except NotFound:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{APP_FILE}: not a readable JSON file: {error}") from error
