"""States on disk: of replies and of their sampled tokens, at every block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from persona_core.elicitation.stored_states import TOKENS, StoredStates
from persona_core.errors import SettingError

N_BLOCKS, D_MODEL = 20, 3


@pytest.mark.parametrize("n_sampled", [4, 16, 40])
def test_sampled_tokens_are_read_at_every_block_however_many_there_are(tmp_path: Path, n_sampled: int) -> None:
    tokens = np.random.default_rng(0).normal(size=(5, n_sampled, N_BLOCKS, D_MODEL)).astype(np.float16)
    means = tokens.astype(np.float32).mean(1)
    save_file({TOKENS: tokens, "reply_mean": means}, tmp_path / "batch-00000.safetensors")
    rows = [("batch-00000", row) for row in (3, 0)]
    sampled, pooled = (StoredStates(tmp_path, rows, position) for position in (TOKENS, "reply_mean"))
    for states in (sampled, pooled):
        assert (states.n_blocks, states.d_model, len(states)) == (N_BLOCKS, D_MODEL, 2)
        with pytest.raises(SettingError, match="blocks 0 to 19"):
            states.block(N_BLOCKS)
    for block in (0, N_BLOCKS - 1):
        assert np.array_equal(sampled.block(block), tokens[[3, 0], :, block].astype(np.float32))
        assert np.array_equal(pooled.block(block), means[[3, 0], block])


def test_sizes_are_known_without_reading_a_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.zeros((5, 4, N_BLOCKS, D_MODEL), np.float16)
    save_file({TOKENS: tokens}, tmp_path / "batch-00000.safetensors")
    monkeypatch.setattr(np, "asarray", lambda *_: pytest.fail("a state was read"))
    states = StoredStates(tmp_path, [("batch-00000", 0)], TOKENS)
    assert (states.n_blocks, states.d_model) == (N_BLOCKS, D_MODEL)
