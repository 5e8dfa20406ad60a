"""Writes a Llama of transformers and its tokenizer as a GGUF file, as llama.cpp's converter does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np

NAMES = {  # of a block's tensors: transformers' and llama.cpp's
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(
    path: Path,
    model: Any,
    tokenizer: Any,
    *,
    architecture: str = "llama",
    split: str | None = "gpt-2",
    quantized: bool = False,
    without: str = "",
    **more: int,
) -> Path:
    """Write the file.

    Args:
        path: of the file.
        model: a Llama.
        tokenizer: a byte-level BPE.
        architecture: the name that the file gives.
        split: the name of how the tokenizer splits text; None leaves it out.
        quantized: store what can be as Q8_0: blocks of 32 numbers with one scale.
        without: name of a tensor to leave out.
        **more: further numbers of the metadata, with "__" for ".".
    """
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if quantized else gguf.LlamaFileType.ALL_F32)
    for key, value in more.items():
        writer.add_uint32(key.replace("__", "."), value)
    _add_tokenizer(writer, tokenizer, config.vocab_size, split)
    for name, weight in model.state_dict().items():
        stored, array = _tensor(name, weight.numpy(), config)
        if stored == without:
            continue
        if quantized and array.ndim == 2 and array.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(stored, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(stored, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensor(name: str, array: Any, config: Any) -> tuple[str, Any]:
    """A weight's name and numbers in the file."""
    tops = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem = name.removesuffix(".weight")
    if stem in tops:
        return f"{tops[stem]}.weight", array
    _, _, block, part = stem.split(".", 3)
    heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
    if part in heads:  # the two halves of each head are interleaved
        n, (rows, columns) = heads[part], array.shape
        array = array.reshape(n, 2, rows // n // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    return f"blk.{block}.{NAMES[part]}.weight", np.ascontiguousarray(array)


def _add_tokenizer(writer: Any, tokenizer: Any, size: int, split: str | None) -> None:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    by_id = {i: token for token, i in tokenizer.get_vocab().items()}
    special = {token["id"] for token in state["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    if split is not None:
        writer.add_tokenizer_pre(split)
    writer.add_token_list([by_id.get(i, f"[PAD{i}]") for i in range(size)])
    normal, control, unused = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL, gguf.TokenType.UNUSED
    writer.add_token_types([unused if i not in by_id else control if i in special else normal for i in range(size)])
    writer.add_token_merges([" ".join(pair) for pair in state["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(tokenizer("")["input_ids"] == [tokenizer.bos_token_id])
    writer.add_chat_template(tokenizer.chat_template)
