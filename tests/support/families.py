"""Tiny random-weight models of every architecture family that the library promises to read.

Each model has `D_MODEL` channels, a handful of blocks, `VOCAB` tokens and seeded float32 weights. The weights
are drawn much larger than a fresh `transformers` initialisation, and every norm gets a random gain, so that the
blocks differ visibly from one another and a missed (or a needless) final norm cannot hide in the rounding.

`Family.blocks_path` says where the blocks are, written down by hand: tests compare the library's search with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers  # its classes are imported on first use, when a model is built
from torch import nn

D_MODEL = 32
VOCAB = 320  # a little more than the test tokenizers hold, as in most published models
MAX_POSITIONS = 512
SLIDING_WINDOW = 8  # shorter than every test text
# Ids of the specials in the test tokenizers (tests/support/chat_templates.py).
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2


@dataclass(frozen=True)
class Family:
    """One architecture: how to build it, and where its blocks are."""

    name: str
    make: Callable[[], Any]
    blocks_path: str
    n_blocks: int = 3

    def build(self, seed: int = 0) -> Any:
        """A seeded float32 model in eval mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.make()
            randomise(model, seed)
        model.eval()
        return model

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The blocks of `model` by the path written down here, in the order in which they run."""
        container: Any = model.get_submodule(self.blocks_path)
        return list(container)


def randomise(model: nn.Module, seed: int) -> None:
    """Redraw every weight of `model`: unit-variance maps, random norm gains, small random biases."""
    generator = torch.Generator().manual_seed(seed + 1)

    def draw(tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator)

    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = draw(tensor)
            leaf = name.rsplit(".", 1)[-1]
            if "embed" in name or "wte" in name or "wpe" in name:
                tensor.copy_(noise)
            elif leaf == "bias" or leaf.endswith("_bias"):
                tensor.copy_(0.1 * noise)
            elif tensor.ndim >= 2:
                tensor.copy_(noise * 1.2 / tensor.shape[-1] ** 0.5)
            elif "norm" in name or "ln" in name:
                # Log-normal gains for (x * w) norms; for Gemma's (x * (1 + w)) they are merely other gains.
                tensor.copy_(torch.exp(0.5 * noise))
            else:  # attention sinks, scalars
                tensor.copy_(noise)


# Sizes by the names that most configs use.
_IDS: dict[str, Any] = dict(pad_token_id=PAD_ID, bos_token_id=BOS_ID, eos_token_id=EOS_ID)
_PLAIN: dict[str, Any] = dict(
    vocab_size=VOCAB,
    hidden_size=D_MODEL,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=MAX_POSITIONS,
    tie_word_embeddings=False,
    **_IDS,
)
_LLAMA: dict[str, Any] = _PLAIN | dict(num_key_value_heads=2, intermediate_size=48)
_HEADS_OF_8: dict[str, Any] = _LLAMA | dict(head_dim=8)
_GPT2: dict[str, Any] = dict(
    vocab_size=VOCAB, n_embd=D_MODEL, n_layer=3, n_head=4, n_positions=MAX_POSITIONS, tie_word_embeddings=False, **_IDS
)
_BLOOM: dict[str, Any] = dict(vocab_size=VOCAB, hidden_size=D_MODEL, n_layer=3, n_head=4, **_IDS)
_WINDOW: dict[str, Any] = dict(sliding_window=SLIDING_WINDOW)
_EXPERTS: dict[str, Any] = dict(num_local_experts=4, num_experts_per_tok=2)
# Both kinds of attention, a full one in between and one at the end.
_MIXED: dict[str, Any] = _HEADS_OF_8 | dict(
    num_hidden_layers=4,
    layer_types=["sliding_attention", "full_attention"] * 2,
    **_WINDOW,
)
_GEMMA3: dict[str, Any] = _MIXED | dict(query_pre_attn_scalar=8)
_YARN = dict(rope_type="yarn", rope_theta=150000.0, factor=2.0, original_max_position_embeddings=MAX_POSITIONS // 2)
_LINEAR: dict[str, Any] = dict(
    linear_conv_kernel_dim=4,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
)


def _causal_lm(config: str, settings: dict[str, Any], attention: str = "eager", **more: Any) -> Any:
    # Eager by default: the same arithmetic for every mask, so that 1e-4 is a fair bound.
    made = getattr(transformers, config)(**settings, **more)
    return transformers.AutoModelForCausalLM.from_config(made, attn_implementation=attention)


def _gemma3_multimodal() -> Any:
    vision = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**_GEMMA3),
        vision_config=transformers.SiglipVisionConfig(**vision, image_size=8, patch_size=4),
        mm_tokens_per_image=4,
        boi_token_index=VOCAB - 3,
        eoi_token_index=VOCAB - 2,
        image_token_index=VOCAB - 1,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def _llama_lora() -> Any:
    # B is zero in a fresh adapter, which would make it invisible; `randomise` redraws A and B afterwards.
    import peft

    targets = ["q_proj", "v_proj", "down_proj"]
    lora = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")
    return peft.get_peft_model(_causal_lm("LlamaConfig", _LLAMA), lora)


def _family(name: str, config: str, settings: dict[str, Any], path: str = "model.layers", **more: Any) -> Family:
    n_blocks = settings.get("num_hidden_layers", 3)
    return Family(name, partial(_causal_lm, config, settings, **more), path, n_blocks)


FAMILIES: tuple[Family, ...] = (
    _family("llama", "LlamaConfig", _LLAMA),
    _family("llama-sdpa", "LlamaConfig", _LLAMA, attention="sdpa"),  # the kernel that most users run
    Family("llama-lora", _llama_lora, "base_model.model.model.layers"),
    _family("mistral", "MistralConfig", _HEADS_OF_8 | _WINDOW),
    _family("mixtral", "MixtralConfig", _LLAMA | _EXPERTS),
    _family("qwen2", "Qwen2Config", _LLAMA),
    _family("qwen3", "Qwen3Config", _HEADS_OF_8),
    _family("qwen3-moe", "Qwen3MoeConfig", _HEADS_OF_8, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2),
    _family("qwen3.5", "Qwen3_5TextConfig", _HEADS_OF_8 | dict(num_hidden_layers=4), **_LINEAR),  # a hybrid
    _family("gemma2", "Gemma2Config", _HEADS_OF_8 | _WINDOW, query_pre_attn_scalar=8),
    _family("gemma3", "Gemma3TextConfig", _GEMMA3),
    Family("gemma3-multimodal", _gemma3_multimodal, "model.language_model.layers", n_blocks=4),
    _family(
        "gemma4",
        "Gemma4TextConfig",
        _MIXED,
        global_head_dim=8,
        vocab_size_per_layer_input=VOCAB,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=0,
    ),
    _family("phi3", "Phi3Config", _LLAMA),
    _family("olmo2", "Olmo2Config", _LLAMA),
    _family("smollm3", "SmolLM3Config", _LLAMA, no_rope_layer_interval=2),
    _family("gpt-oss", "GptOssConfig", _HEADS_OF_8 | _WINDOW | _EXPERTS, rope_parameters=_YARN),
    # Chunked attention, whose chunks are counted from each row's first token.
    _family(
        "llama4",
        "Llama4TextConfig",
        _HEADS_OF_8 | dict(num_hidden_layers=4),
        attention_chunk_size=SLIDING_WINDOW,
        intermediate_size_mlp=48,
        num_local_experts=4,
    ),
    # Hybrids: short convolutions; blocks of one mixer each, some of which cache nothing; both mixers in one block.
    _family("lfm2", "Lfm2Config", _LLAMA, layer_types=["conv", "full_attention", "conv"]),
    _family(
        "nemotron-h",
        "NemotronHConfig",
        _HEADS_OF_8 | dict(num_hidden_layers=4),
        layers_block_type=["linear_attention", "mlp", "full_attention", "linear_attention"],
        mamba_num_heads=8,
        mamba_head_dim=8,
        ssm_state_size=8,
        n_groups=1,
        chunk_size=8,
    ),
    _family(
        "falcon-h1",
        "FalconH1Config",
        _HEADS_OF_8,
        mamba_d_ssm=64,
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_n_groups=1,
        mamba_chunk_size=8,
    ),
    _family("gpt-neox", "GPTNeoXConfig", _PLAIN, "gpt_neox.layers", intermediate_size=48),
    _family("gpt2", "GPT2Config", _GPT2, "transformer.h"),  # learned positions
    _family("gptj", "GPTJConfig", _GPT2, "transformer.h", rotary_dim=4),  # its blocks return tuples, as the next four
    _family("falcon", "FalconConfig", _PLAIN, "transformer.h", multi_query=True, parallel_attn=True),
    _family("falcon-new", "FalconConfig", _PLAIN, "transformer.h", new_decoder_architecture=True, num_kv_heads=2),
    _family("falcon-alibi", "FalconConfig", _PLAIN, "transformer.h", alibi=True, multi_query=False, bias=True),
    _family("bloom", "BloomConfig", _BLOOM, "transformer.h"),  # ALiBi; takes no position ids
    _family("opt", "OPTConfig", _PLAIN, "model.decoder.layers", ffn_dim=48, word_embed_proj_dim=D_MODEL),
)
BY_NAME: dict[str, Family] = {family.name: family for family in FAMILIES}


def build(name: str, seed: int = 0) -> Any:
    """The model of the family called `name`: `build("llama")`."""
    return BY_NAME[name].build(seed)


def _gemma3n() -> Any:
    settings = _HEADS_OF_8 | dict(intermediate_size=[48] * 3, activation_sparsity_pattern=[0.0] * 3)
    config = transformers.Gemma3nTextConfig(
        **settings | dict(tie_word_embeddings=True),
        vocab_size_per_layer_input=VOCAB,
        hidden_size_per_layer_input=8,
        laurel_rank=4,
        num_kv_shared_layers=0,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        **_WINDOW,
    )
    return transformers.Gemma3nForCausalLM(config)


def _recurrent_gemma() -> Any:
    sizes = _LLAMA | dict(lru_width=D_MODEL, attention_window_size=SLIDING_WINDOW)
    return _causal_lm("RecurrentGemmaConfig", sizes)


def _minimax() -> Any:
    return _causal_lm(
        "MiniMaxConfig", _HEADS_OF_8 | _EXPERTS, layer_types=["linear_attention", "full_attention", "linear_attention"]
    )


def _mamba() -> Any:
    sizes = dict(vocab_size=VOCAB, hidden_size=D_MODEL, num_hidden_layers=2, state_size=4)
    return transformers.MambaForCausalLM(transformers.MambaConfig(**sizes, **_IDS))


def _bert() -> Any:
    sizes = dict(
        vocab_size=VOCAB, hidden_size=D_MODEL, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    return transformers.BertForMaskedLM(transformers.BertConfig(**sizes))


def _t5() -> Any:
    sizes = dict(vocab_size=VOCAB, d_model=D_MODEL, d_kv=8, d_ff=48, num_layers=2, num_heads=4, pad_token_id=PAD_ID)
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes))


def _virtual_tokens(config: str) -> Any:
    import peft

    made = getattr(peft, config)(num_virtual_tokens=4, task_type="CAUSAL_LM")
    return peft.get_peft_model(_causal_lm("LlamaConfig", _LLAMA), made)


@dataclass(frozen=True)
class Refused:
    """A model that cannot be read, and words of which the refusal must contain one."""

    name: str
    make: Callable[[], Any]
    reasons: tuple[str, ...]

    def build(self) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.make().eval()


REFUSED: tuple[Refused, ...] = (
    Refused("gemma3n", _gemma3n, ("shape", "streams")),  # [4, rows, tokens, d_model]
    Refused("recurrent-gemma", _recurrent_gemma, ("padding", "cache")),
    Refused("minimax", _minimax, ("cache of its own",)),  # its linear attention has one that is not transformers'
    Refused("mamba", _mamba, ("state", "recurrent")),
    Refused("bert", _bert, ("encoder", "causal", "bidirectional")),
    Refused("t5", _t5, ("encoder-decoder",)),
    Refused("prompt-tuning", partial(_virtual_tokens, "PromptTuningConfig"), ("virtual", "prompt")),
    Refused("prefix-tuning", partial(_virtual_tokens, "PrefixTuningConfig"), ("virtual", "prefix", "prompt")),
)
