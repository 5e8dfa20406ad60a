"""Control vectors of llama.cpp and repeng: GGUF files with a tensor `direction.N` for each block.

Both add `direction.N` to the output of block N, counted from 0 as here. llama.cpp refuses a `direction.0`.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from persona_core.errors import CorruptFile, NotFound, SettingError
from persona_core.models.gguf_header import check_header
from persona_core.utils.files import replacing

if TYPE_CHECKING:
    from persona_core.vectors.vectors import PersonaVectors

ARCHITECTURE = "controlvector"
NAME = re.compile(r"direction\.(\d{1,5})")


def read_control_vector(path: str | Path) -> dict[int, torch.Tensor]:
    """Block -> direction, float32 `[d_model]`.

    Raises:
        NotFound: no such file.
        CorruptFile: not a GGUF file, or not one of a control vector.
        SettingError: the package `gguf` is missing.
    """
    _check_package()
    from gguf import GGUFReader
    from gguf.quants import dequantize

    if not Path(path).is_file():
        raise NotFound(f"No file {str(path)!r}.")
    check_header(Path(path))
    try:
        reader = GGUFReader(path)
        named = [(int(match[1]), one) for one in reader.tensors if (match := NAME.fullmatch(one.name))]
        found = {
            block: torch.from_numpy(np.array(dequantize(one.data, one.tensor_type), np.float32).reshape(-1))
            for block, one in named
        }
    except Exception as error:  # the reader raises whatever the bytes lead it to
        raise CorruptFile(f"{path}: truncated or not a GGUF file: {type(error).__name__}: {error}") from error
    if not found:
        raise CorruptFile(f"{path}: no tensor 'direction.N'; not a control vector.")
    if len(found) < len(named):
        raise CorruptFile(f"{path}: two directions of one block; keep one.")
    return dict(sorted(found.items()))


def write_control_vector(vectors: PersonaVectors, trait: str, path: str | Path, model_hint: str = "") -> Path:
    """Write one trait's steering directions as a control vector, for `llama-cli --control-vector-scaled`.

    Block 0 and absent blocks are left out: llama.cpp has no `direction.0`.

    Args:
        vectors: with the trait.
        trait: which.
        path: of the GGUF file.
        model_hint: architecture of the model, such as "llama"; readers show it.

    Raises:
        UnknownTrait.
        SettingError: the package `gguf` is missing, or no block but 0 has a direction.
    """
    _check_package()
    from gguf import GGUFWriter

    tensor = vectors.tensor(trait)  # [n_blocks, d_model]
    blocks = [b for b in vectors.blocks if b > 0]
    if not blocks:
        raise SettingError(f"{trait!r} has a direction at block 0 alone, which a control vector cannot hold.")
    with replacing(Path(path)) as beside:
        writer = GGUFWriter(beside, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", model_hint or "unknown")  # repeng needs one that is not empty
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(blocks))
        for block in blocks:
            writer.add_tensor(f"direction.{block}", tensor[block].numpy().astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return Path(path)


def _check_package() -> None:
    if importlib.util.find_spec("gguf") is None:
        raise SettingError("GGUF control vectors need the package gguf: pip install 'persona-trace[gguf]'.")
