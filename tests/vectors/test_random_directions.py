"""Random directions: as long as the traits', absent where they are, and read like them."""

from __future__ import annotations

import pytest
import torch

from persona_core.errors import SettingError
from persona_core.vectors.random_directions import random_vectors
from persona_core.vectors.vectors import PersonaVectors


def some(best: dict[str, int]) -> PersonaVectors:
    generator = torch.Generator().manual_seed(1)
    tensors = {
        t: scale * torch.randn((4, 64), generator=generator) for t, scale in (("a", 1.0), ("b", 5.0), ("c", 2.0))
    }
    for tensor in tensors.values():
        tensor[3] = torch.nan
    return PersonaVectors(tensors, best, absent_blocks=(3,))


def test_they_have_the_mean_norm_of_the_traits_at_each_block_and_no_common_direction() -> None:
    vectors = some({"a": 1, "b": 2, "c": 2})
    found = random_vectors(vectors, 8, seed=3)
    assert found.traits == tuple(f"random {k}" for k in range(1, 9)) and set(found.best_block.values()) == {2}
    for block in range(3):
        wanted = sum(float(vectors.reading(t)[block].norm()) for t in "abc") / 3
        units = torch.stack([found.direction(t, block) for t in found.traits])
        assert all(float(found.tensor(t)[block].norm()) == pytest.approx(wanted, rel=1e-5) for t in found.traits)
        assert float((units @ units.T - torch.eye(8)).abs().max()) < 0.5
    assert found.absent_blocks == (3,) and not found.null
    assert torch.equal(found.tensor("random 2")[:3], random_vectors(vectors, 8, seed=3).tensor("random 2")[:3])
    assert not torch.equal(found.tensor("random 2")[:3], random_vectors(vectors, 8).tensor("random 2")[:3])


def test_vectors_that_are_read_nowhere_and_no_directions_at_all_are_refused() -> None:
    with pytest.raises(SettingError, match="best block"):
        random_vectors(some({}))
    with pytest.raises(SettingError, match="n"):
        random_vectors(some({"a": 1}), 0)
