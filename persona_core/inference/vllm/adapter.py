"""LoRA adapters on vLLM: what it would pass over in silence is refused before it loads them."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from persona_core.errors import CorruptFile, SettingError
from persona_core.models.checkpoint import tensor_shapes
from persona_core.utils.files import read_json
from persona_core.utils.hub import at_revision, commit_of, fetch, resolve_source

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks for which vLLM reserves memory."""
NOT_PLAIN = (
    "alora_invocation_tokens", "alpha_pattern", "fan_in_fan_out", "layer_replication", "lora_bias", "modules_to_save",
    "rank_pattern", "target_parameters", "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora",
)  # fmt: skip
"""Settings of a `LoraConfig` that change more than two matrices beside a linear layer do."""
WEIGHT = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


@dataclass(frozen=True)
class Lora:
    """A LoRA adapter that vLLM applies as PEFT does.

    Attributes:
        weights: its file.
        commit: on the Hub; a folder has none.
        rank: the smallest of `RANKS` that holds it.
    """

    weights: Path
    commit: str | None
    rank: int


def find_lora(adapter: str | Path, revision: str | None, base: Collection[str]) -> Lora:
    """An adapter, checked.

    Args:
        adapter: Hub id or folder.
        revision: commit, tag or branch on the Hub.
        base: names of the model's weights.

    Raises:
        NotFound: no such adapter, or its weights are not safetensors.
        CorruptFile: weights that do not all fit the model.
        SettingError: an adapter of another kind.
    """
    source = resolve_source(adapter, revision)
    what = f"the adapter {source!r}{at_revision(revision)}"
    config = read_json(fetch(source, "adapter_config.json", revision))
    weights = fetch(source, "adapter_model.safetensors", revision)
    odd = [name for name in NOT_PLAIN if config.get(name)]
    odd += [] if config.get("peft_type") == "LORA" else ["peft_type"]
    odd += [] if config.get("bias", "none") == "none" else ["bias"]
    rank = config.get("r")
    if odd or not isinstance(rank, int) or not 0 < rank <= RANKS[-1]:
        name = odd[0] if odd else "r"
        raise SettingError(
            f"engine='vllm' cannot apply {what}: its {name} is {config.get(name)!r}. Merge it into the model, or use "
            "engine='transformers'."
        )
    parts: dict[str, set[str]] = {}
    for name in tensor_shapes(weights):
        known = WEIGHT.fullmatch(name)
        if known is None or f"{known[1]}.weight" not in base:
            raise CorruptFile(f"Could not load {what}: the model has no place for its weight {name!r}.")
        parts.setdefault(known[1], set()).add(known[2])
    lacking = [module for module, found in parts.items() if found != {"A", "B"}]
    if lacking or not parts:
        raise CorruptFile(f"Could not load {what}: it lacks a matrix of {lacking[0] if lacking else 'every layer'!r}.")
    return Lora(weights, commit_of(source, "adapter_config.json", revision), next(r for r in RANKS if r >= rank))
