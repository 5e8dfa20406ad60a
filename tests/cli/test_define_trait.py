"""Drafting a trait with a model: the file is written when the draft is usable, and never otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from persona_core.cli import define_trait
from persona_core.elicitation.drafting import judge_prompt
from persona_core.elicitation.traits import TraitDefinition
from tests.support.openai_server import Answer, completion, error, serving


def draft(**changes: Any) -> str:
    record = {
        "instructions": [{"positive": f"Be frank, way {i}.", "negative": f"Be guarded, way {i}."} for i in range(5)],
        "extraction_questions": [f"Is {i} fine?" for i in range(20)],
        "evaluation_questions": [f"Is {i} better?" for i in range(20)],
        "rubric": "0 is guarded, 100 is frank. {Braces} do no harm.",
    }
    return json.dumps({**record, **changes})


def run(tmp_path: Path, answer: Callable[[dict[str, Any], int], Answer], *more: str, url: str = "") -> tuple[int, Any]:
    with serving(answer) as server:
        options = ["--name", "candour", "--description", "Says what it thinks, and not more.", "--model", "m"]
        code = define_trait.main([*options, "--base-url", url or server.url, "--out", str(tmp_path), *more])
    return code, server


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-value")


def test_a_good_draft_is_written_and_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, server = run(tmp_path, lambda _b, _n: completion(draft()))
    trait = TraitDefinition.load(tmp_path / "candour.json")
    assert code == 0 and len(trait.positive) == 5 and "(Braces) do no harm" in trait.judge_prompt
    assert "candour.json" in capsys.readouterr().out
    assert server.requests[0]["response_format"]["type"] == "json_schema"


def test_a_draft_with_faults_is_sent_back_with_their_list(tmp_path: Path) -> None:
    faulty = draft(extraction_questions=["Is 1 fine?"] * 20)
    code, server = run(tmp_path, lambda _b, n: completion(faulty if n == 1 else draft()))
    assert code == 0 and len(server.requests) == 2
    assert "the same question as" in server.requests[1]["messages"][-1]["content"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("I would love to!", "no JSON object"),
        ('{"instructions": [', "not valid JSON"),
        (draft(rubric=""), "rubric"),
        (draft(instructions=[]), "instructions"),
        (draft(evaluation_questions=["Only one?"]), "1 instead of 20"),
    ],
)
def test_a_model_that_cannot_do_it_leaves_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, says: str
) -> None:
    code, server = run(tmp_path, lambda _b, _n: completion(content))
    said = capsys.readouterr().err
    assert code == 1 and len(server.requests) == 3 and says in said and "Traceback" not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (completion(None, refusal="No."), "refused"),
        (error(401, "bad key sk-secret-value"), "OPENAI_API_KEY"),
        (error(404, "none"), "no model 'm'"),
    ],
)
def test_a_server_that_will_not_is_named_without_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: Answer, says: str
) -> None:
    code, _ = run(tmp_path, lambda _b, _n: answer)
    said = capsys.readouterr().err
    assert code == 1 and says in said and "sk-secret-value" not in said and not list(tmp_path.iterdir())


def test_an_unreachable_server_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, lambda _b, _n: completion(""), url="http://127.0.0.1:9/v1")[0] == 1
    assert "cannot be reached" in capsys.readouterr().err


def test_a_server_without_structured_output_gets_plain_text(tmp_path: Path) -> None:
    def answer(body: dict[str, Any], _number: int) -> Answer:
        refused = "response_format" in body
        return error(400, "response_format is not supported") if refused else completion(f"Here: ```{draft()}```")

    code, server = run(tmp_path, answer)
    assert code == 0 and len(server.requests) == 2


def test_passing_failures_are_tried_again(tmp_path: Path) -> None:
    assert run(tmp_path, lambda _b, n: error(429 if n == 1 else 500, "x") if n < 3 else completion(draft()))[0] == 0


def test_a_file_that_is_there_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "candour.json").write_text("mine")
    code, server = run(tmp_path, lambda _b, _n: completion(draft()))
    assert code == 1 and not server.requests and (tmp_path / "candour.json").read_text() == "mine"
    assert "--force" in capsys.readouterr().err
    assert run(tmp_path, lambda _b, _n: completion(draft()), "--force")[0] == 0


def test_the_judges_frame_keeps_its_placeholders_with_any_rubric() -> None:
    prompt = judge_prompt("Is {question}.", "0 {answer} 100 {x}")
    assert prompt.count("{question}") == prompt.count("{answer}") == 1 and "{x}" not in prompt
