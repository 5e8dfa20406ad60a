"""The judge behind a chat endpoint: the real client against a local server that behaves well, badly, and not at all."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from persona_core.errors import PersonaError, ServerError, SettingError
from persona_core.judging.cache import CachedAnswer, JudgeCache
from persona_core.judging.judge import Question, Score
from persona_core.judging.openai import OpenAIJudge
from tests.support.local_server import listening
from tests.support.openai_server import Answer, completion, error, serving

KEY = "sk-secret-value"
ROOT = Path(__file__).resolve().parents[2]
NUMBERS = [[("85", math.log(0.6)), ("80", math.log(0.3)), ("The", math.log(0.1))]]


def questions(n: int) -> list[Question]:
    return [Question(f"{i}/evil", "evil", f"How evil is answer {i}?", "q", f"a{i}") for i in range(n)]


def judge(url: str, **kwargs: Any) -> OpenAIJudge:
    return OpenAIJudge("m", base_url=url, api_key=KEY, **{"timeout": 5.0, "max_retries": 2, **kwargs})


def ask(answer: Answer, n: int = 1, **kwargs: Any) -> list[Score]:
    with serving(lambda _body, _number: answer) as server:
        return [score for _, score in judge(server.url, **kwargs).score(questions(n), progress=False)]


def test_the_score_is_the_expectation_over_the_numbers() -> None:
    (score,) = ask(completion("85", NUMBERS))
    assert score.how == "logprobs" and score.value == pytest.approx((85 * 0.6 + 80 * 0.3) / 0.9)


def test_a_server_without_logprobs_is_read_by_the_number_in_its_text() -> None:
    assert ask(completion("Score: 70/100."))[0] == Score(70.0, "text")


def test_a_number_that_is_written_as_digits_is_not_read_as_its_first_digit() -> None:
    top = [[("8", math.log(0.9)), ("7", math.log(0.1))], [("5", math.log(0.8)), ("0", math.log(0.2))]]
    assert ask(completion("85", top))[0] == Score(85.0, "text")


def test_white_space_before_the_number_is_no_number() -> None:
    (score,) = ask(completion("\n85", [[("\n", -0.1)], *NUMBERS]))
    assert score.how == "logprobs" and score.value is not None and score.value > 80


@pytest.mark.parametrize(
    ("answer", "how"),
    [
        (completion("REFUSAL"), "refusal"),
        (completion(None, refusal="I cannot judge that."), "refusal"),
        (completion("I would rather say nothing about 100 of these."), "unreadable"),
        (completion("250"), "unreadable"),
    ],
)
def test_no_number_is_no_score_and_never_zero(answer: Answer, how: str) -> None:
    assert ask(answer)[0] == Score(None, how)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_failure_is_tried_again(status: int) -> None:
    with serving(lambda _b, n: error(status, "busy") if n == 1 else completion("40")) as server:
        scores = [s for _, s in judge(server.url).score(questions(1), progress=False)]
    assert scores == [Score(40.0, "text")] and len(server.requests) == 2


def test_a_question_that_always_fails_is_named_and_the_others_are_answered() -> None:
    def answer(body: dict[str, Any], _number: int) -> Answer:
        failing = "answer 2?" in body["messages"][0]["content"]
        return error(500, "broken") if failing else completion("10")

    with serving(answer) as server:
        asked = judge(server.url, max_retries=1)
        found = {q.key: s.value for q, s in asked.score(questions(4), progress=False)}
    assert found == {"0/evil": 10.0, "1/evil": 10.0, "3/evil": 10.0}
    assert list(asked.failed) == ["2/evil"] and "500" in asked.failed["2/evil"]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (error(401, f"bad key {KEY}"), "OPENAI_API_KEY"),
        (error(404, "no such model"), "no model 'm'"),
        ((200, b"<html>not a server of this kind"), "not a chat completion"),
    ],
)
def test_what_cannot_work_stops_at_once_with_the_remedy_and_without_the_key(
    answer: Answer, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "persona_core")
    with pytest.raises(ServerError) as raised:
        ask(answer, n=40, concurrency=2, max_retries=0)
    assert says in str(raised.value) and KEY not in str(raised.value) + caplog.text


def test_a_server_that_is_not_there_and_one_that_never_answers_are_named() -> None:
    with pytest.raises(ServerError, match="cannot be reached"):
        list(judge("http://127.0.0.1:9/v1", max_retries=0).score(questions(9), progress=False))
    with serving(lambda _b, _n: completion("1"), pause=2.0) as server:
        slow = judge(server.url, timeout=0.3, max_retries=0)
        with pytest.raises(ServerError, match="timed out"):
            list(slow.score(questions(9), progress=False))


@pytest.mark.parametrize("slow", ["headers", "body"])
def test_an_answer_that_drips_in_has_to_be_whole_within_the_timeout(slow: str) -> None:
    class Dripping(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.dumps(completion("85")[1]).encode()
            self.rfile.read(int(self.headers["Content-Length"]))
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
            with contextlib.suppress(OSError):  # the client has gone
                self.wfile.write(head + (b"X-Slow:" if slow == "headers" else b"\r\n"))
                for _ in range(20):
                    self.wfile.write(b" ")
                    time.sleep(0.1)
                self.wfile.write((b"1\r\n\r\n" if slow == "headers" else b"") + body)

        def log_message(self, *_: Any) -> None:
            pass

    with listening(Dripping) as address:
        asked = judge(f"{address}/v1", timeout=0.5, max_retries=0)
        assert not list(asked.score(questions(1), progress=False)) and "timed out" in asked.failed["0/evil"]
        asked = judge(f"{address}/v1", timeout=60.0, max_retries=0)
        assert [score.value for _, score in asked.score(questions(1), progress=False)] == [85.0]


def test_no_key_is_a_sentence_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ServerError, match="OPENAI_API_KEY"):
        list(OpenAIJudge("m").score(questions(1), progress=False))


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ("logprobs", "logprobs is not supported with this model"),
        ("temperature", "Unsupported value: 'temperature' does not support 0"),
        ("max_tokens", "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
    ],
)
def test_a_parameter_that_the_model_refuses_is_left_out_from_then_on(parameter: str, message: str) -> None:
    def answer(body: dict[str, Any], _number: int) -> Answer:
        return error(400, message) if parameter in body else completion("30")

    with serving(answer) as server:
        asked = judge(server.url, concurrency=1)
        assert [s.value for _, s in asked.score(questions(5), progress=False)] == [30.0] * 5
    assert len(server.requests) == 6 and parameter not in server.requests[-1]


def test_requests_are_under_way_at_once_up_to_the_limit() -> None:
    with serving(lambda _b, _n: completion("5"), pause=0.1) as server:
        list(judge(server.url, concurrency=6).score(questions(24), progress=False))
    assert 3 <= server.most_at_once <= 6


def test_the_same_question_is_paid_for_once(tmp_path: Path) -> None:
    with serving(lambda _b, _n: completion("5")) as server:
        cache = JudgeCache(tmp_path / "cache.jsonl")
        first = judge(server.url, cache=cache)
        twice = [*questions(3), *(Question(f"again{i}", q.trait, q.prompt, "", "") for i, q in enumerate(questions(3)))]
        assert len(list(first.score(twice, progress=False))) == 6 and len(server.requests) == 3
        again = judge(server.url, cache=JudgeCache(tmp_path / "cache.jsonl"))
        assert [s.value for _, s in again.score(questions(4), progress=False)] == [5.0] * 4
    assert len(server.requests) == 4 and again.bill.requests == 1 and again.bill.cached == 3


def test_a_refusal_was_paid_for_too_and_a_lost_connection_was_not(tmp_path: Path) -> None:
    cache = JudgeCache(tmp_path / "cache.jsonl")
    with serving(lambda _b, n: completion("REFUSAL") if n == 1 else error(500, "x")) as server:
        list(judge(server.url, cache=cache, concurrency=1, max_retries=0).score(questions(2), progress=False))
    assert len(JudgeCache(tmp_path / "cache.jsonl")) == 1


def test_the_estimate_covers_the_bill(tmp_path: Path) -> None:
    with serving(lambda _b, _n: completion("5")) as server:
        asked = judge(server.url, prices=(1.0, 2.0), cache=JudgeCache(tmp_path / "c.jsonl"))
        estimate = asked.estimate(questions(10))
        list(asked.score(questions(10), progress=False))
        assert estimate.requests == asked.bill.requests == 10 and estimate.money is not None
        assert asked.bill.money == pytest.approx((1000 * 1.0 + 20 * 2.0) / 1e6)  # what the server reported
        assert asked.estimate(questions(10)).requests == 0 and asked.estimate(questions(10)).cached == 10


def test_a_judge_works_inside_a_running_loop() -> None:
    import asyncio

    async def notebook(url: str) -> int:
        return len(list(judge(url).score(questions(3), progress=False)))

    with serving(lambda _b, _n: completion("5")) as server:
        assert asyncio.run(notebook(server.url)) == 3


def test_a_caller_that_stops_early_stops_the_requests() -> None:
    closed = threading.Event()

    def answer(_body: dict[str, Any], number: int) -> Answer:
        if number > 2:  # so that the caller stops first, however busy the machine is
            closed.wait(60)
        return completion("5")

    with serving(answer) as server:
        answers = judge(server.url, concurrency=2).score(questions(100), progress=False)
        next(answers)
        closer = threading.Timer(0.2, closed.set)
        closer.start()
        answers.close()  # type: ignore[attr-defined]
        closer.join()
        time.sleep(0.3)
        assert len(server.requests) <= 6  # the first two, two under way, and at most one more of each thread


@pytest.mark.slow
def test_nothing_is_billed_twice_after_a_kill(tmp_path: Path) -> None:
    """Killed in the middle; the second run asks for what did not arrive. Only what was in flight is requested again."""
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            from persona_core.judging.openai import OpenAIJudge
            from persona_core.judging.cache import CachedAnswer, JudgeCache
            from persona_core.judging.judge import Question
            asked = [Question(str(i), "evil", f"How evil is answer {i}?", "", "") for i in range(60)]
            judge = OpenAIJudge("m", base_url=sys.argv[1], api_key="k", concurrency=4, cache=JudgeCache(sys.argv[2]))
            print(len(list(judge.score(asked, progress=False))))
            """
        )
    )
    cache = tmp_path / "cache.jsonl"
    with serving(lambda _b, _n: completion("5"), pause=0.05) as server:
        command = [sys.executable, str(script), server.url, str(cache)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        first = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
        while len(server.requests) < 20:
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)
        first.wait()
        time.sleep(0.2)
        with cache.open("ab") as file:
            file.write(b'{"key": "cut off')  # as a kill in the middle of a write leaves it
        second = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert second.stdout.strip() == "60", second.stderr
        assert 60 <= len(server.requests) <= 64
    assert len(JudgeCache(cache)) == 60


def test_an_interrupt_ends_the_run_at_once_and_keeps_what_arrived(tmp_path: Path) -> None:
    """Ctrl-C while every request under way is slow: the process does not wait for them."""
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(
            """
            import signal, sys
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits it as ignored
            from persona_core.judging.cache import JudgeCache
            from persona_core.judging.judge import Question
            from persona_core.judging.openai import OpenAIJudge
            asked = [Question(str(i), "evil", f"How evil is answer {i}?", "", "") for i in range(60)]
            judge = OpenAIJudge("m", base_url=sys.argv[1], api_key="k", concurrency=4, cache=JudgeCache(sys.argv[2]))
            list(judge.score(asked, progress=False))
            """
        )
    )
    cache = tmp_path / "cache.jsonl"
    released = threading.Event()

    def answer(_body: dict[str, Any], number: int) -> Answer:
        if number > 8:
            released.wait(200)
        return completion("5")

    with serving(answer) as server:
        command = [sys.executable, str(script), server.url, str(cache)]
        process = subprocess.Popen(
            command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
        )
        while len(server.requests) < 12 or not cache.is_file() or len(cache.read_text().splitlines()) < 8:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        try:
            _, said = process.communicate(timeout=100)  # the slow requests take twice as long
        finally:
            released.set()
            process.kill()
    assert process.returncode not in (0, None) and "KeyboardInterrupt" in said
    assert len(JudgeCache(cache)) == 8


def test_a_question_that_is_always_refused_is_missing_in_every_run_and_stops_none(tmp_path: Path) -> None:
    def answer(body: dict[str, Any], _number: int) -> Answer:
        return error(400, "too long") if "answer 1?" in body["messages"][0]["content"] else completion("10")

    with serving(answer) as server:
        for run in range(3):
            asked = judge(server.url, concurrency=1, cache=JudgeCache(tmp_path / "cache.jsonl"))
            assert len(list(asked.score(questions(4), progress=False))) == 3
            assert list(asked.failed) == ["1/evil"] and len(server.requests) == 4 + run


def test_a_server_that_goes_down_later_ends_the_run_and_what_arrived_is_kept(tmp_path: Path) -> None:
    cache = JudgeCache(tmp_path / "cache.jsonl")
    with serving(lambda _b, n: completion("10") if n <= 5 else error(500, "down")) as server:
        with pytest.raises(ServerError, match="500"):
            list(judge(server.url, cache=cache, concurrency=2, max_retries=0).score(questions(400), progress=False))
        assert len(server.requests) < 60
    assert len(JudgeCache(tmp_path / "cache.jsonl")) == 5


def test_a_key_that_is_withdrawn_ends_the_run_at_once() -> None:
    with serving(lambda _b, n: completion("10") if n <= 5 else error(401, "gone")) as server:
        with pytest.raises(ServerError, match="OPENAI_API_KEY"):
            list(judge(server.url, concurrency=1).score(questions(40), progress=False))
        assert len(server.requests) == 6


def finished(answer: Answer, reason: str) -> Answer:
    answer[1]["choices"][0]["finish_reason"] = reason
    return answer


CUT_OFF = [
    pytest.param(lambda: finished(completion(""), "length"), id="hidden thought"),
    pytest.param(lambda: finished(completion("<think>\nOkay, the user"), "length"), id="thought in the open"),
    pytest.param(lambda: completion("<think>\nOkay, the user"), id="thought that stops"),
    pytest.param(lambda: finished(completion("Okay, I should rate this"), "length"), id="thought without a marker"),
    pytest.param(lambda: finished(completion("**Score: 8"), "length"), id="digits cut off"),
]


@pytest.mark.parametrize("cut_off", CUT_OFF)
def test_an_answer_that_was_cut_off_is_asked_again_with_room_to_think(cut_off: Callable[[], Answer]) -> None:
    def answer(body: dict[str, Any], _number: int) -> Answer:
        return cut_off() if body["max_tokens"] < 500 else completion("<think>Quite evil.</think>\n\n85")

    with serving(answer) as server:
        asked = judge(server.url, concurrency=1)
        assert [s for _, s in asked.score(questions(3), progress=False)] == [Score(85.0, "text")] * 3
    assert len(server.requests) == 4  # one learns it, the others have room from the start


@pytest.mark.parametrize("cut_off", CUT_OFF)
def test_a_judge_that_never_ends_its_thought_has_not_answered(cut_off: Callable[[], Answer], tmp_path: Path) -> None:
    with serving(lambda _b, n: cut_off() if n < 3 else completion("10")) as server:
        asked = judge(server.url, cache=JudgeCache(tmp_path / "cache.jsonl"))
        assert not list(asked.score(questions(1), progress=False))
        assert "reason" in asked.failed["0/evil"] and asked.bill.completion_tokens == 4
        assert not len(JudgeCache(tmp_path / "cache.jsonl"))
        assert [s.value for _, s in asked.score(questions(1), progress=False)] == [10.0] and not asked.failed


def test_the_expectation_is_read_after_a_thought() -> None:
    thought = [[("<think>", 0.0)], [("10", 0.0), ("20", -1.0)], [("</think>", 0.0)], [("\n", 0.0)]]
    (score,) = ask(completion("<think>10</think>\n85", [*thought, *NUMBERS]))
    assert score.how == "logprobs" and score.value == pytest.approx((85 * 0.6 + 80 * 0.3) / 0.9)


@pytest.mark.parametrize(
    "text",
    [
        "<think>Maybe 10.</think>\n85",
        "Maybe 10.\n</think>\n\n85",  # the prompt has opened the thought
        "[THINK]Maybe 10.[/THINK]85",
        "<seed:think>Maybe 10.</seed:think>85",
        "<|channel|>analysis<|message|>Maybe 10.<|end|><|start|>assistant<|channel|>final<|message|>85",
        "analysisMaybe 10.assistantfinal85",
    ],
)
def test_a_thought_that_is_shown_is_not_the_answer(text: str) -> None:
    assert ask(completion(text)) == [Score(85.0, "text")]


def without_choice(**changes: Any) -> Answer:
    status, body = completion("85")
    return status, {**body, **changes}


NOT_ANSWERS = [
    pytest.param(completion(None), id="no text"),
    pytest.param(completion(""), id="an empty text"),
    pytest.param(completion(" \n"), id="white space"),
    pytest.param(without_choice(choices=[]), id="no choice"),
    pytest.param(without_choice(choices=None), id="null choices"),
    pytest.param(without_choice(choices=[{}]), id="an empty choice"),
    pytest.param(without_choice(choices=[{"index": 0, "finish_reason": "stop", "message": None}]), id="no message"),
    pytest.param(finished(completion("85"), "error"), id="a choice that failed"),
    pytest.param((200, {"error": {"message": "Provider returned error", "code": 502}}), id="an error"),
    pytest.param((200, {"error": {"message": "busy", "code": 429}, "choices": []}), id="an error beside no choices"),
    pytest.param((200, {"error": "model is being loaded"}), id="an error in words"),
    pytest.param((200, {"object": "error", "message": "broken", "code": 50001}), id="an error object"),
]


@pytest.mark.parametrize("nothing", NOT_ANSWERS)
def test_what_is_no_answer_is_asked_again_and_never_kept(nothing: Answer, tmp_path: Path) -> None:
    with serving(lambda _b, n: nothing if n == 1 else completion("40")) as server:
        scores = [s for _, s in judge(server.url).score(questions(1), progress=False)]
    assert scores == [Score(40.0, "text")]

    with serving(lambda _b, _n: nothing) as server:
        asked = judge(server.url, max_retries=0, cache=JudgeCache(tmp_path / "cache.jsonl"))
        assert not list(asked.score(questions(1), progress=False))
        assert list(asked.failed) == ["0/evil"] and not len(JudgeCache(tmp_path / "cache.jsonl"))


PAGE = (
    f"<!DOCTYPE html><title>Sign in</title><style>p {{}}</style><p>Your key {KEY} has no &quot;access&quot;" + "." * 999
)


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (PAGE.encode(), """ 'Sign in Your key [key] has no "access"..."""),
        ({"detail": "model is loading"}, "model is loading"),
        ({}, "'{}'"),
        ([1], "'[1]'"),
        (b"null", "'null'"),
        (b"\x1b[31mhi", r"'\x1b[31mhi'"),
        (b"", "''"),
        (b"[" * 100_000, "'[[["),
    ],
)
def test_what_came_in_place_of_a_completion_is_quoted(sent: Any, says: str) -> None:
    with serving(lambda _b, _n: (200, sent)) as server:
        asked = judge(server.url, max_retries=0)
        assert not list(asked.score(questions(1), progress=False))
    reason = asked.failed["0/evil"]
    assert "not a chat completion: " in reason and says in reason
    assert len(reason) < 500 and KEY not in reason and "<" not in reason


def test_an_error_inside_status_200_is_explained_by_the_status_that_it_names() -> None:
    with pytest.raises(ServerError, match="OPENAI_API_KEY"):
        ask((200, {"error": {"message": "no auth", "code": 401}}), n=40, concurrency=1)
    with pytest.raises(ServerError, match=r"402.*credits"):
        ask((200, {"error": {"message": "insufficient credits", "code": 402}}), n=40, concurrency=1)


@pytest.mark.parametrize("status", [400, 403, 404, 422, 500, 501])
def test_logprobs_are_left_out_whatever_the_status_that_refuses_them(status: int) -> None:
    refusal = error(status, "You are not allowed to request logprobs from this model")
    with serving(lambda body, _n: refusal if "logprobs" in body else completion("40")) as server:
        asked = judge(server.url, concurrency=1, max_retries=0)
        assert [s.value for _, s in asked.score(questions(3), progress=False)] == [40.0] * 3
    assert len(server.requests) == 4


def test_what_a_key_may_not_use_is_no_bad_parameter() -> None:
    with pytest.raises(ServerError, match=r"403.*this project"):
        ask(error(403, "this project has no access to the model"), n=40, concurrency=1)


def as_gpt_5_mini(body: dict[str, Any], _number: int) -> Answer:
    """gpt-5-mini: no log probabilities, one temperature, and hidden reasoning that counts as part of the answer."""
    if body.get("logprobs") or "top_logprobs" in body:
        return error(403, "You are not allowed to request logprobs from this model")
    if "max_tokens" in body:
        return error(
            400,
            "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
        )
    if body.get("temperature", 1) != 1:
        return error(
            400,
            "Unsupported value: 'temperature' does not support 0. Only the default (1) value is supported.",
        )
    return completion("85") if body.get("max_completion_tokens", 1 << 20) > 300 else finished(completion(""), "length")


def test_gpt_5_mini_judges() -> None:
    with serving(as_gpt_5_mini) as server:
        asked = OpenAIJudge("gpt-5-mini", base_url=server.url, api_key=KEY, concurrency=1, max_retries=0)
        assert [s for _, s in asked.score(questions(5), progress=False)] == [Score(85.0, "text")] * 5
        assert not asked.failed and len(server.requests) == 8
        assert asked.estimate([*questions(9)[5:]]).completion_tokens >= 4 * 1024  # its hidden reasoning is billed


def test_a_model_that_counts_its_reasoning_has_room_for_it() -> None:
    def answer(body: dict[str, Any], _number: int) -> Answer:
        return error(400, "use max_completion_tokens") if "max_tokens" in body else completion("30")

    with serving(answer) as server:
        list(judge(server.url).score(questions(1), progress=False))
    assert server.requests[-1]["max_completion_tokens"] >= 1024


def test_an_address_with_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(ServerError, match="user name or password") as raised:
        judge("http://user:hidden@127.0.0.1:9/v1")
    assert "hidden" not in str(raised.value)


def test_two_servers_from_the_environment_are_two_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    for port in (1, 2):
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{port}/v1")
        names.append(OpenAIJudge("m").name)
    assert names == ["openai:m@http://127.0.0.1:1/v1", "openai:m@http://127.0.0.1:2/v1"]


def test_a_server_that_quotes_the_key_does_not_bring_it_into_the_reasons() -> None:
    quoted = error(400, f"Authorization: Bearer {KEY} is not for this model")
    with serving(lambda _body, number: completion("85") if number == 1 else quoted) as server:
        one = judge(server.url, concurrency=1)
        list(one.score(questions(2), progress=False))
    assert one.failed == {
        "1/evil": f"{server.url} refused a request to 'm' (status 400): Authorization: Bearer [key] is not for this "
        "model"
    }


@pytest.mark.parametrize("timeout", [math.nan, math.inf, -1.0, 0.0, True])
def test_a_timeout_that_is_no_time_is_refused_before_anything_is_asked(timeout: float) -> None:
    with serving(lambda _body, _number: completion("85")) as server, pytest.raises(SettingError, match="timeout="):
        list(judge(server.url, timeout=timeout).score(questions(1), progress=False))
    assert not server.requests


@pytest.mark.parametrize("key", ["sk-secret\n", "sk secret", "sk-s\u00e9cret"])
def test_a_key_that_no_header_can_hold_is_named_and_not_repeated(key: str) -> None:
    with serving(lambda _body, _number: completion("85")) as server, pytest.raises(PersonaError) as caught:
        list(OpenAIJudge("m", base_url=server.url, api_key=key).score(questions(1), progress=False))
    assert "OPENAI_API_KEY" in str(caught.value) and key.strip() not in str(caught.value)


def test_a_log_probability_that_is_no_number_leaves_the_number_in_the_text() -> None:
    assert ask(completion("85", [[("85", math.nan)]]))[0] == Score(85.0, "text")


def changed(path: str, value: Any) -> Answer:
    """A complete answer "85", of probability 1, in which the value at `path` is another."""
    answer = completion("85", [[("85", 0.0)]])
    *parents, last = (int(key) if key.isdigit() else key for key in path.split("/"))
    inner = answer[1]
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return answer


TOKEN = "choices/0/logprobs/content/0"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("choices/0/logprobs", [1, 2]),
        ("choices/0/logprobs/content", {"a": 1}),
        ("choices/0/logprobs/content", [None, 1]),
        (f"{TOKEN}/token", 85),
        (f"{TOKEN}/top_logprobs", None),
        (f"{TOKEN}/top_logprobs", {"20": -0.1}),
        (f"{TOKEN}/top_logprobs/0/token", None),
        *((f"{TOKEN}/top_logprobs/0/logprob", value) for value in (5.0, 1e6, "high", None, -(10**400))),
        (f"{TOKEN}/top_logprobs", [{"token": t, "logprob": 0.0, "bytes": None} for t in ("85", "20")]),
    ],
)
def test_log_probabilities_that_cannot_be_read_leave_the_number_in_the_text(path: str, value: Any) -> None:
    assert ask(completion("85", [[("85", 0.0)]]))[0] == Score(85.0, "logprobs")
    assert ask(changed(path, value), max_retries=0) == [Score(85.0, "text")]


@pytest.mark.parametrize("used", ["many", None, [1], -3, math.nan])
def test_a_use_of_tokens_that_is_no_number_is_not_billed(used: Any) -> None:
    with serving(lambda _b, _n: changed("usage/prompt_tokens", used)) as server:
        asked = judge(server.url, max_retries=0)
        assert [score.value for _, score in asked.score(questions(1), progress=False)] == [85.0]
    assert asked.bill.prompt_tokens == 0 and asked.bill.completion_tokens == 2


def test_answers_in_flight_when_the_run_gives_up_are_handed_out() -> None:
    slow, refused = threading.Event(), threading.Event()

    def answer(body: dict[str, Any], _number: int) -> Answer:
        if "answer 0" in body["messages"][0]["content"]:
            slow.set()
            refused.wait(10)
            time.sleep(0.3)
            return completion("85")
        slow.wait(10)
        refused.set()
        return error(401, "no such key")

    found = []
    with serving(answer) as server, pytest.raises(ServerError, match="refused the API key"):
        for question, _ in judge(server.url, concurrency=2).score(questions(2), progress=False):
            found.append(question.key)
    assert found == ["0/evil"]


def test_a_full_disk_ends_the_run_before_more_answers_are_paid_for() -> None:
    class FullDisk(JudgeCache):
        def put(self, answer: CachedAnswer) -> None:
            raise OSError(28, "No space left on device")

    with (
        serving(lambda _body, _number: completion("85")) as server,
        pytest.raises(ServerError, match=r"could not be stored: .*No space left on device"),
    ):
        list(judge(server.url, concurrency=1, cache=FullDisk(None)).score(questions(5), progress=False))
    assert len(server.requests) == 1
