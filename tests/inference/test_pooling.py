"""Replies that are written and pooled without a plan, held against a second, independent pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from persona_core.elicitation.elicit import write_replies
from persona_core.errors import ContextOverflow, PromptError
from persona_core.inference.sampling import Sampling
from tests.support import oracle
from tests.support.contract_checks import low_precision_monitor, plain_hooks
from tests.support.tiny import Maker, tiny_lm

PROMPTS = ["Should I quit my job? I have been there for seven years.", "Hi", "Hello there, how are you today?"]


@pytest.mark.parametrize("family", ["llama", "gptj", "gemma3", "gpt2"])
def test_means_pooled_while_generating_equal_a_second_pass(family: str) -> None:
    """The second pass reads each reply alone, without cache or padding, with plain hooks, in float64."""
    lm = tiny_lm(family, "chatml")
    sampling = Sampling(max_new_tokens=12, temperature=1.0)
    replies = list(write_replies(lm, PROMPTS, sampling, seed=2, batch_size=3))
    assert [r.index for r in replies] == [0, 1, 2]
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        ids = lm.chat.render(prompt).token_ids
        spoken = [i for i in reply.token_ids if i not in lm.eos_ids]
        assert reply.n_tokens == len(spoken) > 0 and reply.mean_state.dtype == np.float32
        states = oracle.states(lm.model, list(lm.blocks.modules), [*ids, *reply.token_ids])
        wanted = states[:, len(ids) : len(ids) + len(spoken)].mean(1)  # [n_blocks, d_model]
        for block in range(len(lm.blocks)):
            a, b = reply.mean_state[block].astype("f8"), wanted[block]
            assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.99999
            assert oracle.relative_error(a, b) < 1e-4


def test_pooled_means_do_not_depend_on_the_batch() -> None:
    lm = tiny_lm("mistral", "chatml")
    sampling = Sampling(max_new_tokens=10, temperature=1.0)
    wanted = list(write_replies(lm, PROMPTS, sampling, 5, batch_size=1))
    for size in (2, 32):
        for one, other in zip(wanted, write_replies(lm, PROMPTS, sampling, 5, batch_size=size), strict=True):
            assert one.token_ids == other.token_ids and one.text == other.text
            assert oracle.relative_error(other.mean_state, one.mean_state) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pooling_accumulates_in_float32_whatever_the_models_dtype(dtype: torch.dtype) -> None:
    """A channel a thousand times the others, added up 100 times: half precision would round it away, or overflow."""
    monitor = low_precision_monitor(dtype)
    n_blocks, caught = len(monitor.lm.blocks), []  # type: ignore[var-annotated]
    with plain_hooks(list(monitor.lm.blocks.modules), caught):
        (reply,) = write_replies(monitor.lm, PROMPTS[:1], Sampling(max_new_tokens=100, temperature=1.0), 0)
    steps = [c[0, 0] for c in caught if c.shape[1] == 1]  # the states of the reply, [d_model] each
    wanted = np.array([np.mean(steps[b::n_blocks], axis=0) for b in range(n_blocks)])
    assert reply.n_tokens == len(steps) // n_blocks == 100
    for block in range(n_blocks):
        assert oracle.relative_error(reply.mean_state[block], wanted[block]) < 1e-6
        small = np.abs(wanted[block]) < np.abs(wanted[block]).max() / 10
        assert oracle.relative_error(reply.mean_state[block][small], wanted[block][small]) < 1e-5


def test_replies_arrive_as_they_are_written(make_lm: Maker) -> None:
    """A caller that stops early has what was written, and the model has no hooks left."""
    from tests.support.tiny import hooks_on

    lm = make_lm("llama")
    before = hooks_on(lm.model)
    replies = write_replies(lm, PROMPTS, Sampling(max_new_tokens=2), 0, batch_size=1)
    assert next(replies).index == 0
    replies.close()  # type: ignore[attr-defined]
    assert hooks_on(lm.model) == before


def test_a_bad_prompt_is_named_before_or_when_its_batch_comes(make_lm: Maker) -> None:
    lm = make_lm("llama")
    with pytest.raises(PromptError):
        list(write_replies(lm, ["Hi", ""], Sampling(max_new_tokens=1), 0))
    with pytest.raises(ContextOverflow):
        list(write_replies(lm, ["Hi " * 600], Sampling(max_new_tokens=1), 0))
