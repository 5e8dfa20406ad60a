"""Random directions, to be read beside the traits: what any direction of the state would have shown."""

from __future__ import annotations

from collections import Counter

import torch

from persona_core.errors import SettingError
from persona_core.utils.checks import check_integer
from persona_core.vectors.vectors import PersonaVectors


def random_tensors(n: int, n_blocks: int, d_model: int, seed: int = 0) -> torch.Tensor:
    """Isotropic random directions for every block, float32 `[n, n_blocks, d_model]`, not normalised."""
    return torch.randn((n, n_blocks, d_model), generator=torch.Generator().manual_seed(seed))


def random_vectors(vectors: PersonaVectors, n: int = 16, seed: int = 0) -> PersonaVectors:
    """Isotropic random directions, as many "traits" named "random 1", "random 2", ..., read at one block.

    At each block their norm is the mean norm of the traits' reading directions. They have no null, so only raw and
    cosine scores: couplings of raw scores are those of z.

    Args:
        vectors: whose model reads them, and where: at the block at which most traits are read.
        n: number of directions; 16 give 120 pairs.
        seed: of the directions.

    Raises:
        SettingError: fewer than one direction, or vectors without a best block.

    >>> vectors = PersonaVectors.from_pretrained("artifacts/persona-vectors-persona-tiny")
    >>> random_vectors(vectors, 2).traits
    ('random 1', 'random 2')
    """
    check_integer("n", n)
    if not vectors.best_block:
        raise SettingError("The vectors have no best block at which random directions could be read; validate them.")
    block = Counter(vectors.best_block.values()).most_common(1)[0][0]
    norms = torch.stack([vectors.reading(t).norm(dim=-1) for t in vectors.traits]).mean(0)  # [n_blocks]
    drawn = random_tensors(n, vectors.n_blocks, vectors.d_model, seed)
    drawn *= (norms / drawn.norm(dim=-1))[..., None]  # NaN at absent blocks, as in the vectors
    names = [f"random {k}" for k in range(1, n + 1)]
    return PersonaVectors(
        dict(zip(names, drawn, strict=True)),
        dict.fromkeys(names, block),
        absent_blocks=vectors.absent_blocks,
        max_norm=vectors.max_norm,
    )
