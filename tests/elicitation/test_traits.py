"""Trait definitions: a file either loads, or every fault is named with its file and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_core.elicitation.traits import TraitDefinition, fill, load_traits
from persona_core.errors import CorruptFile, NotFound, PersonaError, SettingError

SHIPPED = Path(__file__).resolve().parents[2] / "datasets" / "traits"
NAMES = (
    "paternalism", "deception", "manipulativeness", "corrigibility", "evil", "sycophancy", "hallucination", "refusal",
    "uncertainty", "verbosity", "overconfidence",
)  # fmt: skip


def record(**changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "name": "candour",
        "description": "Says what it thinks.",
        "instructions": [{"positive": "Be frank.", "negative": "Be guarded."}],
        "extraction_questions": ["How are you?"],
        "evaluation_questions": ["What now?"],
        "judge_prompt": "How frank is {answer} to {question}?",
    }
    return {key: value for key, value in {**plain, **changes}.items() if value is not None}


def written(folder: Path, content: Any) -> Path:
    path = folder / "candour.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_trait_has_five_pairs_and_forty_questions(name: str) -> None:
    trait = TraitDefinition.load(SHIPPED / f"{name}.json")
    assert trait.name == name and len(trait.positive) == len(trait.negative) == 5
    assert len(trait.extraction_questions) == len(trait.evaluation_questions) == 20
    assert "{question}" not in trait.judge_question("q", "a") and len(trait.description) > 40


def test_the_shipped_traits_are_these_and_no_question_serves_two() -> None:
    traits = load_traits([SHIPPED])
    assert {t.name for t in traits} == set(NAMES)
    asked = [q for t in traits for q in (*t.extraction_questions, *t.evaluation_questions)]
    assert len(set(asked)) == len(asked)


@pytest.mark.parametrize("name", NAMES)
def test_the_two_sides_of_a_pair_are_of_like_length(name: str) -> None:
    """Otherwise a vector could be one of how long the instruction was."""
    trait = TraitDefinition.load(SHIPPED / f"{name}.json")
    high, low = (sum(map(len, side)) for side in (trait.positive, trait.negative))
    assert 0.75 < high / low < 1.33


def test_what_is_saved_is_loaded_again(tmp_path: Path) -> None:
    trait = TraitDefinition.from_dict(record(description="Says “what” it thinks.\nAlways."))
    assert TraitDefinition.load(trait.save(tmp_path / "new" / "candour.json")) == trait
    assert trait.fingerprint == TraitDefinition.load(tmp_path / "new" / "candour.json").fingerprint
    assert trait.fingerprint != TraitDefinition.from_dict(record()).fingerprint


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"description": None}, "the field 'description' is missing"),
        ({"judge_prompt": None}, "the field 'judge_prompt' is missing"),
        ({"description": "  "}, "description: must not be empty"),
        ({"name": "Two Words"}, "name: 'Two Words' must consist of lower-case letters"),
        ({"name": 7}, "name: expected a string, got a number"),
        ({"instructions": []}, "instructions: expected a list of at least one pair, got an empty list"),
        ({"instructions": [{"positive": "a"}]}, "instructions[0]: the field 'negative' is missing"),
        ({"instructions": [{"positive": "a", "negative": 3}]}, "instructions[0].negative: expected a string"),
        ({"instructions": [{"positive": "a", "negative": "a"}]}, "positive and negative are the same"),
        ({"extraction_questions": ["a", "a"]}, "the same question as extraction_questions[0]"),
        ({"evaluation_questions": ["How are you?"]}, "the same question as extraction_questions[0]"),
        ({"judge_prompt": "{question}?"}, "must contain {answer} once; it occurs 0 times"),
        ({"judge_prompt": "{question} {answer} {answer}"}, "must contain {answer} once; it occurs 2 times"),
        ({"judge_prompt": "{question} {answer} {reply}"}, "contains '{reply}'; only {question} and {answer}"),
        ({"judge_prompts": "x"}, "judge_prompts: unknown field. Did you mean 'judge_prompt'?"),
    ],
)
def test_a_fault_is_named_with_file_and_field(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    path = written(tmp_path, record(**changes))
    with pytest.raises(CorruptFile) as error:
        TraitDefinition.load(path)
    assert f"{path}: " in str(error.value) and says in str(error.value)


def test_all_faults_of_a_file_are_named_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, record(name="", description=None, extraction_questions=[1, ""]))
    with pytest.raises(CorruptFile) as error:
        TraitDefinition.load(path)
    assert len(str(error.value).splitlines()) == 4


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"name": }', "\ufeff{"])
def test_what_is_not_an_object_is_refused_with_the_file(tmp_path: Path, content: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(CorruptFile, match=r"candour\.json"):
        TraitDefinition.load(path)


def test_a_byte_order_mark_does_no_harm_and_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "\ufeff" + json.dumps(record()))
    assert TraitDefinition.load(path).name == "candour"
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(CorruptFile):
        TraitDefinition.load(path)


def test_sources_are_files_folders_and_names(tmp_path: Path) -> None:
    path = written(tmp_path, record())
    assert [t.name for t in load_traits([path, "evil"])] == ["candour", "evil"]
    assert [t.name for t in load_traits([tmp_path])] == ["candour"]
    with pytest.raises(NotFound, match=r"shipped.*deception"):
        load_traits(["candor"])
    with pytest.raises(SettingError, match="is defined by"):
        load_traits([path, tmp_path])
    with pytest.raises(NotFound, match="holds no trait file"):
        load_traits([tmp_path / "..", tmp_path][:0] or [_empty(tmp_path)])
    with pytest.raises(SettingError):
        load_traits([])
    assert load_traits("evil") == load_traits(["evil"])
    assert load_traits(path) == load_traits([path])


def _empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def test_an_answer_that_looks_like_a_placeholder_is_left_as_it_is() -> None:
    filled = fill("Q: {question} A: {answer}", "What does {answer} mean?", "{question} {0}")
    assert filled == "Q: What does {answer} mean? A: {question} {0}"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(field=st.sampled_from(sorted(record())), value=values)
def test_any_value_of_a_field_loads_or_is_refused(tmp_path_factory: Any, field: str, value: Any) -> None:
    path = written(tmp_path_factory.mktemp("traits"), {**record(), field: value})
    try:
        trait = TraitDefinition.load(path)
    except PersonaError as error:
        assert field in str(error)
    else:
        assert trait.to_dict()[field] == value
