"""The checks of the contract notice a broken library: each test breaks one thing on purpose.

The mutations of blocks and tokens are in test_contract_blocks_tokens.py, that of isolation beside its clause.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from persona_core.inference import batch as reply_batch
from persona_core.inference import hooks
from persona_core.inference.pooled_states import PooledStates
from persona_core.models import chat
from persona_core.monitor import monitor as monitor_module
from persona_core.monitor.monitor import PersonaMonitor
from tests.support import contract_checks as checks
from tests.support.tiny import Maker


def test_mutation_double_bos(make_lm: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The template applied as text, then tokenised with the tokenizer's special tokens."""

    def twice(self: chat.ChatFormat, text: str) -> Any:
        out = self.tokenizer(text, add_special_tokens=True, return_offsets_mapping=True)
        return list(zip(out["input_ids"], out["offset_mapping"], strict=True))

    monkeypatch.setattr(chat.ChatFormat, "_tokens", twice)
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
    def pad_right(prompts: Any, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(map(len, prompts))
        ids = torch.tensor([[*p, *[0] * (longest - len(p))] for p in prompts])
        mask = torch.tensor([[1] * len(p) + [0] * (longest - len(p)) for p in prompts])
        return ids.to(device), mask.to(device)

    monkeypatch.setattr(reply_batch, "pad_left", pad_right)
    with pytest.raises(AssertionError):
        checks.check_live_is_replay(make_monitor("llama", "chatml"))


def test_mutation_low_precision_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Projected in the model's dtype, as `hidden @ vector.to(hidden.dtype)` does."""

    def narrow(self: Any, slot: int, hidden: torch.Tensor) -> None:
        flat = hidden.reshape(-1, hidden.shape[-1]).bfloat16()  # the states are bfloat16 already: nothing is lost here
        self._raw[slot].copy_((flat @ self._directions[slot].bfloat16()).float())
        self._norms[slot].copy_(flat.float().norm(dim=-1))

    monkeypatch.setattr(hooks, "GATHERED", 0)
    monkeypatch.setattr(hooks.ResidualTap, "_read", narrow)
    with pytest.raises(AssertionError):
        checks.check_precision(checks.low_precision_monitor(torch.bfloat16))


def test_mutation_low_precision_projection_of_all_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where the states of a small forward are gathered."""
    original = torch.bmm

    def narrow(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return original(left.bfloat16(), right.bfloat16()).float() if right.shape[-1] == 2 else original(left, right)

    monkeypatch.setattr(torch, "bmm", narrow)
    with pytest.raises(AssertionError):
        checks.check_precision(checks.low_precision_monitor(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mutation_low_precision_mean(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    original = PooledStates.add

    def narrow(self: Any, block: int, hidden: torch.Tensor) -> None:
        original(self, block, hidden)
        self._sums[block] = self._sums[block].to(dtype).float()

    monkeypatch.setattr(PooledStates, "add", narrow)
    with pytest.raises(AssertionError):
        checks.check_precision(checks.low_precision_monitor(torch.bfloat16))


def test_mutation_retokenised(make_monitor: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text decoded and tokenised again on the way to a measurement."""
    original = monitor_module.as_transcript

    def retokenised(lm: Any, conversation: Any, writer: Any) -> Any:
        text = original(lm, conversation, writer)
        decoded = lm.tokenizer.decode(list(text.ids))
        ids = tuple(lm.tokenizer(decoded, add_special_tokens=False).input_ids)
        return dataclasses.replace(text, ids=ids, pieces=("",) * len(ids), roles=("template",) * len(ids))

    monkeypatch.setattr(monitor_module, "as_transcript", retokenised)
    with pytest.raises(AssertionError):
        checks.check_ids_are_kept(make_monitor("llama", "llama3"))


def test_mutation_rendering_retokenised(make_monitor: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt decoded and tokenised again: a metaspace tokenizer puts a space before it each time."""
    original = chat.ChatFormat.render

    def retokenised(self: Any, messages: Any, add_generation_prompt: bool = True) -> chat.Rendered:
        first = original(self, messages, add_generation_prompt)
        text = self.tokenizer.decode(list(first.token_ids))
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        return chat.Rendered(tuple(ids), ("template",) * len(ids))

    monkeypatch.setattr(chat.ChatFormat, "render", retokenised)
    with pytest.raises(AssertionError):
        checks.check_ids_are_kept(make_monitor("llama", "gemma"))
