"""What was asked, what was written, how it was judged: the records of an elicitation and the folder that holds them.

    plan.json                what everything in the folder rests on
    replies.jsonl            one line a reply
    states/BATCH.safetensors pooled states of one batch, a tensor `[rows, n_blocks, d_model]` for each position
    scores.jsonl             one line a judged reply
    across.jsonl             scores of replies on other traits than their own

Every write survives a kill: states are renamed into place before their replies are listed, lists are appended in one
write and flushed to the disk, and a line that was cut off is dropped when the folder is opened again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from persona_core.errors import CorruptFile, SettingError
from persona_core.models.chat import conversation
from persona_core.utils.files import append_lines, read_lines, replacing, write_whole
from persona_core.utils.workdir import PLAN_FILE, check_plan, lock, unlock

logger = logging.getLogger(__name__)

POOLED_BATCHES_OPEN = 4  # batches of states that a reader holds at once


@dataclass(frozen=True)
class Request:
    """One reply to be written.

    Attributes:
        index: its place in the plan; the reply's seed is the plan's seed plus this.
        split: "extraction", "evaluation" or "neutral".
        trait: None for a neutral reply.
        side: "high" under a positive instruction, "low" under a negative one, or "neutral" under none.
        pair: which instruction pair; None for a neutral reply.
        question: place of the question in its list; for neutral replies in the list of all distinct questions.
        rollout: which of several replies to the same prompt.
        system, user: the prompt.
    """

    index: int
    split: str
    trait: str | None
    side: str
    pair: int | None
    question: int
    rollout: int
    system: str | None
    user: str

    @property
    def messages(self) -> list[dict[str, str]]:
        return conversation(self.user, self.system)


@dataclass(frozen=True)
class Reply:
    """A reply to a request.

    Attributes:
        text: without end-of-turn tokens.
        token_ids: as generated, end-of-turn token included.
        n_tokens: tokens of the reply itself, end-of-turn tokens left out.
        finish: "eos", "length" or "context".
        seed: of its randomness.
        writer: the model that wrote it.
        batch: name of the file that holds its pooled states; row: its place in there.
    """

    request: Request
    text: str
    token_ids: tuple[int, ...]
    n_tokens: int
    finish: str
    seed: int
    writer: str
    batch: str = ""
    row: int = 0

    @property
    def fingerprint(self) -> str:
        """16 hex digits over the text: what a verdict belongs to."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class ReplyScore:
    """A judge's verdict on one reply; None where there is no score, which is never 0.

    Attributes:
        index: of the reply's request.
        trait, coherence: 0 to 100.
        how: how the trait's score was read, or why there is none: "logprobs", "text", "truth", "refusal", ...
        of: fingerprint of the text that was judged; "" fits any.
    """

    index: int
    trait: float | None
    coherence: float | None
    how: str
    of: str = ""


@dataclass(frozen=True)
class CrossTraitScore:
    """A judge's verdict on a reply for a trait that it was not asked for; None where there is no score."""

    index: int
    trait: str
    value: float | None
    of: str = ""


class ReplyStore:
    """The folder of one elicitation. Open it in one process at a time; close it, or use it in a `with`.

    Args:
        folder: made if it is not there.

    Raises:
        SettingError: another process has it open.
        CorruptFile: a line, other than the last, that cannot be read.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._states_folder = self.folder / "states"
        self._states_folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock(self.folder)
        try:
            self._replies: dict[int, Reply] = {}
            listed, lost = self.folder / "replies.jsonl", set()
            whole: list[str] = []  # lines whose states are there
            for number, record in read_lines(listed):
                try:
                    reply = as_reply(record)
                except (TypeError, KeyError) as error:
                    raise CorruptFile(
                        f"{listed}, line {number}: not a reply ({error}). Remove the line to have it written again."
                    ) from error
                if reply.batch and not (self._states_folder / f"{reply.batch}.safetensors").is_file():
                    lost.add(reply.batch)
                    continue
                whole.append(json.dumps(record, ensure_ascii=False) + "\n")
                self._replies[reply.request.index] = reply
            if lost:  # off the list, or they would come back with the rows of whatever is written in their place
                logger.warning("%d batches have lost their states and will be written again.", len(lost))
                write_whole(listed, "".join(whole))
            self._scores = {s.index: s for s in self._read(ReplyScore, "scores.jsonl")}
            self._across = {(s.index, s.trait): s for s in self._read(CrossTraitScore, "across.jsonl")}
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ReplyStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        unlock(self._lock)
        self._lock = None

    def _read(self, kind: Any, name: str) -> Iterator[Any]:
        for number, record in read_lines(self.folder / name):
            try:
                yield kind(**record)
            except TypeError as error:
                raise CorruptFile(f"{self.folder / name}, line {number}: {error}. Remove the line to go on.") from error

    def check_plan(self, plan: Mapping[str, Any], begin: bool = True) -> None:
        """As `folders.check_plan`.

        Raises:
            SettingError: they differ, or nothing has been elicited yet and `begin` is false.
        """
        if not begin and not (self.folder / PLAN_FILE).is_file():
            raise SettingError(f"{str(self.folder)!r} holds no reply; run --stage elicit first.")
        check_plan(self.folder, plan, begin)

    def add(self, batch: str, replies: Sequence[Reply], states: Mapping[str, np.ndarray]) -> None:
        """Keep a batch: its pooled states first, then its replies.

        Args:
            batch: a name of its own.
            replies: in any order of requests.
            states: position -> float32 `[rows, n_blocks, d_model]`, rows in the order of `replies`.
        """
        if not replies:
            return
        placed = [replace(reply, batch=batch, row=row) for row, reply in enumerate(replies)]
        _write_states(self._states_folder / f"{batch}.safetensors", states)
        append_lines(self.folder / "replies.jsonl", [to_record(reply) for reply in placed])
        self._replies.update({reply.request.index: reply for reply in placed})

    def replies(self, **where: Any) -> list[Reply]:
        """Replies in the order of their requests; `replies(split="evaluation", trait="evil", side="high")` picks."""
        return [
            reply
            for _, reply in sorted(self._replies.items())
            if all(getattr(reply.request, key) == value for key, value in where.items())
        ]

    def free_name(self, batch: str) -> str:
        """A name for a batch's states that no kept reply rests on: its own or, where part of it was kept, another."""
        used = {reply.batch for reply in self._replies.values()}
        names = (batch if n == 1 else f"{batch}-{n}" for n in range(1, len(used) + 2))
        return next(name for name in names if name not in used)

    def has(self, index: int) -> bool:
        """Whether the reply to this request has been written."""
        return index in self._replies

    def states(self, replies: Sequence[Reply], position: str = "reply_mean") -> StoredStates:
        """Pooled states of these replies, read from the files when they are asked for.

        Raises:
            SettingError: the position was not pooled; the message names those that were.
        """
        return StoredStates(self._states_folder, [(reply.batch, reply.row) for reply in replies], position)

    def add_scores(self, scores: Sequence[ReplyScore]) -> None:
        """Keep verdicts."""
        append_lines(self.folder / "scores.jsonl", [asdict(score) for score in scores])
        self._scores.update({score.index: score for score in scores})

    def add_cross_trait(self, scores: Sequence[CrossTraitScore]) -> None:
        """Keep verdicts for other traits than a reply's own."""
        append_lines(self.folder / "across.jsonl", [asdict(score) for score in scores])
        self._across.update({(score.index, score.trait): score for score in scores})

    def across(self) -> dict[tuple[int, str], CrossTraitScore]:
        """Verdicts for other traits, by index of the request and trait; none of a text that has been written anew."""
        return {key: score for key, score in self._across.items() if self._fits(score)}

    def scores(self) -> dict[int, ReplyScore]:
        """Verdicts by the index of the request; none of a text that has been written anew."""
        return {index: score for index, score in self._scores.items() if self._fits(score)}

    def _fits(self, score: ReplyScore | CrossTraitScore) -> bool:
        reply = self._replies.get(score.index)
        return not score.of or reply is None or score.of == reply.fingerprint


class StoredStates:
    """`States` in files. At most a few batches are open at once, whatever the number of replies."""

    def __init__(self, folder: Path, places: Sequence[tuple[str, int]], position: str) -> None:
        self._folder, self._places, self._position = folder, list(places), position
        self._shape: tuple[int, int] | None = None

    @property
    def n_blocks(self) -> int:
        return self._sizes()[0]

    @property
    def d_model(self) -> int:
        return self._sizes()[1]

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[np.ndarray]:
        load = lru_cache(maxsize=POOLED_BATCHES_OPEN)(self._load)
        for batch, row in self._places:
            yield load(batch)[row]

    def block(self, block: int) -> np.ndarray:
        if not 0 <= block < self.n_blocks:
            raise SettingError(f"No block {block}: the states are of {self.n_blocks} blocks.")
        found = np.empty((len(self), self.d_model), np.float32)  # [n_replies, d_model]
        rows: dict[str, list[int]] = {}
        for place, (batch, _) in enumerate(self._places):
            rows.setdefault(batch, []).append(place)
        for batch, places in rows.items():
            part = self._load(batch, block)  # [rows, d_model]
            found[places] = part[[self._places[place][1] for place in places]]
        return found

    def take(self, places: Sequence[int] | np.ndarray) -> StoredStates:
        return StoredStates(self._folder, [self._places[int(p)] for p in places], self._position)

    def _sizes(self) -> tuple[int, int]:
        if self._shape is None:
            if not self._places:
                raise SettingError("No reply, so no states.")
            shape = self._load(self._places[0][0]).shape
            self._shape = (int(shape[1]), int(shape[2]))
        return self._shape

    def _load(self, batch: str, block: int | None = None) -> np.ndarray:
        from safetensors import SafetensorError, safe_open

        path = self._folder / f"{batch}.safetensors"
        try:
            with safe_open(str(path), framework="np") as file:
                if self._position not in set(file.keys()):
                    stored = ", ".join(file.keys())
                    raise SettingError(
                        f"States at position {self._position!r} were not pooled; stored are: {stored}. Name the "
                        "position before eliciting."
                    )
                part = file.get_slice(self._position)
                return np.asarray(part[:, block] if block is not None else part[:], np.float32)
        except (SafetensorError, OSError) as error:
            raise CorruptFile(
                f"{path}: cannot be read ({error}). Delete it; its batch is then written again."
            ) from error


# ---- files ----


def to_record(reply: Reply) -> dict[str, Any]:
    """A reply as plain values."""
    record = asdict(reply)
    record["token_ids"] = list(reply.token_ids)
    return record


def as_reply(record: dict[str, Any]) -> Reply:
    """The reply of a record that `to_record` made."""
    fields = {**record, "request": Request(**record["request"]), "token_ids": tuple(record["token_ids"])}
    return Reply(**fields)


def _write_states(path: Path, states: Mapping[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    with replacing(path) as beside:
        save_file({k: np.ascontiguousarray(v, np.float32) for k, v in states.items()}, str(beside))
