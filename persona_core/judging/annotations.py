"""Where a trait is visible in a text: marked stretches of replies, by a judge or by hand.

A trait in the states is one thing, a trait that a reader of the text can see is another. Marks are the second: to say
how early the states tell, one needs the first token of the text that shows it. A file of marks is JSON lines,

    {"id": "pilot-01", "config": "baseline", "trait": "sycophancy", "start": 0, "end": 34, "score": 85.0, "how": "text"}

with character offsets in the row's `response`. `score`, `how` and `text` may be left out: people mark as well as judges
do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from persona_core.analysis.spans import piece_ends, sentences
from persona_core.elicitation.traits import TraitDefinition, fill
from persona_core.errors import CorruptFile, NotFound, SettingError
from persona_core.judging.judge import MIN_SCORE, Judge, Question
from persona_core.models.detokenize import well_formed
from persona_core.traces.trace import Trace
from persona_core.utils.checks import is_integer, is_number
from persona_core.utils.files import read_json, records, write_whole

Row = Mapping[str, Any]
BY_A_JUDGE = ("logprobs", "text", "truth")


@dataclass(frozen=True)
class Annotation:
    """A stretch of a reply that shows a trait.

    Attributes:
        id: of the prompt.
        config: of the results dataset that the reply stands in.
        trait: which.
        start, end: characters of the row's `response`, the end not counted.
        score: of the judge, 0 to 100; None for a mark that was made by hand.
        how: who or what says so: "logprobs", "text", "truth", or a name.
        text: what stands there, without white space around it; None where it was not written down. A mark whose text is
            another is one of another run.
    """

    id: str
    config: str
    trait: str
    start: int
    end: int
    score: float | None = None
    how: str = "given"
    text: str | None = None


@dataclass(frozen=True)
class UnscoredSentence:
    """A sentence of which the judge did not say whether it shows the trait.

    Attributes:
        id, config, trait, start, end: as in `Annotation`.
        why: "no answer" where the judge could not be asked; else its reason: "refusal", "unreadable", "too long", ...
    """

    id: str
    config: str
    trait: str
    start: int
    end: int
    why: str

    def __str__(self) -> str:
        return f"{self.config}/{self.id}, {self.trait}, characters {self.start} to {self.end}: {self.why}"


@dataclass(frozen=True)
class AnnotationResult:
    """What a judge has found.

    Attributes:
        marks: sentences that show the trait.
        missing: sentences without a score. They are neither marked nor free of the trait.
        n_sentences: that were put to the judge, each once for every trait.
        empty: prompts whose reply has no text.
    """

    marks: tuple[Annotation, ...]
    missing: tuple[UnscoredSentence, ...]
    n_sentences: int
    empty: tuple[str, ...]


def sentence_questions(rows: Sequence[Row], traits: Sequence[TraitDefinition]) -> list[Question]:
    """What `annotate_sentences` asks: every sentence of every reply, once for each trait, as if it were the whole answer.

    Raises:
        SettingError: an id that comes twice; marks could not be told apart.
    """
    return [question for question, _ in _asked(rows, traits, "")]


def annotate_sentences(
    rows: Sequence[Row], traits: Sequence[TraitDefinition], judge: Judge, config: str, progress: bool = True
) -> AnnotationResult:
    """Put each sentence of each reply to a judge; those with a score of 50 or more are marks.

    Args:
        rows: of one config of a results dataset.
        traits: what is looked for.
        judge: answers from 0 to 100.
        config: the name of the config.
        progress: whether a bar is shown.

    Raises:
        SettingError: an id that comes twice, as in a config that holds two readings of one reply.
    """
    asked = _asked(rows, traits, config)
    scores = {question.key: score for question, score in judge.score([q for q, _ in asked], progress)}
    failed: Mapping[str, str] = getattr(judge, "failed", {})  # a judge behind a server says why there is no answer
    marks, missing = [], []
    for question, place in asked:
        score = scores.get(question.key)
        if score is None:
            missing.append(UnscoredSentence(**place, why=failed.get(question.key, "no answer")))
        elif score.value is None:
            missing.append(UnscoredSentence(**place, why=score.how))
        elif score.value >= MIN_SCORE:
            marks.append(Annotation(**place, score=float(score.value), how=score.how, text=question.answer))
    empty = tuple(row["id"] for row in rows if not row["response"].strip())
    return AnnotationResult(tuple(marks), tuple(missing), len(asked), empty)


def _asked(
    rows: Sequence[Row], traits: Sequence[TraitDefinition], config: str
) -> list[tuple[Question, dict[str, Any]]]:
    """Each question, and the fields of the mark that it may become."""
    seen, found = set(), []
    for number, row in enumerate(rows):
        if row["id"] in seen:
            raise SettingError(f"The prompt {row['id']!r} comes twice; mark runs with one reply to a prompt.")
        seen.add(row["id"])
        asked, text = row["prompt"], row["response"]
        if not text.strip():
            continue
        for start, end in sentences(text):
            said = text[start:end].strip()
            for trait in traits:
                key = f"{number}/{start}/{trait.name}"
                question = Question(key, trait.name, fill(trait.judge_prompt, asked, said), asked, said)
                place = {"id": row["id"], "config": config, "trait": trait.name, "start": start, "end": end}
                found.append((question, place))
    return found


# ---- marks and tokens ----


def annotations_of(marks: Sequence[Annotation], id: str, config: str, trait: str) -> list[Annotation]:
    """The marks of one reply and trait, in order."""
    own = [m for m in marks if (m.id, m.config, m.trait) == (id, config, trait)]
    return sorted(own, key=lambda m: (m.start, m.end))


def annotated_positions(trace: Trace, marks: Sequence[Annotation]) -> list[int]:
    """Places in the trace of the reply's own tokens that lie in a mark.

    A token belongs where its last character is; one that shows nothing is part of a character that a later token
    completes, and belongs there.

    Args:
        trace: of the reply.
        marks: of that reply; see `annotations_of`.

    Raises:
        SettingError: a mark that ends after the reply: it belongs to another one.
    """
    own = trace.reply_positions
    ends = piece_ends([trace.tokens[t] for t in own])  # [n_own]
    length = len(trace.reply_text)
    inside = np.zeros(len(own), bool)
    for mark in marks:
        if not 0 <= mark.start < mark.end <= length:
            raise SettingError(
                f"The mark {mark.start} to {mark.end} on {mark.id!r} does not lie in a reply of {length} characters. "
                "Offsets count characters of the row's `response`; is it a mark of another run?"
            )
        said = trace.reply_text[mark.start : mark.end].strip()
        if mark.text is not None and well_formed(said) != mark.text:
            raise SettingError(
                f"The mark on {mark.id!r}, characters {mark.start} to {mark.end}, is of {mark.text[:40]!r}; the reply "
                f"says {said[:40]!r} there. Is it a mark of another run?"
            )
        inside |= (mark.start <= ends) & (ends < mark.end)
    return [t for t, marked in zip(own, inside, strict=True) if marked]


def first_annotated_position(trace: Trace, marks: Sequence[Annotation]) -> int | None:
    """Place in the trace of the first token that shows the trait; None where no mark is given. As `places`."""
    return min(annotated_positions(trace, marks), default=None)


# ---- files ----


def save_annotations(marks: Sequence[Annotation], path: str | Path) -> Path:
    """Write marks as JSON lines, in order, in place of the old file."""
    ordered = sorted(marks, key=lambda m: (m.config, m.id, m.trait, m.start, m.end))
    write_whole(Path(path), "".join(json.dumps(asdict(m), ensure_ascii=False) + "\n" for m in ordered))
    return Path(path)


JudgedTraits = Mapping[str, Sequence[str]]
"""Config -> traits that were looked for. Without it, no mark may mean that nothing shows, or that nobody looked."""


def annotated_traits(marks: Sequence[Annotation]) -> dict[str, list[str]]:
    """What a file of marks by itself shows to have been looked for: the traits that it marks, config by config."""
    found: dict[str, list[str]] = {}
    for mark in marks:
        own = found.setdefault(mark.config, [])
        if mark.trait not in own:
            own.append(mark.trait)
    return found


def save_judged_traits(judged: JudgedTraits, path: str | Path) -> Path:
    """Write down what was looked at, beside the marks, and keep what was written before."""
    file = Path(path)
    before = load_judged_traits(file) if file.is_file() else {}
    configs = sorted({*before, *judged})
    merged = {c: sorted({*before.get(c, ()), *judged.get(c, ())}) for c in configs}
    write_whole(file, json.dumps(merged, indent=1, ensure_ascii=False) + "\n")
    return file


def load_judged_traits(path: str | Path) -> dict[str, list[str]]:
    """What `save_judged_traits` wrote.

    Raises:
        CorruptFile: something else.
    """
    record = read_json(Path(path))
    for config, traits in record.items():
        if not isinstance(traits, list) or not all(isinstance(t, str) for t in traits):
            raise CorruptFile(f"{path}: the field {config!r} must be a list of traits. Run scripts.mark again.")
    return record


def load_annotations(path: str | Path) -> list[Annotation]:
    """Marks of a file of JSON lines, by a judge or of one's own; empty lines are passed over.

    Raises:
        NotFound: no such file.
        CorruptFile: with the file, the line and the field.
    """
    file = Path(path)
    if not file.is_file():
        raise NotFound(f"No file of marks {str(file)!r}.")
    return [_mark(record, where) for where, record in records(file)]


def _mark(record: Mapping[str, Any], where: str) -> Annotation:
    known = [f.name for f in fields(Annotation)]
    if unknown := sorted(set(record) - set(known)):
        raise CorruptFile(f"{where}: unknown field {unknown[0]!r}; known are {', '.join(known)}.")
    for name in known:
        if name not in record:
            if name in ("score", "how", "text"):
                continue
            raise CorruptFile(f"{where}: the field {name!r} is missing.")
        value = record[name]
        if name in ("start", "end"):
            good, expected = is_integer(value, minimum=0), "a count from 0"
        elif name == "text":
            good, expected = value is None or isinstance(value, str), "a text, or null"
        elif name == "score":
            good, expected = (
                value is None or (is_number(value) and 0 <= value <= 100),
                "a number from 0 to 100, or null",
            )
        else:
            good, expected = isinstance(value, str) and bool(value.strip()), "a text"
        if not good:
            raise CorruptFile(f"{where}: the field {name!r} is {value!r}; expected {expected}.")
    if record["start"] >= record["end"]:
        raise CorruptFile(f"{where}: the field 'end' is {record['end']}; it must lie after start, {record['start']}.")
    return Annotation(**record)
