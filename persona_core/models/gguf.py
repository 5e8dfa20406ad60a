"""GGUF files, the format of llama.cpp: dequantized once into safetensors, in a cache outside the project.

    <HF_ASSETS_CACHE, by default HF_HOME/assets>/persona-trace/gguf-1/<sha256 of the file>/
      float32/        the model and its tokenizer, as transformers saves them
        gguf.json     what the file says of itself
      float32.lock    held while one process converts

Delete the folder to free its space; the next load converts the file again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_core.errors import CorruptFile, NotFound, PersonaWarning, SettingError, UnsupportedModel
from persona_core.models.checkpoint import check_counts, explained, read_checkpoint
from persona_core.models.gguf_header import check_header
from persona_core.utils.files import read_json, write_atomically
from persona_core.utils.hub import commit_of, fetch, resolve_source

logger = logging.getLogger(__name__)

NAMESPACE = "gguf-1"  # raise the number when conversion changes: older folders are then left alone
RECORD = "gguf.json"
MAGIC = b"GGUF"

# Values of tokenizer.ggml.pre, of byte-level vocabularies that split text as GPT-2 does. transformers 5.23 splits so
# whatever it does not know; llama.cpp splits those of the second set at every digit first, so that "\n\n1." is three
# tokens and not four.
GPT2_SPLIT = {"gpt-2", "phi-2", "mpt", "olmo", "jais", "gigachat"}
DIGITS_APART = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file on this machine.

    Attributes:
        path: of the file.
        name: the model's name: the path, or "org/name/FILE.gguf" for a file from the Hub.
        commit: of the repository on the Hub that it is from; None for a local file.
    """

    path: Path
    name: str
    commit: str | None = None


def find_gguf(source: str | Path, revision: str | None = None, filename: str | None = None) -> GgufFile | None:
    """The GGUF file that a model's name stands for; None where it stands for something else.

    Args:
        source: a GGUF file, a folder, or a Hub id.
        revision: commit, tag or branch on the Hub.
        filename: of a file in the folder or repository. Without one, a folder that has no safetensors and one GGUF
            file stands for that file; of a repository nothing is fetched.

    Raises:
        NotFound: no such file, folder or repository.
        SettingError: several GGUF files in the folder; a file or folder with a revision; a file and a file name.

    >>> find_gguf("artifacts/persona-tiny") is None
    True
    """
    path = Path(source).expanduser()
    if path.is_file() and (path.suffix.lower() == ".gguf" or _magic(path) == MAGIC):
        if filename is not None or revision is not None:
            extra = f"gguf_file={filename!r}" if filename is not None else f"revision={revision!r}"
            raise SettingError(f"{str(source)!r} is a file already; leave {extra} out.")
        return GgufFile(path, str(path))
    # Two words may be a Hub id, unless the first is a folder here; one or three never are.
    if path.suffix.lower() == ".gguf" and not path.exists() and (len(path.parts) != 2 or path.parent.is_dir()):
        raise NotFound(f"No file {str(source)!r} here. `make weights`, in a checkout, prints where SmolLM2 is.")
    name = resolve_source(source, revision) if filename is not None or (str(source) and path.is_dir()) else ""
    if filename is not None:
        return GgufFile(fetch(name, filename, revision), f"{name}/{filename}", commit_of(name, filename, revision))
    if not name or any(path.glob("*.safetensors")):
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        listed = ", ".join(file.name for file in found)
        raise SettingError(f"{name!r} holds {len(found)} GGUF files: {listed}. Name one with gguf_file=.")
    return GgufFile(found[0], str(found[0])) if found else None


def converted(file: GgufFile, dtype: str = "float32") -> tuple[Path, dict[str, str]]:
    """The folder with the file's model as safetensors, and the file's record. The first call converts it.

    Processes that ask for the same file at once wait for one conversion. A folder in the cache is always complete.

    Args:
        file: as `find_gguf` returns it.
        dtype: of the stored weights: "float32" keeps the file's numbers, quantized ones too.

    Returns:
        The folder, and "file" (its name), "sha256", and "quantization", such as "Q4_1".

    Raises:
        CorruptFile: not a GGUF file, or a truncated one.
        UnsupportedModel: an architecture or a quantization that transformers cannot read.
        SettingError: the package `gguf` is missing, one part of a split file, or a cache that cannot be written.
    """
    from filelock import FileLock
    from safetensors import SafetensorError

    if _magic(file.path) != MAGIC:
        raise CorruptFile(f"{file.name!r} is not a GGUF file: it does not start with the bytes 'GGUF'.")
    with file.path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    try:
        if not (folder := cache_folder(sha256, dtype)).is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_suffix(".lock")):
                if not folder.is_dir():
                    _convert(file, dtype, folder)
    except (OSError, SafetensorError) as error:  # no permission, or no space
        raise SettingError(f"The cache cannot be written: {error}. Set HF_HOME to a folder that can.") from error
    return folder, {"file": file.path.name, "sha256": sha256, **read_json(folder / RECORD)}


def cache_folder(sha256: str, dtype: str = "float32") -> Path:
    """Where the converted file of this hash lies, once it is there."""
    from huggingface_hub import constants

    return Path(constants.HF_ASSETS_CACHE) / "persona-trace" / NAMESPACE / sha256 / dtype


def _convert(file: GgufFile, dtype: str, folder: Path) -> None:
    """Write the folder: first beside it, then in one step."""
    if importlib.util.find_spec("gguf") is None:
        raise SettingError("Reading a GGUF file needs the package gguf: pip install 'persona-trace[gguf]'.")
    from transformers import GgufConfig

    what = f"the GGUF file {file.name!r}"
    logger.info("Converting %s to %s in %s; later loads read it from there.", what, dtype, folder)
    metadata, quantization = _header(file, what)
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    part.mkdir()
    try:
        # An absolute file name keeps transformers from reading what else lies in the file's own folder.
        model, tokenizer = read_checkpoint(
            str(part),
            what,
            {"gguf_file": str(file.path.resolve())},
            dtype=dtype,
            quantization_config=GgufConfig(dequantize=True),  # leaves a plain model, which can be saved
        )
        _split_digits(tokenizer, metadata.get("tokenizer.ggml.pre"), file)
        ends = {metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot")} - {None}
        if ends:  # Gemma's <end_of_turn> is only the second of the two
            model.generation_config.eos_token_id = sorted(ends)
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        write_atomically(part / RECORD, json.dumps({"quantization": quantization}) + "\n")
        os.replace(part, folder)
    except CorruptFile as error:
        if "not supported" in str(error):
            raise UnsupportedModel(str(error)) from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _header(file: GgufFile, what: str) -> tuple[dict[str, Any], str]:
    """The file's metadata without its vocabulary, and its quantization as llama.cpp names it."""
    from gguf import GGUFReader, LlamaFileType

    with explained(what):
        check_header(file.path)
        reader = GGUFReader(file.path)
        metadata = {k: f.contents() for k, f in reader.fields.items() if len(f.data) <= 1}
        sizes: Counter[str] = Counter()
        for tensor in reader.tensors:
            sizes[tensor.tensor_type.name] += int(tensor.n_elements)
    check_counts(metadata, what)
    if not sizes:
        raise CorruptFile(f"The GGUF file {file.name!r} holds no tensors; download it again.")
    if (parts := int(metadata.get("split.count", 1))) > 1:
        raise SettingError(f"{file.name!r} is one of {parts} parts; merge them with llama-gguf-split --merge.")
    try:
        quantization = LlamaFileType(metadata["general.file_type"]).name.split("_", 1)[1]  # MOSTLY_Q4_1, ALL_F32
    except (KeyError, ValueError, IndexError):
        quantization = sizes.most_common(1)[0][0]
    return metadata, quantization


def _split_digits(tokenizer: Any, split: str | None, file: GgufFile) -> None:
    """Mend how a byte-level tokenizer splits text before merging, or warn where that is not known."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    backend = tokenizer.backend_tokenizer
    if not isinstance(backend.pre_tokenizer, ByteLevel) or split in GPT2_SPLIT:
        return
    if split in DIGITS_APART:
        backend.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
        return
    warnings.warn(
        f"{file.name!r}: how its tokenizer splits text ({split!r}) is not known; it is split as GPT-2 would, so ids of "
        "given texts may differ from the model's own. Load the original model if there is one.",
        PersonaWarning,
        stacklevel=5,
    )


def _magic(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(len(MAGIC))
