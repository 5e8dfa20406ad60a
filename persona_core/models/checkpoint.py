"""Read a checkpoint through transformers: one load at a time, and only if every weight is there."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from persona_core.errors import CorruptFile, NotFound, PersonaError
from persona_core.utils.files import check_size, read_json
from persona_core.utils.hub import fetch

# transformers 5.23 ties weights under process-wide switches: of two threads that load at once, one reports
# "lm_head.weight" as missing (8 of 8 times with the demo model).
_load_lock = threading.Lock()

MAX_REASON = 300
"""Characters of a library's own message that are shown."""
MAX_LAYERS, MAX_EXPERTS, MAX_PARTS = 500, 2000, 1000
"""Layers, experts of a layer and files that a config may ask for; the largest published have 128, 512 and 200. Layers
are built before any weight is looked at: a million of them take an hour."""
_LAYERS = re.compile(r"(?:num|n)_(?:\w+_)?(?:layers?|blocks?)|depth|\w*block_count")
_EXPERTS = re.compile(r"(?:num|n)_(?:\w+_)?experts?|\w*expert_count")
SMALL = 10_000_000
"""Weights that a config may ask for beyond twice those of the files: 40 MB."""
TOKENIZER = "tokenizer.json"
INDEX = "model.safetensors.index.json"
CONFIGS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")


def read_checkpoint(source: str, what: str, options: dict[str, Any], **model_options: Any) -> tuple[Any, Any]:
    """The model and the tokenizer of a checkpoint. Code that comes with it is never run.

    Args:
        source: an existing folder, or a Hub id.
        what: for messages: "the model 'org/name'".
        options: for both `from_pretrained`: the revision, a GGUF file.
        **model_options: for the model's alone.

    Raises:
        NotFound: no such repository or revision, or a file is missing.
        CorruptFile: a file that cannot be read, or weights are missing.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if "gguf_file" not in options:
        check_configs(source, options.get("revision"))
    with explained(what):
        if "gguf_file" not in options:
            _check_size(source, options.get("revision"), what)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
        with _load_lock:
            model, loading = AutoModelForCausalLM.from_pretrained(
                source, trust_remote_code=False, output_loading_info=True, **options, **model_options
            )
    missing = sorted(loading["missing_keys"])
    if missing:  # transformers initialises them randomly and continues
        kind = type(model).__name__
        raise CorruptFile(f"Could not load {what}: it lacks {len(missing)} weights of a {kind}, e.g. {missing[0]!r}.")
    _check_blocks(model, loading["unexpected_keys"], what)
    return model, tokenizer


def _check_blocks(model: Any, unexpected: Collection[str], what: str) -> None:
    """Refuse weights of blocks or experts beyond those that the config has: transformers would drop them in silence.

    Weights of what the model does not have at all, such as a vision tower, and of layers that predict further tokens
    (`num_nextn_predict_layers`) change nothing about the text.

    Raises:
        CorruptFile: the message names a weight.
    """
    import torch

    prefix = f"{model.base_model_prefix}."
    lengths = {
        name.removeprefix(prefix): len(module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList)
    }
    further = getattr(model.config.get_text_config(decoder=True), "num_nextn_predict_layers", None) or 0
    extra = [
        (int(number.group()), name, length)
        for name in unexpected
        for number in re.finditer(r"(?<=\.)\d+(?=\.)", name)
        if (length := lengths.get(name[: number.start() - 1].removeprefix(prefix), math.inf)) + further
        <= int(number.group())
    ]
    if extra:
        _, name, length = min(extra)
        raise CorruptFile(
            f"Could not load {what}: its files hold {len(extra)} weights beyond the {length} layers or experts that "
            f"its config asks for, e.g. {name!r}. Part of a model computes something else; restore its config.json."
        )


def check_configs(source: str, revision: str | None = None) -> None:
    """Refuse a checkpoint whose small JSON files cannot be read: transformers passes over some of them in silence.

    A truncated `generation_config.json` would leave a model that does not know how its replies end.

    Raises:
        CorruptFile: one that is not a JSON object.
    """
    for name in (*CONFIGS, TOKENIZER):
        try:
            path = fetch(source, name, revision)
        except NotFound:
            continue
        if name == TOKENIZER:
            check_size(path)  # tokenizers reads it, and says what is wrong with it
        else:
            check_counts(read_json(path), str(path))


def check_counts(config: Mapping[str, Any], where: str) -> None:
    """Refuse a config, with those inside it, that asks for more layers or experts than any model has.

    Raises:
        CorruptFile: the message names the field.
    """
    for name, value in config.items():
        key, count = name.rpartition(".")[2], value
        limit = MAX_LAYERS if _LAYERS.fullmatch(key) else MAX_EXPERTS if _EXPERTS.fullmatch(key) else None
        if name == "layer_types" and isinstance(value, list):
            limit, count = MAX_LAYERS, len(value)
        if limit is not None and isinstance(count, int) and count > limit:
            raise CorruptFile(f"{where}: {name} asks for {count:,}; at most {limit:,} are built. Download it again.")
        if isinstance(value, dict):
            check_counts(value, where)


def _check_size(source: str, revision: str | None, what: str) -> None:
    """Refuse a config that asks for far more weights than the files hold, before transformers allocates them.

    Raises:
        CorruptFile.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source, trust_remote_code=False, revision=revision)
    if getattr(config, "quantization_config", None) is not None:
        return  # packed: several weights in one number
    files = weight_files(source, revision)
    held = sum(math.prod(shape) for path in files for shape in tensor_shapes(path).values())
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    wanted = sum(weight.numel() for weight in model.parameters())
    if files and wanted > 2 * held + SMALL:  # twice, since embeddings may be stored once and counted twice
        raise CorruptFile(
            f"Could not load {what}: its config asks for {wanted:,} weights, and its files hold {held:,}. Download it "
            "again."
        )


def weight_files(source: str, revision: str | None = None) -> list[Path]:
    """The safetensors files of a checkpoint, fetched; none where it has no `model.safetensors` and no index of parts.

    Raises:
        NotFound: a part that the index names is missing.
        CorruptFile: the index cannot be read, or names a file elsewhere.
    """
    try:
        return [fetch(source, "model.safetensors", revision)]
    except NotFound:
        pass
    try:
        index = fetch(source, INDEX, revision)
    except NotFound:
        return []
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise CorruptFile(f"{index}: weight_map does not say in which file each weight is. Download it again.")
    names = sorted(set(where.values()))
    if len(names) > MAX_PARTS or any(PurePath(name).name != name for name in names[:MAX_PARTS]):
        raise CorruptFile(
            f"{index}: names {len(names):,} files; expected at most {MAX_PARTS:,}, all of them beside it."
        )
    return [fetch(source, name, revision) for name in names]


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in a safetensors file; only its header is read."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Name what could not be loaded, and distinguish missing from corrupt."""
    try:
        yield
    except (PersonaError, MemoryError):
        raise
    except OSError as error:
        raise NotFound(f"Could not load {what}: {error}") from error
    except Exception as error:  # tokenizers raises plain exceptions
        why = " ".join(str(error).split())  # torch names every matrix that does not fit, on a line each
        raise CorruptFile(f"Could not load {what}: {type(error).__name__}: {why[:MAX_REASON]}") from error
