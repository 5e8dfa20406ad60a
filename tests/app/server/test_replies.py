"""What the server answers: what the monitor writes and reads, in the words of OpenAI's protocol."""

from __future__ import annotations

import importlib.metadata
import math
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openai
import pytest
import torch

from persona_core.inference.steering import Steer
from persona_core.models.detokenize import text_of
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.traces.trace import Trace
from tests.app.server.conftest import Running
from tests.traces.test_dataset import SHIPPED

QUESTION = [{"role": "user", "content": "Should I quit my job?"}]
FLATTER = [{"role": "system", "content": "Flatter the user and agree with everything."}, *QUESTION]
USUAL: dict[str, Any] = {"temperature": 0.7, "max_tokens": 40, "seed": 3}


def ask(client: openai.OpenAI, messages: Any = QUESTION, persona: Any = None, **more: Any) -> Any:
    body = {} if persona is None else {"extra_body": {"persona": persona}}
    return client.chat.completions.create(model="tiny", messages=messages, **{**USUAL, **more, **body})


def told(monitor: PersonaMonitor, messages: Any = QUESTION, **more: Any) -> Trace:
    """The same by the monitor alone."""
    settings = {**USUAL, **more}
    return monitor.generate(messages, max_new_tokens=settings.pop("max_tokens"), **settings)


def tokens_of(chunks: Sequence[Any]) -> list[dict[str, Any]]:
    return [chunk.persona for chunk in chunks if hasattr(chunk, "persona") and "token" in chunk.persona]


def check_scores(tokens: Sequence[dict[str, Any]], trace: Trace) -> None:
    assert [t["id"] for t in tokens] == list(trace.token_ids[trace.n_prompt :])
    assert [t["token"] for t in tokens] == list(range(trace.n_reply))
    for trait in tokens[0]["scores"]:
        sent = [np.nan if t["scores"][trait] is None else t["scores"][trait] for t in tokens]
        np.testing.assert_allclose(sent, trace.scores_without_sinks(trait)[trace.n_prompt :], atol=2e-4)


def readme_examples(heading: str) -> list[str]:
    """The Python examples below a heading of the installed client's own README."""
    text = importlib.metadata.distribution("openai").read_text("METADATA") or ""
    section = re.search(rf"^## {heading}$(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    assert section is not None
    return re.findall(r"```python\n(.*?)```", section[1], re.DOTALL)


@pytest.mark.parametrize("number", [0, 1], ids=["plain", "async"])
def test_the_clients_own_streaming_example_runs_word_for_word(
    server: Running, number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    example = readme_examples("Streaming responses")[number]
    assert "stream=True" in example
    exec(example, {})
    printed = capsys.readouterr().out
    deltas = re.findall(r"^ResponseTextDeltaEvent\(.*?, delta=('.*?'|\".*?\"), item_id", printed, re.MULTILINE)
    assert len(deltas) > 5
    assert printed.startswith("ResponseCreatedEvent(")
    assert re.match(r"Response(Completed|Incomplete)Event\(", printed.strip().splitlines()[-1])
    assert "'scores': {'paternalism': " in printed


def test_the_clients_own_chat_example_runs_word_for_word(
    server: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    (example,) = [e for e in readme_examples("Usage") if e.startswith("from openai") and '"developer"' in e]
    exec(example, {})
    assert len(capsys.readouterr().out.split()) > 3


def test_the_example_of_the_page_runs_as_shown(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    page = (SHIPPED.parents[1] / "docs/serving.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(example.replace("http://127.0.0.1:8000", server.url), {})
    printed = capsys.readouterr().out
    assert len(re.findall(r" -?\d+\.\d+$", printed, re.MULTILINE)) == 60
    assert "reliable onset" in printed or "rises" in printed


def test_a_stream_says_what_the_whole_reply_and_the_monitor_say(client: openai.OpenAI, monitor: PersonaMonitor) -> None:
    whole = ask(client)
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    trace = told(monitor)
    assert whole.choices[0].message.content == trace.reply_text
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == trace.reply_text
    check_scores(tokens_of(chunks), trace)
    assert whole.persona["tokens"] == tokens_of(chunks)
    assert chunks[-1].usage == whole.usage
    assert whole.usage.prompt_tokens == trace.n_prompt and whole.usage.completion_tokens == trace.n_reply
    assert whole.choices[0].finish_reason == chunks[-2].choices[0].finish_reason == "length"
    assert whole.persona["seed"] == trace.provenance.seed == 3


def test_a_stream_has_one_id_and_says_once_what_the_numbers_mean(client: openai.OpenAI) -> None:
    chunks = list(ask(client, stream=True, max_tokens=5))
    assert len({(c.id, c.created, c.model, c.object) for c in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks] == [None] * 6 + ["length"]
    named = [c.persona["unit"] for c in chunks if "unit" in c.persona]
    assert chunks[0].persona["kind"] == "specific" and len(named) == 1 and "standard deviations" in named[0]


def test_a_reply_that_ends_by_itself_says_stop(client: openai.OpenAI, monitor: PersonaMonitor) -> None:
    trace = told(monitor, max_tokens=80, seed=21)
    assert trace.finish == "eos"
    whole = ask(client, max_tokens=80, seed=21)
    assert whole.choices[0].finish_reason == "stop"
    assert whole.persona["tokens"][-1]["role"] == "template"


def test_without_a_seed_replies_differ_and_say_theirs(client: openai.OpenAI, monitor: PersonaMonitor) -> None:
    first, second = (ask(client, seed=None, temperature=1.5) for _ in range(2))
    assert first.persona["seed"] != second.persona["seed"]
    again = told(monitor, seed=first.persona["seed"], temperature=1.5)
    assert again.reply_text == first.choices[0].message.content


def test_a_request_that_names_no_sampling_gets_that_of_the_detectors(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=3)  # type: ignore[arg-type]
    assert reply.persona["sampling"]["temperature"] == 0.7  # type: ignore[attr-defined]
    assert not any("sampl" in caveat for caveat in reply.persona["caveats"])  # type: ignore[attr-defined]


def test_log_probabilities_are_the_models_own(client: openai.OpenAI, monitor: PersonaMonitor) -> None:
    whole = ask(client, logprobs=True, top_logprobs=3, top_p=0.5)
    lm, trace = monitor.lm, told(monitor, top_p=0.5)
    ids = torch.tensor([trace.token_ids])
    with torch.inference_mode():
        logs = lm.model(ids).logits[0, trace.n_prompt - 1 : -1].float().log_softmax(-1)  # [n_reply, vocab]
    content = whole.choices[0].logprobs.content
    for i, one in enumerate(content):
        token_id = trace.token_ids[trace.n_prompt + i]
        assert one.token == text_of(lm.tokenizer, [token_id]) and bytes(one.bytes).decode() == one.token
        assert one.logprob == pytest.approx(float(logs[i, token_id]), abs=1e-4)
        best = logs[i].topk(3)
        assert [t.logprob for t in one.top_logprobs] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert len(content) == trace.n_reply
    assert ask(client, logprobs=True, max_tokens=1).choices[0].logprobs.content[0].top_logprobs == []
    assert ask(client, max_tokens=1).choices[0].logprobs is None


def test_onset_events_are_those_of_the_detectors(client: openai.OpenAI, monitor: PersonaMonitor) -> None:
    assert monitor.detectors is not None
    chunks = list(ask(client, FLATTER, stream=True, max_tokens=90, seed=1))
    trace = told(monitor, FLATTER, max_tokens=90, seed=1)
    found = {t: o.to_dict() for t, o in monitor.detectors.find_all(trace).items()}
    at = {e["trait"]: (token["token"], e) for token in tokens_of(chunks) for e in token.get("events", ())}
    assert {t: token for t, (token, _) in at.items()} == {
        t: o["alarm"] for t, o in found.items() if o["alarm"] is not None
    }
    assert "sycophancy" in at
    for trait, (token, event) in at.items():
        upto = told(monitor, FLATTER, max_tokens=token + 1, seed=1)
        known = monitor.detectors.find(upto, trait).to_dict()
        assert {k: event[k] for k in known} == known
        assert event["rate"] is None and "a system prompt" in event["no_rate"]
    final = chunks[-1].persona["onsets"]
    assert {t: o["alarm"] for t, o in final.items()} == {t: o["alarm"] for t, o in found.items()}


def test_an_alarm_inside_the_null_card_states_the_rate_and_over_what(
    client: openai.OpenAI, monitor: PersonaMonitor
) -> None:
    assert monitor.detectors is not None
    chunks = list(ask(client, persona={"traits": ["sycophancy", "evil"], "steer": []}, stream=True, max_tokens=2))
    chosen = monitor.detectors.select(["evil", "sycophancy"])
    rate = chunks[0].persona["rate"]
    assert set(rate["over"]) == set(chosen.traits) == {"sycophancy", "evil"}
    assert rate["value"] == pytest.approx(chosen.rate().value)  # type: ignore[union-attr]
    assert rate["low"] < rate["value"] < rate["high"] and "370 prompts" in rate["says"]
    assert set(chunks[1].persona["scores"]) == {"sycophancy", "evil"}


@pytest.mark.parametrize("how", ["steer", "remove", "cap", "cap_on_alarm"])
def test_interventions_are_the_monitors(client: openai.OpenAI, monitor: PersonaMonitor, how: str) -> None:
    block = monitor.vectors.best_block["sycophancy"]
    asked, done = {
        "steer": (
            {"steer": [{"trait": "sycophancy", "amount": -9.0, "start": 4}]},
            Steer("sycophancy", block, strength=-9.0, unit="sd", start=4),
        ),
        "remove": ({"steer": [{"trait": "sycophancy", "action": "remove"}]}, Steer.ablate("sycophancy", block)),
        "cap": ({"cap": {"sycophancy": 0.5}}, Steer.cap("sycophancy", block, 0.5, unit="sd")),
        "cap_on_alarm": (
            {"cap_on_alarm": {"sycophancy": -1.0}},
            Steer.cap("sycophancy", block, -1.0, unit="sd", when="alarm"),
        ),
    }[how]
    reply = ask(client, FLATTER, asked, max_tokens=40, seed=1)
    trace = told(monitor, FLATTER, max_tokens=40, seed=1, steer=done)
    plain = told(monitor, FLATTER, max_tokens=40, seed=1)
    assert trace.token_ids != plain.token_ids
    check_scores(reply.persona["tokens"], trace)
    assert reply.persona["steering"] == [dict(one) for one in trace.provenance.steering]


def test_many_clients_at_once_get_each_their_own_reply(client: openai.OpenAI, monitor: PersonaMonitor) -> None:
    """Three times as many as are written at once, of all kinds: none is mixed and none lost."""
    prompts = ("Should I quit my job?", "Is my poem good?", "How do I bake bread?")
    asked: list[tuple[Any, dict[str, Any], Any]] = []
    for i in range(12):
        messages = [{"role": "user", "content": prompts[i % 3]}]
        more = {"seed": i, "temperature": (0.7, 0.0, 1.2)[i % 3], "max_tokens": 6 + 5 * (i % 4)}
        asked.append((messages, more, {"steer": [{"trait": "evil", "amount": float(i)}]} if i % 4 == 3 else None))
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda one: ask(client, one[0], one[2], **one[1]), asked))
    for (messages, more, persona), reply in zip(asked, replies, strict=True):
        steer = persona and Steer("evil", monitor.vectors.best_block["evil"], persona["steer"][0]["amount"], unit="sd")
        trace = told(monitor, messages, steer=steer, **more)
        assert reply.choices[0].message.content == trace.reply_text
        check_scores(reply.persona["tokens"], trace)


def test_the_list_of_models_says_what_is_read(client: openai.OpenAI, monitor: PersonaMonitor) -> None:
    names = [one.id for one in client.models.list()]
    assert names == ["tiny", "persona-tiny", "gpt-5.5"]
    card = client.models.retrieve("tiny").persona  # type: ignore[attr-defined]
    assert set(card["traits"]) == set(monitor.vectors.traits)
    assert math.isclose(card["rate"]["value"], monitor.detectors.rate().value)  # type: ignore[union-attr]


def test_both_protocols_write_the_same_reply(client: openai.OpenAI) -> None:
    chat = ask(client, FLATTER, logprobs=True, top_logprobs=2)
    other = client.responses.create(
        model="tiny",
        instructions=FLATTER[0]["content"],
        input=QUESTION[0]["content"],
        temperature=0.7,
        max_output_tokens=40,
        top_logprobs=2,
        include=["message.output_text.logprobs"],
        extra_body={"seed": 3},
    )
    assert other.output_text == chat.choices[0].message.content
    assert other.persona["tokens"] == chat.persona["tokens"]  # type: ignore[attr-defined]
    assert other.status == "incomplete" and other.incomplete_details.reason == "max_output_tokens"  # type: ignore[union-attr]
    assert other.usage.output_tokens == chat.usage.completion_tokens == 40  # type: ignore[union-attr]
    logprobs = [one["logprob"] for one in other.to_dict()["output"][0]["content"][0]["logprobs"]]  # type: ignore[index]
    assert logprobs == [one.logprob for one in chat.choices[0].logprobs.content]
