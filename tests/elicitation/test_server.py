"""Replies from a server that speaks the chat-completions protocol, read by the local model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from persona_core.elicitation.server import SERVED_FILE, elicit_served
from persona_core.elicitation.store import ReplyStore
from persona_core.errors import ServerError
from persona_core.inference.sampling import Sampling
from persona_core.models.loading import wrap_model
from tests.elicitation.test_elicit import plan
from tests.support import oracle
from tests.support.chat_templates import tokenizer_for
from tests.support.openai_server import Answer, completion, error, serving
from tests.support.tiny import tiny_lm


def answer(body: dict[str, Any], _number: int) -> Answer:
    return completion(f"You ask: {body['messages'][-1]['content'][:20]}")


def run(store: ReplyStore, url: str, **changes: Any) -> list[Any]:
    lm = tiny_lm("llama", "chatml")
    settings = {"api_key": "k", "timeout": 5.0, "max_retries": 1, "progress": False, **changes}
    return elicit_served(lm, plan(), store, "m", url, **settings)


def test_the_server_gets_the_requests_of_the_plan_and_the_local_model_reads_the_answers(tmp_path: Path) -> None:
    lm = tiny_lm("llama", "chatml")
    with serving(answer) as server, ReplyStore(tmp_path) as store:
        assert run(store, server.url) == []
        replies = store.replies()
        states = list(store.states(replies))
    assert len(replies) == len(server.requests) == len(plan().requests())
    request = server.requests[0]
    assert (request["max_tokens"], request["temperature"], request["model"]) == (8, 1.0, "m")
    assert {r["seed"] for r in server.requests} == {11 + r.request.index for r in replies}
    for reply, state in zip(replies[::3], states[::3], strict=True):
        assert reply.text == f"You ask: {reply.request.user[:20]}" and reply.writer == "m"
        prompt = lm.chat.render(reply.request.messages).token_ids
        full = oracle.states(lm.model, list(lm.blocks.modules), [*prompt, *reply.token_ids])
        wanted = full[:, len(prompt) :].mean(1)
        assert oracle.relative_error(state, wanted) < 1e-4


def written_ids(lm: Any, text: str) -> list[int]:
    """Ids that no tokenizer makes of the text: a character each."""
    return [i for char in text for i in lm.tokenizer.encode(char, add_special_tokens=False)] + [min(lm.eos_ids)]


def test_the_ids_that_a_server_wrote_are_the_ids_that_are_read(tmp_path: Path) -> None:
    lm = tiny_lm("llama", "chatml")

    def with_ids(body: dict[str, Any], number: int) -> Answer:
        assert body["return_token_ids"] is True
        status, found = answer(body, number)
        found["prompt_token_ids"] = list(lm.chat.render(body["messages"]).token_ids)
        found["choices"][0]["token_ids"] = written_ids(lm, found["choices"][0]["message"]["content"])
        return status, found

    with serving(with_ids) as server, ReplyStore(tmp_path) as store:
        assert run(store, server.url) == []
        replies = store.replies()
        states = list(store.states(replies))
    for reply, state in zip(replies[::3], states[::3], strict=True):
        assert list(reply.token_ids) == written_ids(lm, reply.text)
        prompt = lm.chat.render(reply.request.messages).token_ids
        full = oracle.states(lm.model, list(lm.blocks.modules), [*prompt, *reply.token_ids])
        answered = full[:, len(prompt) : len(prompt) + len(reply.token_ids) - 1].mean(1)  # the end of turn is no answer
        assert oracle.relative_error(state, answered) < 1e-4


def test_a_server_that_knows_no_ids_is_asked_for_them_once(tmp_path: Path) -> None:
    def old(body: dict[str, Any], number: int) -> Answer:
        if "return_token_ids" in body:
            return error(400, "Unrecognized request argument supplied: return_token_ids")
        return answer(body, number)

    with serving(old) as server, ReplyStore(tmp_path) as store:
        assert run(store, server.url, concurrency=1) == []
        assert len(store.replies()) == len(plan().requests())
    assert sum("return_token_ids" in request for request in server.requests) == 1


@pytest.mark.parametrize("broken", ["prompt", "tokenizer", "vocabulary"])
def test_a_server_with_another_template_or_tokenizer_is_found_out(tmp_path: Path, broken: str) -> None:
    lm = tiny_lm("llama", "chatml")

    def other(body: dict[str, Any], number: int) -> Answer:
        status, found = answer(body, number)
        found["prompt_token_ids"] = list(lm.chat.render(body["messages"]).token_ids)
        ids = written_ids(lm, found["choices"][0]["message"]["content"])
        if broken == "prompt":
            found["prompt_token_ids"].insert(3, 1)
        found["choices"][0]["token_ids"] = {"tokenizer": ids[::-1], "vocabulary": [*ids, 10**6]}.get(broken, ids)
        return status, found

    says = {"prompt": "differ from token 3 on", "tokenizer": "another tokenizer", "vocabulary": "1000000"}[broken]
    with serving(other) as server, ReplyStore(tmp_path) as store:
        try:
            reasons = [why for _, why in run(store, server.url)]
        except ServerError as error:
            reasons = [str(error)]
        assert reasons and all(says in why for why in reasons)
        assert store.replies() == []


def test_a_server_that_thinks_gives_thought_and_answer_apart(tmp_path: Path) -> None:
    """The thought is read, and is in neither the judged text nor the mean of the reply."""
    tokenizer = tokenizer_for("opens-thought")
    tokenizer.chat_template += "{% if depth %}{% endif %}"
    lm = wrap_model(tiny_lm("llama", "opens-thought").model, tokenizer, template_kwargs={"depth": 2})

    def thinking(_body: dict[str, Any], number: int) -> Answer:
        if number == 1:  # as a server without a reasoning parser gives it
            return completion("Hm, hm.\n</think>\n\nYes, do it.")
        if number == 2:  # cut off inside the thought
            return completion("Hm, hm, hm")
        return completion("Yes, do it.", reasoning_content="Hm, hm.")

    with serving(thinking) as server, ReplyStore(tmp_path) as store:
        failed = elicit_served(
            lm, plan(), store, "m", server.url, api_key="k", timeout=5.0, max_retries=1, progress=False, concurrency=1
        )
        replies = store.replies()
        states = list(store.states(replies))
    body = server.requests[0]
    assert body["chat_template_kwargs"] == {"depth": 2} and body["max_tokens"] > 8 + 1024
    assert failed == [] and len(replies) == len(plan().requests())
    assert len(server.requests) == len(replies) + 1  # what was cut off is requested again
    for reply, state in zip(replies[:3], states[:3], strict=True):
        assert reply.text == "Yes, do it."
        assert lm.tokenizer.decode(list(reply.answer_ids)) == "Yes, do it."
        prompt = lm.chat.render(reply.request.messages).token_ids
        full = oracle.states(lm.model, list(lm.blocks.modules), [*prompt, *reply.token_ids])
        start = len(prompt) + reply.answer_start
        assert reply.answer_start > 5 and oracle.relative_error(state, full[:, start:].mean(1)) < 1e-4


@pytest.mark.parametrize("where", ["a field", "the text", "nowhere"])
def test_a_reply_that_is_cut_off_in_its_thought_is_requested_again_with_more_room(tmp_path: Path, where: str) -> None:
    """Servers put an unfinished thought beside the text, into it, or hide it; none of these is an empty reply."""
    lm = wrap_model(tiny_lm("llama", "opens-thought").model, tokenizer_for("opens-thought"))
    cut: dict[str, tuple[Any, Any]] = {
        "a field": (None, {"reasoning_content": "Hm, hm"}),
        "the text": ("Hm, hm", {}),
        "nowhere": ("", {}),
    }

    def thinking(body: dict[str, Any], _number: int) -> Answer:
        if body["max_tokens"] > 2000 and "candour 1?" not in body["messages"][-1]["content"]:
            return completion("Yes, do it.", reasoning_content="Hm, hm.")
        text, message = cut[where]
        status, answered = completion(text, **message)
        answered["choices"][0]["finish_reason"] = "length"
        return status, answered

    settings: dict[str, Any] = {"api_key": "k", "timeout": 5.0, "max_retries": 1, "progress": False}
    with serving(thinking) as server, ReplyStore(tmp_path) as store:
        failed = elicit_served(lm, plan(), store, "m", server.url, **settings)
        assert {reply.text for reply in store.replies()} == {"Yes, do it."}
        assert {request.user for request, _ in failed} == {"What about candour 1?"}
        assert all("cut off in its thought" in why and "--max-thinking-tokens" in why for _, why in failed)
        n = len(store.replies()) + len(failed)
        assert n == len(plan().requests()) and len(server.requests) == 2 * n
    # Where the limit was set, it is kept; a run in which nothing else arrives ends early.
    short = plan(sampling=Sampling(max_new_tokens=8, temperature=1.0, max_thinking_tokens=16))
    with serving(thinking) as server, ReplyStore(tmp_path / "short") as store:
        with pytest.raises(ServerError, match="cut off in its thought, after 88 tokens"):
            elicit_served(lm, short, store, "m", server.url, **settings)
        assert {request["max_tokens"] for request in server.requests} == {88} and len(server.requests) < n


@pytest.mark.parametrize("reason", ["stop", None])
def test_an_open_thought_is_never_judged_whatever_the_server_says_of_its_end(
    tmp_path: Path, reason: str | None
) -> None:
    lm = wrap_model(tiny_lm("llama", "empty-thought").model, tokenizer_for("empty-thought"))

    def thinking(body: dict[str, Any], _number: int) -> Answer:
        cut = "candour 1?" in body["messages"][-1]["content"]
        status, answered = completion("<think>\nThe user asks whether" if cut else "Yes, do it.")
        answered["choices"][0]["finish_reason"] = reason
        return status, answered

    with serving(thinking) as server, ReplyStore(tmp_path) as store:
        failed = elicit_served(
            lm, plan(), store, "m", server.url, api_key="k", timeout=5.0, max_retries=1, progress=False
        )
        assert {reply.text for reply in store.replies()} == {"Yes, do it."}
    assert {request.user for request, _ in failed} == {"What about candour 1?"}
    assert all("cut off in its thought" in why for _, why in failed)


def test_a_closing_mark_in_an_answer_cuts_nothing_off(tmp_path: Path) -> None:
    """The judged text is the one that is pooled."""
    lm = wrap_model(tiny_lm("llama", "brackets").model, tokenizer_for("brackets"))
    texts = ["Write [/THINK] to end.", "[THINK]Hm.[/THINK] Write [/THINK] to end."]
    with serving(lambda _b, n: completion(texts[n % 2])) as server, ReplyStore(tmp_path) as store:
        run_with: dict[str, Any] = {"api_key": "k", "timeout": 5.0, "max_retries": 1, "progress": False}
        assert elicit_served(lm, plan(), store, "m", server.url, **run_with) == []
        replies = store.replies()
    assert {reply.text for reply in replies} == {"Write [/THINK] to end."}
    assert {lm.tokenizer.decode(list(reply.answer_ids)) for reply in replies} == {"Write [/THINK] to end."}


def test_the_answer_of_a_base_model_has_its_line_breaks_and_ends_at_the_next_name(tmp_path: Path) -> None:
    lm = tiny_lm("llama", "none")
    texts = ["- one\n- two\n\n- three", "- one\n- two\n\n- three\n\nUser: And?"]
    with serving(lambda _b, n: completion(texts[n % 2])) as server, ReplyStore(tmp_path) as store:
        run_with: dict[str, Any] = {"api_key": "k", "timeout": 5.0, "max_retries": 1, "progress": False}
        assert elicit_served(lm, plan(), store, "m", server.url, **run_with) == []
        replies = store.replies()
    assert {reply.text for reply in replies} == {texts[0]}
    for reply in replies:
        assert lm.tokenizer.decode(list(reply.answer_ids)).strip().startswith(texts[0])


def test_what_arrived_is_never_requested_again(tmp_path: Path) -> None:
    def half(body: dict[str, Any], number: int) -> Answer:
        return answer(body, number) if number <= 6 else error(500, "down")

    with serving(half) as server, ReplyStore(tmp_path) as store:
        failed = run(store, server.url, concurrency=1, max_retries=0)
        assert len(failed) == len(plan().requests()) - 6 and "500" in failed[0][1]
        address = server.url
    plan_file = tmp_path / "plan.json"
    kept = (tmp_path / SERVED_FILE).read_text().splitlines()
    assert len(kept) == 6
    with (tmp_path / SERVED_FILE).open("a") as file:
        file.write('{"index": 3, "te')  # cut off by a kill
    with serving(answer) as server, ReplyStore(tmp_path) as store:
        record = json.loads(plan_file.read_text())
        assert record["served"]["base_url"] == address
        record["served"]["base_url"] = server.url  # the same server at another port of this test
        plan_file.write_text(json.dumps(record))
        assert run(store, server.url) == [] and len(server.requests) == len(plan().requests()) - 6
        assert len(store.replies()) == len(plan().requests())


@pytest.mark.parametrize("content", [None, ""])
def test_an_empty_answer_is_told_from_none(tmp_path: Path, content: str | None) -> None:
    with serving(lambda b, n: completion(content) if n == 2 else answer(b, n)) as server, ReplyStore(tmp_path) as store:
        failed = run(store, server.url, concurrency=1)
        if content is None:
            assert [why for _, why in failed] == ["The server's answer has no text."]
        else:
            (empty,) = [r for r in store.replies() if not r.text]
            assert failed == [] and empty.n_tokens == 0
            assert np.isnan(next(iter(store.states([empty])))).all()


def test_nothing_works_is_one_error_with_the_remedy(tmp_path: Path) -> None:
    with ReplyStore(tmp_path) as store, pytest.raises(ServerError, match="cannot be reached"):
        run(store, "http://127.0.0.1:9/v1", max_retries=0)
    with serving(lambda _b, _n: error(401, "no")) as server, ReplyStore(tmp_path / "b") as store:
        with pytest.raises(ServerError, match="OPENAI_API_KEY"):
            run(store, server.url)
        assert len(server.requests) <= 16


def test_the_judges_key_is_never_sent_to_the_server_that_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "of-the-judge")
    monkeypatch.delenv("SERVED_API_KEY", raising=False)
    with serving(answer) as server, ReplyStore(tmp_path / "a") as store:
        assert run(store, server.url, api_key=None) == []
        assert set(server.keys) == {"Bearer none"}
    monkeypatch.setenv("SERVED_API_KEY", "of-the-writer")
    with serving(answer) as server, ReplyStore(tmp_path / "b") as store:
        run(store, server.url, api_key=None)
        assert set(server.keys) == {"Bearer of-the-writer"}


def test_an_address_with_a_password_reaches_no_file(tmp_path: Path) -> None:
    with ReplyStore(tmp_path) as store, pytest.raises(ServerError, match="user name or password"):
        run(store, "http://user:hidden@127.0.0.1:9/v1")
    assert not any(b"hidden" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_prompt_that_the_server_always_refuses_is_missing_in_every_run_and_stops_none(tmp_path: Path) -> None:
    def picky(body: dict[str, Any], number: int) -> Answer:
        refused = "candour 1?" in body["messages"][-1]["content"]
        return error(400, "too long") if refused else answer(body, number)

    with serving(picky) as server, ReplyStore(tmp_path) as store:
        first = run(store, server.url)
        assert {r.user for r, _ in first} == {"What about candour 1?"}
        assert len(run(store, server.url)) == len(first) == 3  # positive, negative and neutral
