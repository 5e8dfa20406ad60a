"""Prompts for monitoring runs: JSON lines, each with an id, a set and a category."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from persona_core.errors import CorruptFile, NotFound
from persona_core.models.chat import conversation
from persona_core.models.messages import THOUGHT_FIELDS
from persona_core.utils.checks import check_integer
from persona_core.utils.files import records, shipped_folder

SETS = ("pilot", "harmful", "expanded")
NEUTRAL = "neutral"
EVERYDAY = (
    "household", "advice", "conversation", "recipes", "travel", "health", "letters", "planning", "ideas", "facts",
    "comparisons", "explanations", "short",
)  # fmt: skip
"""The neutral set's everyday categories. The others are tasks: code, numbers, language, fiction, given texts."""


@dataclass(frozen=True)
class Prompt:
    """A prompt for a model.

    Attributes:
        id: unique among all prompts of a run; the reply's seed is derived from it.
        prompt: the user's message.
        set, category: the groups it belongs to; may be empty.
        system: the system prompt, or None.
    """

    id: str
    prompt: str
    set: str = ""
    category: str = ""
    system: str | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        return conversation(self.prompt, self.system)


@dataclass(frozen=True)
class RecordedConversation:
    """A finished conversation; its last message is the assistant's.

    Attributes:
        id: unique among all conversations of a run.
        messages: each a {"role", "content"}.
        set, category: as in `Prompt`.
        writer: the model that wrote the reply, where known.
    """

    id: str
    messages: tuple[Mapping[str, str], ...]
    set: str = ""
    category: str = ""
    writer: str | None = None


def load_prompts(sources: Sequence[str | Path]) -> tuple[Prompt, ...]:
    """The prompts of shipped sets or of files, in order.

    Args:
        sources: names in `SETS`, "all" for the three of them, "neutral", or `.jsonl` files with the fields of
            `Prompt`. The neutral set asks for no trait and serves as a null: its categories are kinds of task, of
            equal size, so that whole kinds can be held out. It is no part of "all".

    Raises:
        NotFound, CorruptFile: the message names file, line and field.

    >>> len(load_prompts(["all"]))
    78
    >>> len({p.category for p in load_prompts(["neutral"])})
    27
    """
    found: list[Prompt] = []
    for path in _paths(sources):
        found += [_checked(Prompt, record, where) for where, record in _records(path)]
    return tuple(_unique(found))


def repeated(prompts: Sequence[Prompt], n: int) -> tuple[Prompt, ...]:
    """Every prompt n times under distinct ids; seeds are derived from ids, so each copy is sampled differently.

    >>> [p.id for p in repeated([Prompt("a", "Hi")], 2)]
    ['a#1', 'a#2']
    """
    check_integer("repeats", n)
    return tuple(prompts) if n == 1 else tuple(replace(p, id=f"{p.id}#{k}") for k in range(1, n + 1) for p in prompts)


def prompt_of(reply_id: str) -> str:
    """The id of the prompt that a reply answers, without the repetition number.

    >>> prompt_of("a#2"), prompt_of("a"), prompt_of("c#sharp")
    ('a', 'a', 'c#sharp')
    """
    stem, mark, number = reply_id.rpartition("#")
    return stem if mark and number.isdecimal() else reply_id


def load_transcripts(path: str | Path) -> tuple[RecordedConversation, ...]:
    """Conversations of a `.jsonl` file with the fields of `RecordedConversation`; the id may be left out.

    Raises:
        NotFound, CorruptFile: the message names file, line and field.
    """
    found = []
    for number, (where, record) in enumerate(_records(Path(path)), 1):
        item = _checked(RecordedConversation, {"id": f"{Path(path).stem}-{number}", **record}, where)
        check_messages(item.messages, where)
        found.append(item)
    return tuple(_unique(found))


def _paths(sources: Sequence[str | Path]) -> list[Path]:
    paths: list[Path] = []
    for source in sources:
        if source == "all":
            paths += [shipped_folder("prompts") / f"{name}.jsonl" for name in SETS]
        elif source in (*SETS, NEUTRAL):
            paths.append(shipped_folder("prompts") / f"{source}.jsonl")
        else:
            paths.append(Path(source))
    return paths


def _records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Every line's JSON object, with file and line for error messages; empty lines are skipped."""
    if not path.is_file():
        raise NotFound(f"No file {str(path)!r}. Name a set ({', '.join(SETS)}, all, {NEUTRAL}) or a .jsonl file.")
    found = list(records(path))
    if not found:
        raise CorruptFile(f"{path}: the file is empty.")
    return found


def _checked(kind: Any, record: dict[str, Any], where: str) -> Any:
    known = {f.name for f in fields(kind)}
    if unknown := sorted(set(record) - known):
        raise CorruptFile(f"{where}: unknown field {unknown[0]!r}; known are {', '.join(sorted(known))}.")
    for name, value in record.items():
        if name == "messages":
            continue
        optional = name in ("system", "writer")
        if not (isinstance(value, str) or (optional and value is None)):
            raise CorruptFile(f"{where}: the field {name!r} is a {type(value).__name__}; expected a string.")
    for name in ("id", "prompt"):
        if name in known and not str(record.get(name, "")).strip():
            raise CorruptFile(f"{where}: the field {name!r} is missing or empty.")
    if "messages" in known:
        messages = record.get("messages")
        if messages is not None and not isinstance(messages, list):
            raise CorruptFile(f"{where}: the field 'messages' is a {type(messages).__name__}; expected a list.")
        record = {**record, "messages": tuple(messages or ())}
    return kind(**record)


def check_messages(messages: Sequence[Any], where: str) -> None:
    """Refuse what is not a conversation that ends with the assistant's turn; `where` begins the message."""
    for message in messages:
        texts = isinstance(message, dict) and {"role", "content"} <= set(message) <= {
            "role",
            "content",
            *THOUGHT_FIELDS,
        }
        if not texts or not all(isinstance(v, str) for v in message.values()):
            raise CorruptFile(f"{where}: a message is an object with the strings 'role' and 'content'.")
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise CorruptFile(
            f"{where}: the field 'messages' must hold a conversation that ends with the assistant's turn."
        )


def _unique(items: Sequence[Any]) -> Sequence[Any]:
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise CorruptFile(f"The id {item.id!r} occurs twice; ids must be unique across all files of a run.")
        seen.add(item.id)
    return items
