"""Checkpoints of tiny random-weight models on disk, of shapes that vLLM's attention can run: heads of 32 channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from tests.support.chat_templates import tokenizer_for
from tests.support.families import BOS_ID, EOS_ID, PAD_ID, VOCAB, randomise

WIDTH, N_BLOCKS = 64, 4
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": N_BLOCKS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "pad_token_id": PAD_ID,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "tie_word_embeddings": False,
}
FAMILIES = {
    "llama": ("LlamaConfig", {}),  # blocks return two tensors, to be summed
    "qwen2": ("Qwen2Config", {}),
    "cohere": ("CohereConfig", {"tie_word_embeddings": True}),  # two tensors, of which the first is the stream
    "gpt-neox": ("GPTNeoXConfig", {}),  # one tensor
}


def save_checkpoint(family: str, folder: Path, seed: int = 0) -> Path:
    """Seeded float32 weights, tokenizer and chat template, as `from_pretrained` reads them."""
    kind, own = FAMILIES[family]
    config: Any = getattr(transformers, kind)(**{**COMMON, **own})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        randomise(model, seed)
    model.save_pretrained(folder)
    tokenizer_for("llama3").save_pretrained(folder)
    return folder
