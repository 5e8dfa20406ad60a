"""Prompt files and transcripts: what is wrong in them is named by file, line and field."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona_core.elicitation.prompts import EVERYDAY, Prompt, load_prompts, load_transcripts
from persona_core.errors import CorruptFile, NotFound, PersonaError


def written(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_a_file_gives_its_prompts_in_order(tmp_path: Path) -> None:
    path = written(tmp_path / "p.jsonl", {"id": "a", "prompt": "Why?"}, "", {"id": "b", "prompt": "Ω", "system": "S"})
    assert load_prompts([path]) == (Prompt("a", "Why?"), Prompt("b", "Ω", system="S"))
    assert load_prompts([path])[1].messages[0] == {"role": "system", "content": "S"}
    assert len(load_prompts(["pilot", "harmful"])) == 28


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["{"], "line 1: not valid JSON"),
        ([{"id": "a", "prompt": "x"}, "[]"], "line 2: expected an object, got a list"),
        ([{"id": "a"}], "line 1: the field 'prompt' is missing"),
        ([{"id": "a", "prompt": " "}], "line 1: the field 'prompt' is missing or empty"),
        ([{"id": 3, "prompt": "x"}], "line 1: the field 'id' is a int"),
        ([{"id": "a", "prompt": "x", "kind": "y"}], "line 1: unknown field 'kind'"),
        ([{"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y"}], "'a' occurs twice"),
        ([""], "the file is empty"),
    ],
)
def test_a_faulty_prompt_file_is_named(tmp_path: Path, lines: list[object], says: str) -> None:
    with pytest.raises(CorruptFile) as caught:
        load_prompts([written(tmp_path / "p.jsonl", *lines)])
    assert says in str(caught.value)


def test_an_unknown_set_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="pilot, harmful, expanded, all"):
        load_prompts(["harmless"])
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorruptFile, match="UTF-8"):
        load_prompts([tmp_path / "binary.jsonl"])


# ---- the neutral set ----


def test_the_neutral_set_is_loaded_by_name_and_is_no_part_of_the_default() -> None:
    neutral = load_prompts(["neutral"])
    assert {p.set for p in neutral} == {"neutral"} and {p.system for p in neutral} == {None}
    assert not {p.id for p in neutral} & {p.id for p in load_prompts(["all"])}


def test_the_neutral_set_is_broad_and_its_kinds_are_equally_large() -> None:
    neutral = load_prompts(["neutral"])
    kinds = Counter(p.category for p in neutral)
    assert len(neutral) >= 300 and len(kinds) >= 15
    assert min(kinds.values()) >= 15 and max(kinds.values()) == min(kinds.values())
    assert len(set(EVERYDAY)) == len(EVERYDAY) and set(EVERYDAY) < set(kinds)
    assert abs(len(EVERYDAY) / len(kinds) - 0.5) < 0.1


def test_neutral_prompts_are_from_one_word_to_hundreds() -> None:
    lengths = [len(p.prompt.split()) for p in load_prompts(["neutral"])]
    assert min(lengths) == 1 and max(lengths) >= 150
    assert sum(n <= 5 for n in lengths) >= 20 and sum(n >= 150 for n in lengths) >= 15


def test_no_prompt_nearly_repeats_another() -> None:
    prompts = load_prompts(["neutral", "all"])
    words = {p.id: frozenset(re.findall(r"\w+", p.prompt.lower())) for p in prompts}
    assert len({" ".join(p.prompt.lower().split()) for p in prompts}) == len(prompts)
    near = [(a, b) for a, b in combinations(words, 2) if len(words[a] & words[b]) >= 0.6 * len(words[a] | words[b])]
    assert near == []


# ---- transcripts ----

USER, BOT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}


def test_transcripts_end_with_the_assistants_turn(tmp_path: Path) -> None:
    talk = [USER, BOT]
    path = written(tmp_path / "talk.jsonl", {"messages": talk, "writer": "me"}, {"id": "z", "messages": talk})
    one, two = load_transcripts(path)
    assert (one.id, one.writer, two.id, two.writer) == ("talk-1", "me", "z", None)
    assert one.messages[-1]["content"] == "Yes"


def test_a_transcript_may_hold_the_thought_before_a_reply(tmp_path: Path) -> None:
    talk = [USER, {**BOT, "reasoning_content": "Hm."}]
    (one,) = load_transcripts(written(tmp_path / "talk.jsonl", {"messages": talk}))
    assert list(one.messages) == talk


@pytest.mark.parametrize(
    "messages",
    [
        [USER], [BOT], [USER, BOT, USER], [], None, "Hi", 5, {"role": "user"}, [{"role": "user"}, BOT], [USER, "x"],
        [USER, {**BOT, "content": 3}],
    ],
)  # fmt: skip
def test_a_conversation_of_another_form_is_named(tmp_path: Path, messages: object) -> None:
    with pytest.raises(CorruptFile, match=r"talk\.jsonl, line 1"):
        load_transcripts(written(tmp_path / "talk.jsonl", {"messages": messages}))


@given(st.text())
def test_any_text_is_prompts_or_an_error_of_ours(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("x") / "p.jsonl"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    for load in (load_prompts, lambda paths: load_transcripts(paths[0])):
        with contextlib.suppress(PersonaError):
            load([path])
