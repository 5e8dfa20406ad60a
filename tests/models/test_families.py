"""Every architecture family: blocks found, every token read correctly, live = batched = teacher-forced."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from persona_core.errors import UnsupportedModel
from persona_core.models.blocks import find_blocks
from persona_core.models.loading import wrap_model
from persona_core.monitor.monitor import PersonaMonitor
from tests.support import oracle
from tests.support.chat_templates import tokenizer_for
from tests.support.families import FAMILIES, REFUSED, Family, Refused
from tests.support.tiny import hooks_on, random_vectors, tiny_lm

TOLERANCE = 1e-4  # relative, float32
# Of very different lengths, and all but the last longer than the sliding windows.
PROMPTS: list[Any] = [
    "Should I quit my job? It depends on what you want, I think.",
    [{"role": "system", "content": "Answer in a few words."}, {"role": "user", "content": "How are you today? 🐌"}],
    "The quick brown fox jumps over the lazy dog. " * 3,
    "Hi",
]
SEED, N_NEW = 7, 6


@dataclass
class Read:
    """A family's model and monitor, and each prompt generated alone."""

    family: Family
    monitor: Any
    alone: list[Any]

    @property
    def lm(self) -> Any:
        return self.monitor.lm


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def read(request: pytest.FixtureRequest) -> Iterator[Read]:
    family = request.param
    lm = wrap_model(family.build(), tokenizer_for("chatml"), name=family.name)
    before = hooks_on(lm.model)
    monitor = PersonaMonitor(lm, random_vectors(len(lm.blocks)), blocks="all")
    alone = [monitor.generate(p, max_new_tokens=N_NEW, temperature=1.0, seed=SEED + i) for i, p in enumerate(PROMPTS)]
    yield Read(family, monitor, alone)
    assert hooks_on(lm.model) == before  # left as it was found


def agree(found: Any, wanted: Any) -> None:
    """The same ids, and the same numbers at every trait, block and token."""
    assert found.token_ids == wanted.token_ids
    assert found.roles == wanted.roles and found.n_prompt == wanted.n_prompt
    for trait in range(len(wanted.traits)):
        for block in range(len(wanted.blocks)):
            error = oracle.relative_error(found.raw[trait, block], wanted.raw[trait, block])
            assert error < TOLERANCE, (wanted.traits[trait], wanted.blocks[block], error)
    assert oracle.relative_error(found.norms, wanted.norms) < TOLERANCE


def test_the_blocks_are_found(read: Read) -> None:
    blocks = find_blocks(read.lm.model)
    assert list(blocks.modules) == read.family.blocks(read.lm.model)
    assert len(blocks) == read.family.n_blocks


def test_every_block_and_token_equals_the_oracle(read: Read) -> None:
    modules = read.family.blocks(read.lm.model)
    vectors = {t: read.monitor.vectors.tensor(t).numpy() for t in read.monitor.vectors.traits}
    for trace in read.alone:
        assert trace.raw.dtype == np.float32 and trace.norms.dtype == np.float32
        wanted = oracle.raw(read.lm.model, modules, trace.token_ids, vectors)  # [n_traits, n_blocks, n_tokens]
        for trait in range(wanted.shape[0]):
            for block in range(wanted.shape[1]):
                assert oracle.relative_error(trace.raw[trait, block], wanted[trait, block]) < TOLERANCE
        assert oracle.relative_error(trace.norms, oracle.norms(read.lm.model, modules, trace.token_ids)) < TOLERANCE


def test_the_prompt_is_the_rendering_and_the_reply_follows_it(read: Read) -> None:
    for prompt, trace in zip(PROMPTS, read.alone, strict=True):
        assert trace.token_ids[: trace.n_prompt] == read.lm.chat.render(prompt).token_ids
        assert 1 <= len(trace.token_ids) - trace.n_prompt <= N_NEW
        assert len(trace.token_ids) == len(trace.tokens) == len(trace.roles) == trace.raw.shape[-1]


def test_streaming_agrees(read: Read) -> None:
    steps = list(read.monitor.stream(PROMPTS[1], max_new_tokens=N_NEW, temperature=1.0, seed=SEED + 1))
    whole = read.alone[1]
    agree(steps[-1].trace(), whole)
    assert [step.token_id for step in steps] == list(whole.token_ids[whole.n_prompt :])
    for step in steps:
        assert oracle.relative_error(step.raw, whole.raw[..., whole.n_prompt + step.index]) < TOLERANCE
        agree_so_far = step.trace()
        assert agree_so_far.token_ids == whole.token_ids[: whole.n_prompt + step.index + 1]


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_batches_agree(read: Read, padding_side: str) -> None:
    """Whatever stands beside a row, and whichever side the tokenizer would pad on."""
    tokenizer = read.lm.tokenizer
    tokenizer.padding_side = padding_side
    batch_size = {"left": 4, "right": 3}[padding_side]
    settings = dict(max_new_tokens=N_NEW, temperature=1.0, batch_size=batch_size, seed=SEED)
    for found, wanted in zip(read.monitor.generate_batch(PROMPTS, **settings), read.alone, strict=True):
        agree(found, wanted)
    for found, wanted in zip(read.monitor.read_batch(read.alone[::-1]), read.alone[::-1], strict=True):
        agree(found, wanted)
    assert tokenizer.padding_side == padding_side


def test_teacher_forced_reading_agrees(read: Read) -> None:
    for trace in read.alone:
        agree(read.monitor.read(trace), trace)


def test_greedy_decoding_equals_the_oracle(read: Read) -> None:
    modules = read.family.blocks(read.lm.model)
    trace = read.monitor.generate(PROMPTS[0], max_new_tokens=N_NEW, temperature=0)
    prompt, reply = trace.token_ids[: trace.n_prompt], list(trace.token_ids[trace.n_prompt :])
    assert reply == oracle.greedy(read.lm.model, modules, prompt, N_NEW, sorted(read.lm.eos_ids))


@pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: refused.name)
def test_what_cannot_be_read_is_refused_and_says_why(refused: Refused) -> None:
    model = refused.build()
    before = hooks_on(model)
    with pytest.raises(UnsupportedModel) as error:
        wrap_model(model, tokenizer_for("chatml"))
    message = str(error.value).lower()
    assert any(reason in message for reason in refused.reasons), message
    assert hooks_on(model) == before


def test_a_model_prints_as_one_line() -> None:
    lm = replace(tiny_lm("llama-lora"), name="me/qwen", revision="abc123", adapter="me/lora")
    assert repr(lm) == "LanguageModel(me/qwen + me/lora at abc123, 3 blocks × 32, float32, cpu)"
    assert str(lm) == repr(lm)
