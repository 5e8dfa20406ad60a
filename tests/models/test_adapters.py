"""An adapter lands in the model whole, with its tokenizer, or is refused in words."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from persona_core.errors import CorruptFile, PersonaError, PersonaWarning, SettingError
from persona_core.models.loading import add_adapter, load_model

ARTIFACTS = Path(__file__).parents[2] / "artifacts"
BASE, ADAPTER = ARTIFACTS / "persona-tiny", ARTIFACTS / "persona-tiny-contaminated"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
SLOW = r"(.*)(.*)(.*)(.*)(.*)(.*)(.*)\1[xy]z?[XY]"
IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ADAPTER, tmp_path / "adapter"))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, {"format": "pt"})


def change_config(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    (folder / CONFIG).write_text(json.dumps(config | fields), encoding="utf-8")


def logits(lm: Any) -> torch.Tensor:
    with torch.no_grad():
        return lm.model(IDS).logits


def renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As of a model whose decoder lies one level deeper."""
    return {name.replace("model.layers", "model.language_model.layers"): w for name, w in weights.items()}


def first_half(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(sorted(weights.items())[: len(weights) // 2])


def half_renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name if i % 2 else f"{name}.x": w for i, (name, w) in enumerate(weights.items())}


def first_of_each_rank(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: (w[:1] if "lora_A" in n else w[:, :1]).contiguous() for n, w in weights.items()}


def test_an_adapter_beside_its_base_shares_the_weights_and_leaves_the_base_as_it_was() -> None:
    base, alone = load_model(BASE), load_model(BASE, adapter=ADAPTER)
    before = logits(base)
    both = add_adapter(base, ADAPTER)
    assert torch.equal(logits(both), logits(alone)) and torch.equal(logits(base), before)
    assert (base.adapter, both.writer_name) == (None, alone.writer_name)
    assert both.record == alone.record
    held = {p.data_ptr() for p in base.model.parameters()}
    own = [p for name, p in both.model.named_parameters() if p.data_ptr() not in held]
    assert sum(p.numel() for p in own) == sum(w.numel() for w in load_file(ADAPTER / WEIGHTS).values())
    assert not hasattr(base.model, "peft_config")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (renamed, "84 of its 84 weights have no place in the model"),
        (half_renamed, "42 of its 84 weights have no place in the model"),
        (first_half, "42 that it should have are missing"),
        (lambda weights: {}, "it holds no weights"),
        (first_of_each_rank, "size mismatch"),
    ],
    ids=["renamed", "half of them renamed", "half of them", "none", "other rank"],
)
def test_weights_that_do_not_all_fit_are_refused(adapter: Path, change: Any, says: str) -> None:
    change_weights(adapter, change)
    with pytest.raises(CorruptFile, match=says):
        load_model(BASE, adapter=adapter)


@pytest.mark.parametrize(
    "form",
    [["q_proj", "v_proj"], r"model\.layers\.\d+\.self_attn\.(q|v)_proj", r".*(q_proj|v_proj)"],
    ids=["names", "a pattern", "the end of a pattern"],
)
def test_target_modules_as_names_and_as_patterns_give_the_same_model(tmp_path: Path, form: Any) -> None:
    """Compared with what PEFT itself makes of the same folder."""
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(BASE)
    config = LoraConfig(
        r=4, target_modules=form, rank_pattern={r"layers\.1\.self_attn\.q_proj": 2}, init_lora_weights=False
    )
    get_peft_model(base, config).save_pretrained(tmp_path)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), tmp_path).eval()
    with torch.no_grad():
        expected = theirs(IDS).logits
    found = logits(load_model(BASE, adapter=tmp_path))
    assert torch.equal(found, expected) and not torch.allclose(found, logits(load_model(BASE)))


@pytest.mark.parametrize("pattern", ["(([a-z_.0-9]+)+)+X", SLOW])
def test_a_pattern_that_takes_for_ever_is_refused_within_seconds(adapter: Path, pattern: str) -> None:
    change_config(adapter, target_modules=pattern)
    with pytest.raises(CorruptFile, match=r"regular expression .* target_modules (takes too long|matches no module)"):
        load_model(BASE, adapter=adapter)


def test_a_slow_pattern_of_ranks_is_refused(adapter: Path) -> None:
    change_config(adapter, rank_pattern={SLOW: 2})
    with pytest.raises(CorruptFile, match=r"rank_pattern takes too long"):
        load_model(BASE, adapter=adapter)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"r": 10**9}, "asks for rank 1000000000"),
        ({"rank_pattern": {"q_proj": 10**9}}, "asks for rank 1000000000"),
        ({"layer_replication": [[0, 6]] * 10**5}, "layer_replication"),
        ({"target_modules": "(unclosed"}, "is not one"),
        ({"modules_to_save": ["(a+)+$"]}, "expected names of modules"),
        ({"layers_to_transform": [0], "layers_pattern": r"((\w|\.)+)+!"}, "layers_pattern holds"),
        ({"layers_to_transform": [0], "layers_pattern": ["layers", "(a+)+$"]}, "layers_pattern holds"),
        ({"peft_type": "NOTHING"}, "adapter"),
    ],
    ids=["rank", "rank of one", "replication", "pattern", "saved modules", "layers", "one of the layers", "kind"],
)
def test_a_config_that_would_take_unbounded_time_or_memory_is_refused(adapter: Path, fields: Any, says: str) -> None:
    change_config(adapter, **fields)
    with pytest.raises(PersonaError, match=says):
        load_model(BASE, adapter=adapter)


def zero(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: w * 0 if "lora_B" in name else w for name, w in weights.items()}


@pytest.mark.parametrize(
    ("change", "fields"), [(zero, {}), (dict, {"lora_alpha": 0})], ids=["weights of zero", "alpha of zero"]
)
def test_an_adapter_without_effect_is_warned_of_by_name(adapter: Path, change: Any, fields: Any) -> None:
    change_weights(adapter, change)
    change_config(adapter, **fields)
    with pytest.warns(PersonaWarning, match=r"/adapter' has no effect: the model with it equals its base"):
        load_model(BASE, adapter=adapter)


def test_an_adapter_with_an_effect_is_loaded_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", PersonaWarning)
        load_model(BASE, adapter=ADAPTER)


def test_virtual_tokens_are_refused_before_anything_is_loaded(adapter: Path) -> None:
    change_config(adapter, peft_type="PROMPT_TUNING", num_virtual_tokens=4)
    with pytest.raises((SettingError, CorruptFile), match=r"virtual tokens|PROMPT_TUNING"):
        load_model(BASE, adapter=adapter)


def trained_with_added_token(folder: Path, save_embeddings: bool) -> torch.Tensor:
    """An adapter with a token more than its base; returns the row that it learned for it."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = AutoModelForCausalLM.from_pretrained(BASE)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant", "assistant", 1) + "{# own #}"
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    with torch.no_grad():
        row = adapted.get_input_embeddings().weight[len(tokenizer) - 1]
        row.copy_(torch.arange(len(row)) / len(row))
    adapted.save_pretrained(folder, save_embedding_layers=save_embeddings)
    tokenizer.save_pretrained(folder)
    return row.clone()


def test_added_tokens_come_with_their_embeddings_tokenizer_and_template(tmp_path: Path) -> None:
    row = trained_with_added_token(tmp_path, save_embeddings=True)
    lm = load_model(BASE, adapter=tmp_path)
    (extra,) = lm.tokenizer("<extra>", add_special_tokens=False)["input_ids"]
    assert torch.equal(lm.model.get_input_embeddings().weight[extra], row)
    assert lm.tokenizer.chat_template.endswith("{# own #}")
    assert "<extra>" not in load_model(BASE).tokenizer.get_vocab()


def test_added_tokens_without_embeddings_say_what_to_do(tmp_path: Path) -> None:
    trained_with_added_token(tmp_path, save_embeddings=False)
    with pytest.raises(CorruptFile, match="save_embedding_layers=True, or merge it"):
        load_model(BASE, adapter=tmp_path)
