"""The files of persona vectors, read with errors that name the file and the fault."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from persona_core.errors import CorruptFile, NotFound, VectorsMismatch
from persona_core.utils.files import read_json
from persona_core.vectors.null import Null

FORMAT_VERSION, FIRST_VERSION = 2, 1
"""Folders of the first version have no reading directions; their null is that of the steering directions."""
TENSORS_FILE = "vectors.safetensors"
CONFIG_FILE = "config.json"
MAX_PACKED = 10_000_000
"""Bytes that a `.pt` archive may unpack to beyond twice its size."""
MAX_DEPTH = 20
"""Mappings inside mappings in a `.pt` file: real ones have one or two."""


def read_config(path: Path) -> dict[str, Any]:
    """The config, checked: its format version, and the fields that the tensors are read by."""
    config = read_json(path)
    version = config.get("format_version")
    if version not in (FIRST_VERSION, FORMAT_VERSION):
        raise CorruptFile(
            f"{path}: format_version is {version!r}; this library reads {FIRST_VERSION} and {FORMAT_VERSION}."
        )
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


def arrays_of(vectors: Any) -> dict[str, torch.Tensor]:
    """The tensors of `PersonaVectors`, by their names in the file; copies, since safetensors lets none share memory."""
    arrays = {f"vector/{t}": v for t, v in vectors.tensors.items()}
    arrays |= {f"reading/{t}": v for t, v in vectors.readings.items()}
    for prefix, nulls in (("null", vectors.null), ("steering_null", vectors.steering_null)):
        for trait, null in nulls.items():
            for part in ("mean", "std", "quantiles"):
                arrays[f"{prefix}_{part}/{trait}"] = torch.tensor(getattr(null, part))
    for name, pairs in (("log_odds", vectors.log_odds), ("specific_null", vectors.specific_null)):
        arrays |= {f"{name}/{trait}": torch.tensor(pair) for trait, pair in pairs.items()}
    if vectors.max_norm is not None:
        arrays["max_norm"] = torch.tensor(vectors.max_norm)
    return arrays


def fields_of(config: Mapping[str, Any], arrays: Mapping[str, torch.Tensor], path: Path) -> dict[str, Any]:
    """The fields of the `PersonaVectors` that `arrays_of` took apart.

    Raises:
        CorruptFile: a tensor that the config names is missing.
    """
    traits = config["traits"]

    def numbers(name: str) -> np.ndarray:
        return arrays[name].float().numpy()

    def null(prefix: str) -> dict[str, Null]:
        mean, std, quantiles = (f"{prefix}_{part}/" for part in ("mean", "std", "quantiles"))
        probabilities = tuple(config["null_probabilities"])
        return {
            t: Null(numbers(mean + t), numbers(std + t), numbers(quantiles + t), probabilities)
            for t in traits
            if mean + t in arrays
        }

    try:
        return {
            "tensors": {t: arrays[f"vector/{t}"] for t in traits},
            "best_block": config["best_block"],
            "null": null("null"),
            "absent_blocks": tuple(config["absent_blocks"]),
            "config": config,
            "readings": {t: arrays[f"reading/{t}"] for t in traits if f"reading/{t}" in arrays},
            "steering_null": null("steering_null"),
            "log_odds": {t: numbers(f"log_odds/{t}") for t in traits if f"log_odds/{t}" in arrays},
            "specific_null": {t: numbers(f"specific_null/{t}") for t in traits if f"specific_null/{t}" in arrays},
            "max_norm": numbers("max_norm") if "max_norm" in arrays else None,
        }
    except KeyError as error:
        raise CorruptFile(f"{path}: no tensor {error}, which {CONFIG_FILE} names.") from error


def read_reference(files: Mapping[str, str | Path], convention: str) -> dict[str, torch.Tensor]:
    """Trait -> `[n_blocks, d_model]` from `.pt` files of `[n_blocks + 1, d_model]`; the last row is NaN.

    Raises:
        NotFound, CorruptFile, VectorsMismatch: see `PersonaVectors.from_reference`.
    """
    if convention != "hidden_states":
        raise VectorsMismatch(f"Unknown convention {convention!r}; expected 'hidden_states'.")
    if not files:
        raise VectorsMismatch("No files; pass one .pt file per trait.")
    tensors = {}
    for trait, path in files.items():
        rows = read_pt(Path(path))  # [n_blocks + 1, d_model]
        if rows.ndim != 2 or rows.shape[0] < 3:
            raise CorruptFile(f"{path}: expected a [n_blocks + 1, d_model] tensor, got {tuple(rows.shape)}.")
        tensors[trait] = blocks_of_hidden_states(rows)
    return tensors


def blocks_of_hidden_states(rows: torch.Tensor) -> torch.Tensor:
    """Rows of transformers' `hidden_states`, `[n_blocks + 1, d_model]`, as float32 `[n_blocks, d_model]`.

    Row 0 is the embeddings. The last row is taken after the final norm, so the last block is NaN.
    """
    blocks = rows[1:].float().clone()
    blocks[-1] = torch.nan
    return blocks


def read_pt(path: Path) -> torch.Tensor:
    """The tensor in a `.pt` file; code in the file is refused and never runs."""
    value = load_pt(path)
    if not isinstance(value, torch.Tensor):
        raise CorruptFile(f"{path}: holds a {type(value).__name__}, expected one tensor.")
    return value


def load_pt(path: Path) -> Any:
    """What a `.pt` file holds: tensors, and lists and mappings of them; code in it is refused and never runs."""
    if not path.is_file():
        raise NotFound(f"No file {str(path)!r}.")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(part.file_size for part in archive.infolist())
            if unpacked > 2 * path.stat().st_size + MAX_PACKED:  # torch stores its parts as they are
                raise CorruptFile(f"{path}: unpacks to {unpacked:,} bytes. Save it again with torch.save.")
        held = torch.load(path, map_location="cpu", weights_only=True)
    except CorruptFile:
        raise
    except pickle.UnpicklingError as error:
        known = path.read_bytes()[:2] in (b"PK", b"\x80\x02")  # a zip archive, or a pickle
        why = "refused, it holds more than tensors (possibly code)" if known else "not a PyTorch file"
        raise CorruptFile(f"{path}: {why}.") from error
    except Exception as error:  # the unpickler raises whatever the bytes lead it to: IndexError, struct.error, ...
        raise CorruptFile(f"{path}: truncated or not a PyTorch file: {error}") from error
    _check_held(held, path)
    return held


def _check_held(held: Any, path: Path, depth: int = 0) -> None:
    """Refuse tensors that are not plain, and views that are larger than what is stored."""
    if isinstance(held, torch.Tensor):
        check_plain(held, path)
        if held.numel() * held.element_size() > held.untyped_storage().nbytes():
            raise CorruptFile(f"{path}: a tensor of shape {tuple(held.shape)} repeats its numbers; save it contiguous.")
    elif isinstance(held, Mapping | list | tuple):
        if depth == MAX_DEPTH:
            raise CorruptFile(f"{path}: its mappings are nested more than {MAX_DEPTH} deep.")
        for inner in held.values() if isinstance(held, Mapping) else held:
            _check_held(inner, path, depth + 1)


def check_plain(tensor: torch.Tensor, path: Path) -> None:
    """Refuse tensors without numbers (meta), nested, sparse and quantized ones, complex numbers and masks."""
    kinds = {
        "no numbers (a meta tensor)": tensor.is_meta,
        "a nested tensor": tensor.is_nested,
        "a quantized tensor": tensor.is_quantized,
        f"a tensor of the layout {tensor.layout}": tensor.layout != torch.strided,
        f"numbers of the type {tensor.dtype}": tensor.is_complex() or tensor.dtype == torch.bool,
    }
    kind = next((kind for kind, found in kinds.items() if found), None)
    if kind:
        raise CorruptFile(f"{path}: holds {kind}; expected plain tensors of real numbers.")
