"""The labelled texts of `datasets/texts`: three replies to each question, with the sentences that show the trait.

Each of the eight files holds 60 questions of one trait, a JSON object in a line:

    {"id": "sycophancy-01", "split": "fit", "style": "chat", "question": "…",
     "positive": [["A sentence.", 0], ["One that shows the trait.", 1]], "negative": ["…"], "neutral": ["…"]}

The three replies are alike in length and style. The split "fit" is for making vectors; "test" holds other questions,
half of them in two styles that "fit" lacks. No sentence is in the files twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_core.errors import CorruptFile, NotFound
from persona_core.utils.files import records

FOLDER = Path(__file__).resolve().parent.parent / "datasets" / "texts"
TRAITS = (
    "paternalism",
    "deception",
    "manipulativeness",
    "corrigibility",
    "sycophancy",
    "evil",
    "hallucination",
    "refusal",
)
SIDES = ("positive", "negative", "neutral")


@dataclass(frozen=True)
class TextReply:
    """One of the three replies to a question.

    Attributes:
        side: "positive", "negative" or "neutral".
        sentences: in order; the reply is these, joined by a space.
        shows: whether each shows the trait.
    """

    side: str
    sentences: tuple[str, ...]
    shows: tuple[bool, ...]

    @property
    def text(self) -> str:
        return " ".join(self.sentences)


@dataclass(frozen=True)
class TextQuestion:
    """A question of one trait, and its replies in the order of `SIDES`."""

    id: str
    trait: str
    split: str
    style: str
    question: str
    replies: tuple[TextReply, ...]

    def messages(self, reply: TextReply) -> list[dict[str, str]]:
        """The conversation of the question and one of its replies."""
        return [{"role": "user", "content": self.question}, {"role": "assistant", "content": reply.text}]


def load_questions(traits: Sequence[str] = TRAITS, split: str | None = None) -> tuple[TextQuestion, ...]:
    """The questions of some traits, those of one split or all.

    Raises:
        NotFound: a trait without a file.
        CorruptFile: the message names file, line and field.
    """
    found = []
    for trait in traits:
        path = FOLDER / f"{trait}.jsonl"
        if not path.is_file():
            raise NotFound(f"No labelled texts of {trait!r}: {path} is missing.")
        for where, record in records(path):
            question = _question(record, trait, where)
            if split in (None, question.split):
                found.append(question)
    return tuple(found)


def _question(record: Any, trait: str, where: str) -> TextQuestion:
    try:
        marked = {"positive": record["positive"]} | {side: [(s, 0) for s in record[side]] for side in SIDES[1:]}
        replies = tuple(
            TextReply(side, tuple(str(s) for s, _ in found), tuple(bool(shows) for _, shows in found))
            for side, found in marked.items()
        )
        names = ("id", "split", "style", "question")
        known = {name: str(record[name]) for name in names}
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFile(f"{where}: not a question with its replies: {type(error).__name__}: {error}") from error
    return TextQuestion(trait=trait, replies=replies, **known)


def as_records(questions: Sequence[TextQuestion]) -> list[dict[str, Any]]:
    """The replies as lines of a file for `persona extract --texts`.

    Of the split "fit", every fourth question of a trait chooses the block. Neutral replies of the split "test" are left
    out: neutral texts have no split, and these are for measuring.
    """
    found = []
    seen: Counter[str] = Counter()
    for q in questions:
        seen[q.trait] += 1
        split = "test" if q.split == "test" else "validation" if seen[q.trait] % 4 == 0 else "train"
        for reply in q.replies:
            if (reply.side, split) == ("neutral", "test"):
                continue
            record: dict[str, Any] = {"messages": q.messages(reply), "label": reply.side}
            if reply.side != "neutral":
                record |= {"trait": q.trait, "split": split}
            if any(reply.shows):
                record["shows"] = [s for s, shows in zip(reply.sentences, reply.shows, strict=True) if shows]
            found.append(record)
    return found
