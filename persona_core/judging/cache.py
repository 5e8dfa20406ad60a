"""Judges' answers on disk: written as they arrive, so none is paid for twice."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from persona_core.utils.fields import COUNT, SCORE, TEXT, check_fields
from persona_core.utils.files import append_lines, read_lines

FIELDS = {"key": TEXT, "value": SCORE, "how": TEXT, "prompt_tokens": COUNT, "completion_tokens": COUNT}


@dataclass(frozen=True)
class CachedAnswer:
    """A judge's answer, and the tokens used."""

    key: str
    value: float | None
    how: str
    prompt_tokens: int
    completion_tokens: int


class JudgeCache:
    """Answers by the content of the question: JSON lines, each written as soon as its answer arrives.

    Args:
        path: the file; None keeps answers in memory only.

    Raises:
        CorruptFile: a line that is not an answer; the message names file, line and field.

    >>> cache = JudgeCache(None)
    >>> key = JudgeCache.key("openai:a-model", "How evil is this? Answer with a number.")
    >>> cache.put(CachedAnswer(key, 85.0, "text", prompt_tokens=120, completion_tokens=2))
    >>> cache.get(key).value
    85.0
    """

    def __init__(self, path: str | Path | None) -> None:
        self._path = None if path is None else Path(path)
        self._answers: dict[str, CachedAnswer] = {}
        self._writing = threading.Lock()
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            for number, record in read_lines(self._path):
                check_fields(record, FIELDS, f"{self._path}, line {number}")
                self._answers[record["key"]] = CachedAnswer(**record)

    @staticmethod
    def key(judge: str, prompt: str) -> str:
        return hashlib.sha256(f"{judge}\0{prompt}".encode("utf-8", "surrogatepass")).hexdigest()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> CachedAnswer | None:
        return self._answers.get(key)

    def put(self, answer: CachedAnswer) -> None:
        """Keep an answer; several threads may do so at once."""
        with self._writing:
            if self._path is not None:
                append_lines(self._path, [asdict(answer)])
            self._answers[answer.key] = answer
