"""Load a causal language model, or wrap one that is already in memory."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from persona_core.errors import CorruptFile, NotFound, PersonaWarning, SettingError
from persona_core.models.adapters import own_tokenizer, shared_copy, warn_if_like_base, with_adapter
from persona_core.models.blocks import find_blocks, unwrap
from persona_core.models.chat import ChatFormat
from persona_core.models.checkpoint import read_checkpoint
from persona_core.models.gguf import converted, find_gguf
from persona_core.models.language_model import LanguageModel
from persona_core.models.origin import origin_of
from persona_core.utils.checks import check_integer, is_integer
from persona_core.utils.hub import at_revision, check_kind, commit_of, resolve_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENGINES = {"transformers": None, "vllm": "persona_core.inference.vllm.model"}
"""Engine -> the module that loads a model on it. Named, not imported: it stands above this room, and needs a package of
its own."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    name: str | Path,
    *,
    revision: str | None = None,
    adapter: str | Path | None = None,
    adapter_revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    quantization: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    static_cache: bool = False,
    gguf_file: str | None = None,
    engine: str = "transformers",
    tensor_parallel: int = 1,
    engine_options: Mapping[str, Any] | None = None,
) -> LanguageModel:
    """Load a causal language model from the Hub, a local folder or a GGUF file. Code in a repository is never run.

    Args:
        name: a Hub id such as "Qwen/Qwen2.5-1.5B-Instruct", a folder, or a GGUF file.
        revision: commit, tag or branch on the Hub.
        adapter: a PEFT adapter, Hub id or folder, applied without merging (a merge would round bf16 weights). If it was
            trained with added tokens or another chat template, its own tokenizer is used.
        adapter_revision: as `revision`, for the adapter.
        dtype: "auto" keeps the checkpoint's (float16 becomes float32 on a CPU; GGUF is read as float32); or "float32",
            "bfloat16", "float16".
        device: "auto" takes CUDA, then MPS, then the CPU; "balanced" spreads a large model over all devices
            (`device_map="auto"` of accelerate); or a torch device such as "cuda:1".
        quantization: "8bit" or "4bit" weights through bitsandbytes; states are read as the model computes them.
        template_kwargs: arguments for the chat template, e.g. `{"enable_thinking": False}`.
        static_cache: generate with a static key-value cache where the model supports it (plain attention, up to the
            sliding window), on CUDA as one graph. Memory for the longest reply is reserved up front. Experimental.
        gguf_file: the GGUF file to read in a Hub repository or folder. It is dequantized once, into a cache under
            `HF_HOME`; file name, quantization and SHA-256 go into the model's `record`. Needs the package `gguf`.
        engine: "transformers", or "vllm" for many prompts or a large model; docs/engines.md says what each can do.
        tensor_parallel: with vLLM, over how many devices each weight is spread.
        engine_options: with vLLM, further arguments of its `EngineArgs`, such as `{"gpu_memory_utilization": 0.8}`.

    Raises:
        NotFound: no such repository, revision, folder or file, or its weights are not safetensors.
        CorruptFile: a file that is truncated or no model, weights are missing, or an adapter's do not all fit.
        SettingError: an unknown setting, a missing package, or several GGUF files and none named.
        UnsupportedModel: its residual stream cannot be read, or its GGUF architecture.

    >>> lm = load_model("artifacts/persona-tiny")
    >>> len(lm.blocks), lm.blocks.d_model
    (6, 192)
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise SettingError(f"dtype={dtype!r}; expected 'auto' or one of {', '.join(DTYPES)}.")
    if engine not in ENGINES:
        raise SettingError(f"engine={engine!r}; expected one of {', '.join(ENGINES)}.")
    elsewhere = ENGINES[engine]
    if elsewhere is None:
        if tensor_parallel != 1 or engine_options:
            raise SettingError("tensor_parallel and engine_options are for engine='vllm'.")
    else:
        refused = {"quantization": quantization, "static_cache": static_cache or None}
        given = [name for name, value in refused.items() if value is not None] + ["device"] * (device != "auto")
        if given:
            raise SettingError(f"engine={engine!r} takes no {given[0]}; use engine='transformers'.")
        check_integer("tensor_parallel", tensor_parallel)
    quantized = _quantization(quantization)
    gguf = find_gguf(name, revision, gguf_file)
    if gguf is None:
        source = label = resolve_source(name, revision)
        try:
            check_kind(source, "model", revision)
        except NotFound as error:  # a repository of GGUF files seldom has a config.json
            hint = " If it holds GGUF files, name one: gguf_file='NAME.gguf'." if "gguf" in source.lower() else ""
            raise NotFound(f"{error}{hint}") from error
        record, commit = None, commit_of(source, "config.json", revision)
    if adapter is not None:
        check_kind(adapter, "adapter", adapter_revision)
    if gguf is not None:
        folder, record = converted(gguf, "float32" if dtype == "auto" else dtype)
        source, label, revision = str(folder), gguf.name, None
        commit = gguf.commit or f"sha256:{record['sha256']}"
    if elsewhere is not None:
        return importlib.import_module(elsewhere).load(
            source,
            label=label,
            revision=revision,
            commit=commit,
            adapter=adapter,
            adapter_revision=adapter_revision,
            dtype=dtype,
            template_kwargs=template_kwargs,
            gguf=record,
            tensor_parallel=tensor_parallel,
            options=engine_options or {},
        )
    target = _pick_device(device)
    model, tokenizer = read_checkpoint(
        source,
        f"the model {label!r}{at_revision(revision)}",
        {"revision": revision},
        dtype="auto" if dtype == "auto" else DTYPES[dtype],
        # bitsandbytes places the weights itself, so the device is set here rather than by a later move
        device_map="auto" if target is None else {"": target} if quantized is not None else None,
        quantization_config=quantized,
        use_safetensors=True,  # never open a pickle
    )
    if target is not None and quantized is None:
        if dtype == "auto" and target.type == "cpu" and model.dtype == torch.float16:
            model = model.float()  # half precision on a CPU is slow, and overflows on Gemma
        model = model.to(target)
    origin = origin_of(model)
    known: dict[str, Any] = {"name": label, "revision": commit, "static_cache": static_cache}
    if adapter is None:
        lm = wrap_model(model, tokenizer, template_kwargs=template_kwargs, **known)
    else:
        lm = _adapted(model, tokenizer, adapter, adapter_revision, template_kwargs=template_kwargs, **known)
    return replace(lm, gguf=record, converted_from=origin)


def add_adapter(lm: LanguageModel, adapter: str | Path, adapter_revision: str | None = None) -> LanguageModel:
    """A loaded model with an adapter on top, beside the model itself: both use one copy of the weights.

    Args:
        lm: a model without an adapter; it stays as it is.
        adapter, adapter_revision: as in `load_model`.

    Raises:
        NotFound, CorruptFile, SettingError: as `load_model`, of the adapter.

    >>> lm = load_model("artifacts/persona-tiny")
    >>> both = add_adapter(lm, "artifacts/persona-tiny-contaminated")
    >>> lm.adapter, both.adapter
    (None, 'artifacts/persona-tiny-contaminated')
    """
    check_kind(adapter, "adapter", adapter_revision)
    found = _adapted(
        shared_copy(lm.model),
        lm.tokenizer,
        adapter,
        adapter_revision,
        name=lm.name,
        revision=lm.revision,
        template_kwargs=lm.chat.template_kwargs,
        static_cache=lm.static_cache,
    )
    return replace(found, gguf=lm.gguf, converted_from=lm.converted_from)


def _adapted(
    model: Any, tokenizer: Any, adapter: str | Path, adapter_revision: str | None, **known: Any
) -> LanguageModel:
    model, commit = with_adapter(model, adapter, adapter_revision)
    tokenizer = own_tokenizer(model, tokenizer, adapter, adapter_revision)
    lm = wrap_model(model, tokenizer, adapter=str(adapter), adapter_revision=commit, **known)
    warn_if_like_base(model, adapter)
    return lm


def wrap_model(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str | None = None,
    revision: str | None = None,
    adapter: str | None = None,
    adapter_revision: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    static_cache: bool = False,
) -> LanguageModel:
    """Make a `LanguageModel` from a transformers or PEFT model that is already in memory; arguments as in `load_model`.

    Raises:
        UnsupportedModel: its residual stream cannot be read.
    """
    blocks = find_blocks(model)
    base = unwrap(model)
    if model.training:
        warnings.warn(
            "The model was in training mode (dropout on); switched to eval mode.", PersonaWarning, stacklevel=2
        )
        model.eval()
    config = base.config.get_text_config(decoder=True)
    return LanguageModel(
        model=model,
        tokenizer=tokenizer,
        chat=ChatFormat(tokenizer, template_kwargs),
        blocks=blocks,
        name=name or getattr(base.config, "_name_or_path", "") or type(base).__name__,
        revision=revision,
        adapter=adapter or _adapter_name(model),
        adapter_revision=adapter_revision,
        eos_ids=eos_ids(base, tokenizer),
        context_length=context_length(config),
        forward_arguments=frozenset(inspect.signature(base.forward).parameters),
        static_cache=static_cache,
    )


def _quantization(kind: str | None) -> Any:
    """The transformers configuration of 8- or 4-bit weights."""
    if kind is None:
        return None
    if kind not in ("8bit", "4bit"):
        raise SettingError(f"quantization={kind!r}; expected None, '8bit' or '4bit'.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise SettingError(f"quantization={kind!r} needs bitsandbytes: pip install bitsandbytes.")
    from transformers import BitsAndBytesConfig

    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


def _pick_device(device: str) -> torch.device | None:
    if device == "balanced":
        return None
    if device != "auto":
        try:
            chosen = torch.device(device)
            torch.empty(0, device=chosen)
        except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
            raise SettingError(f"device={device!r} cannot be used here: {error}") from error
        return chosen
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def context_length(config: Any) -> int | None:
    """Longest text in tokens; None where the config does not say.

    With longrope (Phi 3, Phi 4 mini) it ends at the original length: the frequencies change there for all tokens, those
    before it too, so what was read while a longer reply was written could not be read again.
    """
    longest = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        original = rope.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        longest = original or longest
    if config.model_type == "moshi":  # its cache slides and its mask does not: beyond the window, two readings
        longest = min(longest or config.sliding_window, config.sliding_window)
    return longest if isinstance(longest, int) and longest > 0 else None


def _adapter_name(model: Any) -> str | None:
    """Name of the active adapter, so that a PEFT model is never mistaken for its base."""
    return f"peft:{model.active_adapter}" if getattr(model, "peft_config", None) else None


def eos_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every id that ends a reply: the generation config's and the tokenizer's.

    Raises:
        CorruptFile: something else than an id or a list of ids.
    """
    generation = getattr(model, "generation_config", None)
    ids: set[int] = set()
    for source in (getattr(generation, "eos_token_id", None), tokenizer.eos_token_id):
        own = source if isinstance(source, (list, tuple)) else [] if source is None else [source]
        if not all(is_integer(token_id, 0) for token_id in own):
            raise CorruptFile(f"eos_token_id is {source!r} in the generation config; expected a token id or a list.")
        ids.update(own)
    return frozenset(ids)
