"""Vectors that other tools made: PyTorch and safetensors files, GGUF control vectors, rows of an SAE's decoder.

What a row means is stated with every vector, since nothing in most files says it:

| convention | row or layer N is |
|---|---|
| `blocks` | the output of block N; `[n_blocks, d_model]` |
| `hidden_states` | `hidden_states[N]` of transformers: row 0 the embeddings, row N + 1 the output of block N |
| `control-vector` | `direction.N` of a GGUF file: added to the output of block N, and read there |
| `block` | a single direction, of the block that is named |
| `sae` | a row of `W_dec`, of the block that the SAE's `cfg.json` names |

The last hidden state of transformers comes after the final norm and is no block's output: the last block is absent.
Where a control vector is added is not always where it was measured: llama.cpp's generator measures `direction.N` at the
output of block N - 1, and repeng's last one is of the normed state. Both are read at block N; only who made the file
tells them apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from persona_core.errors import CorruptFile, SettingError, VectorsMismatch
from persona_core.models.detokenize import is_well_formed
from persona_core.utils.checks import check_integer
from persona_core.utils.files import read_json
from persona_core.vectors.control_vectors import read_control_vector
from persona_core.vectors.files import blocks_of_hidden_states, check_plain, load_pt, read_tensors
from persona_core.vectors.vectors import PersonaVectors

CONVENTIONS = ("blocks", "hidden_states")
HOOKS = {"hook_resid_post": 0, "hook_resid_pre": -1}
"""Of TransformerLens: the state after block N, and before it."""


@dataclass(frozen=True)
class Imported:
    """Vectors of one file.

    Attributes:
        tensors: name in the file -> float32 `[n_blocks, d_model]`, NaN at blocks without a direction.
        convention: how its rows were understood; see the module.
    """

    tensors: Mapping[str, torch.Tensor]
    convention: str


def import_vectors(
    files: Mapping[str, str | Path],
    n_blocks: int,
    *,
    convention: str | None = None,
    block: int | None = None,
    row: int | None = None,
    best_block: Mapping[str, int] | None = None,
) -> tuple[PersonaVectors, dict[str, str]]:
    """Vectors of several files, uncalibrated: raw and cosine scores and steering only, until `calibrate`.

    Args:
        files: trait -> file or, for an SAE, its folder. A file with several named vectors gives several traits, named
            "TRAIT/NAME"; one with a single name gives the trait itself.
        n_blocks: of the model; it tells `blocks` from `hidden_states`.
        convention: "blocks" or "hidden_states"; None infers it from the number of rows.
        block: of a file with a single direction, and of an SAE whose `cfg.json` names none.
        row: of an SAE's decoder.
        best_block: trait -> block; None leaves it open, or takes the only block that there is.

    Returns:
        The vectors, and trait -> the convention that was used.

    Raises:
        NotFound, CorruptFile: a file that is missing, broken or of another form.
        SettingError, VectorsMismatch: a setting is missing, or rows that do not fit the model.
    """
    check_integer("n_blocks", n_blocks)
    if convention is not None and convention not in CONVENTIONS:
        raise SettingError(f"convention={convention!r}; expected one of {', '.join(CONVENTIONS)}.")
    if block is not None:
        check_integer("block", block, 0)
    if not files:
        raise SettingError("No files; pass one per trait.")
    tensors: dict[str, torch.Tensor] = {}
    used: dict[str, str] = {}
    sources: dict[str, str] = {}
    for trait, path in files.items():
        found = _read(Path(path).expanduser(), n_blocks, convention, block, row)
        alone = len(found.tensors) == 1
        for name, tensor in found.tensors.items():
            key = trait if alone else f"{trait}/{name}"
            _check_named(key, tensor, found.convention, tensors, path)
            tensors[key], used[key], sources[key] = tensor, found.convention, f"{Path(path).name}, {found.convention}"
    widths = {t: tensor.shape[1] for t, tensor in tensors.items()}
    if len(set(widths.values())) > 1:
        raise VectorsMismatch(f"The vectors have different widths: {widths}. They are of different models.")
    known = {t: [b for b in range(n_blocks) if not tensor[b].isnan().any()] for t, tensor in tensors.items()}
    everywhere = set.intersection(*map(set, known.values()))
    if not everywhere:
        raise VectorsMismatch("No block has a direction of every trait; import them into separate folders.")
    for tensor in tensors.values():
        tensor[[b for b in range(n_blocks) if b not in everywhere]] = torch.nan
    absent = tuple(b for b in range(n_blocks) if b not in everywhere)
    only = dict.fromkeys(tensors, min(everywhere)) if len(everywhere) == 1 else {}
    config = {"imported_from": sources}
    return PersonaVectors(tensors, {**only, **(best_block or {})}, absent_blocks=absent, config=config), used


def _check_named(
    key: str, tensor: torch.Tensor, convention: str, others: Mapping[str, torch.Tensor], path: str | Path
) -> None:
    """Refuse a name that is taken or cannot be stored, and NaN in a direction that is there."""
    if not is_well_formed(key):
        raise CorruptFile(f"{path}: the name {key!r} contains an unpaired surrogate, which is not a character.")
    if key in others:
        raise CorruptFile(f"{path}: two vectors have the name {key!r}; rename one.")
    nan = tensor.isnan()  # [n_blocks, d_model]
    if nan.numel() and nan.all():
        raise CorruptFile(f"{path}: {key!r} is NaN at every block; make the vector again.")
    partly = (nan.any(1) & ~nan.all(1)).nonzero().flatten().tolist()
    if partly:
        where = f"row {partly[0] + (convention == 'hidden_states')}" if convention in CONVENTIONS else "the direction"
        raise CorruptFile(f"{path}: {where} of {key!r} holds NaN; make the vector again.")


def _read(path: Path, n_blocks: int, convention: str | None, block: int | None, row: int | None) -> Imported:
    if path.is_dir() or row is not None:
        return _of_sae(path, n_blocks, block, row)
    if path.suffix.lower() == ".gguf":
        return Imported({"": _placed(read_control_vector(path), n_blocks, path)}, "control-vector")
    held = _read_safetensors(path) if path.suffix == ".safetensors" else load_pt(path)
    return _of_value(held, path, n_blocks, convention, block)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    tensors = read_tensors(path)
    for tensor in tensors.values():
        check_plain(tensor, path)
    return tensors


def _of_value(held: Any, path: Path, n_blocks: int, convention: str | None, block: int | None) -> Imported:
    """Of a tensor, of a mapping from layers to directions, or of a mapping from names to either."""
    if isinstance(held, torch.Tensor):
        tensor, used = _rows(held, path, n_blocks, convention, block)
        return Imported({"": tensor}, used)
    if not isinstance(held, Mapping) or not held:
        raise CorruptFile(f"{path}: holds a {type(held).__name__}; expected tensors, or a mapping to tensors.")
    layers = [(layer, value) for key, value in held.items() if (layer := _layer(key)) is not None]
    directions = [v for v in held.values() if isinstance(v, torch.Tensor) and v.squeeze().ndim == 1]
    if len(layers) == len(directions) == len(held):
        offset = 0 if convention != "hidden_states" else -1  # hidden state 0 is that of the embeddings
        placed: dict[int, torch.Tensor] = {}
        for layer, value in layers:
            if layer < 0:
                raise VectorsMismatch(f"{path}: a direction of layer {layer}; layers count from 0.")
            if layer + offset in placed:
                raise CorruptFile(f"{path}: two directions of layer {layer}; keep one.")
            is_normed = convention == "hidden_states" and layer == n_blocks  # after the final norm: no block's output
            if layer + offset >= 0 and not is_normed:
                placed[layer + offset] = value.float().squeeze()
        return Imported({"": _placed(placed, n_blocks, path)}, convention or "blocks")
    tensors: dict[str, torch.Tensor] = {}
    forms = set()
    for key, value in held.items():
        if isinstance(value, str):
            continue
        found = _of_value(value, path, n_blocks, convention, block)
        forms.add(found.convention)
        for name, tensor in found.tensors.items():
            whole = str(key) if len(found.tensors) == 1 else f"{key}/{name}"
            if whole in tensors:
                raise CorruptFile(f"{path}: two vectors have the name {whole!r}; rename one.")
            tensors[whole] = tensor
    if len(forms) != 1:
        raise VectorsMismatch(f"{path}: its vectors have different forms ({', '.join(sorted(forms))}); split the file.")
    return Imported(tensors, forms.pop())


def _layer(key: object) -> int | None:
    """The number of a layer's key, such as 3, "3", "layer_3" or "blocks.3"; None for other names."""
    if isinstance(key, int) and not isinstance(key, bool):
        return key
    tail = str(key).replace("_", ".").rpartition(".")
    stem = tail[0].lower()
    return (
        int(tail[2])
        if tail[2].isdecimal() and len(tail[2]) < 6 and stem in ("", "layer", "layers", "block", "blocks")
        else None
    )


def _rows(
    tensor: torch.Tensor, path: Path, n_blocks: int, convention: str | None, block: int | None
) -> tuple[torch.Tensor, str]:
    """A tensor's rows as blocks, and the convention."""
    rows = tensor.detach().float().squeeze()
    if rows.ndim == 1:
        if block is None:
            raise SettingError(f"{path} holds a single direction; name the block whose output it is of.")
        return _placed({block: rows}, n_blocks, path), "block"
    if rows.ndim != 2:
        raise CorruptFile(
            f"{path}: a tensor of shape {tuple(tensor.shape)}; expected [n_blocks, d_model] or [d_model]."
        )
    fits = {"blocks": n_blocks, "hidden_states": n_blocks + 1}
    used = convention or next((name for name, n in fits.items() if n == len(rows)), None)
    if used is None or fits[used] != len(rows):
        raise VectorsMismatch(
            f"{path}: {len(rows)} rows do not fit {n_blocks} blocks: {n_blocks} rows are those of 'blocks', "
            f"{n_blocks + 1} those of 'hidden_states'."
        )
    return blocks_of_hidden_states(rows) if used == "hidden_states" else rows.clone(), used


def _placed(by_block: Mapping[int, torch.Tensor], n_blocks: int, path: Path) -> torch.Tensor:
    """Directions at their blocks, NaN elsewhere, `[n_blocks, d_model]`."""
    if not by_block:
        raise CorruptFile(f"{path}: holds no direction of a block.")
    widths = {len(direction) for direction in by_block.values()}
    if len(widths) != 1:
        raise CorruptFile(f"{path}: directions of widths {sorted(widths)}; expected one width.")
    beyond = [b for b in by_block if not 0 <= b < n_blocks]
    if beyond:
        raise VectorsMismatch(f"{path}: a direction of block {beyond[0]}; the model has blocks 0 to {n_blocks - 1}.")
    placed = torch.full((n_blocks, widths.pop()), torch.nan)
    for block, direction in by_block.items():
        placed[block] = direction.float()
    return placed


def _of_sae(path: Path, n_blocks: int, block: int | None, row: int | None) -> Imported:
    """A row of `W_dec` of a SAELens SAE: a folder with `cfg.json` and `sae_weights.safetensors`, or the weights."""
    if row is None:
        raise SettingError(f"{path} is a folder; name the row of the SAE's decoder, or the file.")
    check_integer("row", row, 0)
    weights = path / "sae_weights.safetensors" if path.is_dir() else path
    decoder = _read_safetensors(weights).get("W_dec")  # [d_sae, d_model]
    if decoder is None or decoder.ndim != 2:
        raise CorruptFile(f"{weights}: no matrix 'W_dec'; not an SAE of SAELens.")
    if row >= len(decoder):
        raise SettingError(f"row={row}; the SAE has rows 0 to {len(decoder) - 1}.")
    at = block if block is not None else _hook_block(weights.with_name("cfg.json"))
    return Imported({"": _placed({at: decoder[row]}, n_blocks, weights)}, "sae")


def _hook_block(config: Path) -> int:
    if not config.is_file():
        raise SettingError(f"No {config}; name the block whose output the SAE was trained on.")
    record = read_json(config)
    metadata = record.get("metadata")
    name = record.get("hook_name") or (metadata.get("hook_name") if isinstance(metadata, dict) else None)
    parts = str(name).split(".")
    if len(parts) == 3 and parts[0] == "blocks" and parts[1].isdecimal() and len(parts[1]) < 6 and parts[2] in HOOKS:
        return int(parts[1]) + HOOKS[parts[2]]
    raise SettingError(
        f"{config}: hook_name is {json.dumps(name)[:80]}, not the residual stream (blocks.N.hook_resid_post); name the "
        "block."
    )
