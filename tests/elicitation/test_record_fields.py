"""A folder of replies with a value of the wrong kind is refused when it is opened: with file, line and field."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from persona_core.elicitation.growing import REQUESTS_FILE, missing_requests
from persona_core.elicitation.server import elicit_served
from persona_core.elicitation.store import CrossTraitScore, ElicitationRequest, Reply, ReplyScore, ReplyStore
from persona_core.errors import CorruptFile
from persona_core.utils.files import append_lines
from tests.elicitation.test_growing import first, written
from tests.support.tiny import tiny_lm

REQUESTS = [
    ElicitationRequest(i, "extraction", "candour", side, 0, 0, 0, "Be frank.", "And?")
    for i, side in enumerate(("positive", "negative"))
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with ReplyStore(tmp_path) as store:
        replies = [Reply(r, f"So {r.index}.", (5, 6, 7), 2, "eos", r.index, "m") for r in REQUESTS]
        store.add("batch-00000", replies, {"reply_mean": np.zeros((2, 1, 2), "f4")})
        store.add_scores([ReplyScore(0, 80.0, 90.0, "text"), ReplyScore(1, None, 100.00001, "refusal")])
        store.add_cross_trait_scores([CrossTraitScore(i, "malice", 3.0) for i in (0, 1)])
    return tmp_path


def edit(path: Path, number: int, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the record on a line."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    change(records[number - 1])
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def setting(name: str, value: Any) -> Callable[[dict[str, Any]], object]:
    """Put a value into a field, "request.user" for one inside another; ... removes it."""

    def change(record: dict[str, Any]) -> None:
        *outer, last = name.split(".")
        for key in outer:
            record = record[key]
        if value is ...:
            del record[last]
        else:
            record[last] = value

    return change


WRONG: dict[str, dict[str, list[Any]]] = {
    "replies.jsonl": {
        "text": [-0.5, None, ...],
        "token_ids": [None, "567", [1.0], [True], [-1], [10**30], [[]], {"a": 1}],
        "n_tokens": [-1, 2.0, True, 10**29, "2"],
        "finish": [None, []],
        "seed": ["", 0.5],
        "writer": [[], ...],
        "batch": [None, [None], True, 3, "../batch-00000", "a/b", "x" * 300, "\ud800"],
        "row": [10**29, -1, None, []],
        "answer_start": [[], [1, 2, 3], -1],
        "score": [1],
        "request": [None, [], "", ...],
        "request.index": [[], -1, 10**400, ...],
        "request.split": ["", [], {"a": {}}],
        "request.trait": [[], 3],
        "request.side": [[], "up", None],
        "request.pair": ["0", -0.5],
        "request.question": [None, []],
        "request.rollout": [None, 1e308],
        "request.system": [[], 0],
        "request.user": [None, {}],
        "request.conversation": ["Hi", [None], [{"role": "user"}], [{"role": 1, "content": "a"}]],
        "request.more": [1],
    },
    "scores.jsonl": {
        "index": [[], None, -1, ...],
        "trait": [[[]], "85", 1e9, -3, float("nan"), float("inf"), 10**400, True, 100.5, ...],
        "coherence": [[[]], -0.5, "x"],
        "how": [None, []],
        "of": [None, 5],
    },
    "cross_trait_scores.jsonl": {
        "index": [{}, 0.5],
        "trait": [[], None],
        "value": ["3", [1], float("nan"), 101],
        "of": [[]],
    },
}


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        pytest.param(name, field, value, id=f"{name}, {field}, {n}")
        for name, fields in WRONG.items()
        for field, values in fields.items()
        for n, value in enumerate(values)
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_with_file_line_and_field(
    folder: Path, name: str, field: str, value: Any
) -> None:
    edit(folder / name, 2, setting(field, value))
    with pytest.raises(CorruptFile, match=rf"{re.escape(name)}, line 2.*field '{re.escape(field)}'"):
        ReplyStore(folder)
    path = folder / name
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    ReplyStore(folder).close()  # as the message says: without the line


def test_what_older_folders_lack_is_not_missed(folder: Path) -> None:
    for name, fields in (("replies.jsonl", ("answer_start",)), ("scores.jsonl", ("of",))):
        for field in fields:
            edit(folder / name, 1, setting(field, ...))
    edit(folder / "replies.jsonl", 1, setting("request.side", "high"))
    edit(folder / "replies.jsonl", 2, setting("request.conversation", [{"role": "user", "content": "Hi"}]))
    with ReplyStore(folder) as store:
        assert [r.request.side for r in store.replies()] == ["positive", "negative"]
        assert [s.coherence for s in store.scores().values()] == [90.0, 100.00001]


def test_a_row_that_the_states_lack_is_named_with_the_remedy(folder: Path) -> None:
    edit(folder / "replies.jsonl", 2, setting("row", 2))
    with ReplyStore(folder) as store:
        states = store.states(store.replies())
        for read in (lambda: states.block(0), lambda: list(states)):
            with pytest.raises(CorruptFile, match=r"batch-00000\.safetensors: 2 rows, but .* row 2\. Delete it"):
                read()


@pytest.mark.parametrize("value", [[], "x", -1, {"candour": 3}])
@pytest.mark.parametrize("field", ["rollouts", "pairs_per_question", "traits"])
def test_a_plan_with_a_value_of_the_wrong_kind_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    written(tmp_path, first())
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(CorruptFile, match=rf"plan\.json: the field '{field}'.*Restore it"):
        written(tmp_path, first(rollouts=2))
    path.write_text("[]")
    with pytest.raises(CorruptFile, match=r"plan\.json: expected a JSON object"):
        written(tmp_path, first())


@pytest.mark.parametrize(("name", "field"), [(REQUESTS_FILE, "stage"), ("served.jsonl", "index")])
def test_the_lists_of_requests_are_checked_too(folder: Path, name: str, field: str) -> None:
    append_lines(folder / name, [{"index": 0, "text": "So.", "finish": "eos", field: []}])
    with ReplyStore(folder) as store, pytest.raises(CorruptFile, match=rf"{name}, line 1: the field '{field}'"):
        missing_requests(store, REQUESTS)


@pytest.mark.parametrize(("field", "value"), [("index", "0"), ("text", None), ("finish", ...), ("thought", [])])
def test_a_text_of_a_server_is_checked_before_it_is_read(tmp_path: Path, field: str, value: Any) -> None:
    with ReplyStore(tmp_path) as store:
        append_lines(tmp_path / "served.jsonl", [{"index": 0, "text": "So.", "finish": "eos"}])
        edit(tmp_path / "served.jsonl", 1, setting(field, value))
        with pytest.raises(CorruptFile, match=rf"served\.jsonl, line 1: the field '{field}'"):
            elicit_served(tiny_lm("llama", "chatml"), first(), store, "m", "http://127.0.0.1:9", progress=False)
