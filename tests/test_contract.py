"""DESIGN §3, clauses 3 to 9, each as a test; and the same checks on a library that is broken on purpose.

Clauses 1 and 2 are in tests/test_contract_blocks_tokens.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from persona_core import chat, decode, hooks
from persona_core import monitor as monitor_module
from persona_core.errors import ContextOverflow, PersonaError, PersonaWarning, UnknownTrait, VectorsMismatch
from persona_core.monitor import PersonaMonitor
from persona_core.steering import Steer
from persona_core.trace import Trace
from persona_core.vectors import PersonaVectors
from tests import contract_checks as checks
from tests.chat_templates import tokenizer_for
from tests.conftest import Maker, random_vectors, tiny_lm

# 3. Ids are the truth.


def test_clause_3_nothing_is_retokenised(make_monitor: Maker) -> None:
    for shape in ("chatml", "llama3", "gemma"):
        checks.check_ids_are_kept(make_monitor("llama", shape))


def test_clause_3_tokens_join_to_the_exact_text(make_monitor: Maker) -> None:
    for shape in ("llama3", "gemma"):
        monitor = make_monitor("llama", shape)
        trace = monitor.generate("Why? 🐌 שלום", max_new_tokens=24, temperature=1.5, seed=2)
        assert "".join(trace.tokens) == monitor.lm.tokenizer.decode(list(trace.token_ids), skip_special_tokens=False)


def test_clause_3_a_given_reply_starts_where_the_prompt_ends(make_monitor: Maker) -> None:
    """Prompt and reply are tokenised apart, so no merge crosses the seam."""
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


@pytest.mark.parametrize("extra", [{"top_k": 5}, {"top_p": 0.8}, {"repetition_penalty": 1.5}, {"temperature": 0}], ids=str)
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
    settings = dict(max_new_tokens=12, temperature=1.0)
    alone = [tight.generate(p, seed=3 + i, **settings) for i, p in enumerate(prompts)]
    assert alone[0].n_reply <= 4 and alone[1].finish == "eos" and alone[1].n_reply <= 4
    for found, wanted in zip(tight.generate_batch(prompts, seed=3, **settings), alone, strict=True):
        assert (found.token_ids, found.finish, found.roles) == (wanted.token_ids, wanted.finish, wanted.roles)
        checks.close(found.raw, wanted.raw)


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_clause_5_the_last_position_of_the_context_can_be_used(make_monitor: Maker, family: str) -> None:
    """A row at the very end of a learned table of positions, beside one that goes on for longer."""
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
    checks.check_precision(_low_precision_monitor(dtype))


def _low_precision_monitor(dtype: torch.dtype) -> Any:
    from persona_core.models import wrap_model
    from tests.families import build

    # One channel a thousand times the others, as the massive activations of real models.
    model = build("llama", seed=0)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 3] *= 1000.0
    lm = wrap_model(model.to(dtype), tokenizer_for("llama3"), name="tiny-llama")
    lm = dataclasses.replace(lm, eos_ids=frozenset())
    return PersonaMonitor(lm, random_vectors(len(lm.blocks)), blocks="all")


# 7. Provenance.


def test_clause_7_a_trace_says_where_it_comes_from(make_monitor: Maker) -> None:
    monitor = make_monitor("llama")
    lm = dataclasses.replace(monitor.lm, revision="abc123", adapter="some/adapter")
    own = PersonaMonitor(lm, monitor.vectors, blocks="all")
    steer = Steer("malice", 1, strength=2.0, start=1)
    trace = own.generate("Hi", max_new_tokens=3, temperature=0.9, top_k=7, seed=41, steer=steer)
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


# 8 is in tests/test_contract_isolation.py. 9. Failures are visible.


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


# Mutations: the checks notice a broken library.


def test_mutation_double_bos(make_lm: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The template applied as text, then tokenised with the tokenizer's own specials."""

    def twice(self: chat.ChatFormat, text: str) -> Any:
        out = self.tokenizer(text, add_special_tokens=True, return_offsets_mapping=True)
        return list(zip(out["input_ids"], out["offset_mapping"], strict=True))

    monkeypatch.setattr(chat.ChatFormat, "_encode", twice)
    with pytest.raises(AssertionError, match="BOS"):
        checks.check_one_bos(make_lm("llama", "llama3"))


def test_mutation_no_positions(make_monitor: Maker) -> None:
    """Left padding without position ids: only models with absolute positions can show it."""
    monitor = make_monitor("gpt2", "chatml")
    lm = dataclasses.replace(monitor.lm, forward_arguments=monitor.lm.forward_arguments - {"position_ids"})
    with pytest.raises(AssertionError):
        checks.check_live_is_replay(PersonaMonitor(lm, monitor.vectors, blocks="all"))


def _without_mask(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **kwargs: forward(**(kwargs | {"attention_mask": None})))


def test_mutation_no_attention_mask(make_monitor: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = make_monitor("llama", "chatml")
    _without_mask(monkeypatch, monitor.lm.model)
    with pytest.raises(AssertionError):
        checks.check_live_is_replay(monitor)


def test_mutation_padding_on_the_right(make_monitor: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    def pad_right(prompts: Any, fill: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(map(len, prompts))
        ids = torch.tensor([[*p, *[fill] * (longest - len(p))] for p in prompts])
        mask = torch.tensor([[1] * len(p) + [0] * (longest - len(p)) for p in prompts])
        return ids.to(device), mask.to(device)

    monkeypatch.setattr(decode, "pad_left", pad_right)
    with pytest.raises(AssertionError):
        checks.check_live_is_replay(make_monitor("llama", "chatml"))


def test_mutation_low_precision_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    original = hooks.ResidualTap._read
    monkeypatch.setattr(
        hooks.ResidualTap, "_read", lambda self, slot, hidden: original(self, slot, hidden.half().float() * 1.001)
    )
    with pytest.raises(AssertionError):
        checks.check_precision(_low_precision_monitor(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mutation_low_precision_mean(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    original = hooks.ResidualTap._add

    def narrow(self: Any, block: int, hidden: torch.Tensor) -> None:
        original(self, block, hidden)
        self._sums[block] = self._sums[block].to(dtype).float()

    monkeypatch.setattr(hooks.ResidualTap, "_add", narrow)
    with pytest.raises(AssertionError):
        checks.check_precision(_low_precision_monitor(torch.bfloat16))


def test_mutation_retokenised(make_monitor: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text decoded and tokenised again on the way to a measurement."""
    original = monitor_module.PersonaMonitor._as_text

    def retokenised(self: Any, conversation: Any, writer: Any) -> Any:
        text = original(self, conversation, writer)
        decoded = self.lm.tokenizer.decode(list(text.ids))
        ids = tuple(self.lm.tokenizer(decoded, add_special_tokens=False).input_ids)
        return dataclasses.replace(text, ids=ids, roles=("template",) * len(ids))

    monkeypatch.setattr(monitor_module.PersonaMonitor, "_as_text", retokenised)
    with pytest.raises(AssertionError):
        checks.check_ids_are_kept(make_monitor("llama", "llama3"))


def test_mutation_rendering_retokenised(make_monitor: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt decoded and tokenised again: a metaspace tokenizer puts a space before it each time."""
    original = chat.ChatFormat.render

    def retokenised(self: Any, messages: Any, add_generation_prompt: bool = True) -> chat.Rendered:
        first = original(self, messages, add_generation_prompt)
        ids = self.tokenizer(self.tokenizer.decode(list(first.token_ids))).input_ids
        return chat.Rendered(tuple(ids), ("template",) * len(ids))

    monkeypatch.setattr(chat.ChatFormat, "render", retokenised)
    with pytest.raises(AssertionError):
        checks.check_one_bos(tiny_lm("llama", "gemma"))
