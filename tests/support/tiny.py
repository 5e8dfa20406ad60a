"""Tiny models of random weights with real tokenizers, and vectors for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from tests.support.chat_templates import tokenizer_for
from tests.support.families import D_MODEL, build

Maker = Callable[..., Any]


@cache
def _model(family: str, seed: int) -> Any:
    with torch.inference_mode(False):  # a test may ask for it in that mode, and its tensors are shared
        return build(family, seed)


def tiny_lm(family: str = "llama", shape: str = "llama3", seed: int = 0, **tokenizer: Any) -> Any:
    """A `LanguageModel` of random weights, which are built once and shared: a test must not change them."""
    from persona_core.models.loading import wrap_model

    return wrap_model(_model(family, seed), tokenizer_for(shape, **tokenizer), name=f"tiny-{family}")


def random_vectors(n_blocks: int, traits: tuple[str, ...] = ("candour", "malice"), seed: int = 5) -> Any:
    """Uncalibrated vectors of random directions and very different lengths."""
    from persona_core.vectors.vectors import PersonaVectors

    generator = torch.Generator().manual_seed(seed)
    tensors = {t: (10.0**i) * torch.randn(n_blocks, D_MODEL, generator=generator) for i, t in enumerate(traits)}
    return PersonaVectors.from_tensors(tensors, best_block={t: i % n_blocks for i, t in enumerate(traits)})


def specific_vectors(n_blocks: int, max_norm: float = np.inf, seed: int = 5) -> Any:
    """Vectors that allow specific scores: reading directions, a null, log odds and norm limits, all set by hand."""
    from persona_core.vectors.null import Null
    from persona_core.vectors.vectors import PersonaVectors

    bare, other = random_vectors(n_blocks, seed=seed), random_vectors(n_blocks, seed=seed + 1)
    rng = np.random.default_rng(seed)

    def pairs(low: float, high: float) -> dict[str, np.ndarray]:  # trait -> [n_blocks, 2]
        return {t: rng.uniform(low, high, (n_blocks, 2)).astype(np.float32) for t in bare.traits}

    null = {t: Null(p[:, 0], p[:, 1], np.zeros((n_blocks, 1), np.float32), (0.5,)) for t, p in pairs(0.5, 1).items()}
    return PersonaVectors(
        bare.tensors,
        bare.best_block,
        null,
        readings=other.tensors,
        steering_null=null,
        log_odds=pairs(0.5, 1),
        specific_null=pairs(0.5, 1),
        max_norm=np.full(n_blocks, max_norm, np.float32),
    )


def hooks_on(model: torch.nn.Module) -> int:
    """How many forward hooks of any kind hang on `model` and its parts."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)
