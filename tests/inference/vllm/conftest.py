"""Pairs of monitors on one checkpoint: transformers, the oracle, and vLLM.

vLLM has an environment of its own: `make test-engines` builds it and runs what is marked `engines`.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.inference.vllm.tiny_checkpoints import N_BLOCKS, WIDTH, save_checkpoint

os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")  # read when vLLM is imported
HERE = Path(__file__).parent
HAS_VLLM = importlib.util.find_spec("vllm") is not None
# Small enough that prompts are read in several forwards, and that vLLM runs out of memory for keys and values.
TIGHT = {
    "kv_cache_memory_bytes": 2**26,
    "max_num_batched_tokens": 48,
    "max_num_seqs": 8,
    "block_size": 32,
    "num_gpu_blocks_override": 18,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("engines") and not HAS_VLLM:
            item.add_marker(pytest.mark.skip(reason="vLLM is not installed here; `make test-engines` has it."))


@dataclass(frozen=True)
class Pair:
    """One model on both engines.

    Attributes:
        oracle, served: monitors on transformers and on vLLM.
        folder: of the checkpoint.
    """

    oracle: Any
    served: Any
    folder: Path


def tiny_vectors() -> Any:
    from persona_core.vectors.vectors import PersonaVectors

    generator = torch.Generator().manual_seed(5)
    tensors = {t: torch.randn(N_BLOCKS, WIDTH, generator=generator) for t in ("candour", "malice")}
    return PersonaVectors.from_tensors(tensors, best_block={"candour": 1, "malice": 3})


@pytest.fixture(scope="session")
def make_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Pair]]:
    """`make_pair("llama", dtype="float32")`: each is made once and shared."""
    from persona_core.models.loading import load_model
    from persona_core.monitor.monitor import PersonaMonitor

    made: list[Pair] = []

    @cache
    def make(family: str, dtype: str = "float32") -> Pair:
        folder = save_checkpoint(family, tmp_path_factory.mktemp(family))
        vectors = tiny_vectors()
        oracle = load_model(folder, dtype=dtype, device="cpu")
        served = load_model(folder, dtype=dtype, engine="vllm", engine_options=TIGHT)
        made.append(Pair(PersonaMonitor(oracle, vectors, "all"), PersonaMonitor(served, vectors, "all"), folder))
        return made[-1]

    yield make
    for pair in made:
        pair.served.lm.engine.close()


@pytest.fixture(scope="session")
def smollm2(real_model: Any) -> Iterator[Pair]:
    from persona_core.analysis.detectors import Detectors
    from persona_core.models.loading import load_model
    from persona_core.monitor.monitor import PersonaMonitor
    from persona_core.vectors.vectors import PersonaVectors

    folder = Path("artifacts/persona-vectors-smollm2-135m")
    vectors, detectors = PersonaVectors.from_pretrained(folder), Detectors.from_pretrained(folder)
    served = load_model(real_model.name, engine="vllm", engine_options={"kv_cache_memory_bytes": 2**30})
    monitors = (PersonaMonitor(lm, vectors, "all", detectors) for lm in (real_model, served))
    yield Pair(next(monitors), next(monitors), folder)
    served.engine.close()


def worst(found: Any, expected: Any) -> float:
    """The largest difference of two traces of the same ids, relative to the largest value of its block and trait."""
    assert found.token_ids == expected.token_ids
    assert found.raw.shape == expected.raw.shape
    raw = np.abs(found.raw - expected.raw).max(-1) / np.abs(expected.raw).max(-1)  # [n_traits, n_blocks]
    norms = np.abs(found.norms / expected.norms - 1).max()
    return float(max(raw.max(), norms))


def spread(found: Any, expected: Any) -> float:
    """The root mean square of their difference, relative to that of the values."""
    assert found.token_ids == expected.token_ids
    return float(np.sqrt(((found.raw - expected.raw) ** 2).mean() / (expected.raw**2).mean()))
