"""Which models are taken: blocks are found where the family keeps them, and what cannot be read right is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from persona_core.errors import NumericalError, UnsupportedModel
from persona_core.models.blocks import find_blocks
from persona_core.models.loading import wrap_model
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.vectors.vectors import PersonaVectors
from tests.support.chat_templates import tokenizer_for
from tests.support.families import build, randomise

SIZES: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def random_model(config: Any) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    randomise(model, 0)
    return model.eval()


def phi3() -> Any:
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32,
        "short_factor": [1.0] * 4, "long_factor": [4.0, 8.0, 16.0, 32.0],
    }  # fmt: skip
    return random_model(
        transformers.Phi3Config(
            **SIZES,
            num_hidden_layers=2,
            max_position_embeddings=256,
            original_max_position_embeddings=32,
            rope_parameters=rope,
        )
    )


def test_the_blocks_of_a_family_whose_decoder_is_the_whole_model_are_found() -> None:
    config = transformers.Llama4TextConfig(
        **SIZES, num_hidden_layers=3, head_dim=8, intermediate_size_mlp=48, num_local_experts=2,
        max_position_embeddings=128,
    )  # fmt: skip
    model = random_model(config)
    assert model.get_decoder() is model
    assert list(find_blocks(model).modules) == list(model.model.layers)


def test_a_model_whose_states_depend_on_padding_is_refused_by_name() -> None:
    config = transformers.RecurrentGemmaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, head_dim=8,
        lru_width=32, attention_window_size=16, num_key_value_heads=1,
    )  # fmt: skip
    with pytest.raises(UnsupportedModel, match=r"RecurrentGemmaForCausalLM: .*depends on padding"):
        find_blocks(random_model(config))


def test_positions_counted_with_the_padding_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that numbers positions by column reads a padded text as a later one."""
    model = build("gpt2", 0)
    forward = type(model).forward

    def by_column(self: Any, input_ids: Any = None, position_ids: Any = None, **rest: Any) -> Any:
        return forward(self, input_ids=input_ids, position_ids=torch.arange(input_ids.shape[1])[None], **rest)

    monkeypatch.setattr(type(model), "forward", by_column)
    with pytest.raises(UnsupportedModel, match="padding"):
        find_blocks(model)


def test_a_model_that_reads_a_token_in_another_way_from_the_cache_is_noticed() -> None:
    """As one whose recurrent state is another one after a prefill: a generated reply could not be read again."""
    model = build("llama", 0)

    def alone(_module: Any, _args: Any, output: Any) -> Any:
        return output * 1.01 if output.shape[1] == 1 else output

    handle = model.model.layers[2].mlp.register_forward_hook(alone)
    with pytest.raises(UnsupportedModel, match="from the cache"):
        find_blocks(model)
    handle.remove()
    assert len(find_blocks(model)) == 3


def test_a_cache_that_slides_under_a_mask_that_does_not_bounds_the_context() -> None:
    """Moshi: beyond the window a reply would be written with other keys than it is read with."""
    config = transformers.MoshiConfig(
        vocab_size=320, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        head_dim=8, sliding_window=24, max_position_embeddings=128, pad_token_id=0,
    )  # fmt: skip
    lm = wrap_model(random_model(config), tokenizer_for("none"), name="tiny-moshi")
    monitor = PersonaMonitor(lm, PersonaVectors.from_tensors({"a": torch.randn(2, 32)}, {"a": 1}), blocks="all")
    trace = monitor.generate("Hi", max_new_tokens=40, temperature=0)
    assert trace.finish == "context" and trace.n_tokens == 24
    again = monitor.read(trace)
    torch.testing.assert_close(torch.from_numpy(again.raw), torch.from_numpy(trace.raw), rtol=1e-4, atol=1e-4)


def test_weights_with_nan_are_refused_by_name() -> None:
    model = build("llama", 0)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(NumericalError, match=r"block 1 gives NaN .*layers\.1\.mlp\.down_proj\.weight holds some"):
        wrap_model(model, tokenizer_for("chatml"))


def test_a_longrope_context_ends_where_its_frequencies_change() -> None:
    """Beyond, the keys of earlier tokens would change too, and a reply could not be read again as it was written."""
    lm = wrap_model(phi3(), tokenizer_for("none"), name="tiny-phi3")
    assert lm.context_length == 32
    vectors = PersonaVectors.from_tensors({"a": torch.randn(2, 32)}, {"a": 1})
    monitor = PersonaMonitor(lm, vectors, blocks="all")
    trace = monitor.generate("Hi", max_new_tokens=40, temperature=0)
    assert trace.finish == "context" and trace.n_tokens == 32
    again = monitor.read(trace)
    torch.testing.assert_close(torch.from_numpy(again.raw), torch.from_numpy(trace.raw), rtol=1e-4, atol=1e-4)
