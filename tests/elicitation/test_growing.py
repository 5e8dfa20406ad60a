"""Adding to a folder of replies: what is there stays as it is, and only what is missing is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from persona_core.elicitation.elicit import ElicitationPlan, elicit
from persona_core.elicitation.server import elicit_served
from persona_core.elicitation.store import Reply, ReplyScore, ReplyStore
from persona_core.errors import SettingError
from persona_core.judging.judge import Question, Score
from persona_core.judging.replies import judge_replies
from tests.elicitation.test_elicit import plan, trait
from tests.support.openai_server import completion, serving
from tests.support.tiny import tiny_lm


def more(name: str = "candour", n: int = 5) -> Any:
    """The trait of the first plan with questions added at the end of both lists, and one more pair."""
    first, longer = trait(name), trait(name, n)
    return replace(longer, positive=(*first.positive, "Be open."), negative=(*first.negative, "Be closed."))


def first(**changes: Any) -> ElicitationPlan:
    return plan(**{"traits": (trait("candour"), trait("malice")), "pairs_per_question": 1, **changes})


GROWN = {
    "rollouts": {"rollouts": 2},
    "evaluation rollouts": {"evaluation_rollouts": 3},
    "neutral rollouts": {"neutral_rollouts": 2},
    "pairs": {"pairs_per_question": None},
    "questions": {"traits": (trait("candour", 5), trait("malice"))},
    "questions and a pair": {"traits": (more("candour"), trait("malice"))},
    "a trait before the others": {"traits": (trait("awe"), trait("candour"), trait("malice"))},
    "everything": {"rollouts": 2, "neutral_rollouts": 2, "traits": (trait("awe"), more("malice"), more("candour"))},
}


def written(folder: Path, which: ElicitationPlan) -> dict[int, Reply]:
    with ReplyStore(folder) as store:
        assert elicit(tiny_lm("llama", "chatml"), which, store, progress=False) == []
        return {reply.request.index: reply for reply in store.replies()}


def prompts(replies: Any) -> list[tuple[Any, ...]]:
    """What was asked, as often as it was."""
    requests = [getattr(r, "request", r) for r in replies]
    return sorted((r.split, str(r.trait), r.side, str(r.system), r.user, r.rollout) for r in requests)


@pytest.mark.parametrize("changes", GROWN.values(), ids=GROWN)
def test_a_larger_plan_keeps_what_is_there_and_adds_the_rest(tmp_path: Path, changes: dict[str, Any]) -> None:
    before = written(tmp_path, first())
    lines = (tmp_path / "replies.jsonl").read_bytes()
    larger = first(**changes)
    after = written(tmp_path, larger)
    assert (tmp_path / "replies.jsonl").read_bytes().startswith(lines)
    assert len(after) > len(before) and before.items() <= after.items()
    assert set(prompts(larger.requests())) <= set(prompts(after.values()))
    assert len(set(prompts(after.values()))) == len(after)  # nothing twice
    assert len({reply.seed for reply in after.values()}) == len(after)
    assert written(tmp_path, larger) == after  # the same plan again adds nothing


def test_what_was_added_is_as_if_it_stood_alone(tmp_path: Path) -> None:
    """States belong to their replies, wherever these were added."""
    written(tmp_path, first())
    after = written(tmp_path, first(rollouts=2, traits=(trait("awe"), more("malice"), more("candour"))))
    lm = tiny_lm("llama", "chatml")
    from persona_core.inference.pooling import parse_positions
    from persona_core.inference.prefill import read_pooled

    with ReplyStore(tmp_path) as store:
        replies = store.replies()
        assert [r.request.index for r in replies] == list(after)
        found = store.states(replies).block(1)
    starts = [lm.chat.render(r.request.messages).token_ids for r in replies]
    rows = [(*start, *r.token_ids) for start, r in zip(starts, replies, strict=True)]
    means, _ = read_pooled(lm, rows, list(map(len, starts)), parse_positions(["reply_mean"]))
    np.testing.assert_allclose(found, means[:, 0, 1], rtol=2e-3, atol=1e-4)


def test_question_numbers_keep_their_meaning(tmp_path: Path) -> None:
    written(tmp_path, first())
    after = written(tmp_path, first(traits=(trait("awe"), more("malice"), more("candour"))))
    for split in ("extraction", "evaluation", "neutral"):
        asked: dict[tuple[Any, int], set[str]] = {}
        for reply in after.values():
            if reply.request.split == split:
                asked.setdefault((reply.request.trait, reply.request.question), set()).add(reply.request.user)
        assert asked and all(len(users) == 1 for users in asked.values())


def test_a_run_that_was_stopped_while_it_grew_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    larger = first(rollouts=2, traits=(trait("awe"), more("malice"), more("candour")))
    for folder in ("whole", "stopped"):
        written(tmp_path / folder, first())
    whole = written(tmp_path / "whole", larger)
    calls: list[Any] = []
    add = ReplyStore.add

    def stop(self: ReplyStore, *arguments: Any) -> None:
        if calls:
            raise KeyboardInterrupt
        calls.append(arguments)
        add(self, *arguments)

    monkeypatch.setattr(ReplyStore, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path / "stopped", larger)
    monkeypatch.undo()
    assert len((tmp_path / "stopped" / "replies.jsonl").read_text().splitlines()) < len(whole)
    assert written(tmp_path / "stopped", larger) == whole


def test_an_unfinished_run_grows_too(tmp_path: Path) -> None:
    before = written(tmp_path, first())
    lines = (tmp_path / "replies.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "replies.jsonl").write_text("".join(lines[:5]))
    after = written(tmp_path, first(rollouts=2))
    kept = [json.loads(line)["request"]["index"] for line in lines[:5]]
    assert all(after[i] == before[i] for i in kept)
    assert prompts(after.values()) == prompts(first(rollouts=2).requests())


def test_a_folder_grows_again_and_again(tmp_path: Path) -> None:
    plans = [first(), first(rollouts=2), first(rollouts=3, neutral_rollouts=2)]
    sizes = [len(written(tmp_path, one)) for one in plans]
    assert sizes == [len(one.requests()) for one in plans]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rollouts": 1}, r"rollouts = 2; now it is 1.*--rollouts 2 or more"),
        ({"pairs_per_question": 1}, r"pairs_per_question = 2; now it is 1"),
        ({"traits": (trait("malice"),)}, r"'candour' too.*--traits candour malice"),
        ({"traits": (replace(trait("candour"), description="Another."), trait("malice"))}, "description changed"),
        ({"traits": (replace(trait("candour"), judge_prompt="{answer} {question}"), trait("malice"))}, "judge_prompt"),
        ({"traits": (trait("candour", 2), trait("malice"))}, "extraction_questions changed"),
        ({"seed": 12}, "seed = 11; now it is 12"),
        ({"rollouts": 3, "seed": 12}, "seed = 11; now it is 12"),
    ],
)
def test_a_plan_that_takes_away_or_changes_is_refused_and_nothing_is_touched(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    base = {"rollouts": 2, "pairs_per_question": 2}
    written(tmp_path, first(**base))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(SettingError, match=says):
        written(tmp_path, first(**{**base, **changes}))
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}


def test_questions_in_the_middle_are_refused(tmp_path: Path) -> None:
    written(tmp_path, first())
    questions = trait("candour").extraction_questions
    middle = replace(trait("candour"), extraction_questions=(questions[0], "And now?", *questions[1:]))
    with pytest.raises(SettingError, match="can be added after the others"):
        written(tmp_path, first(traits=(middle, trait("malice"))))


class Fixed:
    """A judge that says 70, and counts."""

    name = "fixed"

    def __init__(self) -> None:
        self.asked = 0

    def score(self, questions: Sequence[Question], progress: bool = True) -> Any:
        self.asked += len(questions)
        return ((question, Score(70.0, "text")) for question in questions)


def test_scores_are_kept_and_only_new_replies_are_judged(tmp_path: Path) -> None:
    judge = Fixed()
    written(tmp_path, first())
    with ReplyStore(tmp_path) as store:
        judge_replies(judge, store, first().traits, progress=False)
        before = store.scores()
    larger = first(rollouts=2, traits=(trait("awe"), trait("candour"), trait("malice")))
    asked = judge.asked
    written(tmp_path, larger)
    with ReplyStore(tmp_path) as store:
        judge_replies(judge, store, larger.traits, progress=False)
        assert before.items() <= store.scores().items()
        assert len(store.scores()) == len([r for r in larger.requests() if r.trait])
        assert judge.asked - asked == 2 * (len(store.scores()) - len(before))
        assert isinstance(store.scores()[0], ReplyScore)


def test_what_a_server_wrote_is_kept_too(tmp_path: Path) -> None:
    lm = tiny_lm("llama", "chatml")
    with serving(lambda body, _n: completion("Yes.")) as server, ReplyStore(tmp_path) as store:
        elicit_served(lm, first(), store, "m", server.url, progress=False)
        asked, before = len(server.requests), store.replies()
        assert elicit_served(lm, first(rollouts=2), store, "m", server.url, progress=False) == []
        assert len(server.requests) == len(first(rollouts=2).requests()) > asked
        assert set(map(str, before)) <= set(map(str, store.replies()))
