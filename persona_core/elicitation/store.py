"""The records of an elicitation (requests, replies, scores) and the folder that holds them.

    plan.json                what everything in the folder depends on
    replies.jsonl            one line per reply
    states/BATCH.safetensors pooled states of one batch, a tensor `[rows, n_blocks, d_model]` for each position
    scores.jsonl             one line per judged reply
    cross_trait_scores.jsonl scores of replies on traits other than their own
    served.jsonl             texts of a server, before they are read
    requests.jsonl           the requests with their indices, once a plan has grown; see `growing`
    definitions/             the traits as they were when their replies were written

Every write survives a crash: states are renamed into place before their replies are listed, lists are appended in one
write and flushed to disk, and a line that was cut off is dropped when the folder is opened again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from persona_core.elicitation.record_fields import (
    CROSS_TRAIT_FIELDS,
    FORMER_SIDES,
    REPLY_FIELDS,
    REQUEST_FIELDS,
    SCORE_FIELDS,
)
from persona_core.elicitation.stored_states import StoredStates, write_states
from persona_core.errors import SettingError
from persona_core.models.chat import conversation
from persona_core.utils.fields import Field, check_fields
from persona_core.utils.files import append_lines, read_json, read_lines, write_atomically
from persona_core.utils.workdir import PLAN_FILE, check_plan, lock

logger = logging.getLogger(__name__)

CROSS_TRAIT_FILE = "cross_trait_scores.jsonl"
SERVED_FILE = "served.jsonl"


@dataclass(frozen=True)
class ElicitationRequest:
    """One reply to be written.

    Attributes:
        index: its position in the plan; the reply's seed is the plan's seed plus this.
        split: "extraction", "evaluation" or "neutral".
        trait: None for a neutral reply.
        side: "positive" or "negative", after the instruction; "neutral" without one.
        pair: which instruction pair; None for a neutral reply.
        question: index of the question in its list; for neutral replies, in the list of all distinct questions.
        rollout: which of several replies to the same prompt.
        system, user: the prompt.
        conversation: the prompt as given, where it is more than these two; `user` is its last user message then.
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
    conversation: tuple[dict[str, str], ...] | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        return conversation(self.user, self.system) if self.conversation is None else list(self.conversation)


@dataclass(frozen=True)
class Reply:
    """A reply to a request.

    Attributes:
        text: the answer, without a thought and end-of-turn tokens.
        token_ids: as generated, including the end-of-turn token.
        n_tokens: tokens of the answer, without a thought and end-of-turn tokens.
        finish: "eos", "length", "context" or "thought" (too long, so there is no answer).
        seed: the seed it was sampled with.
        writer: the model that wrote it.
        batch, row: the file that holds its pooled states, and its row there.
        answer_start: how many of the ids come before the answer: a thought and its marks.
    """

    request: ElicitationRequest
    text: str
    token_ids: tuple[int, ...]
    n_tokens: int
    finish: str
    seed: int
    writer: str
    batch: str = ""
    row: int = 0
    answer_start: int = 0

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """Ids of the answer, `[n_tokens]`."""
        return self.token_ids[self.answer_start : self.answer_start + self.n_tokens]

    @property
    def fingerprint(self) -> str:
        """16 hex digits over the text, so that a score is never taken for that of another text."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class ReplyScore:
    """A judge's scores for one reply; None where there is no score, which is never 0.

    Attributes:
        index: of the reply's request.
        trait, coherence: 0 to 100.
        how: how the trait's score was read, or why there is none: "logprobs", "text", "truth", "refusal", ...
        of: fingerprint of the text that was judged; "" matches any.
    """

    index: int
    trait: float | None
    coherence: float | None
    how: str
    of: str = ""


@dataclass(frozen=True)
class CrossTraitScore:
    """A judge's score of a reply on a trait other than its own; None where there is no score."""

    index: int
    trait: str
    value: float | None
    of: str = ""


class ReplyStore:
    """The folder of one elicitation. Open it in one process at a time; close it, or use it in a `with`.

    Args:
        folder: created if it does not exist.

    Raises:
        SettingError: another process has it open.
        CorruptFile: a line is not a valid record; the message names file, line and field.

    >>> folder = getfixture("tmp_path") / "elicitation"
    >>> with ReplyStore(folder) as store:
    ...     len(store.replies()), len(store.scores())
    (0, 0)
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._states_folder = self.folder / "states"
        self._states_folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock(self.folder)
        try:
            self._replies: dict[int, Reply] = {}
            listed, lost = self.folder / "replies.jsonl", set()
            whole: list[str] = []  # lines whose states are on disk
            for number, record in read_lines(listed):
                reply = as_reply(record, f"{listed}, line {number}")
                if reply.batch and not (self._states_folder / f"{reply.batch}.safetensors").is_file():
                    lost.add(reply.batch)
                    continue
                whole.append(json.dumps(record, ensure_ascii=False) + "\n")
                self._replies[reply.request.index] = reply
            if lost:  # off the list, or they would point into the states that replace the lost ones
                logger.warning("The states of %d batches are missing; they will be written again.", len(lost))
                write_atomically(listed, "".join(whole))
            self._scores = {s.index: s for s in self._read(ReplyScore, SCORE_FIELDS, "scores.jsonl")}
            former = self.folder / "across.jsonl"
            if former.is_file() and not (self.folder / CROSS_TRAIT_FILE).is_file():
                former.rename(self.folder / CROSS_TRAIT_FILE)
            cross_trait = self._read(CrossTraitScore, CROSS_TRAIT_FIELDS, CROSS_TRAIT_FILE)
            self._cross_trait = {(s.index, s.trait): s for s in cross_trait}
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"ReplyStore({str(self.folder)!r}; {len(self._replies)} replies, {len(self.scores())} judged)"

    def __enter__(self) -> ReplyStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._lock.release()

    def _read(self, kind: Any, known: Mapping[str, Field], name: str) -> Iterator[Any]:
        for number, record in read_lines(self.folder / name):
            check_fields(record, known, f"{self.folder / name}, line {number}")
            yield kind(**record)

    def check_plan(self, plan: Mapping[str, Any], create: bool = True) -> None:
        """Record what the replies depend on, or check that it matches what the folder records.

        Raises:
            SettingError: they differ, or nothing has been elicited yet and `create` is false.
        """
        if not create and not (self.folder / PLAN_FILE).is_file():
            raise SettingError(f"{str(self.folder)!r} holds no replies; elicit them first (--stage elicit).")
        if not create and "traits" in plan:  # some of the folder's traits may be left out
            known = read_json(self.folder / PLAN_FILE).get("traits")
            plan = {**plan, "traits": {**(known if isinstance(known, dict) else {}), **plan["traits"]}}
        check_plan(self.folder, plan, create)

    def add(self, batch: str, replies: Sequence[Reply], states: Mapping[str, np.ndarray]) -> None:
        """Keep a batch: its pooled states first, then its replies.

        Args:
            batch: a name that no other batch has.
            replies: in any order of requests.
            states: position -> float32 `[rows, n_blocks, d_model]`, rows in the order of `replies`.
        """
        if not replies:
            return
        placed = [replace(reply, batch=batch, row=row) for row, reply in enumerate(replies)]
        write_states(self._states_folder / f"{batch}.safetensors", states)
        append_lines(self.folder / "replies.jsonl", [to_record(reply) for reply in placed])
        self._replies.update({reply.request.index: reply for reply in placed})

    def replies(self, **where: Any) -> list[Reply]:
        """Replies in the order of their requests, filtered by fields of the request.

        `store.replies(split="evaluation", trait="evil", side="positive")`
        """
        return [
            reply
            for _, reply in sorted(self._replies.items())
            if all(getattr(reply.request, key) == value for key, value in where.items())
        ]

    def free_name(self, batch: str) -> str:
        """The batch's name or, where stored replies use it already, a variant that is free."""
        used = {reply.batch for reply in self._replies.values()}
        names = (batch if n == 1 else f"{batch}-{n}" for n in range(1, len(used) + 2))
        return next(name for name in names if name not in used)

    def has(self, index: int) -> bool:
        """Whether the reply to this request has been written."""
        return index in self._replies

    def states(self, replies: Sequence[Reply], position: str = "reply_mean") -> StoredStates:
        """Pooled states of these replies, read from disk on use.

        Raises:
            SettingError: the position was not pooled; the message names those that were.
        """
        return StoredStates(self._states_folder, [(reply.batch, reply.row) for reply in replies], position)

    def add_scores(self, scores: Sequence[ReplyScore]) -> None:
        """Store scores of replies on their own trait."""
        append_lines(self.folder / "scores.jsonl", [asdict(score) for score in scores])
        self._scores.update({score.index: score for score in scores})

    def add_cross_trait_scores(self, scores: Sequence[CrossTraitScore]) -> None:
        """Store scores of replies on traits other than their own."""
        append_lines(self.folder / CROSS_TRAIT_FILE, [asdict(score) for score in scores])
        self._cross_trait.update({(score.index, score.trait): score for score in scores})

    def scores(self) -> dict[int, ReplyScore]:
        """Scores by index of the request, without those of texts that were rewritten since."""
        return {index: score for index, score in self._scores.items() if self._fits(score)}

    def cross_trait_scores(self) -> dict[tuple[int, str], CrossTraitScore]:
        """Scores by index of the request and trait, without those of texts that were rewritten since."""
        return {key: score for key, score in self._cross_trait.items() if self._fits(score)}

    def _fits(self, score: ReplyScore | CrossTraitScore) -> bool:
        reply = self._replies.get(score.index)
        return not score.of or reply is None or score.of == reply.fingerprint


# ---- files ----


def to_record(reply: Reply) -> dict[str, Any]:
    """A reply as plain values, as a line of replies.jsonl holds it."""
    record = asdict(reply)
    record["token_ids"] = list(reply.token_ids)
    if reply.request.conversation is None:
        del record["request"]["conversation"]
    return record


def as_reply(record: dict[str, Any], where: str) -> Reply:
    """The reply of a record that `to_record` made.

    Raises:
        CorruptFile: not such a record; the message says `where`, and names the field.
    """
    check_fields(record, REPLY_FIELDS, where)
    request = as_request(record["request"], where, "request.")
    return Reply(**{**record, "request": request, "token_ids": tuple(record["token_ids"])})


def as_request(record: Mapping[str, Any], where: str, inside: str = "") -> ElicitationRequest:
    """The request of a record; see `as_reply`."""
    check_fields(record, REQUEST_FIELDS, where, inside)
    given = record.get("conversation")
    return ElicitationRequest(
        **{
            **record,
            "side": FORMER_SIDES.get(record["side"], record["side"]),
            "conversation": None if given is None else tuple(given),
        }
    )
