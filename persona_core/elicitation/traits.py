"""Trait definitions: named behaviours, with what it takes to elicit and judge them."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_core.errors import CorruptFile, NotFound, SettingError
from persona_core.utils.files import parse_json, shipped_folder, write_atomically

FIELDS = ("name", "description", "instructions", "extraction_questions", "evaluation_questions", "judge_prompt")
QUESTION_AND_ANSWER = """[Question start]
{question}
[Question end]

[Answer start]
{answer}
[Answer end]"""
"""How a judge prompt shows the question and the answer to judge."""

PLACEHOLDERS = ("{question}", "{answer}")
_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_BRACES = re.compile(r"\{[^{}]*\}|[{}]")
_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}

Fault = tuple[tuple[str | int, ...], str]  # path in the record, and what is wrong there


@dataclass(frozen=True, repr=False)
class TraitDefinition:
    """A named behaviour, the instructions that bring it out or suppress it, and questions to try them on.

    Attributes:
        name: a short lower-case word.
        description: one or two sentences that say what the trait is, and what it is not.
        positive, negative: system prompts that ask for the trait, and for its opposite; the i-th of each form a pair.
        extraction_questions: the vector is extracted from replies to these.
        evaluation_questions: held-out questions, distinct from the others. The first half chooses the block, the
            second half is reported on; so the halves should not share topics.
        judge_prompt: asks for a number from 0 to 100; contains {question} and {answer}, once each.

    >>> trait = TraitDefinition(
    ...     "candour",
    ...     "Says what it thinks.",
    ...     ("Be frank.",),
    ...     ("Be guarded.",),
    ...     ("Hi?",),
    ...     ("Well?",),
    ...     "How frank is this answer to {question}: {answer}? Answer with one number from 0 to 100.",
    ... )
    >>> trait.judge_question("Well?", "No.")
    'How frank is this answer to Well?: No.? Answer with one number from 0 to 100.'
    >>> trait
    TraitDefinition(candour; 1 pair, 1 + 1 questions)
    """

    name: str
    description: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    extraction_questions: tuple[str, ...]
    evaluation_questions: tuple[str, ...]
    judge_prompt: str

    def __post_init__(self) -> None:
        if len(self.positive) != len(self.negative):
            raise SettingError(
                f"Trait {self.name!r}: {len(self.positive)} positive and {len(self.negative)} negative instructions; "
                "they come in pairs."
            )
        faults = list(faults_of(self.to_dict()))
        if faults:
            raise SettingError(f"Trait {self.name!r}: " + " ".join(f"{_path_text(p)}: {says}" for p, says in faults))

    def __repr__(self) -> str:
        n = len(self.positive)
        questions = f"{len(self.extraction_questions)} + {len(self.evaluation_questions)} questions"
        return f"TraitDefinition({self.name}; {n} pair{'' if n == 1 else 's'}, {questions})"

    def to_dict(self) -> dict[str, Any]:
        """The contents of a trait file."""
        pairs = zip(self.positive, self.negative, strict=True)
        return {
            "name": self.name,
            "description": self.description,
            "instructions": [{"positive": positive, "negative": negative} for positive, negative in pairs],
            "extraction_questions": list(self.extraction_questions),
            "evaluation_questions": list(self.evaluation_questions),
            "judge_prompt": self.judge_prompt,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> TraitDefinition:
        """A trait from a record without faults; see `faults_of`."""
        faults = list(faults_of(record))
        if faults:
            raise SettingError(" ".join(f"{_path_text(path)}: {says}" for path, says in faults))
        return cls(
            name=record["name"],
            description=record["description"],
            positive=tuple(pair["positive"] for pair in record["instructions"]),
            negative=tuple(pair["negative"] for pair in record["instructions"]),
            extraction_questions=tuple(record["extraction_questions"]),
            evaluation_questions=tuple(record["evaluation_questions"]),
            judge_prompt=record["judge_prompt"],
        )

    @property
    def fingerprint(self) -> str:
        """16 hex digits over every word of the definition."""
        text = json.dumps(self.to_dict(), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def judge_question(self, question: str, answer: str) -> str:
        """The judge prompt with both placeholders filled."""
        return fill(self.judge_prompt, question, answer)

    def save(self, path: str | Path) -> Path:
        """Write the definition as JSON, replacing an existing file."""
        file = Path(path)
        write_atomically(file, json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n")
        return file

    @classmethod
    def load(cls, path: str | Path) -> TraitDefinition:
        """Read a definition from a JSON file.

        Raises:
            NotFound: no such file.
            CorruptFile: with the file and, for each fault, the path to the value: `instructions[3].negative`.
        """
        file = Path(path)
        if not file.is_file():
            raise NotFound(f"No trait file {str(file)!r}.")
        record = parse_json(file)
        faults = list(faults_of(record))
        if faults:
            raise CorruptFile("\n".join(f"{file}: {_path_text(path)}: {says}" for path, says in faults))
        return cls.from_dict(record)


def load_traits(sources: str | Path | Sequence[str | Path]) -> tuple[TraitDefinition, ...]:
    """Definitions from shipped traits, files, or folders of files.

    Args:
        sources: one or several of: a name of a shipped trait, a trait file, a folder of trait files.

    Raises:
        NotFound: no such trait, file or folder; the message names the shipped traits.
        CorruptFile: a file is not a trait definition; the message names every fault.
        SettingError: two definitions have the same name.

    >>> load_traits("deception")
    (TraitDefinition(deception; 5 pairs, 20 + 20 questions),)
    >>> [trait.name for trait in load_traits(["sycophancy", "evil"])]
    ['sycophancy', 'evil']
    """
    if isinstance(sources, (str, Path)):
        sources = [sources]
    found: dict[str, tuple[TraitDefinition, Path]] = {}
    for source in sources:
        for path in _files(source):
            trait = TraitDefinition.load(path)
            if trait.name in found:
                raise SettingError(
                    f"{trait.name!r} is defined by both {found[trait.name][1]} and {path}. Leave one out."
                )
            found[trait.name] = trait, path
    if not found:
        raise SettingError("No traits; name a shipped trait, a trait file or a folder of trait files.")
    return tuple(trait for trait, _ in found.values())


def fill(prompt: str, question: str, answer: str) -> str:
    """A judge prompt with question and answer filled in, in one pass: "{answer}" in a question stays as it is.

    >>> fill("{question} {answer}", "What is {answer}?", "A word.")
    'What is {answer}? A word.'
    """
    values = dict(zip(PLACEHOLDERS, (question, answer), strict=True))
    return re.sub("|".join(map(re.escape, PLACEHOLDERS)), lambda found: values[found[0]], prompt)


def faults_of(record: Any) -> Iterator[Fault]:
    """Everything that is wrong with a record as a trait definition."""
    if not isinstance(record, Mapping):
        yield (), f"a trait is a JSON object, not {_kind(record)}."
        return
    for key in record:
        if key not in FIELDS:
            near = difflib.get_close_matches(str(key), FIELDS, 1)
            yield (key,), "unknown field." + (f" Did you mean {near[0]!r}?" if near else "")
    for key in FIELDS:
        if key not in record:
            yield (), f"the field {key!r} is missing."
    for key in ("name", "description", "judge_prompt"):
        if key in record:
            yield from _text_faults(record[key], (key,))
    if isinstance(record.get("name"), str) and record["name"].strip() and not _NAME.fullmatch(record["name"]):
        yield (
            ("name",),
            f"{record['name']!r} must consist of lower-case letters, digits, - and _, and begin with a letter.",
        )
    yield from _pair_faults(record.get("instructions"), "instructions" in record)
    seen: dict[str, tuple[str | int, ...]] = {}
    for key in ("extraction_questions", "evaluation_questions"):
        if key in record:
            yield from _question_faults(record[key], key, seen)
    prompt = record.get("judge_prompt")
    if isinstance(prompt, str) and prompt.strip():
        braces = _BRACES.findall(prompt)
        for placeholder in PLACEHOLDERS:
            if braces.count(placeholder) != 1:
                yield (
                    ("judge_prompt",),
                    f"must contain {placeholder} once; it occurs {braces.count(placeholder)} times.",
                )
        for other in dict.fromkeys(b for b in braces if b not in PLACEHOLDERS):
            yield ("judge_prompt",), f"contains {other!r}; only {{question}} and {{answer}} are filled in."


def _pair_faults(pairs: Any, present: bool) -> Iterator[Fault]:
    if not present:
        return
    if not isinstance(pairs, (list, tuple)) or not pairs:
        yield ("instructions",), f"expected a list of at least one pair, got {_kind(pairs)}."
        return
    for i, pair in enumerate(pairs):
        where = ("instructions", i)
        if not isinstance(pair, Mapping):
            yield where, f'expected {{"positive": ..., "negative": ...}}, got {_kind(pair)}.'
            continue
        for side in ("positive", "negative"):
            if side not in pair:
                yield where, f"the field {side!r} is missing."
            else:
                yield from _text_faults(pair[side], (*where, side))
        for key in pair:
            if key not in ("positive", "negative"):
                yield (*where, key), "unknown field."
        if isinstance(pair.get("positive"), str) and pair["positive"] == pair.get("negative"):
            yield where, "positive and negative are the same."


def _question_faults(questions: Any, key: str, seen: dict[str, tuple[str | int, ...]]) -> Iterator[Fault]:
    if not isinstance(questions, (list, tuple)) or not questions:
        yield (key,), f"expected a list of at least one question, got {_kind(questions)}."
        return
    for i, question in enumerate(questions):
        yield from _text_faults(question, (key, i))
        if isinstance(question, str):
            if question in seen:
                yield (key, i), f"the same question as {_path_text(seen[question])}."
            seen.setdefault(question, (key, i))


def _text_faults(value: Any, where: tuple[str | int, ...]) -> Iterator[Fault]:
    if not isinstance(value, str):
        yield where, f"expected a string, got {_kind(value)}."
    elif not value.strip():
        yield where, "must not be empty."


def _kind(value: Any) -> str:
    if isinstance(value, (list, tuple)) and not value:
        return "an empty list"
    return next((name for kind, name in _KINDS.items() if isinstance(value, kind)), "a number")


def _path_text(path: tuple[str | int, ...]) -> str:
    """`instructions[3].negative`."""
    parts = [f"[{p}]" if isinstance(p, int) else f".{p}" for p in path]
    return "".join(parts).lstrip(".") or "the definition"


def _files(source: str | Path) -> list[Path]:
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(path.glob("*.json"))
        if not files:
            raise NotFound(f"The folder {str(path)!r} holds no trait files (*.json).")
        return files
    if path.is_file():
        return [path]
    folders = (shipped_folder("traits"), Path("datasets") / "traits")  # the working directory's win
    shipped = {file.stem: file for folder in folders for file in sorted(folder.glob("*.json"))}
    if str(source) in shipped:
        return [shipped[str(source)]]
    names = ", ".join(sorted(shipped))
    raise NotFound(f"No trait {str(source)!r}: not a file, a folder or a shipped trait ({names}).")
