"""The files of persona vectors, read with errors that name the file and the fault."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from persona_core.errors import CorruptFile, NotFound
from persona_core.utils.files import read_json

FORMAT_VERSION = 1
TENSORS_FILE = "vectors.safetensors"
CONFIG_FILE = "config.json"


def read_config(path: Path) -> dict[str, Any]:
    """The config, checked: its format version, and the fields that the tensors are read by."""
    config = read_json(path)
    version = config.get("format_version")
    if version != FORMAT_VERSION:
        raise CorruptFile(f"{path}: format_version is {version!r}; this library reads {FORMAT_VERSION}.")
    missing = [k for k in ("traits", "best_block", "absent_blocks", "null_probabilities") if k not in config]
    if missing:
        raise CorruptFile(f"{path}: missing {', '.join(missing)}.")
    for key, kind in (("traits", list), ("best_block", dict), ("absent_blocks", list), ("null_probabilities", list)):
        if not isinstance(config[key], kind):
            raise CorruptFile(f"{path}: {key} is a {type(config[key]).__name__}, expected a {kind.__name__}.")
    if not isinstance(config.get("base_model", {}), dict):
        raise CorruptFile(f"{path}: base_model is a {type(config['base_model']).__name__}, expected an object.")
    return config


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, by name."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise CorruptFile(f"{path}: truncated or not a safetensors file: {error}. Download it again.") from error


def read_pt(path: Path) -> torch.Tensor:
    """The tensor in a `.pt` file; code in the file is refused and never runs."""
    if not path.is_file():
        raise NotFound(f"No file {str(path)!r}.")
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CorruptFile(f"{path}: refused, it holds more than tensors (possibly code): {error}") from error
    except Exception as error:  # the unpickler raises whatever the bytes lead it to: IndexError, struct.error, ...
        raise CorruptFile(f"{path}: truncated or not a PyTorch file: {error}") from error
    if not isinstance(value, torch.Tensor):
        raise CorruptFile(f"{path}: holds a {type(value).__name__}, expected one tensor.")
    return value
