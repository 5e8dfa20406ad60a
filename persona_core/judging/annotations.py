"""Where a trait is visible in a text: annotated stretches of replies, by a judge or by hand.

A trait in the states is one thing; a trait that a reader can see in the text is another. Annotations are the second:
how early the states reveal a trait is measured against the first token that shows it. A file of annotations is JSON
lines,

    {"id": "pilot-01", "config": "baseline", "trait": "sycophancy", "start": 0, "end": 34, "score": 85.0, "how": "text"}

with character offsets in the row's `response`. `score`, `how` and `text` are optional.
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
from persona_core.utils.files import read_json, records, write_atomically

Row = Mapping[str, Any]
BY_A_JUDGE = ("logprobs", "text", "truth")


@dataclass(frozen=True)
class Annotation:
    """A stretch of a reply that shows a trait.

    Attributes:
        id: of the prompt.
        config: of the results dataset that holds the reply.
        trait: the trait that it shows.
        start, end: characters of the row's `response`, the end exclusive.
        score: the judge's, 0 to 100; None for annotations made by hand.
        how: how the judge's score was read ("logprobs", "text", "truth"), or who annotated.
        text: the annotated text, stripped; None if it was not recorded. It shows whether an annotation belongs to
            another run.
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
    """A sentence without a score.

    Attributes:
        id, config, trait, start, end: as in `Annotation`.
        why: "no answer" where the request failed; else the judge's reason: "refusal", "unreadable", "too long", ...
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
    """What a judge found in the sentences of a run.

    Attributes:
        annotations: sentences that show the trait.
        unscored: sentences without a score: neither annotated nor free of the trait.
        n_sentences: number of questions asked: one per sentence and trait.
        empty: prompts whose reply has no text.
    """

    annotations: tuple[Annotation, ...]
    unscored: tuple[UnscoredSentence, ...]
    n_sentences: int
    empty: tuple[str, ...]


def sentence_questions(rows: Sequence[Row], traits: Sequence[TraitDefinition]) -> list[Question]:
    """What `annotate_sentences` asks: every sentence of every reply, once per trait, as if it were the whole answer.

    Raises:
        SettingError: an id occurs twice, so that annotations would be ambiguous.
    """
    return [question for question, _ in _questions(rows, traits, "")]


def annotate_sentences(
    rows: Sequence[Row], traits: Sequence[TraitDefinition], judge: Judge, config: str, progress: bool = True
) -> AnnotationResult:
    """Have a judge score each sentence of each reply; those with a score of 50 or more are annotated.

    Args:
        rows: of one config of a results dataset.
        traits: the traits to look for.
        judge: scores from 0 to 100.
        config: the name of the config.
        progress: whether to show a progress bar.

    Raises:
        SettingError: an id occurs twice, as in a config that holds two readings of one reply.
    """
    questions = _questions(rows, traits, config)
    scores = {question.key: score for question, score in judge.score([q for q, _ in questions], progress)}
    failed: Mapping[str, str] = getattr(judge, "failed", {})  # a judge behind a server gives reasons
    annotations, unscored = [], []
    for question, stretch in questions:
        score = scores.get(question.key)
        if score is None:
            unscored.append(UnscoredSentence(**stretch, why=failed.get(question.key, "no answer")))
        elif score.value is None:
            unscored.append(UnscoredSentence(**stretch, why=score.how))
        elif score.value >= MIN_SCORE:
            annotations.append(Annotation(**stretch, score=float(score.value), how=score.how, text=question.answer))
    empty = tuple(row["id"] for row in rows if not row["response"].strip())
    return AnnotationResult(tuple(annotations), tuple(unscored), len(questions), empty)


def _questions(
    rows: Sequence[Row], traits: Sequence[TraitDefinition], config: str
) -> list[tuple[Question, dict[str, Any]]]:
    """Each question, and the fields of the annotation that it may become."""
    seen, found = set(), []
    for number, row in enumerate(rows):
        if row["id"] in seen:
            raise SettingError(f"The prompt {row['id']!r} occurs twice; annotate runs with one reply per prompt.")
        seen.add(row["id"])
        prompt, text = row["prompt"], row["response"]
        if not text.strip():
            continue
        for start, end in sentences(text):
            sentence = text[start:end].strip()
            for trait in traits:
                key = f"{number}/{start}/{trait.name}"
                question = Question(key, trait.name, fill(trait.judge_prompt, prompt, sentence), prompt, sentence)
                stretch = {"id": row["id"], "config": config, "trait": trait.name, "start": start, "end": end}
                found.append((question, stretch))
    return found


# ---- annotations and tokens ----


def annotations_of(annotations: Sequence[Annotation], id: str, config: str, trait: str) -> list[Annotation]:
    """The annotations of one reply and trait, in order."""
    found = [a for a in annotations if (a.id, a.config, a.trait) == (id, config, trait)]
    return sorted(found, key=lambda a: (a.start, a.end))


def annotated_positions(trace: Trace, annotations: Sequence[Annotation]) -> list[int]:
    """Positions in the trace of the reply tokens inside an annotation.

    A token's place is its last character; a token without text is part of a character that a later token completes,
    and counts as being there.

    Args:
        trace: of the reply.
        annotations: of that reply; see `annotations_of`.

    Raises:
        SettingError: an annotation does not match the reply, so it belongs to another one.
    """
    reply = trace.reply_positions
    ends = piece_ends([trace.tokens[t] for t in reply])  # [n_reply]
    length = len(trace.reply_text)
    inside = np.zeros(len(reply), bool)
    for one in annotations:
        if not 0 <= one.start < one.end <= length:
            raise SettingError(
                f"The annotation of {one.id!r}, characters {one.start} to {one.end}, does not fit a reply of {length} "
                "characters. Offsets count characters of the row's `response`; does it belong to another run?"
            )
        text = trace.reply_text[one.start : one.end].strip()
        if one.text is not None and well_formed(text) != one.text:
            raise SettingError(
                f"The annotation of {one.id!r}, characters {one.start} to {one.end}, is of {one.text[:40]!r}, but the "
                f"reply has {text[:40]!r} there. Does it belong to another run?"
            )
        inside |= (one.start <= ends) & (ends < one.end)
    return [t for t, yes in zip(reply, inside, strict=True) if yes]


# ---- files ----


def save_annotations(annotations: Sequence[Annotation], path: str | Path) -> Path:
    """Write annotations as JSON lines, in order, replacing an existing file."""
    ordered = sorted(annotations, key=lambda a: (a.config, a.id, a.trait, a.start, a.end))
    write_atomically(Path(path), "".join(json.dumps(asdict(a), ensure_ascii=False) + "\n" for a in ordered))
    return Path(path)


JudgedTraits = Mapping[str, Sequence[str]]
"""Config -> traits that were judged. Where a trait was judged, no annotation means that nothing shows."""


def annotated_traits(annotations: Sequence[Annotation]) -> dict[str, list[str]]:
    """The traits that annotations show to have been judged: those that occur, by config."""
    found: dict[str, list[str]] = {}
    for one in annotations:
        traits = found.setdefault(one.config, [])
        if one.trait not in traits:
            traits.append(one.trait)
    return found


def save_judged_traits(judged: JudgedTraits, path: str | Path) -> Path:
    """Add the judged traits to their file, which is next to the annotations."""
    file = Path(path)
    before = load_judged_traits(file) if file.is_file() else {}
    configs = sorted({*before, *judged})
    merged = {c: sorted({*before.get(c, ()), *judged.get(c, ())}) for c in configs}
    write_atomically(file, json.dumps(merged, indent=1, ensure_ascii=False) + "\n")
    return file


def load_judged_traits(path: str | Path) -> dict[str, list[str]]:
    """What `save_judged_traits` wrote.

    Raises:
        CorruptFile: the file holds something else.
    """
    record = read_json(Path(path))
    for config, traits in record.items():
        if not isinstance(traits, list) or not all(isinstance(t, str) for t in traits):
            raise CorruptFile(
                f"{path}: the field {config!r} must be a list of traits. Delete the file and run `persona mark` again."
            )
    return record


def load_annotations(path: str | Path) -> list[Annotation]:
    """Annotations from a file of JSON lines, by a judge or by hand; empty lines are skipped.

    Raises:
        NotFound: no such file.
        CorruptFile: with the file, the line and the field.
    """
    file = Path(path)
    if not file.is_file():
        raise NotFound(f"No annotations file {str(file)!r}.")
    return [_annotation(record, where) for where, record in records(file)]


def _annotation(record: Mapping[str, Any], where: str) -> Annotation:
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
            good, expected = is_integer(value, minimum=0), "an integer of at least 0"
        elif name == "text":
            good, expected = value is None or isinstance(value, str), "a string, or null"
        elif name == "score":
            good, expected = (
                value is None or (is_number(value) and 0 <= value <= 100),
                "a number from 0 to 100, or null",
            )
        else:
            good, expected = isinstance(value, str) and bool(value.strip()), "a string"
        if not good:
            raise CorruptFile(f"{where}: the field {name!r} is {value!r}; expected {expected}.")
    if record["start"] >= record["end"]:
        raise CorruptFile(
            f"{where}: the field 'end' is {record['end']}; it must be greater than start, {record['start']}."
        )
    return Annotation(**record)
