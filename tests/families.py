"""Tiny random-weight models of every architecture family that the library promises to read.

Each model has `D_MODEL` channels, a handful of blocks, `VOCAB` tokens and seeded float32 weights. The weights are
drawn much larger than a fresh `transformers` initialisation, and every norm gets a random gain, so that the blocks
differ visibly from one another and a missed (or a needless) final norm cannot hide in the rounding.

`Family.blocks_path` says where the blocks are, written down by hand: tests compare the library's own search with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

D_MODEL = 32
VOCAB = 320  # a little more than the test tokenizers hold, as in most published models
MAX_POSITIONS = 512
SLIDING_WINDOW = 8  # shorter than every test text
# Ids of the specials in the test tokenizers (tests/chat_templates.py).
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2


@dataclass(frozen=True)
class Family:
    """One architecture: how to build it, where its blocks are, and what is odd about it."""

    name: str
    make: Callable[[], PreTrainedModel]
    blocks_path: str
    n_blocks: int = 3
    note: str = ""

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
        return list(model.get_submodule(self.blocks_path))  # type: ignore[arg-type]


def randomise(model: nn.Module, seed: int) -> None:
    """Draw every weight of `model` anew: unit-variance maps, random norm gains, small random biases."""
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


_COMMON: dict[str, Any] = dict(
    vocab_size=VOCAB,
    hidden_size=D_MODEL,
    num_hidden_layers=3,
    max_position_embeddings=MAX_POSITIONS,
    pad_token_id=PAD_ID,
    bos_token_id=BOS_ID,
    eos_token_id=EOS_ID,
    tie_word_embeddings=False,
)
_HEADS: dict[str, Any] = dict(num_attention_heads=4, num_key_value_heads=2)
_MLP: dict[str, Any] = dict(intermediate_size=48)


def _causal_lm(config: PretrainedConfig) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    config._attn_implementation = "eager"  # the same arithmetic for every mask, so 1e-4 is a fair bound
    return AutoModelForCausalLM.from_config(config)


def _llama() -> PreTrainedModel:
    from transformers import LlamaConfig

    return _causal_lm(LlamaConfig(**_COMMON, **_HEADS, **_MLP))


def _llama_sdpa() -> PreTrainedModel:
    from transformers import AutoModelForCausalLM, LlamaConfig

    return AutoModelForCausalLM.from_config(LlamaConfig(**_COMMON, **_HEADS, **_MLP), attn_implementation="sdpa")


def _mistral() -> PreTrainedModel:
    from transformers import MistralConfig

    return _causal_lm(MistralConfig(**_COMMON, **_HEADS, **_MLP, head_dim=8, sliding_window=SLIDING_WINDOW))


def _qwen2() -> PreTrainedModel:
    from transformers import Qwen2Config

    return _causal_lm(Qwen2Config(**_COMMON, **_HEADS, **_MLP))


def _qwen3() -> PreTrainedModel:
    from transformers import Qwen3Config

    return _causal_lm(Qwen3Config(**_COMMON, **_HEADS, **_MLP, head_dim=8))


def _qwen3_moe() -> PreTrainedModel:
    from transformers import Qwen3MoeConfig

    return _causal_lm(
        Qwen3MoeConfig(
            **_COMMON, **_HEADS, **_MLP, head_dim=8, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2
        )
    )


def _gemma2() -> PreTrainedModel:
    from transformers import Gemma2Config

    return _causal_lm(
        Gemma2Config(
            **_COMMON, **_HEADS, **_MLP, head_dim=8, query_pre_attn_scalar=8, sliding_window=SLIDING_WINDOW
        )
    )


def _gemma3_text_config() -> Any:
    from transformers import Gemma3TextConfig

    # Four blocks, so that both kinds of attention occur, with a full one in between and one at the end.
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    return Gemma3TextConfig(
        **(_COMMON | {"num_hidden_layers": 4}),
        **_HEADS,
        **_MLP,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=SLIDING_WINDOW,
        layer_types=kinds,
    )


def _gemma3_text() -> PreTrainedModel:
    return _causal_lm(_gemma3_text_config())


def _gemma3_multimodal() -> PreTrainedModel:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, SiglipVisionConfig

    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = Gemma3Config(
        text_config=_gemma3_text_config(),
        vision_config=vision,
        mm_tokens_per_image=4,
        boi_token_index=VOCAB - 3,
        eoi_token_index=VOCAB - 2,
        image_token_index=VOCAB - 1,
        tie_word_embeddings=False,
    )
    config._attn_implementation = "eager"
    return Gemma3ForConditionalGeneration(config)


def _phi3() -> PreTrainedModel:
    from transformers import Phi3Config

    return _causal_lm(Phi3Config(**_COMMON, **_HEADS, **_MLP))


def _olmo2() -> PreTrainedModel:
    from transformers import Olmo2Config

    return _causal_lm(Olmo2Config(**_COMMON, **_HEADS, **_MLP))


def _gpt_neox() -> PreTrainedModel:
    from transformers import GPTNeoXConfig

    return _causal_lm(GPTNeoXConfig(**_COMMON, **_MLP, num_attention_heads=4))


_GPT2_SIZES: dict[str, Any] = dict(
    vocab_size=VOCAB,
    n_embd=D_MODEL,
    n_layer=3,
    n_head=4,
    n_positions=MAX_POSITIONS,
    pad_token_id=PAD_ID,
    bos_token_id=BOS_ID,
    eos_token_id=EOS_ID,
)


def _gpt2() -> PreTrainedModel:
    from transformers import GPT2Config

    return _causal_lm(GPT2Config(**_GPT2_SIZES, tie_word_embeddings=False))


def _gptj() -> PreTrainedModel:
    from transformers import GPTJConfig

    return _causal_lm(GPTJConfig(**_GPT2_SIZES, rotary_dim=4))


def _gpt_oss() -> PreTrainedModel:
    from transformers import GptOssConfig

    return _causal_lm(
        GptOssConfig(
            **_COMMON,
            **_HEADS,
            **_MLP,
            head_dim=8,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=SLIDING_WINDOW,
        )
    )


def _mixtral() -> PreTrainedModel:
    from transformers import MixtralConfig

    return _causal_lm(MixtralConfig(**_COMMON, **_HEADS, **_MLP, num_local_experts=4, num_experts_per_tok=2))


def _falcon(**kind: Any) -> PreTrainedModel:
    from transformers import FalconConfig

    return _causal_lm(FalconConfig(**_COMMON, num_attention_heads=4, **kind))


def _falcon_old() -> PreTrainedModel:
    return _falcon(new_decoder_architecture=False, multi_query=True, parallel_attn=True)


def _falcon_new() -> PreTrainedModel:
    return _falcon(new_decoder_architecture=True, num_kv_heads=2)


def _falcon_alibi() -> PreTrainedModel:
    return _falcon(alibi=True, multi_query=False, parallel_attn=False, bias=True)


def _smollm3() -> PreTrainedModel:
    from transformers import SmolLM3Config

    return _causal_lm(SmolLM3Config(**_COMMON, **_HEADS, **_MLP, no_rope_layer_interval=2))


def _opt() -> PreTrainedModel:
    from transformers import OPTConfig

    return _causal_lm(OPTConfig(**_COMMON, num_attention_heads=4, ffn_dim=48, word_embed_proj_dim=D_MODEL))


def _bloom() -> PreTrainedModel:
    from transformers import BloomConfig

    ids = dict(pad_token_id=PAD_ID, bos_token_id=BOS_ID, eos_token_id=EOS_ID)
    return _causal_lm(BloomConfig(vocab_size=VOCAB, hidden_size=D_MODEL, n_layer=3, n_head=4, **ids))


def _llama_lora() -> Any:
    from peft import LoraConfig, get_peft_model

    # B is zero in a fresh adapter, which would make it invisible; `randomise` draws A and B anew afterwards.
    targets = ["q_proj", "v_proj", "down_proj"]
    return get_peft_model(_llama(), LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"))


FAMILIES: tuple[Family, ...] = (
    Family("llama", _llama, "model.layers"),
    Family("llama-sdpa", _llama_sdpa, "model.layers", note="the default attention kernel"),
    Family("mistral", _mistral, "model.layers", note="sliding window"),
    Family("qwen2", _qwen2, "model.layers"),
    Family("qwen3", _qwen3, "model.layers"),
    Family("qwen3-moe", _qwen3_moe, "model.layers"),
    Family("gemma2", _gemma2, "model.layers", note="sliding window, soft caps"),
    Family("gemma3", _gemma3_text, "model.layers", n_blocks=4, note="sliding window"),
    Family("gemma3-multimodal", _gemma3_multimodal, "model.language_model.layers", n_blocks=4),
    Family("phi3", _phi3, "model.layers"),
    Family("olmo2", _olmo2, "model.layers"),
    Family("gpt-neox", _gpt_neox, "gpt_neox.layers"),
    Family("gpt2", _gpt2, "transformer.h", note="learned positions"),
    Family("gptj", _gptj, "transformer.h"),
    Family("gpt-oss", _gpt_oss, "model.layers", note="sliding window, sinks, experts"),
    Family("mixtral", _mixtral, "model.layers"),
    Family("falcon", _falcon_old, "transformer.h"),
    Family("falcon-new", _falcon_new, "transformer.h"),
    Family("falcon-alibi", _falcon_alibi, "transformer.h", note="positions by ALiBi from the mask"),
    Family("smollm3", _smollm3, "model.layers", note="some blocks without rotary positions"),
    Family("opt", _opt, "model.decoder.layers", note="learned positions"),
    Family("bloom", _bloom, "transformer.h", note="takes no position_ids; ALiBi from the mask"),
    Family("llama-lora", _llama_lora, "base_model.model.model.layers", note="PEFT adapter"),
)
BY_NAME: dict[str, Family] = {family.name: family for family in FAMILIES}


def build(name: str, seed: int = 0) -> Any:
    """The model of the family called `name`: `build("llama")`."""
    return BY_NAME[name].build(seed)


def _gemma3n() -> PreTrainedModel:
    from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

    return Gemma3nForCausalLM(
        Gemma3nTextConfig(
            **(_COMMON | {"tie_word_embeddings": True}),
            **_HEADS,
            intermediate_size=[48, 48, 48],
            activation_sparsity_pattern=[0.0, 0.0, 0.0],
            head_dim=8,
            vocab_size_per_layer_input=VOCAB,
            hidden_size_per_layer_input=8,
            laurel_rank=4,
            num_kv_shared_layers=0,
            sliding_window=SLIDING_WINDOW,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        )
    )


_REFUSED_IDS: dict[str, Any] = dict(pad_token_id=PAD_ID, bos_token_id=BOS_ID, eos_token_id=EOS_ID)


def _mamba() -> PreTrainedModel:
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(
        MambaConfig(vocab_size=VOCAB, hidden_size=D_MODEL, num_hidden_layers=2, state_size=4, **_REFUSED_IDS)
    )


def _bert() -> PreTrainedModel:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(
        BertConfig(
            vocab_size=VOCAB, hidden_size=D_MODEL, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
        )
    )


def _t5() -> PreTrainedModel:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(vocab_size=VOCAB, d_model=D_MODEL, d_kv=8, d_ff=48, num_layers=2, num_heads=4, pad_token_id=PAD_ID)
    )


@dataclass(frozen=True)
class Refused:
    """A model that cannot be read, and a word (any of `reasons`) that the refusal must contain."""

    name: str
    make: Callable[[], PreTrainedModel]
    reasons: tuple[str, ...]

    def build(self) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.make().eval()


REFUSED: tuple[Refused, ...] = (
    Refused("gemma3n", _gemma3n, ("shape", "streams")),
    Refused("mamba", _mamba, ("state", "recurrent")),
    Refused("bert", _bert, ("encoder", "causal", "decoder", "bidirectional")),
    Refused("t5", _t5, ("encoder-decoder", "encoder", "decoder")),
)
