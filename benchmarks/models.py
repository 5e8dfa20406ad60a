"""Models of real architecture with random weights, for measuring time, which does not depend on the weights."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.common import ARTIFACTS
from persona_core.models.language_model import LanguageModel
from persona_core.models.loading import wrap_model
from persona_core.vectors.vectors import PersonaVectors

TOKENIZER = ARTIFACTS / "persona-tiny"
N_VOCABULARY = 32000  # of Llama 2; the shapes below have theirs

# For a CPU: two sizes, at which Python and the matrix products respectively take the larger share.
SMALL, MEDIUM = (12, 512), (24, 1024)

# For a GPU: what the configs of these models on the Hub say.
SHAPES: dict[str, dict[str, Any]] = {
    "Qwen2.5-1.5B": {
        "config": "Qwen2Config", "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960,
        "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True,
        "max_position_embeddings": 32768,
    },
    "Llama-3.1-8B": {
        "config": "LlamaConfig", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
        "max_position_embeddings": 131072,
    },
    "Gemma-2-9B": {
        "config": "Gemma2Config", "vocab_size": 256000, "hidden_size": 3584, "intermediate_size": 14336,
        "num_hidden_layers": 42, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256,
        "sliding_window": 4096, "query_pre_attn_scalar": 256, "max_position_embeddings": 8192,
    },
}  # fmt: skip


@cache
def llama(n_blocks: int, d_model: int, n_vocabulary: int = N_VOCABULARY) -> LanguageModel:
    """A Llama in float32 on the CPU, whose replies end only at the maximum length."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=n_vocabulary,
        hidden_size=d_model,
        intermediate_size=4 * d_model,
        num_hidden_layers=n_blocks,
        num_attention_heads=d_model // 64,
        num_key_value_heads=d_model // 64,
        max_position_embeddings=4096,
    )
    return _wrapped(LlamaForCausalLM(config), f"random Llama, {n_blocks} blocks x {d_model}")


def shaped(name: str, device: str = "cuda") -> LanguageModel:
    """A model of one of `SHAPES` in bfloat16, with weights drawn on the device."""
    settings = dict(SHAPES[name])
    config = getattr(transformers, settings.pop("config"))(**settings)
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return _wrapped(model, f"{name} shape, random weights, bfloat16")


def separate(lm: LanguageModel) -> LanguageModel:
    """The same weights in separate modules, so that the hooks of one way to read cost the others nothing."""
    shared: dict[int, Any] = {id(weight): weight for weight in lm.model.parameters()}
    copied = wrap_model(copy.deepcopy(lm.model, shared), lm.tokenizer, name=lm.name)
    return replace(copied, eos_ids=lm.eos_ids)


def _wrapped(model: Any, name: str) -> LanguageModel:
    model.generation_config.eos_token_id = None
    lm = wrap_model(model.eval(), AutoTokenizer.from_pretrained(TOKENIZER), name=name)
    return replace(lm, eos_ids=frozenset())


def placeholder_vectors(lm: LanguageModel, n_traits: int = 8) -> PersonaVectors:
    """Random directions, to measure time with: what they read means nothing."""
    generator = torch.Generator().manual_seed(1)
    drawn = {f"trait-{i}": torch.randn(len(lm.blocks), lm.blocks.d_model, generator=generator) for i in range(n_traits)}
    return PersonaVectors.from_tensors(drawn, dict.fromkeys(drawn, len(lm.blocks) // 2))


def directions(lm: LanguageModel, n_traits: int = 8) -> dict[int, torch.Tensor]:
    """Unit directions at all blocks, float32 `[d_model, n_traits]` each, as the hooks take them."""
    vectors = placeholder_vectors(lm, n_traits)
    return {b: torch.stack([vectors.direction(t, b) for t in vectors.traits], dim=1) for b in range(len(lm.blocks))}


def prompts(n: int, low: int = 24, high: int = 25, seed: int = 0) -> list[tuple[int, ...]]:
    """Random ids, `low` to `high - 1` of them each."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(low, high, (n,), generator=generator).tolist()
    return [tuple(torch.randint(10, 600, (length,), generator=generator).tolist()) for length in lengths]
