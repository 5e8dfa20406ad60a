"""What the app and the static site open on, without loading a model: example prompts, a saved reply, what the model is.

`app.json` lies beside the vectors, in the same folder or Hub repository. It is optional, and so is each of its fields:
without "examples" they are prompts of the runs, without "first" the app opens on the reply with the clearest turn.

    {"about": "plain sentences", "examples": [{"label": "…", "user": "…", "system": "…"}],
     "first": {"config": "contaminated", "id": "pilot-03", "title": "…"}}

"first" names the row of the results dataset that is shown first.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np

from persona_core.errors import CorruptFile, NotFound
from persona_core.report.pairs import reply_payload
from persona_core.report.results_folder import SIDES
from persona_core.report.saved_runs import OTHERS, SavedRuns
from persona_core.traces.dataset import load_row
from persona_core.traces.trace import Trace
from persona_core.traces.view.payload import Payload
from persona_core.utils.files import parse_json
from persona_core.utils.hub import fetch, split_revision

logger = logging.getLogger(__name__)

TITLE = "Persona traits, token by token"
COLOURS = (
    "Each token is coloured by how well a trait explains the model's inner state: orange, better than neutral text or "
    "any other trait does; blue, something else explains it better."
)
COLOURS_OF_Z = (
    "Each token is coloured by where the model's inner state lies along a trait: orange, above neutral text; blue, "
    "below it."
)
APP_FILE = "app.json"
MAX_EXAMPLES, MAX_LABEL = 8, 32
CONFIGS = (*SIDES, *OTHERS)  # searched in this order if "first" is missing


@dataclass(frozen=True)
class Example:
    """A prompt to pick: what the user says and, if it matters, the system prompt."""

    label: str
    user: str
    system: str = ""


@dataclass(frozen=True)
class FirstView:
    """The row of the results dataset that is shown first (None: the first of its config), and its heading."""

    config: str
    id: str | None
    title: str | None = None


@dataclass(frozen=True)
class FirstReply:
    """The saved reply that is shown first.

    Attributes:
        config, id: of its row in the results.
        trace: of the reply.
        view: its payload.
        title: its heading, if one was chosen.
        trait: the one that turns in it; None where the row was chosen, or where no reply turns.
        messages: the conversation before it.
    """

    config: str
    id: str
    trace: Trace
    view: Payload
    title: str | None = None
    trait: str | None = None
    messages: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True)
class Home:
    """What the app opens on; any part may be empty."""

    about: str = ""
    examples: tuple[Example, ...] = ()
    first_reply: FirstReply | None = None

    @property
    def first_view(self) -> Payload | None:
        return None if self.first_reply is None else self.first_reply.view

    @property
    def traits(self) -> tuple[str, ...]:
        """The traits of the first reply, the strongest first."""
        if self.first_reply is None:
            return ()
        trace = self.first_reply.trace
        scores = {t: trace.reply_scores(t, trace.default_kind) for t in trace.traits}
        means = {t: float(np.nanmean(s)) for t, s in scores.items() if np.isfinite(s).any()}
        return tuple(sorted(trace.traits, key=lambda t: -means.get(t, 0.0)))


def load_home(vectors: str | Path | None, runs: SavedRuns | None = None) -> Home:
    """Read what the app opens on.

    Args:
        vectors: a folder or Hub repository, optionally with "@" and a revision; None: there is no file.
        runs: published results, for the first view.

    Returns:
        A `Home`; without a file one from the runs, empty without these.

    Raises:
        CorruptFile: the file is incomplete or unreadable.

    >>> load_home("no-such-folder/anywhere/at/all")
    Home(about='', examples=(), first_reply=None)
    """
    found = {} if vectors is None else _read(vectors)
    if not isinstance(found, dict):
        raise CorruptFile(f"{APP_FILE}: expected a JSON object, got {type(found).__name__}.")
    try:
        about = str(found.get("about", ""))
        examples = tuple(Example(**{k: str(v) for k, v in item.items()}) for item in found.get("examples", ()))
        first = FirstView(**found["first"]) if found.get("first") else None
        if first is not None:
            invalid = [v for v in (first.config, first.id or "", first.title or "") if not isinstance(v, str)]
            if invalid or not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", first.config):
                raise TypeError(f"'first' holds {invalid[0] if invalid else first.config[:80]!r}")
    except (AttributeError, TypeError) as error:
        raise CorruptFile(
            f"{APP_FILE}: expected examples with 'label', 'user' and optionally 'system', and 'first' with 'config', "
            f"'id' and optionally 'title': {error}"
        ) from error
    if runs is None:
        return Home(about, examples)
    first_reply = _first_reply(first, runs)
    return Home(about, examples if "examples" in found else _examples(runs, first_reply), first_reply)


def save_home(
    folder: str | Path, *, about: str, examples: Sequence[Example] = (), first: FirstView | None = None
) -> None:
    """Write `app.json` beside the vectors in `folder`."""
    page: dict[str, Any] = {"about": about}
    if examples:
        page["examples"] = [asdict(example) for example in examples]
    if first is not None:
        page["first"] = asdict(first)
    (Path(folder) / APP_FILE).write_text(json.dumps(page, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _first_reply(first: FirstView | None, runs: SavedRuns) -> FirstReply | None:
    """The chosen row, else the first one found; None without results."""
    source, revision = split_revision(runs.source)
    clearest, trait = (None, None) if first else _clearest(runs)
    for candidate in filter(None, (first, clearest, *(FirstView(config, None) for config in CONFIGS))):
        try:
            row = load_row(source, candidate.config, candidate.id, revision)
        except NotFound as error:
            logger.info("Not the first view, trying the next run: %s", error)
            continue
        trace = Trace.from_row(row)
        view = reply_payload(runs, candidate.config, row["id"], trace, candidate.title)
        turns = trait if candidate is clearest else None
        said = tuple(row["messages"] or ())
        return FirstReply(candidate.config, row["id"], trace, view, candidate.title, turns, said)
    logger.warning("No first view: %s has none of the configs %s.", runs.source, ", ".join(CONFIGS))
    return None


def _clearest(runs: SavedRuns) -> tuple[FirstView | None, str | None]:
    """The row in which a trait turns most clearly, and the trait."""
    try:
        found = runs.clearest_turn
    except NotFound:
        found = None
    return (None, None) if found is None else (FirstView(*found[:2]), found[2])


def _examples(runs: SavedRuns, first: FirstReply | None) -> tuple[Example, ...]:
    """Prompts of the runs, one of each category and then others; first that of the reply which is shown."""
    try:
        rows = [row for config in runs.configs for row in runs.rows(config)]
    except NotFound:
        return ()
    found: dict[str, Example] = {}
    each: list[Example] = []
    for row in sorted(rows, key=lambda row: first is None or row["id"] != first.id):
        said = [m for m in row["messages"] or () if m["role"] in ("system", "user")]
        if [m["role"] for m in said] in (["user"], ["system", "user"]):
            user, system = said[-1]["content"], said[0]["content"] if len(said) == 2 else ""
            each.append(Example(shorten(user, MAX_LABEL, placeholder=" …"), user, system))
            found.setdefault(row["category"], each[-1])
    return tuple(dict.fromkeys((*found.values(), *each)))[:MAX_EXAMPLES]


def _read(vectors: str | Path) -> Any:
    """What `app.json` holds; an empty object where there is none."""
    try:
        source, revision = split_revision(str(vectors))
        path = fetch(source, APP_FILE, revision)
    except NotFound:
        return {}
    return parse_json(path)
