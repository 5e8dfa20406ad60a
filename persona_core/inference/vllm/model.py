"""Load a model on vLLM: its tokenizer and chat format here, its weights in vLLM's workers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from persona_core.errors import PersonaError, SettingError, UnsupportedModel
from persona_core.inference.vllm.adapter import find_lora
from persona_core.inference.vllm.engine import VllmEngine
from persona_core.models.adapters import own_tokenizer
from persona_core.models.blocks import Blocks
from persona_core.models.chat import ChatFormat
from persona_core.models.checkpoint import check_configs, explained, tensor_shapes, weight_files
from persona_core.models.language_model import LanguageModel
from persona_core.models.origin import ends_of, origin_of

NO_MODULES = (
    "This needs the model's own modules, which engine='vllm' does not give: load it with engine='transformers'."
)


class Elsewhere:
    """In place of a model's modules, which are in vLLM's workers: whatever needs them is refused by name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise SettingError(NO_MODULES)

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise SettingError(NO_MODULES)


@dataclass(frozen=True)
class ServedBlocks(Blocks):
    """Blocks in vLLM's workers: their number and width are known; directions stay on the CPU until a run begins."""

    def device(self, block: int) -> torch.device:  # noqa: ARG002
        return torch.device("cpu")


@dataclass(frozen=True, repr=False)
class ServedModel(LanguageModel):
    """A model whose weights are in vLLM's workers.

    Attributes:
        weights: 16 hex digits over the names and the first and last 8 numbers of every weight in its files.
        vocabulary: rows of the embedding table.
        weight_dtype: of the weights in vLLM.
    """

    weights: str = ""
    vocabulary: int = 0
    weight_dtype: torch.dtype = torch.float32

    @property
    def record(self) -> dict[str, Any]:
        return {**self._record([]), "engine": self.engine.name}

    @property
    def versions(self) -> dict[str, str]:
        return {**super().versions, self.engine.name: self.engine.version}

    @property
    def identity(self) -> dict[str, Any]:
        return {**self.record, "weights": self.weights}

    @property
    def device(self) -> torch.device:
        """Where readings arrive."""
        return torch.device("cpu")

    @property
    def dispatched(self) -> bool:
        return False

    @property
    def dtype(self) -> torch.dtype:
        return self.weight_dtype

    @property
    def vocabulary_size(self) -> int:
        return self.vocabulary

    def refuse_training(self) -> None:
        """vLLM has no training mode."""


def load(
    folder: str,
    *,
    label: str,
    revision: str | None,
    commit: str | None,
    adapter: str | Path | None,
    adapter_revision: str | None,
    dtype: str,
    template_kwargs: Mapping[str, Any] | None,
    gguf: Mapping[str, str] | None,
    tensor_parallel: int,
    options: Mapping[str, Any],
) -> LanguageModel:
    """A model on vLLM; the arguments are what `load_model` found.

    Args:
        folder: of the checkpoint, or its Hub id.
        label, revision, commit: its name, and which version was asked for and found.
        adapter, adapter_revision, dtype, template_kwargs: as in `load_model`.
        gguf: the record of the GGUF file that it was converted from.
        tensor_parallel: over how many devices each weight is spread.
        options: further arguments of `vllm.EngineArgs`.

    Raises:
        NotFound, CorruptFile: a file that is missing or cannot be read.
        SettingError: vLLM is not installed, or refuses an option.
        UnsupportedModel: vLLM cannot run the model.
    """
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    from persona_core.models.loading import context_length, eos_ids

    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise SettingError("engine='vllm' needs vLLM: pip install 'persona-trace[vllm]'.") from error
    what = f"the model {label!r}"
    check_configs(folder, revision)
    with explained(what):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, revision=revision)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, revision=revision)
        try:
            generation = GenerationConfig.from_pretrained(folder, revision=revision)
        except OSError:  # none: the config's own values hold
            generation = GenerationConfig.from_model_config(config)
    text_config = config.get_text_config(decoder=True)
    kept = _dtype(config) if dtype == "auto" else dtype
    files = weight_files(folder, revision)
    if not files:
        raise SettingError(f"{what} has no safetensors file; engine='vllm' reads no other.")
    lora = None
    if adapter is not None:
        lora = find_lora(adapter, adapter_revision, {name for path in files for name in tensor_shapes(path)})
        tokenizer = own_tokenizer(_embedding(text_config.vocab_size), tokenizer, adapter, adapter_revision)
    try:
        engine = VllmEngine(str(files[0].parent), kept, tensor_parallel, context_length(text_config), options, lora)
    except PersonaError:
        raise
    except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise UnsupportedModel(f"vLLM could not load {what}: {type(error).__name__}: {why[:300]}") from error
    wanted = int(text_config.num_hidden_layers), int(text_config.hidden_size)
    if (engine.n_blocks, engine.d_model) != wanted:
        raise UnsupportedModel(
            f"vLLM has {engine.n_blocks} blocks × {engine.d_model} of {what}; its config says {wanted}."
        )
    return ServedModel(
        model=Elsewhere(),
        tokenizer=tokenizer,
        chat=ChatFormat(tokenizer, template_kwargs),
        blocks=ServedBlocks(tuple(nn.Identity() for _ in range(engine.n_blocks)), engine.d_model),
        name=label,
        revision=commit,
        adapter=None if adapter is None else str(adapter),
        adapter_revision=None if lora is None else lora.commit,
        eos_ids=eos_ids(SimpleNamespace(generation_config=generation), tokenizer),
        context_length=engine.context_length,
        forward_arguments=frozenset(),
        gguf=gguf,
        converted_from=origin_of(
            SimpleNamespace(config=config, parameters=lambda: [w for path in files for _, w in _weights(path)])
        ),
        engine=engine,
        weights=_digest(files if lora is None else [*files, lora.weights]),
        vocabulary=int(text_config.vocab_size),
        weight_dtype=getattr(torch, kept),
    )


def _embedding(n: int) -> Any:
    """Something with as many embeddings as a model of this vocabulary."""
    return SimpleNamespace(get_input_embeddings=lambda: nn.Embedding(n, 1, device="meta"))


def _dtype(config: Any) -> str:
    """The checkpoint's own; float16 is read as float32 on a CPU, as by transformers. vLLM's "auto" would halve it."""
    found = str(getattr(config, "dtype", None) or torch.float32).removeprefix("torch.")
    return "float32" if found == "float16" and not torch.cuda.is_available() else found


def _weights(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of a safetensors file, mapped: only what is looked at is read."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for name in sorted(file.keys()):
            yield name, file.get_tensor(name)


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        for name, weight in _weights(path):
            digest.update(name.encode() + ends_of(weight))
    return digest.hexdigest()[:16]
