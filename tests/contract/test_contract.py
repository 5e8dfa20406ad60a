"""The contract, clauses 3 to 7 and 9: ids, template, replay, precision, provenance, visible failures.

Clauses 1 and 2 are in tests/contract/test_contract_blocks_tokens.py, 8 in tests/contract/test_contract_isolation.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from persona_core.errors import ContextOverflow, PersonaError, PersonaWarning, UnknownTrait, VectorsMismatch
from persona_core.inference.steering import Steer
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.traces.trace import Trace
from persona_core.vectors.vectors import PersonaVectors
from tests.support import contract_checks as checks
from tests.support.tiny import Maker, random_vectors

# 3. Ids are the truth.


def test_clause_3_nothing_is_retokenised(make_monitor: Maker) -> None:
    for shape in ("chatml", "llama3", "gemma"):
        checks.check_ids_are_kept(make_monitor("llama", shape))


def test_clause_3_tokens_join_to_the_exact_text(make_monitor: Maker) -> None:
    for shape in ("llama3", "gemma"):
        monitor = make_monitor("llama", shape)
        trace = monitor.generate("Why? 🐌 שלום", max_new_tokens=24, temperature=1.5, seed=2)
        assert "".join(trace.tokens) == monitor.lm.tokenizer.decode(list(trace.token_ids), skip_special_tokens=False)


@pytest.mark.parametrize("shape", ["llama3", "gemma"])
def test_clause_3_streamed_text_joins_to_the_reply(make_monitor: Maker, shape: str) -> None:
    """Also where the model writes bytes that are no characters; and the text keeps coming."""
    monitor = make_monitor("llama", shape)

    def decode_(ids: Any) -> str:
        return str(monitor.lm.tokenizer.decode(list(ids), skip_special_tokens=False))

    for seed in range(4):
        steps = list(monitor.stream("Why? 🐌", max_new_tokens=32, temperature=2.0, seed=seed))
        for step in steps:
            trace = step.trace()
            assert "".join(trace.tokens) == decode_(trace.token_ids)
        shown = "".join(step.text for step in steps)
        reply = decode_(trace.token_ids)[len(decode_(trace.token_ids[: trace.n_prompt])) :]
        # With byte fallback a wrong byte turns characters that were already shown into U+FFFD.
        assert shown == reply or (shape == "gemma" and "\ufffd" in reply)
        assert max((step.index for step in steps if step.text), default=-1) >= len(steps) - 8


def test_clause_3_a_given_reply_starts_where_the_prompt_ends(make_monitor: Maker) -> None:
    """The reply's tokens are those that follow the prompt where a reply is generated."""
    monitor = make_monitor("llama", "none")
    question = {"role": "user", "content": "Hello there"}
    trace = monitor.read([question, {"role": "assistant", "content": " there"}])
    assert trace.token_ids[: trace.n_prompt] == monitor.lm.chat.render([question]).token_ids
    assert monitor.lm.tokenizer.decode(list(trace.token_ids[trace.n_prompt :])) == " there"
    assert set(trace.roles[trace.n_prompt :]) == {"assistant"}


def test_clause_3_a_trace_keeps_its_ids_and_numbers_in_a_file(make_monitor: Maker, tmp_path: Any) -> None:
    trace = make_monitor("llama").generate("Hi", max_new_tokens=8, temperature=1.5, seed=1)
    again = Trace.load(trace.save(tmp_path / "trace.json"))
    assert again.token_ids == trace.token_ids and again.tokens == trace.tokens and again.roles == trace.roles
    assert np.array_equal(again.raw, trace.raw) and np.array_equal(again.norms, trace.norms)
    assert again.provenance == trace.provenance


# 4. One template.


@pytest.mark.parametrize("shape", ["llama3", "gemma", "none-adds-bos"])
def test_clause_4_exactly_one_bos(make_lm: Maker, shape: str) -> None:
    checks.check_one_bos(make_lm("llama", shape))


@pytest.mark.parametrize("shape", ["gemma", "ignores-system"])
def test_clause_4_the_system_text_is_never_dropped(make_monitor: Maker, shape: str) -> None:
    monitor = make_monitor("llama", shape)
    system = {"role": "system", "content": "Answer like a pirate."}
    trace = monitor.generate([system, {"role": "user", "content": "Hello"}], max_new_tokens=2, temperature=0)
    assert trace.text.index("Answer like a pirate.") < trace.text.index("Hello")
    assert "system" in trace.roles


def test_clause_4_generating_and_reading_use_the_same_rendering(make_monitor: Maker) -> None:
    for shape in ("chatml", "llama3", "gemma", "none"):
        monitor = make_monitor("llama", shape)
        prompt = [{"role": "user", "content": "Hello there"}]
        written = monitor.generate(prompt, max_new_tokens=1, temperature=0)
        given = monitor.read([*prompt, {"role": "assistant", "content": "Thank you"}])
        assert given.n_prompt == written.n_prompt
        assert given.token_ids[: given.n_prompt] == written.token_ids[: written.n_prompt]
        assert given.provenance.template == written.provenance.template


# 5. Live = replay.


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "bloom"])
def test_clause_5_live_equals_replay(make_monitor: Maker, family: str) -> None:
    checks.check_live_is_replay(make_monitor(family, "chatml"))


@pytest.mark.parametrize(
    "extra", [{"top_k": 5}, {"top_p": 0.8}, {"repetition_penalty": 1.5}, {"temperature": 0}], ids=str
)
def test_clause_5_sampling_does_not_depend_on_the_batch(make_monitor: Maker, extra: dict[str, Any]) -> None:
    monitor = make_monitor("gpt2", "chatml")
    settings = {"max_new_tokens": 8, "temperature": 1.0} | extra
    alone = [monitor.generate(p, seed=3 + i, **settings) for i, p in enumerate(checks.PROMPTS)]
    for size in (1, 2, 16):
        for found, wanted in zip(
            monitor.generate_batch(checks.PROMPTS, batch_size=size, seed=3, **settings), alone, strict=True
        ):
            assert found.token_ids == wanted.token_ids
            checks.close(found.raw, wanted.raw)


STEERS = [
    Steer("malice", 1, strength=8.0, start=2),
    Steer("malice", 1, strength=-8.0, start=None),
    Steer.ablate("candour", 0),
    Steer.cap("malice", 2, threshold=-0.5, start=1),
]


@pytest.mark.parametrize("steer", [*STEERS, STEERS], ids=["add", "add-everywhere", "ablate", "cap", "together"])
def test_clause_5_holds_for_steered_runs(make_monitor: Maker, steer: Any) -> None:
    """Alone, in a batch of mixed lengths, and read again with the same steering."""
    monitor = make_monitor("mistral", "chatml")
    alone = [monitor.generate(p, seed=3 + i, steer=steer, **checks.SAMPLING) for i, p in enumerate(checks.PROMPTS)]
    batched = monitor.generate_batch(checks.PROMPTS, seed=3, steer=steer, **checks.SAMPLING)
    replayed = monitor.read_batch(alone, steer=steer)
    for wanted, *others in zip(alone, batched, replayed, strict=True):
        for found in others:
            assert found.token_ids == wanted.token_ids
            checks.close(found.raw, wanted.raw)
        assert not np.allclose(monitor.read(wanted).raw, wanted.raw, rtol=1e-2)  # the steering did something


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "mistral"])
def test_clause_5_rows_that_ended_do_not_disturb_the_others(make_monitor: Maker, family: str) -> None:
    """One row fills the context, one meets its end of turn, one goes on: each as when alone."""
    monitor = make_monitor(family, "chatml")
    lm = monitor.lm
    prompts = [checks.LONG * 2, "Hi", "Should I quit my job?"]
    lengths = [len(lm.chat.render(p).token_ids) for p in prompts]
    free = monitor.generate(prompts[1], max_new_tokens=12, temperature=1.0, seed=4)
    ends = frozenset({free.token_ids[free.n_prompt + 3]})
    # The real table of positions stays as it is; the longest prompt leaves room for four tokens.
    short = dataclasses.replace(lm, eos_ids=ends, context_length=max(lengths) + 4)
    tight = PersonaMonitor(short, monitor.vectors, blocks="all")
    settings: dict[str, Any] = dict(max_new_tokens=12, temperature=1.0)
    alone = [tight.generate(p, seed=3 + i, **settings) for i, p in enumerate(prompts)]
    assert alone[0].n_reply <= 4 and alone[1].finish == "eos" and alone[1].n_reply <= 4
    for found, wanted in zip(tight.generate_batch(prompts, seed=3, **settings), alone, strict=True):
        assert (found.token_ids, found.finish, found.roles) == (wanted.token_ids, wanted.finish, wanted.roles)
        checks.close(found.raw, wanted.raw)


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_clause_5_the_last_position_of_the_context_can_be_used(make_monitor: Maker, family: str) -> None:
    """A row at the end of a learned position table, beside a longer one."""
    monitor = make_monitor(family, "chatml")
    limit = monitor.lm.context_length
    base = len(monitor.lm.chat.render("1").token_ids)
    long = " ".join(["1"] * 600)
    while len(monitor.lm.chat.render(long).token_ids) > limit - 2:
        long = long[:-2]
    n = len(monitor.lm.chat.render(long).token_ids)
    assert base < limit - 4 <= n <= limit - 2
    endless = PersonaMonitor(dataclasses.replace(monitor.lm, eos_ids=frozenset()), monitor.vectors, blocks="all")
    alone = endless.generate(long, max_new_tokens=10, temperature=0)
    assert alone.finish == "context" and len(alone.token_ids) == limit
    first, second = endless.generate_batch([long, "Hi"], max_new_tokens=10, temperature=0)
    assert first.token_ids == alone.token_ids and second.n_reply == 10
    checks.close(first.raw, alone.raw)
    checks.close(endless.read(alone).raw, alone.raw)
    with pytest.raises(ContextOverflow, match=str(limit)):
        endless.generate(long + " 1 1 1 1 1 1", max_new_tokens=10)


# 6. Precision.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_clause_6_float32_whatever_the_models_dtype(dtype: torch.dtype) -> None:
    checks.check_precision(checks.low_precision_monitor(dtype))


# 7. Provenance.


def test_clause_7_a_trace_says_where_it_comes_from(make_monitor: Maker) -> None:
    monitor = make_monitor("llama")
    lm = dataclasses.replace(monitor.lm, revision="abc123", adapter="some/adapter")
    other = PersonaMonitor(lm, monitor.vectors, blocks="all")
    steer = Steer("malice", 1, strength=2.0, start=1)
    trace = other.generate("Hi", max_new_tokens=3, temperature=0.9, top_k=7, seed=41, steer=steer)
    p = trace.provenance
    assert (p.reader, p.reader_revision, p.reader_adapter) == ("tiny-llama", "abc123", "some/adapter")
    assert p.writer is not None and p.dtype == "float32" and p.seed == 41
    assert p.vectors == monitor.vectors.fingerprint and p.template == lm.chat.fingerprint
    assert p.sampling is not None and (p.sampling["temperature"], p.sampling["top_k"]) == (0.9, 7)
    assert [dict(s) for s in p.steering] == [steer.to_dict()]
    assert "transformers" in p.versions and "torch" in p.versions


def test_clause_7_the_recorded_seed_gives_the_same_reply(make_monitor: Maker) -> None:
    monitor = make_monitor("llama")
    first = monitor.generate("Hi", max_new_tokens=8, temperature=1.0)
    again = monitor.generate("Hi", max_new_tokens=8, temperature=1.0, seed=first.provenance.seed)
    assert again.token_ids == first.token_ids
    batch = monitor.generate_batch(["Hi", "Hello"], max_new_tokens=8, temperature=1.0, seed=9)
    assert [t.provenance.seed for t in batch] == [9, 10]


def test_clause_7_a_reader_is_not_the_writer(make_monitor: Maker) -> None:
    writer, reader = make_monitor("llama"), make_monitor("llama", seed=1)
    other = PersonaMonitor(dataclasses.replace(reader.lm, name="other"), reader.vectors, blocks="all")
    written = writer.generate("Hi", max_new_tokens=4, temperature=1.0, seed=0)
    replay = other.read(written)
    assert replay.token_ids == written.token_ids and not np.allclose(replay.raw, written.raw)
    assert (replay.provenance.reader, replay.provenance.writer) == ("other", written.provenance.writer)


def test_clause_7_vectors_that_do_not_fit_are_refused(make_lm: Maker) -> None:
    lm = make_lm("llama")
    for wrong in (random_vectors(4), PersonaVectors.from_tensors({"candour": torch.randn(3, 16)}, {"candour": 0})):
        with pytest.raises(VectorsMismatch, match="3 blocks of width 32"):
            PersonaMonitor(lm, wrong)


def test_clause_7_another_template_or_base_model_warns(make_lm: Maker) -> None:
    lm = make_lm("llama")
    base = {"name": lm.name, "template_fingerprint": lm.chat.fingerprint}
    for change, word in (({}, None), ({"name": "org/another"}, "another"), ({"template_fingerprint": "0"}, "template")):
        vectors = dataclasses.replace(random_vectors(3), config={"base_model": base | change})
        if word is None:
            PersonaMonitor(lm, vectors)
        else:
            with pytest.warns(PersonaWarning, match=word):
                PersonaMonitor(lm, vectors)


# 8 is in tests/contract/test_contract_isolation.py. 9. Failures are visible.


def test_clause_9_errors_name_the_value(make_monitor: Maker) -> None:
    monitor = make_monitor("llama")
    with pytest.raises(UnknownTrait, match=r"charm.*candour, malice"):
        monitor.read("Hi").scores("charm", kind="raw")
    with pytest.raises(UnknownTrait, match="charm"):
        monitor.generate("Hi", steer=Steer("charm", 0, 1.0))
    for setting, value in (
        ("max_new_tokens", 0),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_k", -1),
        ("repetition_penalty", 0.0),
    ):
        with pytest.raises(PersonaError, match=f"{setting}={value}"):
            monitor.generate("Hi", **{setting: value})


def test_clause_9_one_bad_prompt_stops_a_batch_before_it_starts(make_monitor: Maker) -> None:
    """The error names the prompt, and no reply is generated only to be lost."""
    monitor, forwards = make_monitor("llama"), []
    handle = monitor.lm.model.register_forward_pre_hook(lambda *_: forwards.append(1))
    try:
        with pytest.raises(PersonaError, match="2"):
            monitor.generate_batch(["Hi", "Hello", ""], batch_size=1, max_new_tokens=1)
    finally:
        handle.remove()
    assert not forwards
