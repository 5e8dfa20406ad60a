"""Replies of visitors that are kept, so that a link shows them as they were written.

    PERSONA_SAVED/
      k3v7q2m4xz.parquet     a reply, or a reply and its branch

A file holds rows of a results dataset, one for each text that is shown, with what the view says of it beside its
scores. Its name is a hash of its content, which only the link tells.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_core.errors import CorruptFile, NotFound, SettingError
from persona_core.traces.dataset import features, read_results
from persona_core.traces.trace import Trace
from persona_core.traces.view.payload import Payload, pair_payload, trace_payload
from persona_core.utils.parquet import write_table

logger = logging.getLogger(__name__)

MAX_SAVED = 1000
MAX_BYTES = 1_000_000_000
GONE = "This saved reply is no longer kept here."
SAID = ("name", "onsets", "caveats")
"""Keys of a payload's side that its trace does not hold."""
_ID = re.compile(r"[a-z2-7]{10}", re.ASCII)


@dataclass(frozen=True)
class ShownReply:
    """What a view shows of replies that this app wrote.

    Attributes:
        side: which model wrote them.
        messages: the conversation before the reply, system prompt included.
        traces: the reply, or a reply and its branch.
        link: fields of the link that has it written again.
        said: for each trace, what the view says of it: the keys of `SAID`.
        outcome: what the branch changed, as text; None without a branch that was measured.
    """

    side: str
    messages: tuple[Mapping[str, str], ...]
    traces: tuple[Trace, ...]
    link: Mapping[str, str]
    said: tuple[Mapping[str, Any], ...]
    outcome: Mapping[str, str] | None = None

    @classmethod
    def of(
        cls,
        payload: Payload,
        side: str,
        messages: tuple[Mapping[str, str], ...],
        traces: tuple[Trace, ...],
        link: Mapping[str, str],
    ) -> ShownReply:
        """What a payload shows; the other arguments as the attributes."""
        said = tuple({key: one[key] for key in SAID} for one in payload["sides"])
        return cls(side, messages, traces, dict(link), said, payload.get("outcome"))

    def payload(self) -> Payload:
        """The view, as it was."""
        sides = []
        for trace, said in zip(self.traces, self.said, strict=True):
            one = trace_payload(trace, name=said["name"])
            sides.append(one | {"sides": [one["sides"][0] | said]})
        payload = sides[0] if len(sides) == 1 else pair_payload(*sides)
        return payload | {"link": dict(self.link)} | ({} if self.outcome is None else {"outcome": dict(self.outcome)})


class SavedReplies:
    """The folder. The oldest replies are removed beyond `MAX_SAVED` of them, or `MAX_BYTES`.

    Args:
        folder: created if it is missing.

    Raises:
        SettingError: the folder cannot be written.

    >>> import tempfile
    >>> SavedReplies(tempfile.mkdtemp()).open("../../etc/passwd")
    Traceback (most recent call last):
    persona_core.errors.NotFound: This saved reply is no longer kept here.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._lock = threading.Lock()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise SettingError(
                f"PERSONA_SAVED={str(folder)!r} cannot be written: {error}. Name a folder on a disk that lasts; on a "
                "Space, one below /data."
            ) from error

    def save(self, reply: ShownReply) -> str:
        """Keep a reply; the same reply has the same id.

        Returns:
            Its id, ten characters.
        """
        kept = [
            trace.to_row("", reply.messages)
            | {"side": reply.side, "link": json.dumps(reply.link), "outcome": json.dumps(reply.outcome)}
            | {"said": json.dumps({key: said[key] for key in SAID})}
            for trace, said in zip(reply.traces, reply.said, strict=True)
        ]
        digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).digest()
        id = base64.b32encode(digest).decode("ascii").lower()[:10]
        schema = _features(reply.traces[0].traits).arrow_schema
        with self._lock:
            write_table([row | {"id": id} for row in kept], self._path(id), schema)
            self._remove_oldest()
        return id

    def open(self, id: Any) -> ShownReply:
        """A reply that was saved.

        Args:
            id: unchecked.

        Raises:
            NotFound: there is none of that id, any more or ever.
        """
        if not isinstance(id, str) or not _ID.fullmatch(id):
            raise NotFound(GONE)
        try:
            return _shown(read_results(self._path(id)))
        except NotFound as error:
            raise NotFound(GONE) from error
        except CorruptFile as error:
            logger.error("A saved reply cannot be read: %s", error)
            raise NotFound(GONE) from error

    def _path(self, id: str) -> Path:
        return self.folder / f"{id}.parquet"

    def _remove_oldest(self) -> None:
        """Keep to the limits; what a crash left half written counts too."""
        every = ((path.stat(), path) for path in self.folder.glob("*.parquet*"))
        found = sorted(every, key=lambda one: one[0].st_mtime_ns)
        size = sum(stat.st_size for stat, _ in found)
        for n_left, (stat, path) in zip(range(len(found), 1, -1), found, strict=False):
            if n_left <= MAX_SAVED and size <= MAX_BYTES:
                return
            path.unlink(missing_ok=True)
            size -= stat.st_size


def _features(traits: Any) -> Any:
    """The columns of a results dataset, and those of a `ShownReply`."""
    from datasets import Features, Value

    return Features(features(traits) | {name: Value("string") for name in ("side", "link", "said", "outcome")})


def _shown(rows: list[dict[str, Any]]) -> ShownReply:
    """The reply of the rows of a file.

    Raises:
        CorruptFile: something is missing.
    """
    try:
        first, *rest = rows
        if len(rest) > 1:
            raise ValueError(f"{len(rows)} rows")
        said = tuple({key: one[key] for key in SAID} for one in (json.loads(row["said"]) for row in rows))
        return ShownReply(
            str(first["side"]),
            tuple({"role": str(m["role"]), "content": str(m["content"])} for m in first["messages"] or ()),
            tuple(Trace.from_row(row) for row in rows),
            {str(key): str(value) for key, value in json.loads(first["link"]).items()},
            said,
            json.loads(first["outcome"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CorruptFile(f"Not a saved reply: {type(error).__name__}: {error}") from error
