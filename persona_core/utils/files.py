"""Files that survive a crash: texts are replaced atomically, JSON Lines only appended to; and one JSON reader."""

from __future__ import annotations

import importlib.resources
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from persona_core.errors import CorruptFile

logger = logging.getLogger(__name__)

MAX_JSON = 100_000_000
"""Bytes of a JSON file, or of a line of JSON Lines. Python takes up to 21 times as much for the values: 2 GB."""
MAX_RECORDS = 1_000_000
"""Lines of a hand-written file of JSON Lines."""


@cache
def read_asset(package: str, name: str) -> str:
    """The text of a file inside a package: a script, a style sheet, a template."""
    return importlib.resources.files(package).joinpath(name).read_text(encoding="utf-8")


def compact_script(script: str) -> str:
    """JavaScript as a page carries it: without indentation, and without lines that are only a comment.

    A string that spans lines would lose its indentation: there must be none.

    >>> compact_script("// Doubles.\\nconst twice = (n) =>\\n  2 * n; // exact")
    'const twice = (n) =>\\n2 * n; // exact'
    """
    lines = (line.strip() for line in script.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))


def shipped_folder(name: str) -> Path:
    """A folder of data that comes with the library: "traits" or "prompts".

    In a wheel it is inside the package; in a checkout it is in `datasets/`.
    """
    package = Path(__file__).resolve().parents[1]
    installed = package / "data" / name
    return installed if installed.is_dir() else package.parent / "datasets" / name


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it replaces the file when the block ends without an error.

    The file is always either the old one or the complete new one. Missing folders are created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.touch()
    mode = beside.stat().st_mode
    yield beside
    beside.chmod(mode)  # safetensors leaves files that only their owner can read
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(beside, path)


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's text atomically; see `replacing`."""
    with replacing(path) as beside:
        beside.write_bytes(text.encode("utf-8", "surrogatepass"))


def parse_json(path: str | Path) -> Any:
    """The JSON value in a file. A byte order mark is skipped.

    Raises:
        CorruptFile: not JSON, or not readable.
    """
    try:
        check_size(path)
        return json.loads(Path(path).read_bytes())  # bytes: json skips a mark and keeps lone surrogates
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptFile(f"{path}: not valid JSON: {error}. Restore or delete the file.") from error


def check_size(path: str | Path, limit: int = MAX_JSON) -> None:
    """Refuse a file that would take too much memory.

    Raises:
        CorruptFile: the message has the size and the limit.
    """
    size = Path(path).stat().st_size
    if size > limit:
        raise CorruptFile(f"{path}: {size:,} bytes; at most {limit:,} are read. Split the file, or download it again.")


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        CorruptFile: the file holds something else.
    """
    record = parse_json(path)
    if not isinstance(record, dict):
        raise CorruptFile(f"{path}: expected a JSON object, got a {type(record).__name__}. Restore or delete the file.")
    return record


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """JSON objects with their line numbers, of a file that `append_lines` wrote.

    A last line that was cut off is removed. A whole one without its line break, as an editor may leave it, gets one.

    Raises:
        CorruptFile: any other line that is not a JSON object.
    """
    if not path.is_file():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        whole = data.rfind(b"\n") + 1
        with path.open("r+b") as file:
            try:
                _object(data[whole:], str(path))
            except CorruptFile:
                logger.warning("%s: dropped the last line, which was cut off.", path)
                file.truncate(whole)
                data = data[:whole]
            else:
                file.seek(0, os.SEEK_END)
                file.write(b"\n")
                data += b"\n"
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        yield number, _object(line, f"{path}, line {number}")


def append_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Append records in one write, and wait until they are on the disk."""
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    with path.open("ab") as file:
        file.write(text.encode("utf-8", "surrogatepass"))
        file.flush()
        os.fsync(file.fileno())


def records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """JSON objects of a JSON Lines file, which may be hand-written, each with "file, line k" for messages.

    Empty lines are skipped, and the file is never changed (`read_lines` repairs one that was cut off).

    Raises:
        CorruptFile: not UTF-8, a line that is not a JSON object, or too many of them.
    """
    try:
        check_size(path, 2 * MAX_JSON)
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptFile(f"{path}: not readable UTF-8 text: {error}") from error
    if len(lines) > MAX_RECORDS + 1:
        raise CorruptFile(f"{path}: {len(lines):,} lines; at most {MAX_RECORDS:,} are read. Split the file.")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        yield where, _object(line, where)


def _object(line: str | bytes, where: str) -> dict[str, Any]:
    if len(line) > MAX_JSON:
        raise CorruptFile(
            f"{where}: {len(line):,} characters; at most {MAX_JSON:,} are read. Correct or remove the line."
        )
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{where}: not valid JSON: {error}. Correct or remove the line.") from error
    if not isinstance(record, dict):
        raise CorruptFile(f"{where}: expected an object, got a {type(record).__name__}. Correct or remove the line.")
    return record
