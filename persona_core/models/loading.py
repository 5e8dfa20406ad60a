"""Load a causal language model and everything that is needed to read it."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from persona_core.errors import CorruptFile, NotFound, PersonaWarning, PromptError, SettingError
from persona_core.models.blocks import Blocks, find_blocks, unwrap
from persona_core.models.chat import ChatFormat
from persona_core.utils.hub import commit_of, fetch, public_name, resolve_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# transformers 5.23 ties weights under switches of the whole process: of two threads that load at once, one finds its
# "lm_head.weight" missing (8 of 8 times with the demo model).
_one_at_a_time = threading.Lock()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LanguageModel:
    """A model with its tokenizer, its chat format and its blocks. Nothing here changes its weights or its modules.

    Attributes:
        model: the transformers model, or the PEFT wrapper around one, in eval mode.
        tokenizer: its tokenizer.
        chat: renders conversations to ids.
        blocks: the decoder's blocks, verified.
        name, revision, adapter, adapter_revision: where it came from, for provenance.
        eos_ids: every id that ends a reply.
        context_length: positions that the model can read; None if unbounded.
        forward_arguments: names that the model's forward accepts.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    chat: ChatFormat
    blocks: Blocks
    name: str
    revision: str | None
    adapter: str | None
    adapter_revision: str | None
    eos_ids: frozenset[int]
    context_length: int | None
    forward_arguments: frozenset[str] = field(repr=False)

    @property
    def writer_name(self) -> str:
        """The model's name as a writer: its adapter is part of it, the path to a folder is not."""
        names = (self.name,) if self.adapter is None else (self.name, self.adapter)
        return " + ".join(map(public_name, names))

    @property
    def record(self) -> dict[str, Any]:
        """What numbers that were read from this model rest on, as plain values."""
        quantized = getattr(unwrap(self.model).config, "quantization_config", None)
        return {
            "name": public_name(self.name),
            "revision": self.revision,
            "adapter": None if self.adapter is None else public_name(self.adapter),
            "adapter_revision": self.adapter_revision,
            "template_fingerprint": self.chat.fingerprint,
            "dtype": str(self.dtype).removeprefix("torch."),
            **({} if quantized is None else {"quantization": str(quantized.quant_method) + _bits(quantized)}),
        }

    @property
    def identity(self) -> dict[str, Any]:
        """`record` and "weights", 16 hex digits: tells another model in a folder of the same name.

        They are over the first and last 8 numbers of every weight, an adapter's too; weights that are kept elsewhere
        (offloaded) are left out.
        """
        digest = hashlib.sha256()
        for name, weight in self.model.named_parameters():
            if not weight.is_meta:
                flat = weight.detach().flatten()
                sample = torch.cat([flat[:8], flat[-8:]]).float().cpu()
                digest.update(name.encode() + sample.numpy().tobytes())
        return {**self.record, "weights": digest.hexdigest()[:16]}

    @property
    def device(self) -> torch.device:
        """The device that token ids go to."""
        return self.model.get_input_embeddings().weight.device

    @property
    def dispatched(self) -> bool:
        """Whether accelerate moves weights or states between devices around each module's forward."""
        return bool(getattr(self.model, "hf_device_map", None))

    @property
    def dtype(self) -> torch.dtype:
        return self.model.get_input_embeddings().weight.dtype

    def refuse_training(self) -> None:
        """Refuse a model in training mode, whose dropout would make every number another at each reading.

        Raises:
            SettingError.
        """
        if self.model.training:
            raise SettingError(f"{self.name!r} is in training mode, where dropout acts; call model.eval() before.")

    @property
    def why_not_finite(self) -> str:
        """What may have made a number NaN or infinite, and what to do: the end of an error's message."""
        if self.dtype == torch.float16:
            return "float16 overflows on some models: load it with dtype='bfloat16' or 'float32'."
        return "Its weights may hold NaN."

    def check_ids(self, ids: Sequence[int]) -> None:
        """Refuse a text that the model cannot be given.

        Raises:
            PromptError: no token, or one without a row in the embedding table.
        """
        if not ids:
            raise PromptError("The text holds no token.")
        size = self.vocabulary_size
        wrong = next((i for i in ids if not 0 <= i < size), None)
        if wrong is not None:
            raise PromptError(
                f"Token {wrong} has no embedding: {self.name!r} has {size}. Where tokens were added to "
                "the tokenizer, call model.resize_token_embeddings(len(tokenizer))."
            )

    @property
    def vocabulary_size(self) -> int:
        """Rows of the embedding table: every valid token id is below this."""
        return int(self.model.get_input_embeddings().weight.shape[0])


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
) -> LanguageModel:
    """Load a causal language model from the Hub or a local folder.

    Args:
        name: a Hub id such as "Qwen/Qwen2.5-1.5B-Instruct", or a folder.
        revision: commit, tag or branch on the Hub.
        adapter: a PEFT adapter, Hub id or folder, put on top without merging (a merge would round bf16 weights).
        adapter_revision: as `revision`, for the adapter.
        dtype: "auto" keeps the checkpoint's (float16 becomes float32 on a CPU); else "float32", "bfloat16", "float16".
        device: "auto" takes CUDA, then MPS, then the CPU; "balanced" spreads a large model over all devices
            (`device_map="auto"` of accelerate); else a torch device such as "cuda:1".
        quantization: "8bit" or "4bit" weights through bitsandbytes; states are read as the model computes them.
        template_kwargs: arguments for the chat template, e.g. `{"enable_thinking": False}`.

    Raises:
        NotFound: no such repository, revision or folder, or its weights are not safetensors.
        UnsupportedModel: its residual stream cannot be read.

    >>> lm = load_model("artifacts/persona-tiny")
    >>> len(lm.blocks), lm.blocks.d_model
    (6, 192)
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if dtype != "auto" and dtype not in DTYPES:
        raise SettingError(f"dtype={dtype!r}; expected 'auto' or one of {', '.join(DTYPES)}.")
    quantized = _quantization(quantization)
    target = _pick_device(device)
    name = resolve_source(name)
    with _explained(f"the model {name!r}{_at(revision)}"):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        with _one_at_a_time:
            model, loading = AutoModelForCausalLM.from_pretrained(
                name,
                revision=revision,
                dtype="auto" if dtype == "auto" else DTYPES[dtype],
                # bitsandbytes places the weights itself, so the device is said here and not moved to afterwards
                device_map="auto" if target is None else {"": target} if quantized is not None else None,
                quantization_config=quantized,
                use_safetensors=True,  # a pickle is never opened
                output_loading_info=True,
            )
    missing = sorted(loading["missing_keys"])
    if missing:  # transformers fills them with random numbers and goes on
        raise CorruptFile(f"{name!r} lacks {len(missing)} weights of a {type(model).__name__}, e.g. {missing[0]!r}.")
    if target is not None and quantized is None:
        if dtype == "auto" and target.type == "cpu" and model.dtype == torch.float16:
            model = model.float()  # half precision on a CPU is slow, and overflows on Gemma
        model = model.to(target)
    if adapter is not None:
        model, adapter_revision = _with_adapter(model, adapter, adapter_revision)
    return wrap_model(
        model,
        tokenizer,
        name=name,
        revision=commit_of(name, "config.json", revision),
        adapter=None if adapter is None else str(adapter),
        adapter_revision=adapter_revision,
        template_kwargs=template_kwargs,
    )


def wrap_model(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str | None = None,
    revision: str | None = None,
    adapter: str | None = None,
    adapter_revision: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> LanguageModel:
    """Make a `LanguageModel` of a transformers or PEFT model that is already in memory.

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
    context = getattr(config, "max_position_embeddings", None)
    return LanguageModel(
        model=model,
        tokenizer=tokenizer,
        chat=ChatFormat(tokenizer, template_kwargs),
        blocks=blocks,
        name=name or getattr(base.config, "_name_or_path", "") or type(base).__name__,
        revision=revision,
        adapter=adapter or _adapter_name(model),
        adapter_revision=adapter_revision,
        eos_ids=_eos_ids(base, tokenizer),
        context_length=context if isinstance(context, int) and context > 0 else None,
        forward_arguments=frozenset(inspect.signature(base.forward).parameters),
    )


def _bits(quantized: Any) -> str:
    return "".join(f", {n} bits" for n in (4, 8) if getattr(quantized, f"load_in_{n}bit", False))


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


def _with_adapter(model: Any, adapter: str | Path, revision: str | None) -> tuple[Any, str | None]:
    """The model with the adapter on top, and the adapter's commit on the Hub; a folder has none."""
    from peft import PeftModel

    source = resolve_source(adapter)
    commit = commit_of(source, "adapter_config.json", revision)
    fetch(source, "adapter_model.safetensors", revision)  # PEFT would open a pickle in its place
    with _explained(f"the adapter {source!r}{_at(revision)}"), warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.23 for a property by its old name; a user can do nothing about it.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        # Read on the CPU and copied to where the model is: PEFT would take the first GPU, whichever the model is on,
        # and on ZeroGPU there is none yet.
        return PeftModel.from_pretrained(model, source, revision=revision, torch_device="cpu").eval(), commit


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Say what could not be loaded, and tell what is missing from what is broken."""
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        raise NotFound(f"Could not load {what}: {error}") from error
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ImportError) as error:
        raise CorruptFile(f"Could not load {what}: {type(error).__name__}: {error}") from error


def _at(revision: str | None) -> str:
    return f" at revision {revision!r}" if revision else ""


def _adapter_name(model: Any) -> str | None:
    """A PEFT model is never taken for its base, even where nobody named the adapter."""
    return f"peft:{model.active_adapter}" if getattr(model, "peft_config", None) else None


def _eos_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every id that ends a reply: the generation config's, and the tokenizer's own end of sequence."""
    generation = getattr(model, "generation_config", None)
    ids: set[int] = set()
    for source in (getattr(generation, "eos_token_id", None), tokenizer.eos_token_id):
        if source is not None:
            ids.update([source] if isinstance(source, int) else source)
    return frozenset(ids)
