"""What the app shows before anyone has typed: example prompts, a saved trace, a word about the model.

They lie beside the vectors, in the same folder or Hub repository. Both are optional.

- `app.json`: `{"about": "plain sentences", "examples": [{"label": "…", "user": "…", "system": "…"}]}`
- `example_trace.json`: a payload of the token view (`persona_core.token_view.payload`), seen first.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from persona_core.errors import CorruptFile, NotFound
from persona_core.hub import fetch
from persona_core.token_view.payload import Payload, check_payload

APP_FILE = "app.json"
TRACE_FILE = "example_trace.json"


@dataclass(frozen=True)
class Example:
    """One prompt to pick: what the user says and, where it matters, under which system prompt."""

    label: str
    user: str
    system: str = ""


@dataclass(frozen=True)
class Welcome:
    """What the app opens with. All of it may be empty."""

    about: str = ""
    examples: tuple[Example, ...] = ()
    first_view: Payload | None = None


def load_welcome(vectors: str | Path) -> Welcome:
    """Read the welcome files of a vectors folder or Hub repository.

    Args:
        vectors: what `PersonaVectors.from_pretrained` takes.

    Returns:
        A `Welcome`, with nothing in it where the files do not exist.

    Raises:
        CorruptFile: a file that exists but does not hold what it must.

    >>> load_welcome("no-such-folder/anywhere/at/all")
    Welcome(about='', examples=(), first_view=None)
    """
    about = ""
    examples: tuple[Example, ...] = ()
    if (found := _read(vectors, APP_FILE)) is not None:
        if not isinstance(found, dict):
            raise CorruptFile(f"{APP_FILE}: expected a JSON object, got {type(found).__name__}.")
        try:
            about = str(found.get("about", ""))
            examples = tuple(Example(**{k: str(v) for k, v in item.items()}) for item in found.get("examples", ()))
        except (AttributeError, TypeError) as error:
            raise CorruptFile(f"{APP_FILE}: an example has 'label', 'user' and perhaps 'system': {error}") from error
    first_view = _read(vectors, TRACE_FILE)
    return Welcome(about, examples, None if first_view is None else check_payload(first_view))


def save_welcome(folder: str | Path, *, about: str, examples: Sequence[Example], first_view: Payload | None) -> None:
    """Write the welcome files beside the vectors in `folder`."""
    path = Path(folder)
    page = {"about": about, "examples": [asdict(example) for example in examples]}
    (path / APP_FILE).write_text(json.dumps(page, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if first_view is not None:
        text = json.dumps(check_payload(first_view), ensure_ascii=False, allow_nan=False)
        (path / TRACE_FILE).write_text(text + "\n", encoding="utf-8")


def _read(vectors: str | Path, name: str) -> Any:
    try:
        path = fetch(vectors, name)
    except NotFound:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{name}: not a readable JSON file: {error}") from error
